//! `root`, `mounts`, `linux.maskedPaths` and `linux.readonlyPaths`, carried out.

use std::os::fd::{AsFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sys::{
        stat::{Mode, fchmod, fstat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};

use super::{
    copy_up::{copy_attributes, copy_up},
    failure::{Doing, Failure, c_string},
    outside::needs_help,
    rootfs::{RootFs, is_directory},
    volume,
};
use crate::{
    init::{ROOTFS, SHARE},
    linux::{
        mount::{
            NewFileSystem, attach, change_attributes, clone_tree, make_read_only, map_ids, set_propagation,
        },
        user_namespace,
    },
    oci::{AttributeChange, Bind, Container, Mount, MountKind, RootedPath, SharePath},
};

/// Files of `/proc` that may be mounted over: those that tools replace by a container's own view. Over others a mount
/// would hide the process's own attributes from the guest, or from whoever set the container up.
const REPLACEABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The pod's files.
#[derive(Debug)]
pub struct Share(OwnedFd);

impl Share {
    /// The share as init's mount namespace, or a copy of it, has it.
    ///
    /// # Errors
    /// It is not there.
    pub fn open() -> Result<Self, Failure> {
        let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(SHARE, how, Mode::empty())
            .doing(|| "opening the file share")
            .map(Self)
    }

    /// What is at `path`. The names on the way are the host's: none of them is a symbolic link.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn resolve(&self, path: &SharePath) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        // With a component after it, the last name is crossed into when the host has mounted something there.
        let inside = format!("{}/.", path.as_str());
        match openat2(&self.0, inside.as_str(), how) {
            Err(Errno::ENOTDIR) => openat2(&self.0, path.as_str(), how),
            result => result,
        }
    }
}

/// The container's root file system, mounted nowhere yet.
///
/// # Errors
/// It is not there, or no directory.
pub fn root_tree(share: &Share, path: &SharePath) -> Result<OwnedFd, Failure> {
    let doing = || format!("root.path: mounting {:?} of the file share", path.as_str());
    let source = share.resolve(path).doing(doing)?;
    if !is_directory(&source).doing(doing)? {
        return Err(Failure::Refused(format!(
            "root.path: {:?} is not a directory",
            path.as_str()
        )));
    }
    clone_tree(source, true).doing(doing)
}

/// Puts the container's root file system where [`ROOTFS`] is.
///
/// # Errors
/// The kernel refuses.
pub fn attach_root(tree: OwnedFd) -> Result<RootFs, Failure> {
    let doing = || "root.path: mounting it";
    let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let place = open(ROOTFS, how, Mode::empty()).doing(doing)?;
    attach(&tree, place).doing(doing)?;
    Ok(RootFs::new(tree))
}

/// Carries `mounts` out. What is to be made read-only when all is in place is handed back. `helped` gives, to a process that
/// can't make them, the trees of the mounts which [`needs_help`].
///
/// # Errors
/// The mount that can't be made.
pub fn mount_all(
    rootfs: &RootFs,
    share: &Share,
    container: &Container,
    mut helped: Option<impl Iterator<Item = OwnedFd>>,
) -> Result<Vec<OwnedFd>, Failure> {
    let mut read_only_later = Vec::new();
    for mount in &container.mounts {
        let doing = || format!("{}: mounting {:?}", mount.field, mount.destination);
        if mount.kind == MountKind::Present {
            change_present(rootfs, mount)?;
            continue;
        }
        let mut attributes = mount.options.attributes;
        let later = mount.starts_empty() && attributes.take_read_only();
        let before = rootfs.resolve(&mount.destination).ok();
        let tree = match &mut helped {
            Some(helped) if needs_help(mount, &container.namespaces) => {
                helped.next().ok_or(Errno::ENOENT).doing(doing)?
            }
            _ => mapped_tree(mount, share)?,
        };
        let place = match (&mount.kind, is_directory(&tree).doing(doing)?) {
            (MountKind::FileSystem { name }, _) if matches!(name.as_str(), "proc" | "sysfs") => {
                rootfs.ensure_directory(&mount.destination).doing(doing)?;
                rootfs.resolve_without_links(&mount.destination)
            }
            (_, true) => rootfs.ensure_directory(&mount.destination),
            (_, false) => rootfs.ensure_file(&mount.destination),
        }
        .doing(doing)?;
        refuse_to_hide_processes(&place, mount)?;
        if let Some(covered) = before
            && matches!(&mount.kind, MountKind::FileSystem { name } if name == "tmpfs")
        {
            take_over(&covered, &tree, mount).doing(doing)?;
        }
        change_attributes(&tree, attributes, false).doing(doing)?;
        change_attributes(&tree, mount.options.recursive_attributes, true).doing(doing)?;
        attach(&tree, place).doing(doing)?;
        for &propagation in &mount.options.propagation {
            set_propagation(&tree, propagation).doing(doing)?;
        }
        if later {
            read_only_later.push(tree);
        }
    }
    Ok(read_only_later)
}

/// What a mount shows, mounted nowhere yet and without its attributes and mapping.
///
/// # Errors
/// It is not there or can't be made.
pub fn tree(mount: &Mount, share: &Share) -> Result<OwnedFd, Failure> {
    match &mount.kind {
        MountKind::Bind { source, bind } => {
            let doing = || format!("{}: mounting {:?}", mount.field, mount.destination);
            let source = share.resolve(source).doing(doing)?;
            clone_tree(source, *bind == Bind::Recursive).doing(doing)
        }
        MountKind::Volume(volume) => {
            let doing = || format!("{}: mounting {:?}", mount.field, mount.destination);
            clone_tree(volume::resolve(volume).doing(doing)?, false).doing(doing)
        }
        MountKind::FileSystem { name } => new_file_system(name, mount),
        MountKind::Present => Err(Failure::Refused(format!("{}: is there already", mount.field))),
    }
}

/// Whether the ids of a mount's files are mapped, and if so whether of those below it too.
pub fn id_map_depth(mount: &Mount) -> Option<bool> {
    mount.options.id_map.map(|depth| depth == Bind::Recursive)
}

fn mapped_tree(mount: &Mount, share: &Share) -> Result<OwnedFd, Failure> {
    let tree = tree(mount, share)?;
    if let (Some(recursive), Some(mappings)) = (id_map_depth(mount), &mount.id_mappings) {
        let doing = || format!("{}.uidMappings: mapping the ids of its files", mount.field);
        let namespace = user_namespace::create(mappings).doing(doing)?;
        map_ids(&tree, namespace, recursive).doing(doing)?;
    }
    Ok(tree)
}

/// A remount: what is mounted there already gets these attributes and no others.
fn change_present(rootfs: &RootFs, mount: &Mount) -> Result<(), Failure> {
    let doing = || format!("{}: remounting {:?}", mount.field, mount.destination);
    const ALL: u64 = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC
        | libc::MOUNT_ATTR_NODIRATIME
        | libc::MOUNT_ATTR_NOSYMFOLLOW
        | libc::MOUNT_ATTR__ATIME;
    let place = rootfs.resolve(&mount.destination).doing(doing)?;
    let change = AttributeChange {
        set: mount.options.attributes.set,
        clear: ALL & !mount.options.attributes.set | libc::MOUNT_ATTR__ATIME,
    };
    change_attributes(&place, change, false).doing(doing)?;
    change_attributes(&place, mount.options.recursive_attributes, true).doing(doing)?;
    for &propagation in &mount.options.propagation {
        set_propagation(&place, propagation).doing(doing)?;
    }
    Ok(())
}

/// A tmpfs has the mode of the directory that it covers, unless it is given one, and with `tmpcopyup` all that is in it.
fn take_over(covered: &OwnedFd, tree: &OwnedFd, mount: &Mount) -> std::io::Result<()> {
    let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = openat(tree, ".", how, Mode::empty())?;
    let named = |names: &[&str]| {
        let mut words = mount.options.data.iter();
        words.any(|(name, _)| names.contains(&name.as_str()))
    };
    if mount.options.copy_up {
        copy_up(covered, &top)?;
        if !named(&["mode", "uid", "gid"]) {
            return copy_attributes(covered, top.as_fd());
        }
    }
    if !named(&["mode"]) {
        fchmod(&top, Mode::from_bits_truncate(fstat(covered)?.st_mode & 0o7777))?;
    }
    Ok(())
}

fn new_file_system(name: &str, mount: &Mount) -> Result<OwnedFd, Failure> {
    let doing = || format!("{}: making a file system of type {name}", mount.field);
    let type_name = c_string(name)?;
    let file_system = NewFileSystem::open(&type_name).doing(doing)?;
    // What the list of mounts shows as the device.
    file_system.set(c"source", Some(&type_name)).doing(doing)?;
    for (option, value) in &mount.options.data {
        let key = c_string(option)?;
        let text = value.as_deref().map(c_string).transpose()?;
        file_system
            .set(&key, text.as_deref())
            .doing(|| format!("{}.options: {option:?} for {name}", mount.field))?;
    }
    file_system.mount().doing(doing)
}

fn refuse_to_hide_processes(place: &OwnedFd, mount: &Mount) -> Result<(), Failure> {
    let doing = || format!("{}: mounting {:?}", mount.field, mount.destination);
    let inside_proc = fstatfs(place).doing(doing)?.filesystem_type() == PROC_SUPER_MAGIC;
    if inside_proc && !REPLACEABLE.contains(&mount.destination.as_str()) {
        return Err(Failure::Refused(format!(
            "{}.destination: {:?} is inside /proc and can't be mounted over",
            mount.field, mount.destination
        )));
    }
    Ok(())
}

/// Hides paths: a directory behind an empty one, a file behind the guest's own `/dev/null`. What does not exist needs no
/// hiding.
///
/// # Errors
/// The path that can't be hidden.
pub fn mask(rootfs: &RootFs, paths: &[RootedPath]) -> Result<(), Failure> {
    // The container's own /dev/null may be anything.
    let null = open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .doing(|| "opening the guest's /dev/null")?;
    let mut empty: Option<OwnedFd> = None;
    for (index, path) in paths.iter().enumerate() {
        let doing = || format!("linux.maskedPaths[{index}]: hiding {:?}", path.as_str());
        let Some(place) = existing(rootfs, path).doing(doing)? else {
            continue;
        };
        if !is_directory(&place).doing(doing)? {
            attach(clone_tree(&null, false).doing(doing)?, place).doing(doing)?;
            continue;
        }
        // One empty directory is enough for all of them, once it is mounted somewhere and so can be cloned.
        let tree = match &empty {
            Some(first) => clone_tree(first, false).doing(doing)?,
            None => {
                let file_system = NewFileSystem::open(c"tmpfs").doing(doing)?;
                file_system.set(c"nr_inodes", Some(c"1")).doing(doing)?;
                let tree = file_system.mount().doing(doing)?;
                make_read_only(&tree, false).doing(doing)?;
                tree
            }
        };
        attach(&tree, place).doing(doing)?;
        empty.get_or_insert(tree);
    }
    Ok(())
}

/// Makes paths read-only, with everything mounted below them.
///
/// # Errors
/// The path that can't be made so.
pub fn protect(rootfs: &RootFs, paths: &[RootedPath]) -> Result<(), Failure> {
    for (index, path) in paths.iter().enumerate() {
        let doing = || {
            format!(
                "linux.readonlyPaths[{index}]: making {:?} read-only",
                path.as_str()
            )
        };
        let Some(place) = existing(rootfs, path).doing(doing)? else {
            continue;
        };
        let tree = clone_tree(&place, true).doing(doing)?;
        make_read_only(&tree, true).doing(doing)?;
        attach(tree, place.as_fd()).doing(doing)?;
    }
    Ok(())
}

fn existing(rootfs: &RootFs, path: &RootedPath) -> nix::Result<Option<OwnedFd>> {
    match rootfs.resolve(path.as_str()) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}
