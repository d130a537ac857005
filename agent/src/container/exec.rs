//! The order in which a further process joins a container, waits, and executes its program.

use nix::{
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{prctl, stat::Mode},
};
use sealock_protocol::seqpacket::SeqPacket;

use super::{
    descriptors::{Descriptors, Given, read_plan},
    failure::{Doing, Failure},
    namespaces::GuestProc,
    privileges,
    program::{self, Program, Stdio},
    rootfs::RootFs,
    terminal,
};
use crate::oci::Container;

/// Becomes a process of a running container. Called in a new process, in the container's cgroup and, by way of a descriptor of
/// the container's first process, in its process id namespace.
pub fn run(descriptors: Descriptors) -> ! {
    let closed = descriptors.close_others();
    let (given, channel) = descriptors.split();
    let prepared = closed.and_then(|()| prepare(given, &channel));
    program::finish(&channel, prepared)
}

fn prepare(given: Given, channel: &SeqPacket) -> Result<Program, Failure> {
    program::begin()?;
    // The container's processes see this one from now on: they are not to look into it before it has executed its program,
    // which undoes this.
    prctl::set_dumpable(false).doing(|| "hiding the process from the container")?;
    let container: Container = read_plan(given.plan)?;
    let proc = GuestProc::open()?;
    privileges::adjust_oom_score(&container.process, &proc)?;
    for (_, first) in given.join {
        // All at once; root and working directory are then those of the container, too.
        setns(&first, namespaces(&container)).doing(|| "joining the container's namespaces")?;
    }
    let terminal = match container.process.terminal {
        Some(size) => {
            let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = open("/", how, Mode::empty()).doing(|| "opening the container's root")?;
            let rootfs = RootFs::new(root);
            let uid = container.process.user.uid;
            Some(terminal::open(&rootfs, size, uid, &proc, channel)?)
        }
        None => None,
    };
    drop(proc);
    let stdio = Stdio::new(given.stdio, terminal)?;
    program::prepare(&container, stdio, channel)
}

/// Every namespace that a container may have apart from the guest, but for that of process ids, in which the process has been
/// created. Joining one that is the guest's does nothing.
fn namespaces(_container: &Container) -> CloneFlags {
    CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
}
