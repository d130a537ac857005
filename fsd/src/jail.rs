//! What the process gives up before it reads its first message.
//!
//! Afterwards its root directory is the share, and the only other directory it can reach is its own entry of a proc
//! mount that shows nothing but processes. Mounts that the shim makes below the share appear in here too, since the root
//! is a slave of the share's mount; none of the process's own would appear outside.

use std::{
    ffi::{CString, c_char},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};

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

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Confines the calling process, which must be root and have one thread, to `share`: the mount point of a mount of its
/// own, with shared propagation. Returns the way to its own descriptors.
///
/// # Errors
/// What could not be given up. The process is of no use then.
pub fn enter(share: &Path) -> Result<ProcFds, Error> {
    let share = CString::new(share.as_os_str().as_bytes())
        .map_err(io::Error::other)
        .map_err(|source| Error {
            what: "use a share with a NUL byte in its path",
            source,
        })?;

    // SAFETY: no memory is involved.
    attempt("have the parent's death end this process", || unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0)
    })?;
    // What was inherited by mistake is nobody's: only standard input, output and error are passed on purpose.
    // SAFETY: nothing in this process uses a descriptor above these yet.
    attempt("close inherited descriptors", || unsafe {
        libc::close_range(3, u32::MAX, 0)
    })?;
    raise_descriptor_limit()?;

    // SAFETY: no memory is involved.
    attempt("leave the host's namespaces (is this root?)", || unsafe {
        libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)
    })?;
    // SAFETY: the path is NUL-terminated, the rest may be null.
    attempt("stop mounts from reaching the host", || unsafe {
        libc::mount(
            ptr::null(),
            c"/".as_ptr(),
            ptr::null(),
            libc::MS_SLAVE | libc::MS_REC,
            ptr::null(),
        )
    })?;
    let proc_fds = mount_proc()?;
    // SAFETY: the path is NUL-terminated.
    attempt("enter the share", || unsafe { libc::chdir(share.as_ptr()) })?;
    // SAFETY: the paths are NUL-terminated.
    attempt("make the share the root (is it a mount point?)", || unsafe {
        let result = libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr());
        libc::c_int::try_from(result).unwrap_or(-1)
    })?;
    // The old root now lies on top of the new one.
    // SAFETY: the path is NUL-terminated.
    attempt("let go of the host's files", || unsafe {
        libc::umount2(c".".as_ptr(), libc::MNT_DETACH)
    })?;
    // SAFETY: the path is NUL-terminated.
    attempt("enter the new root", || unsafe { libc::chdir(c"/".as_ptr()) })?;

    drop_privileges()?;
    Ok(proc_fds)
}

fn raise_descriptor_limit() -> Result<(), Error> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit is ours to be written.
    attempt("read the descriptor limit", || unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit)
    })?;
    limit.rlim_max = limit.rlim_max.min(MAX_DESCRIPTORS);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the limit is valid.
    attempt("raise the descriptor limit", || unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    })
}

/// Opens `/proc/self/fd` of a proc mount of this process's own, attached nowhere, that shows processes alone and of
/// those only what this one could trace: not the host's `/proc/sys`, whose files obey user ids instead of capabilities.
fn mount_proc() -> Result<ProcFds, Error> {
    const FSCONFIG_SET_STRING: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSMOUNT_CLOEXEC: u32 = 1;
    const MOUNT_ATTR: u32 = 0x2 | 0x4 | 0x8; // nosuid, nodev, noexec

    fn owned(what: &'static str, result: libc::c_long) -> Result<OwnedFd, Error> {
        match libc::c_int::try_from(result) {
            // SAFETY: the kernel has just given us this descriptor.
            Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(Error {
                what,
                source: io::Error::last_os_error(),
            }),
        }
    }

    // SAFETY: the name is NUL-terminated.
    let context = owned("prepare a proc mount", unsafe {
        libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), FSOPEN_CLOEXEC)
    })?;
    let set = |command: u32, key: *const c_char, value: *const c_char| {
        attempt("set up a proc mount (Linux 5.8 or later is needed)", || {
            // SAFETY: key and value are null or NUL-terminated.
            let result =
                unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) };
            libc::c_int::try_from(result).unwrap_or(-1)
        })
    };
    set(FSCONFIG_SET_STRING, c"subset".as_ptr(), c"pid".as_ptr())?;
    set(FSCONFIG_SET_STRING, c"hidepid".as_ptr(), c"ptraceable".as_ptr())?;
    set(FSCONFIG_CMD_CREATE, ptr::null(), ptr::null())?;
    // SAFETY: no memory is involved.
    let mount = owned("mount proc", unsafe {
        libc::syscall(
            libc::SYS_fsmount,
            context.as_raw_fd(),
            FSMOUNT_CLOEXEC,
            MOUNT_ATTR,
        )
    })?;
    // "self" is a link, and this is the one way in to follow it; the mount lives on through the directory.
    // SAFETY: the path is NUL-terminated.
    let directory = owned("open /proc/self/fd", unsafe {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        libc::openat(mount.as_raw_fd(), c"self/fd".as_ptr(), flags).into()
    })?;
    Ok(ProcFds::new(directory))
}

fn drop_privileges() -> Result<(), Error> {
    let failed = |source| Error {
        what: "keep capabilities over changes of user",
        source,
    };
    identity::keep_capabilities().map_err(failed)?;
    limit_capabilities()
        .map_err(io::Error::other)
        .map_err(|source| Error {
            what: "give up capabilities",
            source,
        })?;
    // SAFETY: no memory is involved.
    attempt("give up gaining privileges", || unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    })?;
    // Another pod's file server, were it taken over, has the same user id and capabilities.
    // SAFETY: no memory is involved.
    attempt("refuse to be traced", || unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)
    })?;
    // A change of credentials may have cleared it.
    // SAFETY: no memory is involved.
    attempt("have the parent's death end this process", || unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0)
    })
}

fn limit_capabilities() -> Result<(), CapsError> {
    let kept = CapsHashSet::from(CAPABILITIES);
    caps::clear(None, CapSet::Ambient)?;
    // Nothing that is executed could have them either.
    for excess in caps::read(None, CapSet::Bounding)?.difference(&kept) {
        caps::drop(None, CapSet::Bounding, *excess)?;
    }
    let left = caps::read(None, CapSet::Permitted)?
        .intersection(&kept)
        .copied()
        .collect();
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)?;
    caps::clear(None, CapSet::Inheritable)
}

fn attempt(what: &'static str, call: impl FnOnce() -> libc::c_int) -> Result<(), Error> {
    descriptor::check(call())
        .map(|_| ())
        .map_err(|source| Error { what, source })
}

/// The way to the calling process's descriptors through the host's `/proc`, for a process that stays unconfined.
///
/// # Errors
/// `/proc` is not mounted.
pub fn host_proc() -> io::Result<ProcFds> {
    let directory = std::fs::File::open("/proc/self/fd")?;
    Ok(ProcFds::new(directory.as_fd().try_clone_to_owned()?))
}
