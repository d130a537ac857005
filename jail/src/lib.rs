//! How the processes that a guest talks to are started and confined.
//!
//! The shim starts them with [`spawn`]: each is the first of a process id namespace of its own. The program then confines itself,
//! as long as it has one thread, in this order:
//!
//! 1. [`descriptors::close_inherited`]: what it was not given on purpose is closed.
//! 2. [`namespaces::leave_host`]: mounts, network, System V IPC, host name and cgroups of its own.
//! 3. [`root::enter_nothing`] or [`root::enter`]: all files it can name are below a directory; for the monitor there are none.
//! 4. [`limits`], [`privileges`]: bounds on what it may use, another user, no capabilities or few, no way to more.
//! 5. [`landlock`]: no path, no socket address, no signal beyond, where the host's kernel knows that.
//! 6. [`filter`]: the system calls that a thread is left with, before the guest has said a word.
//!
//! Each layer holds when the others don't. `docs/threat-model.md` says what each is there for and which test attacks it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "compile")]
pub mod compile;
pub mod descriptors;
pub mod filter;
#[cfg(feature = "intruder")]
pub mod intruder;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod privileges;
pub mod root;
pub mod spawn;

use std::io;

/// What could not be done to confine the process, which is to end then.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: &'static str,
    #[source]
    source: io::Error,
}

impl Error {
    fn last(what: &'static str) -> Self {
        Self {
            what,
            source: io::Error::last_os_error(),
        }
    }
}

/// Turns the result of a system call that returns -1 on failure into a `Result`.
fn check(what: &'static str, result: libc::c_int) -> Result<libc::c_int, Error> {
    if result < 0 {
        Err(Error::last(what))
    } else {
        Ok(result)
    }
}

/// [`check`] for what syscall(2) returns.
fn check_long(what: &'static str, result: libc::c_long) -> Result<libc::c_int, Error> {
    // Descriptors and zeroes fit.
    check(what, libc::c_int::try_from(result).unwrap_or(-1))
}
