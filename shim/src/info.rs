//! What this runtime is.

use std::io::{self, Write};

use containerd_shim_protos::{
    protobuf::Message,
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Answers containerd 2's `-info`: a `containerd.types.RuntimeInfo`.
///
/// # Errors
/// Standard output is closed.
pub fn print() -> io::Result<()> {
    let mut version = RuntimeVersion::new();
    version.version = VERSION.to_owned();
    let mut info = RuntimeInfo::new();
    info.name = "io.containerd.sealock.v2".to_owned();
    info.version = Some(version).into();
    let bytes = info.write_to_bytes().map_err(io::Error::other)?;
    io::stdout().write_all(&bytes)
}

/// Prints the version for a person.
///
/// # Errors
/// Standard output is closed.
pub fn print_version() -> io::Result<()> {
    writeln!(io::stdout(), "containerd-shim-sealock-v2 {VERSION}")
}
