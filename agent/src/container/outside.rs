//! What a process in a user namespace of its own can't do for itself, and the server, which is the guest's administrator,
//! does for it.

use std::os::fd::OwnedFd;

use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::{HELP, Report},
    devices,
    failure::{Doing, Failure},
    mounts::{self, Share},
    namespaces::{self, GuestProc},
    privileges,
};
use crate::{
    linux::{mount::map_ids, user_namespace},
    oci::{Container, MountKind, NamespaceSource, to_outside},
};

/// Whether a mount of a container in a user namespace has to be made outside of it: `sysfs` belongs to the network namespace,
/// which is the guest's, and only the guest's administrator may map ids of the guest's file systems.
pub fn needs_help(mount: &crate::oci::Mount) -> bool {
    mount.options.id_map.is_some() || matches!(&mount.kind, MountKind::FileSystem { name } if name == "sysfs")
}

/// The process's end: asks, and receives.
#[derive(Debug)]
pub struct Helper<'a>(&'a SeqPacket);

impl<'a> Helper<'a> {
    /// Asks for help, and receives the first of it: when that has come the process has its mappings, too.
    ///
    /// # Errors
    /// The server is gone.
    pub fn ask(channel: &'a SeqPacket) -> Result<(Self, OwnedFd), Failure> {
        channel
            .send(&Report::Unprivileged.encode(), &[])
            .map_err(|error| Failure::Refused(format!("asking the server for help: {error}")))?;
        let mut helper = Self(channel);
        let first = helper.receive()?;
        Ok((helper, first))
    }

    fn receive(&mut self) -> Result<OwnedFd, Failure> {
        match self.0.receive(&mut [0; 8]) {
            Ok((HELP, mut fds)) if fds.len() == 1 => Ok(fds.remove(0)),
            _ => Err(Failure::Refused("the server does not help".to_owned())),
        }
    }
}

impl Iterator for Helper<'_> {
    type Item = OwnedFd;

    fn next(&mut self) -> Option<OwnedFd> {
        self.receive().ok()
    }
}

/// Whose the standard streams are to be, for the container's user may open /dev/stdout anew: its number outside, if the process
/// can't see to it itself.
///
/// # Errors
/// The user has no number outside.
pub fn streams_owner(container: &Container) -> Result<Option<u32>, Failure> {
    if container.namespaces.user == NamespaceSource::Guest {
        return Ok(None);
    }
    let inside = container.process.user.uid;
    match to_outside(&container.namespaces.id_mappings.users, inside) {
        None => Err(Failure::Refused(format!(
            "process.user.uid: {inside} is not in linux.uidMappings"
        ))),
        outside => Ok(outside),
    }
}

/// Helps the process `pid` of the guest, which is in its user namespace and waits. What it is given, one by one, are mounts that
/// are nowhere yet: device nodes, named by their number in [`Container::devices`], and then what the mounts which [`needs_help`]
/// show, in their order.
///
/// # Errors
/// The field that can't be applied.
pub fn help(container: &Container, pid: i32) -> Result<Vec<OwnedFd>, Failure> {
    let proc = GuestProc::open()?;
    let own = container.namespaces.user == NamespaceSource::New;
    if own {
        user_namespace::map(&format!("/proc/{pid}"), &container.namespaces.id_mappings)
            .doing(|| "linux.uidMappings")?;
    }
    privileges::adjust_oom_score(&container.process, pid, &proc)?;
    privileges::raise_limits(&container.process, pid)?;
    privileges::schedule(&container.process, pid)?;
    namespaces::set_network_parameters(container, &proc)?;
    let share = Share::open()?;
    let mut made = vec![devices::stage(
        &container.devices,
        &container.namespaces.id_mappings,
    )?];
    for mount in container.mounts.iter().filter(|mount| needs_help(mount)) {
        let tree = mounts::tree(mount, &share)?;
        if let Some(recursive) = mounts::id_map_depth(mount) {
            let namespace = proc
                .open_namespace(pid, "user")
                .doing(|| format!("{}: opening the user namespace", mount.field))?;
            map_ids(&tree, namespace, recursive)
                .doing(|| format!("{}.uidMappings: mapping the ids of its files", mount.field))?;
        }
        made.push(tree);
    }
    Ok(made)
}
