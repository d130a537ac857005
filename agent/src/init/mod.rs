//! Process 1: the guest's beginning, its reaper, and the only creator of processes.
//!
//! Single-threaded, and small: its memory is spent in every pod. It reads nothing that a container has written.

mod boot;
mod children;
mod console;
mod hello;

use std::process::ExitCode;

use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        signal::{SigSet, Signal},
    },
    unistd::getpid,
};
use sealock_protocol::timeline::boottime_ns;

pub use console::log;

use self::{boot::BootError, children::Children, hello::Hello};
use crate::{link, linux::process::fork, server};

/// Where the pod's file share is mounted.
pub const SHARE: &str = "/run/sealock/share";

/// Where each container has its root file system before it becomes its root; in a mount namespace of its own.
pub const ROOTFS: &str = "/run/sealock/rootfs";

/// Where the pod's own volumes are mounted, by number.
pub const VOLUMES: &str = "/run/sealock/volumes";

/// Where the hierarchy of cgroups is mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The cgroup below which every container has one.
pub const CGROUPS: &str = "/sys/fs/cgroup/sealock";

/// Why the guest ends.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Hello(#[from] hello::HelloError),
    #[error(transparent)]
    Children(#[from] children::ChildrenError),
    #[error("starting the server: {0}")]
    Server(#[source] std::io::Error),
}

/// Runs the guest until the pod ends, then powers it off.
pub fn run() -> ExitCode {
    let began_ns = boottime_ns();
    if let Err(error) = serve(began_ns) {
        console::last_words(&error.to_string());
    }
    power_off()
}

fn serve(began_ns: u64) -> Result<(), InitError> {
    // The host answers while the file systems are mounted; the hello leaves at the first opportunity.
    let mut hello = Hello::begin(began_ns)?;
    for step in boot::STEPS {
        step()?;
        hello.advance()?;
    }
    let host = hello.finish()?;
    let (ours, theirs) = link::pair().map_err(InitError::Server)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals
        .thread_block()
        .map_err(|error| InitError::Server(error.into()))?;
    let Some(server) = fork().map_err(InitError::Server)? else {
        drop(ours);
        server::run(host, theirs);
    };
    drop((host, theirs));
    Children::new(ours, server, &signals)?.serve()?;
    Ok(())
}

/// Ends the guest. Nothing is written back: what was to be kept has been by the time the host asks for the end.
pub fn power_off() -> ! {
    // The server may be the one to say it: it lives in the guest's own process id namespace.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    log(&format!("powering off: {error}"));
    if getpid().as_raw() == 1 {
        // The end of process 1 is a kernel panic, of which the VMM hears too.
        std::process::abort();
    }
    std::process::exit(1)
}
