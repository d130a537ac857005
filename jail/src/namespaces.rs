//! Namespaces of the process's own (namespaces(7)), but for that of process ids, which it is born with ([`crate::spawn`]).

use std::ptr;

use crate::{Error, check};

/// Mounts, network interfaces and abstract sockets, System V IPC, host name, and the root of the cgroup hierarchy.
const OWN: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Gives the process namespaces of its own: nothing is in them, but for the host's mounts, until [`crate::root`] lets go of
/// those. No mount that the process makes reaches the host; those that the host makes in a shared mount do come in.
///
/// # Errors
/// The process isn't root.
pub fn leave_host() -> Result<(), Error> {
    // SAFETY: no memory is involved, and the process has one thread.
    check("leave the host's namespaces (is this root?)", unsafe {
        libc::unshare(OWN)
    })?;
    // SAFETY: the path is NUL-terminated, the rest may be null.
    check("keep mounts from reaching the host", unsafe {
        libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_SLAVE | libc::MS_REC,
            ptr::null(),
        )
    })
    .map(drop)
}
