//! The pod's own volumes, as a container's process finds them.

use std::os::fd::OwnedFd;

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use super::rootfs::RootFs;
use crate::{
    init::VOLUMES,
    oci::{Volume, VolumeContent},
};

/// What of a volume the container gets. What of the way to it is missing in a file system in memory is made.
///
/// # Errors
/// There is no such part.
pub fn resolve(volume: &Volume) -> nix::Result<OwnedFd> {
    let number = volume.number.ok_or(Errno::ENOENT)?;
    let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(format!("{VOLUMES}/{number}").as_str(), how, Mode::empty())?;
    let Some(subpath) = &volume.subpath else {
        return Ok(root);
    };
    // Containers of the pod may have put anything there: it is resolved inside the volume.
    let volume_root = RootFs::new(root);
    match volume.content {
        VolumeContent::Memory { .. } => volume_root.ensure_directory(subpath.as_str()),
        VolumeContent::Copy { .. } => volume_root.resolve(subpath.as_str()),
    }
}
