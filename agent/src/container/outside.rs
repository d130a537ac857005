//! What a process in a user namespace of its own can't do for itself, and the server, which is the guest's administrator,
//! does for it.

use std::os::fd::OwnedFd;

use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::{HELP, HELPED, Report},
    devices,
    failure::{Doing, Failure},
    mounts::{self, Share},
    namespaces::{self, GuestProc},
    privileges,
};
use crate::{
    linux::{mount::map_ids, user_namespace},
    oci::{Container, Mount, MountKind, NamespaceSource, Namespaces, Pause, to_outside},
};

/// Whether a mount of a container in a user namespace has to be made outside of it. Only the guest's administrator finds the way
/// to the pod's files, whoever owns the directories above them, and may map ids. And a file system that shows what belongs to a
/// namespace is for that one's administrator: the network, which `sysfs` shows, is always the guest's, and so are cgroups and
/// message queues for a container that has none of its own.
pub fn needs_help(mount: &Mount, namespaces: &Namespaces) -> bool {
    let guests = |name: &str| match name {
        "sysfs" => true,
        "cgroup2" => !namespaces.cgroup,
        "mqueue" => namespaces.ipc == NamespaceSource::Guest,
        _ => false,
    };
    match &mount.kind {
        MountKind::Bind { .. } | MountKind::Volume(_) => true,
        MountKind::FileSystem { name } => mount.options.id_map.is_some() || guests(name),
        MountKind::Present => false,
    }
}

/// The process's end: asks, and receives.
#[derive(Debug)]
pub struct Helper<'a>(&'a SeqPacket);

impl<'a> Helper<'a> {
    /// Asks for help, and waits until the process has its mappings.
    ///
    /// # Errors
    /// The server is gone.
    pub fn ask(channel: &'a SeqPacket) -> Result<Self, Failure> {
        channel
            .send(&Report::Unprivileged.encode(), &[])
            .map_err(|error| Failure::Refused(format!("asking the server for help: {error}")))?;
        match channel.receive(&mut [0; 8]) {
            Ok((HELPED, fds)) if fds.is_empty() => Ok(Self(channel)),
            _ => Err(no_help()),
        }
    }

    /// The next of what [`help`] has made.
    ///
    /// # Errors
    /// There is no more, or no server.
    pub fn receive(&mut self) -> Result<OwnedFd, Failure> {
        match self.0.receive(&mut [0; 8]) {
            Ok((HELP, mut fds)) if fds.len() == 1 => Ok(fds.remove(0)),
            _ => Err(no_help()),
        }
    }
}

fn no_help() -> Failure {
    Failure::Refused("the server does not help".to_owned())
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
/// are nowhere yet: device nodes, named by their number in [`Container::devices`], the root file system, and then what the mounts
/// which [`needs_help`] show, in their order.
///
/// # Errors
/// The field that can't be applied.
pub fn help(container: &Container, pid: i32) -> Result<Vec<OwnedFd>, Failure> {
    let proc = GuestProc::open()?;
    map(&container.namespaces, pid)?;
    privileges::adjust_oom_score(&container.process, pid, &proc)?;
    privileges::raise_limits(&container.process, pid)?;
    privileges::schedule(&container.process, pid)?;
    namespaces::set_network_parameters(&container.sysctl, &proc)?;
    let share = Share::open()?;
    let mut made = vec![
        devices::stage(&container.devices, &container.namespaces.id_mappings)?,
        mounts::root_tree(&share, &container.root.path)?,
    ];
    let helped = |mount: &&Mount| needs_help(mount, &container.namespaces);
    for mount in container.mounts.iter().filter(helped) {
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

/// [`help`] for the pod's own process, which is given nothing.
///
/// # Errors
/// The field that can't be applied.
pub fn help_pause(pause: &Pause, pid: i32) -> Result<Vec<OwnedFd>, Failure> {
    map(&pause.namespaces, pid)?;
    namespaces::set_network_parameters(&pause.sysctl, &GuestProc::open()?)?;
    Ok(Vec::new())
}

/// A namespace of the pod's has its mappings already.
fn map(namespaces: &Namespaces, pid: i32) -> Result<(), Failure> {
    if namespaces.user != NamespaceSource::New {
        return Ok(());
    }
    user_namespace::map(&format!("/proc/{pid}"), &namespaces.id_mappings).doing(|| "linux.uidMappings")
}
