//! The pod's own process: it holds the namespaces that the pod's containers join, and reaps what is left to it.
//!
//! It executes nothing, for it is all that there is to execute, and has no files and no rights: containers that share its
//! process id namespace see it.

use std::{
    os::fd::{AsFd, AsRawFd},
    process::exit,
};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        stat::Mode,
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::Report,
    descriptors::{Descriptors, Given, read_plan},
    failure::{Doing, Failure},
    namespaces::{self, GuestProc},
    outside::Helper,
    program,
    root::exchange_root,
};
use crate::{
    init::ROOTFS,
    linux::{
        capability,
        mount::{NewFileSystem, attach, make_read_only},
        process::{close_all_but, reap},
    },
    oci::{Capabilities, NamespaceSource, Pause, to_outside},
};

/// Who it is: nobody that a container's processes are.
const NOBODY: u32 = 65_535;

/// Becomes the pod's own process. Called in a new process, in the cgroup and the new namespaces of the pod's own container.
pub fn run(descriptors: Descriptors) -> ! {
    let closed = descriptors.close_others();
    let (given, channel) = descriptors.split();
    let signals = match closed.and_then(|()| prepare(given, &channel)) {
        Ok(signals) => signals,
        Err(failure) => program::fail(&channel, &failure),
    };
    // Without a server to hear it, init ends the guest.
    let _ = channel.send(&Report::Ready.encode(), &[]);
    drop(channel);
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => while reap().is_some() {},
            // As the pause program that it stands for does.
            Ok(_) => exit(0),
            Err(_) => {}
        }
    }
}

/// Gives the signals to wait for.
fn prepare(given: Given, channel: &SeqPacket) -> Result<SigSet, Failure> {
    program::begin()?;
    let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT]);
    // Blocked, they wait until they are asked for, even though the first process of a namespace ignores them otherwise.
    signals.thread_set_mask().doing(|| "blocking signals")?;
    prctl::set_dumpable(false).doing(|| "hiding the process from the pod")?;
    prctl::set_name(c"pause").doing(|| "naming the process")?;
    let pause: Pause = read_plan(given.plan)?;
    let proc = GuestProc::open()?;
    let user = pause.namespaces.user;
    if user != NamespaceSource::Guest {
        // It gives nothing but the mappings.
        Helper::ask(channel)?;
    }
    let names = [&pause.hostname, &pause.domainname].map(Option::as_deref);
    namespaces::configure_names(names, &pause.sysctl, &proc)?;
    if user != NamespaceSource::Guest {
        namespaces::become_administrator()?;
    }
    namespaces::configure(user, &pause.sysctl, &proc)?;
    drop(proc);
    empty_root()?;
    close_all_but(&[channel.as_fd().as_raw_fd()]).doing(|| "closing descriptors")?;
    let doing = || "giving up the rights of the pod's own process";
    capability::limit_bounding(&Capabilities::default()).doing(doing)?;
    setgroups(&[]).doing(doing)?;
    let mapped = &pause.namespaces.id_mappings;
    let is_there = |ranges| user == NamespaceSource::Guest || to_outside(ranges, NOBODY).is_some();
    // Where there is nobody it stays who it is, without any rights.
    if is_there(&mapped.users) && is_there(&mapped.groups) {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setresgid(gid, gid, gid).doing(doing)?;
        setresuid(uid, uid, uid).doing(doing)?;
    }
    capability::set(&Capabilities::default()).doing(doing)?;
    Ok(signals)
}

/// An empty directory for a root: what else there is in the guest is not to be reached by way of this process.
fn empty_root() -> Result<(), Failure> {
    let doing = || "root: making an empty one";
    let file_system = NewFileSystem::open(c"tmpfs").doing(doing)?;
    file_system.set(c"nr_inodes", Some(c"1")).doing(doing)?;
    let tree = file_system.mount().doing(doing)?;
    make_read_only(&tree, false).doing(doing)?;
    let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let place = open(ROOTFS, how, Mode::empty()).doing(doing)?;
    attach(&tree, place).doing(doing)?;
    exchange_root(&tree)
}
