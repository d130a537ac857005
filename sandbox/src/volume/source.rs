//! What a bind mount's source is: opened once, so that it stays this very file or directory whatever becomes of its name.

use std::{
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        statfs::{Statfs, fstatfs},
        statvfs::{FsFlags, Statvfs, fstatvfs, statvfs},
    },
};

use super::Error;
use crate::{cleanup, mount};

/// A source, open.
#[derive(Debug)]
pub struct Source {
    /// As the specification has it.
    pub path: PathBuf,
    /// Where that leads to.
    pub real: PathBuf,
    file: OwnedFd,
    status: libc::statx,
    file_system: Statfs,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A socket.
    Socket,
    /// A FIFO.
    Fifo,
    /// A type that Linux doesn't have.
    Other,
}

impl Source {
    /// Opens `path` for what it names only.
    ///
    /// # Errors
    /// It isn't there.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let open = || {
            let file = mount::open_path(path)?;
            let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            let status = status(file.as_fd())?;
            let file_system = fstatfs(&file)?;
            Ok((file, real, status, file_system))
        };
        let (file, real, status, file_system) = open().map_err(|source| Error::Open {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            real,
            file,
            status,
            file_system,
        })
    }

    /// Its type.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        match u32::from(self.status.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFREG => FileType::Regular,
            libc::S_IFCHR => FileType::CharacterDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            libc::S_IFSOCK => FileType::Socket,
            libc::S_IFIFO => FileType::Fifo,
            _ => FileType::Other,
        }
    }

    /// Its permission bits, with set-user-id, set-group-id and sticky.
    #[must_use]
    pub fn mode(&self) -> u32 {
        u32::from(self.status.stx_mode) & 0o7777
    }

    /// Its owner and group.
    #[must_use]
    pub fn owner(&self) -> (u32, u32) {
        (self.status.stx_uid, self.status.stx_gid)
    }

    /// The device that it is a node of: major and minor number.
    #[must_use]
    pub fn device(&self) -> (u32, u32) {
        (self.status.stx_rdev_major, self.status.stx_rdev_minor)
    }

    /// The file system's magic number (statfs(2)).
    #[must_use]
    pub fn magic(&self) -> i64 {
        self.file_system.filesystem_type().0
    }

    /// What tells it from every other file that is reached through the same mount.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            device: (self.status.stx_dev_major, self.status.stx_dev_minor),
            number: self.status.stx_ino,
            mount: self.status.stx_mnt_id,
        }
    }

    /// Whether a mount begins here.
    #[must_use]
    pub fn is_mount_point(&self) -> bool {
        self.status.stx_attributes & (libc::STATX_ATTR_MOUNT_ROOT as u64) != 0
    }

    /// Whether it can't be written where it is.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn is_read_only(&self) -> io::Result<bool> {
        Ok(self.space()?.flags().contains(FsFlags::ST_RDONLY))
    }

    /// Whether something is mounted below it.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn has_mounts_below(&self) -> io::Result<bool> {
        Ok(!self.mounts_below()?.is_empty())
    }

    /// The mounts below it that can be written, relative to it, in the order in which they were made.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn writable_mounts_below(&self) -> io::Result<Vec<PathBuf>> {
        let mut writable = Vec::new();
        for place in self.mounts_below()? {
            match statvfs(&self.real.join(&place)) {
                Ok(status) if !status.flags().contains(FsFlags::ST_RDONLY) => writable.push(place),
                // One that can't be reached is below another.
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(writable)
    }

    fn mounts_below(&self) -> io::Result<Vec<PathBuf>> {
        let mut below = cleanup::mounts_below(&self.real)?;
        below.retain(|place| *place != self.real);
        Ok(below
            .iter()
            .filter_map(|place| place.strip_prefix(&self.real).ok())
            .map(Path::to_owned)
            .collect())
    }

    /// The size of its file system.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn space(&self) -> io::Result<Statvfs> {
        Ok(fstatvfs(&self.file)?)
    }

    /// A path that leads to the very file, for calls that take no descriptor; good as long as this is open.
    #[must_use]
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// See [`Source::identity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Of the file system.
    pub device: (u32, u32),
    /// The inode's.
    pub number: u64,
    /// The mount's id.
    pub mount: u64,
}

fn status(file: BorrowedFd<'_>) -> io::Result<libc::statx> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the empty path is NUL-terminated and the buffer has the size that the kernel writes.
    let done = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
            libc::STATX_BASIC_STATS | libc::STATX_MNT_ID,
            buffer.as_mut_ptr(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroes are a valid statx, and the kernel has filled it in.
    Ok(unsafe { buffer.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_what_its_name_leads_to() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("file");
        fs::write(&file, "").unwrap();
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let source = Source::open(&link).unwrap();
        assert_eq!(source.file_type(), FileType::Regular);
        assert_eq!(source.real, fs::canonicalize(&file).unwrap());
        assert_eq!(source.identity(), Source::open(&file).unwrap().identity());
        assert!(!source.is_mount_point());
        assert!(Source::open(Path::new("/proc")).unwrap().is_mount_point());
        assert!(Source::open(Path::new("/")).unwrap().has_mounts_below().unwrap());
        assert!(!source.has_mounts_below().unwrap());
        assert_eq!(Source::open(Path::new("/dev/null")).unwrap().device(), (1, 3));
        let missing = Source::open(&top.path().join("missing")).unwrap_err();
        assert_eq!(missing.kind(), crate::Kind::InvalidArgument);
    }
}
