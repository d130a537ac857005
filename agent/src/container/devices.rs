//! `linux.devices` and the links of `/dev`, carried out.

use std::os::fd::{AsFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, makedev, mknodat},
        statfs::{FsType, TMPFS_MAGIC, fstatfs},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat},
};

use super::{
    failure::{Doing, Failure},
    rootfs::{RootFs, child, kind},
};
use crate::{
    init::SHARE,
    linux::mount::{NewFileSystem, attach, change_attributes, clone_tree},
    oci::{AttributeChange, Device, DeviceKind, IdMapping, IdMappings, to_outside},
};

/// The links of config-linux.md, "Dev symbolic links".
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Creates the device nodes and, in a `/dev` of the container's own, the links.
///
/// A node is created where it is asked for when that is in memory. Elsewhere, among the files of the image or of a volume,
/// it would be one of the host's: a node of the guest's is mounted there instead. So it is, too, for a process that may not
/// create nodes, which is given them as `staged` (see [`stage`]).
///
/// # Errors
/// The node or link that can't be made.
pub fn create(
    rootfs: &RootFs,
    devices: &[Device],
    own_dev: bool,
    staged: Option<OwnedFd>,
) -> Result<(), Failure> {
    let helped = staged.is_some();
    let mut stage = Stage {
        tree: staged,
        attached: false,
    };
    for (index, device) in devices.iter().enumerate() {
        let (directory, name) = place(rootfs, device)?;
        if helped || !in_memory(&directory).doing(|| doing(device))? {
            stage.mount(rootfs, devices, index)?;
        } else {
            create_node(&directory, name, device, &IdMappings::default())?;
        }
    }
    if own_dev { link(rootfs) } else { Ok(()) }
}

fn link(rootfs: &RootFs) -> Result<(), Failure> {
    let dev = rootfs.ensure_directory("/dev").doing(|| "opening /dev")?;
    for (name, target) in LINKS {
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).doing(|| format!("linking /dev/{name}")),
        }
    }
    // The multiplexer of the container's own terminals, whatever the specification put there.
    match unlinkat(&dev, "ptmx", UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error).doing(|| "replacing /dev/ptmx"),
    }
    symlinkat("pts/ptmx", &dev, "ptmx").doing(|| "linking /dev/ptmx")
}

fn doing(device: &Device) -> String {
    format!("linux.devices: creating {}", device.path)
}

fn place<'a>(rootfs: &RootFs, device: &'a Device) -> Result<(OwnedFd, &'a str), Failure> {
    let (parent, name) = device
        .path
        .rsplit_once('/')
        .filter(|(_, name)| !matches!(*name, "" | "." | ".."))
        .ok_or_else(|| Failure::Refused(format!("linux.devices: {:?} names no file", device.path)))?;
    let directory = rootfs.ensure_directory(parent).doing(|| doing(device))?;
    Ok((directory, name))
}

fn in_memory(directory: &OwnedFd) -> nix::Result<bool> {
    let kind = fstatfs(directory)?.filesystem_type();
    Ok(kind == TMPFS_MAGIC || kind == RAMFS_MAGIC)
}

fn create_node(
    directory: &OwnedFd,
    name: &str,
    device: &Device,
    mappings: &IdMappings,
) -> Result<(), Failure> {
    let doing = || doing(device);
    let node = match device.kind {
        DeviceKind::Character => SFlag::S_IFCHR,
        DeviceKind::Block => SFlag::S_IFBLK,
        DeviceKind::Fifo => SFlag::S_IFIFO,
    };
    let number = makedev(device.major.into(), device.minor.into());
    let mode = Mode::from_bits_truncate(device.mode);
    match mknodat(directory, name, node, mode, number) {
        // The caller's umask is not the container's.
        Ok(()) => fchmodat(directory, name, mode, FchmodatFlags::FollowSymlink).doing(doing)?,
        Err(Errno::EEXIST) => {
            let present = child(directory, name).doing(doing)?;
            let same =
                kind(&present).doing(doing)? == node && fstat(&present).doing(doing)?.st_rdev == number;
            if !same {
                return Err(Errno::EEXIST).doing(doing);
            }
        }
        Err(error) => return Err(error).doing(doing),
    }
    let outside = |ranges: &[IdMapping], id| {
        if ranges.is_empty() {
            Ok(id)
        } else {
            // An owner that the container has no number for: nobody's.
            to_outside(ranges, id).ok_or(Errno::EINVAL).doing(doing)
        }
    };
    fchownat(
        directory,
        name,
        Some(Uid::from_raw(outside(&mappings.users, device.uid)?)),
        Some(Gid::from_raw(outside(&mappings.groups, device.gid)?)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .doing(doing)
}

/// Device nodes in a file system of their own that is mounted nowhere, named by their numbers in `devices`; their owners are
/// those of the mappings, if there are any.
///
/// # Errors
/// A node that can't be made.
pub fn stage(devices: &[Device], mappings: &IdMappings) -> Result<OwnedFd, Failure> {
    const DOING: &str = "linux.devices: making a place for nodes";
    let file_system = NewFileSystem::open(c"tmpfs").doing(|| DOING)?;
    file_system.set(c"mode", Some(c"0755")).doing(|| DOING)?;
    let tree = file_system.mount().doing(|| DOING)?;
    for (index, device) in devices.iter().enumerate() {
        create_node(&tree, &index.to_string(), device, mappings)?;
    }
    let change = AttributeChange {
        set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        clear: 0,
    };
    change_attributes(&tree, change, false).doing(|| DOING)?;
    Ok(tree)
}

/// Nodes to be mounted over files.
struct Stage {
    tree: Option<OwnedFd>,
    attached: bool,
}

impl Stage {
    fn mount(&mut self, rootfs: &RootFs, devices: &[Device], index: usize) -> Result<(), Failure> {
        let device = &devices[index];
        let doing = || doing(device);
        let tree = match &mut self.tree {
            Some(tree) => tree,
            empty => empty.insert(stage(devices, &IdMappings::default())?),
        };
        if !self.attached {
            // Only what is mounted can be cloned. In this mount namespace nobody needs the share by its path any longer.
            let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let onto = open(SHARE, how, Mode::empty()).doing(doing)?;
            attach(&*tree, onto).doing(doing)?;
            self.attached = true;
        }
        let node = child(tree.as_fd(), &index.to_string()).doing(doing)?;
        let onto = rootfs.ensure_file(&device.path).doing(doing)?;
        attach(clone_tree(node, false).doing(doing)?, onto).doing(doing)
    }
}
