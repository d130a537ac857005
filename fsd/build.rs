//! Compiles the filters of system calls.

use std::{env, error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let filters = format!("filters/{}.json", env::var("CARGO_CFG_TARGET_ARCH")?);
    let output = env::var("OUT_DIR")?;
    sealock_jail::compile::compile(Path::new(&filters), &Path::new(&output).join("filters.rs"))
}
