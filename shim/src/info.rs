//! What this runtime is.

use std::io::{self, Write};

use containerd_shim_protos::{
    protobuf::{Message, well_known_types::any::Any},
    types::introspection::{RuntimeInfo, RuntimeVersion},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What containerd calls the OCI specification's `features.md` in JSON.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// What `ctr plugins inspect-runtime` and others ask for: containerd's Kubernetes plugin only when the handler's type is runc's
/// (2.1).
fn features() -> serde_json::Value {
    serde_json::json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "mountOptions": [
            "atime", "bind", "defaults", "dev", "diratime", "exec", "idmap", "loud", "noatime", "nodev", "nodiratime", "noexec",
            "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind", "rdev", "rdiratime",
            "relatime", "remount", "rexec", "ridmap", "rnoatime", "rnodev", "rnodiratime", "rnoexec", "rnorelatime",
            "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime", "rro", "rrw", "rslave",
            "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw", "silent", "slave", "strictatime", "suid",
            "symfollow", "tmpcopyup", "unbindable",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": {"v1": false, "v2": true, "systemd": true, "systemdUser": false, "rdma": false},
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
    })
}

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
    let mut any = Any::new();
    FEATURES_TYPE.clone_into(&mut any.type_url);
    any.value = serde_json::to_vec(&features()).map_err(io::Error::other)?;
    info.features = Some(any).into();
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
