//! The only directory that the process can reach. To be called after [`crate::namespaces::leave_host`].

use std::{
    ffi::{CStr, c_char},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use crate::{Error, check, check_long};

/// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC` (linux/mount.h).
const CLOEXEC: libc::c_uint = 1;
/// `enum fsconfig_command` (linux/mount.h).
const SET_STRING: libc::c_uint = 1;
const CREATE: libc::c_uint = 6;

/// Mounts a file system nowhere: it is reached through the descriptor, and gone with it. `what` names it in an error,
/// `attributes` are `MOUNT_ATTR_…`.
///
/// # Errors
/// The kernel refuses; it doesn't know the type or an option.
pub fn mount_detached(
    what: &'static str,
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: u64,
) -> Result<OwnedFd, Error> {
    let owned = |result: libc::c_long| {
        let raw = check_long(what, result)?;
        // SAFETY: the kernel has just given us this descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    // SAFETY: the name is NUL-terminated.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), CLOEXEC) })?;
    let set = |command: libc::c_uint, key: *const c_char, value: *const c_char| {
        // SAFETY: key and value are null or NUL-terminated, as the command wants them.
        check_long(what, unsafe {
            libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0)
        })
    };
    for (key, value) in options {
        set(SET_STRING, key.as_ptr(), value.as_ptr())?;
    }
    set(CREATE, ptr::null(), ptr::null())?;
    // SAFETY: no memory is involved.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), CLOEXEC, attributes) })
}

/// Makes an empty directory, which can't be written, the root: a file system of the process's own.
///
/// # Errors
/// The kernel refuses, or is older than 5.2.
pub fn enter_nothing() -> Result<(), Error> {
    let attributes =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // One inode: the directory.
    let options = [(c"nr_inodes", c"1"), (c"size", c"4096"), (c"mode", c"0555")];
    let nothing = mount_detached("make an empty root directory", c"tmpfs", &options, attributes)?;
    // On top of the root for a moment: a mount must be somewhere to become one.
    // SAFETY: the paths are NUL-terminated.
    check_long("mount the empty root directory", unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            nothing.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    // SAFETY: no memory is involved.
    check("enter the empty root directory", unsafe {
        libc::fchdir(nothing.as_raw_fd())
    })?;
    pivot()
}

/// Makes `directory` the root: the mount point of a mount.
///
/// # Errors
/// It is none, or isn't there.
pub fn enter(directory: &CStr) -> Result<(), Error> {
    // SAFETY: the path is NUL-terminated.
    check("enter the share", unsafe { libc::chdir(directory.as_ptr()) })?;
    pivot()
}

/// Makes the current directory the root, and lets go of all other mounts.
fn pivot() -> Result<(), Error> {
    // SAFETY: the paths are NUL-terminated.
    check_long("change the root directory (is it a mount point?)", unsafe {
        libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr())
    })?;
    // The old root now lies on top of the new one.
    // SAFETY: the path is NUL-terminated.
    check("let go of the host's files", unsafe {
        libc::umount2(c".".as_ptr(), libc::MNT_DETACH)
    })?;
    // SAFETY: the path is NUL-terminated.
    check("enter the new root directory", unsafe {
        libc::chdir(c"/".as_ptr())
    })
    .map(drop)
}
