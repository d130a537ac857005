//! Bounds on what the process can use (getrlimit(2)), beyond those of its cgroup.

use crate::{Error, check};

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors, as far as the starter's own bound allows.
    pub descriptors: u64,
    /// Threads of all processes of the user; not looked at for root.
    pub threads: u64,
}

/// Bounds the process. There are no core dumps, no locked memory, no message queues and no real-time priorities.
///
/// # Errors
/// The kernel refuses.
pub fn set(limits: Limits) -> Result<(), Error> {
    let descriptors = limits.descriptors.min(hard(libc::RLIMIT_NOFILE)?);
    let bounds = [
        (libc::RLIMIT_NOFILE, descriptors),
        (libc::RLIMIT_NPROC, limits.threads),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_RTPRIO, 0),
        (libc::RLIMIT_NICE, 0),
    ];
    for (resource, bound) in bounds {
        let limit = libc::rlimit {
            rlim_cur: bound,
            rlim_max: bound,
        };
        // SAFETY: the limit is valid.
        check("bound what the process may use", unsafe {
            libc::setrlimit(resource, &raw const limit)
        })?;
    }
    Ok(())
}

fn hard(resource: libc::__rlimit_resource_t) -> Result<u64, Error> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit is ours to be written.
    check("read a bound", unsafe {
        libc::getrlimit(resource, &raw mut limit)
    })?;
    Ok(limit.rlim_max)
}
