//! The guest's init: runs a pod's containers.
//!
//! Two processes, because forking a multi-threaded program is unsound:
//! - [`init`] is process 1: it mounts what the guest needs, says hello to the host, reaps, and alone creates processes.
//! - [`server`] answers the host's requests ([`sealock_protocol::agent`]) and asks init, over [`link`], for processes.
//!
//! [`oci`] turns a container's specification into a plan that cannot be wrong, or refuses it; [`container`] carries the
//! plan out, in the container's own process; [`linux`] holds the system calls that have no safe wrapper elsewhere.

#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

mod cgroup;
mod container;
mod device_program;
mod init;
mod link;
mod linux;
mod oci;
mod server;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "sealock-agent: this is the init of Sealock's guests; it runs as process 1 of a microVM only"
        );
        return ExitCode::FAILURE;
    }
    init::run()
}
