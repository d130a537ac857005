//! The order in which a container's first process becomes ready, waits, and executes its program.

use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::Report,
    descriptors::{Descriptors, Given, read_plan},
    devices,
    failure::{Doing, Failure},
    mounts::{self, Share},
    namespaces::{self, GuestProc},
    privileges,
    program::{self, Program, Stdio},
    root::exchange_root,
    terminal::{self, Slave},
};
use crate::{linux::mount, oci::Container};

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
    namespaces::enter(&container, &given.join)?;
    drop(given.join);
    let proc = GuestProc::open()?;
    namespaces::configure(&container, &proc)?;
    let terminal = enter_root(&container, &proc, channel)?;
    privileges::adjust_oom_score(&container.process, &proc)?;
    drop(proc);
    let stdio = Stdio::new(given.stdio, terminal)?;
    program::prepare(&container, stdio, channel)
}

/// Builds the container's root file system and makes it the process's. Gives the terminal that was opened in it.
fn enter_root(
    container: &Container,
    proc: &GuestProc,
    channel: &SeqPacket,
) -> Result<Option<Slave>, Failure> {
    let share = Share::open()?;
    let rootfs = mounts::attach_root(&share, &container.root.path)?;
    let read_only_later = mounts::mount_all(&rootfs, &share, &container.mounts)?;
    devices::create(&rootfs, &container.devices)?;
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
    exchange_root(&rootfs)?;
    if let Some(propagation) = container.root.propagation {
        mount::set_propagation(&rootfs, propagation).doing(|| "linux.rootfsPropagation")?;
    }
    Ok(terminal)
}
