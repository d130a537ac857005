//! System calls on a descriptor instead of a path: nothing here follows a symbolic link.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::sys::{
    statfs::fstatfs,
    statvfs::{FsFlags, fstatvfs},
};
use sealock_protocol::files::kernel_file_system;

/// What the kernel says about a file (statx(2)).
#[derive(Clone, Copy)]
pub struct Status {
    /// The attributes.
    pub stat: libc::stat64,
    /// The id of the mount that the file was found through.
    pub mount: u64,
}

impl Status {
    /// The file type: one of the `S_IF…` values.
    pub fn kind(&self) -> u32 {
        self.stat.st_mode & libc::S_IFMT
    }
}

/// Turns the result of a system call that returns -1 on failure into a `Result`.
///
/// # Errors
/// The calling thread's `errno`.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Opens what `name` is in `directory`, itself even if it is a symbolic link, close-on-exec.
///
/// # Errors
/// As openat(2).
pub fn open_at(directory: BorrowedFd<'_>, name: &CStr, flags: libc::c_int, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: the name is NUL-terminated; the call touches no other memory of ours.
    let fd = check(unsafe {
        libc::openat(
            directory.as_raw_fd(),
            name.as_ptr(),
            flags | libc::O_CLOEXEC | libc::O_NOFOLLOW,
            mode,
        )
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The attributes of an open file, `O_PATH` or not.
///
/// # Errors
/// As statx(2).
pub fn status(file: BorrowedFd<'_>) -> io::Result<Status> {
    let mut buffer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the empty path is NUL-terminated and the buffer has the size that the kernel writes.
    check(unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
            libc::STATX_BASIC_STATS | libc::STATX_MNT_ID,
            buffer.as_mut_ptr(),
        )
    })?;
    // SAFETY: zeroes are a valid statx, and the kernel has filled it in.
    let found = unsafe { buffer.assume_init() };
    // SAFETY: zeroes are a valid stat64.
    let mut stat = unsafe { MaybeUninit::<libc::stat64>::zeroed().assume_init() };
    stat.st_dev = libc::makedev(found.stx_dev_major, found.stx_dev_minor);
    stat.st_ino = found.stx_ino;
    stat.st_nlink = found.stx_nlink.into();
    stat.st_mode = found.stx_mode.into();
    stat.st_uid = found.stx_uid;
    stat.st_gid = found.stx_gid;
    stat.st_rdev = libc::makedev(found.stx_rdev_major, found.stx_rdev_minor);
    // The kernel's own sizes and block counts are signed.
    stat.st_size = found.stx_size.cast_signed();
    stat.st_blocks = found.stx_blocks.cast_signed();
    stat.st_blksize = found.stx_blksize.into();
    stat.st_atime = found.stx_atime.tv_sec;
    stat.st_atime_nsec = found.stx_atime.tv_nsec.into();
    stat.st_mtime = found.stx_mtime.tv_sec;
    stat.st_mtime_nsec = found.stx_mtime.tv_nsec.into();
    stat.st_ctime = found.stx_ctime.tv_sec;
    stat.st_ctime_nsec = found.stx_ctime.tv_nsec.into();
    Ok(Status {
        stat,
        mount: found.stx_mnt_id,
    })
}

/// Whether the mount that an open file was found through can't be written. What can't be told is no.
pub fn is_read_only(file: BorrowedFd<'_>) -> bool {
    fstatvfs(file).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

/// Whether a file is of a file system that shows the host's kernel: nobody means to share that, but it may be mounted
/// somewhere below a volume.
pub fn is_of_the_kernel(file: BorrowedFd<'_>) -> bool {
    fstatfs(file).is_ok_and(|found| kernel_file_system(found.filesystem_type().0).is_some())
}

/// The directory `/proc/self/fd`, through which an `O_PATH` descriptor's own file can be reached, whatever has become
/// of its name.
#[derive(Debug)]
pub struct ProcFds(OwnedFd);

impl ProcFds {
    /// Takes an open `/proc/self/fd`, whatever way it was reached.
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// The descriptor of the directory.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The entry of `file` in the directory: a link that leads to the very file.
    pub fn entry(&self, file: BorrowedFd<'_>) -> CString {
        CString::new(file.as_raw_fd().to_string()).expect("digits contain no NUL")
    }

    /// Opens `file` again with `flags`.
    ///
    /// # Errors
    /// As openat(2).
    pub fn reopen(&self, file: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<OwnedFd> {
        let entry = self.entry(file);
        // O_NOFOLLOW is left out for this link alone. It is the kernel's, not the guest's, and names no path.
        // SAFETY: the entry is NUL-terminated; the call touches no other memory of ours.
        let fd = check(unsafe { libc::openat(self.0.as_raw_fd(), entry.as_ptr(), flags | libc::O_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
