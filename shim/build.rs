//! Generates the messages that containerd passes on from Kubernetes.

use std::{env, error::Error, fs, path::PathBuf};

const SOURCE: &str = "proto/pod_sandbox.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    ttrpc_codegen::Codegen::new()
        .inputs([SOURCE])
        .include("proto")
        .rust_protobuf()
        .out_dir(&out)
        .run()?;
    // `include!` takes no inner attributes, which the generator writes at the top of the file.
    let path = out.join("pod_sandbox.rs");
    let text: String = fs::read_to_string(&path)?
        .lines()
        .filter(|line| !line.starts_with("#!") && !line.starts_with("//!"))
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(&path, text)?;
    Ok(())
}
