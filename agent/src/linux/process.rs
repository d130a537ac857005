//! Processes: creating, signalling, reaping.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use super::check;

/// What a clone returned.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the caller.
    Parent {
        /// The new process, in the caller's process id namespace.
        pid: i32,
        /// Refers to it.
        pidfd: OwnedFd,
    },
}

/// clone3(2) without sharing memory: a fork that creates the namespaces of `namespaces` (`CLONE_NEW*`) and begins in
/// `cgroup`.
///
/// # Errors
/// The kernel refuses, or the cgroup's limit of processes is reached.
///
/// # Panics
/// When the caller has more than one thread: the child could then wait for ever for a lock that another thread held.
pub fn clone_into(namespaces: u64, cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    clone3(namespaces, libc::SIGCHLD, cgroup)
}

/// [`clone_into`] of a process whose parent is the caller's own.
///
/// # Errors
/// As there.
///
/// # Panics
/// As there.
pub fn clone_beside(namespaces: u64, cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    // It ends with the same signal as the caller.
    clone3(namespaces | libc::CLONE_PARENT as u64, 0, cgroup)
}

fn clone3(flags: u64, exit_signal: i32, cgroup: BorrowedFd<'_>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // CLONE_INTO_CGROUP is beyond the 32 bits of the C type it is declared with.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let arguments = libc::clone_args {
        flags: flags | libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: exit_signal as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        // Descriptors are never negative.
        cgroup: cgroup.as_raw_fd() as u64,
    };
    // SAFETY: the arguments are valid for the call. Without CLONE_VM the child has memory and a stack of its own, a copy of
    // the only thread's: init is single-threaded.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    Ok(Cloned::Parent {
        pid: i32::try_from(pid).map_err(io::Error::other)?,
        // SAFETY: the kernel has stored a new descriptor there.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}

/// fork(2).
///
/// # Errors
/// No memory or process left.
pub fn fork() -> io::Result<Option<i32>> {
    // SAFETY: called by init only, which is single-threaded: the child may go on as if nothing had happened.
    match check(unsafe { libc::fork() }.into())? {
        0 => Ok(None),
        pid => Ok(Some(i32::try_from(pid).map_err(io::Error::other)?)),
    }
}

/// Sends a signal to the process that a pidfd refers to.
///
/// # Errors
/// `ESRCH` when it has ended and was reaped.
pub fn signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: no signal information is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its process id, free from now on.
    pub pid: i32,
    /// As a shell reports it: the exit code, or 128 + the signal.
    pub status: u8,
}

/// Reaps one child that has ended, if there is one.
pub fn reap() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: the status is stored in a local variable.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| Ended {
        pid,
        status: shell_status(status),
    })
}

fn shell_status(status: i32) -> u8 {
    let number = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Closes every descriptor of the calling process but those of `keep`.
///
/// # Errors
/// None that is known.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().filter_map(|&fd| u32::try_from(fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for fd in keep {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the caller of `close_all_but` gives these descriptors up.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_what_a_shell_would_say() {
        assert_eq!(shell_status(7 << 8), 7);
        assert_eq!(shell_status(libc::SIGKILL), 137);
        // Real-time signals, and a core dump's flag.
        assert_eq!(shell_status(64), 192);
        assert_eq!(shell_status(libc::SIGSEGV | 0x80), 139);
    }
}
