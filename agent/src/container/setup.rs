//! The order in which a container's first process becomes ready, waits, and executes its program.

use std::os::fd::AsFd;

use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::Report,
    descriptors::{Descriptors, Given, read_plan},
    devices,
    failure::{Doing, Failure},
    hooks,
    mounts::{self, Share},
    namespaces::{self, GuestProc},
    outside::Helper,
    privileges,
    program::{self, Program, Stdio},
    root::exchange_root,
    terminal::{self, Slave},
};
use crate::{
    linux::mount,
    oci::{Container, NamespaceSource},
};

/// Becomes the container's first process. Called in a new process, in the cgroup and the new namespaces of the container.
pub fn run(descriptors: Descriptors) -> ! {
    let closed = descriptors.close_others();
    let (given, channel) = descriptors.split();
    let prepared = closed.and_then(|()| prepare(given, &channel));
    if prepared.is_ok() {
        // Without a server to hear it there is none to wait for either.
        let _ = channel.send(&Report::Ready.encode(), &[]);
    }
    program::finish(&channel, prepared)
}

fn prepare(given: Given, channel: &SeqPacket) -> Result<Program, Failure> {
    program::begin()?;
    let container: Container = read_plan(given.plan)?;
    let proc = GuestProc::open()?;
    let help = if container.namespaces.user == NamespaceSource::Guest {
        None
    } else {
        Some(Helper::ask(channel)?)
    };
    namespaces::set_clocks(&container, &proc)?;
    let helped = help.is_some();
    if !helped {
        privileges::adjust_oom_score(&container.process, 0, &proc)?;
    }
    namespaces::enter(&container, &given.join)?;
    drop(given.join);
    let names = [&container.hostname, &container.domainname].map(Option::as_deref);
    namespaces::configure_names(names, &container.sysctl, &proc)?;
    if helped {
        namespaces::become_administrator()?;
    }
    namespaces::configure(container.namespaces.user, &container.sysctl, &proc)?;
    let terminal = enter_root(&container, &proc, channel, help)?;
    drop(proc);
    if !helped {
        privileges::schedule(&container.process, 0)?;
    }
    let stdio = Stdio::new(given.stdio, terminal)?;
    let program = program::prepare(&container, stdio, channel)?;
    Ok(program.with_hooks(container.hooks))
}

/// Builds the container's root file system and makes it the process's. Gives the terminal that was opened in it.
fn enter_root(
    container: &Container,
    proc: &GuestProc,
    channel: &SeqPacket,
    mut help: Option<Helper<'_>>,
) -> Result<Option<Slave>, Failure> {
    let share = Share::open()?;
    let (staged, tree) = match &mut help {
        None => (None, mounts::root_tree(&share, &container.root.path)?),
        Some(helper) => (Some(helper.receive()?), helper.receive()?),
    };
    let rootfs = mounts::attach_root(tree)?;
    let read_only_later = mounts::mount_all(&rootfs, &share, container, help)?;
    devices::create(&rootfs, &container.devices, container.own_dev, staged)?;
    // While /dev can still be written to.
    let terminal = match container.process.terminal {
        Some(size) => {
            let slave = terminal::open(&rootfs, size, container.process.user.uid, proc, channel)?;
            slave.mount_as_console(&rootfs)?;
            Some(slave)
        }
        None => None,
    };
    mounts::mask(&rootfs, &container.masked_paths)?;
    mounts::protect(&rootfs, &container.readonly_paths)?;
    for mount in read_only_later {
        mount::make_read_only(mount, false).doing(|| "mounts: making a file system read-only")?;
    }
    if container.root.read_only {
        mount::make_read_only(&rootfs, false).doing(|| "root.readonly")?;
    }
    hooks::create_container(&container.hooks, rootfs.as_fd())?;
    exchange_root(&rootfs)?;
    if let Some(propagation) = container.root.propagation {
        mount::set_propagation(&rootfs, propagation).doing(|| "linux.rootfsPropagation")?;
    }
    Ok(terminal)
}
