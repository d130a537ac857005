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
    namespaces::{GuestProc, become_administrator},
    privileges,
    program::{self, Program, Stdio},
    rootfs::RootFs,
    terminal,
};
use crate::{
    linux::scheduling::{online_cpus, set_affinity},
    oci::{Container, CpuList, NamespaceSource},
};

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
    let process = &container.process;
    // What takes the guest's own rights comes before they are left behind.
    privileges::adjust_oom_score(process, 0, &proc)?;
    privileges::raise_limits(process, 0)?;
    privileges::schedule(process, 0)?;
    let guests_cpus = |cpus: &Option<CpuList>| Some(cpus.as_ref()?.in_guest(online_cpus()));
    if let Some(cpus) = guests_cpus(&process.exec_affinity.initial) {
        set_affinity(0, &cpus).doing(|| "process.execCPUAffinity.initial")?;
    }
    let last = guests_cpus(&process.exec_affinity.last);
    for (_, first) in given.join {
        // All at once; root and working directory are then those of the container, too.
        setns(&first, namespaces(&container)).doing(|| "joining the container's namespaces")?;
    }
    if container.namespaces.user != NamespaceSource::Guest {
        become_administrator()?;
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
    let program = program::prepare(&container, stdio, channel)?;
    if let Some(cpus) = last {
        set_affinity(0, &cpus).doing(|| "process.execCPUAffinity.final")?;
    }
    Ok(program)
}

/// Every namespace that a container may have apart from the guest, but for that of process ids, in which the process has been
/// created. Joining one that is the guest's does nothing.
fn namespaces(container: &Container) -> CloneFlags {
    let mut all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    // A user namespace that one is in already can't be joined.
    all.set(
        CloneFlags::CLONE_NEWUSER,
        container.namespaces.user != NamespaceSource::Guest,
    );
    if container.namespaces.time {
        all |= CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    }
    all
}
