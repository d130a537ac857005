//! What the process gives up before it reads its first message.
//!
//! Afterwards its root directory is the share, and the only other directory it can reach is its own entry of a proc
//! mount that shows nothing but processes. Mounts that the shim makes below the share appear in here too, since the root
//! is a slave of the share's mount; none of the process's own would appear outside.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use caps::Capability;
use sealock_jail::{
    filter::Filter,
    landlock,
    limits::{self, Limits},
    namespaces, privileges, root,
};

use crate::{
    descriptor::{self, ProcFds},
    identity,
};

/// What file operations in the guest's name need. Not `CAP_DAC_READ_SEARCH`: it opens any file by handle; overriding
/// permissions is enough to read and search.
const CAPABILITIES: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_MKNOD,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// The most descriptors the process makes use of: one for each file that the guest has in its cache.
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// The threads it needs, and a few more.
const MAX_THREADS: u64 = 16;

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step was refused.
    #[error(transparent)]
    Refused(#[from] sealock_jail::Error),
    /// Something of its own could not be set up.
    #[error("cannot {what}")]
    Own {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Confines the calling process, which must be root and have one thread, to `share`: the mount point of a mount of its
/// own, with shared propagation. Returns the way to its own descriptors.
///
/// # Errors
/// What could not be given up. The process is of no use then.
pub fn enter(share: &Path) -> Result<ProcFds, Error> {
    let share = CString::new(share.as_os_str().as_bytes()).map_err(|source| Error::Own {
        what: "use a share with a NUL byte in its path",
        source: source.into(),
    })?;
    limits::set(Limits {
        descriptors: MAX_DESCRIPTORS,
        threads: MAX_THREADS,
    })?;
    namespaces::leave_host()?;
    let proc_fds = mount_proc()?;
    root::enter(&share)?;

    identity::keep_capabilities().map_err(|source| Error::Own {
        what: "keep capabilities over changes of user",
        source,
    })?;
    let kept = CAPABILITIES
        .iter()
        .fold(0, |all, capability| all | capability.bitmask());
    privileges::bound(kept)?;
    // It stays root, but in name only.
    privileges::become_user(0, 0)?;
    // Another pod's file server, were it taken over, has the same user id and capabilities; it can't trace this one.
    privileges::renounce(kept)?;
    landlock::renounce_all_but_files()?;
    Ok(proc_fds)
}

mod filters {
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// The system calls that are left for serving files, listed in `fsd/filters`. To be installed before the first request is read.
#[must_use]
pub fn filter() -> Filter {
    filters::FILES
}

/// Opens `/proc/self/fd` of a proc mount of this process's own, attached nowhere, that shows processes alone and of
/// those only what this one could trace: not the host's `/proc/sys`, whose files obey user ids instead of capabilities.
fn mount_proc() -> Result<ProcFds, Error> {
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let mount = root::mount_detached(
        "mount proc (Linux 5.8 or later is needed)",
        c"proc",
        &[(c"subset", c"pid"), (c"hidepid", c"ptraceable")],
        attributes,
    )?;
    // "self" is a link, and this is the one way in to follow it; the mount lives on through the directory.
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated.
    let opened = unsafe { libc::openat(mount.as_raw_fd(), c"self/fd".as_ptr(), flags) };
    let raw = descriptor::check(opened).map_err(|source| Error::Own {
        what: "open /proc/self/fd",
        source,
    })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(ProcFds::new(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// The way to the calling process's descriptors through the host's `/proc`, for a process that stays unconfined.
///
/// # Errors
/// `/proc` is not mounted.
pub fn host_proc() -> io::Result<ProcFds> {
    let directory = std::fs::File::open("/proc/self/fd")?;
    Ok(ProcFds::new(directory.as_fd().try_clone_to_owned()?))
}
