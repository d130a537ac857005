//! `linux.devices` and the links of `/dev`, carried out.

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{Mode, SFlag, fstat, makedev, mknodat},
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat},
};

use super::{
    failure::{Doing, Failure},
    rootfs::{RootFs, child, kind},
};
use crate::oci::{Device, DeviceKind};

/// The links of config-linux.md, "Dev symbolic links".
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Creates the device nodes and links; nothing when there are no devices, `/dev` then being somebody else's.
///
/// # Errors
/// The node or link that can't be made.
pub fn create(rootfs: &RootFs, devices: &[Device]) -> Result<(), Failure> {
    if devices.is_empty() {
        return Ok(());
    }
    for device in devices {
        create_node(rootfs, device)?;
    }
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

fn create_node(rootfs: &RootFs, device: &Device) -> Result<(), Failure> {
    let doing = || format!("linux.devices: creating {}", device.path);
    let (parent, name) = device
        .path
        .rsplit_once('/')
        .filter(|(_, name)| !matches!(*name, "" | "." | ".."))
        .ok_or_else(|| Failure::Refused(format!("linux.devices: {:?} names no file", device.path)))?;
    let directory = rootfs.ensure_directory(parent).doing(doing)?;
    let node = match device.kind {
        DeviceKind::Character => SFlag::S_IFCHR,
        DeviceKind::Block => SFlag::S_IFBLK,
        DeviceKind::Fifo => SFlag::S_IFIFO,
    };
    let number = makedev(device.major.into(), device.minor.into());
    match mknodat(
        &directory,
        name,
        node,
        Mode::from_bits_truncate(device.mode),
        number,
    ) {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let present = child(&directory, name).doing(doing)?;
            let same =
                kind(&present).doing(doing)? == node && fstat(&present).doing(doing)?.st_rdev == number;
            if !same {
                return Err(Errno::EEXIST).doing(doing);
            }
        }
        Err(error) => return Err(error).doing(doing),
    }
    fchownat(
        &directory,
        name,
        Some(Uid::from_raw(device.uid)),
        Some(Gid::from_raw(device.gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .doing(doing)
}
