//! System calls without a safe wrapper elsewhere, each with its borders checked here.

pub mod bpf;
pub mod capability;
pub mod ethtool;
pub mod mount;
pub mod process;
pub mod random;
pub mod scheduling;
pub mod seccomp;
pub mod terminal;
pub mod user_namespace;
pub mod vsock;

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// The result of a system call that answers 0 or more, or an error in `errno`.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The result of a system call that answers a new descriptor.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(check(result)?).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
