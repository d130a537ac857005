//! What a process may use: scheduling, places in queues, processors, limits. `pid` is a process id, or 0 for the caller.

use std::io;

use super::check;
use crate::oci::{CpuList, IoPriority, Rlimit, Scheduler};

/// Sets the scheduling policy (sched_setattr(2)).
///
/// # Errors
/// The kernel refuses the policy or a value of it.
pub fn set_scheduler(pid: i32, scheduler: &Scheduler) -> io::Result<()> {
    let attributes = libc::sched_attr {
        // The structure is a few dozen bytes.
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: scheduler.policy,
        sched_flags: scheduler.flags,
        sched_nice: scheduler.nice,
        sched_priority: scheduler.priority,
        sched_runtime: scheduler.runtime,
        sched_deadline: scheduler.deadline,
        sched_period: scheduler.period,
    };
    // SAFETY: the attributes outlive the call, and say their own size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attributes, 0) })?;
    Ok(())
}

/// Sets the place among those that wait for block devices (ioprio_set(2)).
///
/// # Errors
/// The kernel refuses.
pub fn set_io_priority(pid: i32, priority: IoPriority) -> io::Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    let value = u32::from(priority.class) << CLASS_SHIFT | u32::from(priority.priority);
    // SAFETY: numbers alone.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, pid, value) })?;
    Ok(())
}

/// Sets the processors to run on.
///
/// # Errors
/// None of them is there, or may be used.
pub fn set_affinity(pid: i32, cpus: &CpuList) -> io::Result<()> {
    let mut mask = [0u64; 1024];
    for cpu in cpus.iter() {
        // Sixteen bits of number find their place among 65536 bits.
        mask[usize::from(cpu / 64)] |= 1 << (cpu % 64);
    }
    // SAFETY: the mask outlives the call and has the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_sched_setaffinity,
            pid,
            size_of_val(&mask),
            mask.as_ptr(),
        )
    })?;
    Ok(())
}

/// How many processors the guest has at the moment. `/sys` has to be the guest's.
pub fn online_cpus() -> u16 {
    std::fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|list| CpuList::parse(&list))
        .and_then(|list| u16::try_from(list.len()).ok())
        .unwrap_or(1)
}

/// Sets a resource limit (prlimit(2)).
///
/// # Errors
/// The kernel refuses it.
pub fn set_limit(pid: i32, limit: &Rlimit) -> io::Result<()> {
    let value = libc::rlimit64 {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    exchange_limit(pid, limit.resource, Some(value))?;
    Ok(())
}

/// Raises the hard limit to what it is to be, if it is below.
///
/// # Errors
/// The kernel refuses it.
pub fn raise_limit(pid: i32, limit: &Rlimit) -> io::Result<()> {
    let present = exchange_limit(pid, limit.resource, None)?;
    if present.rlim_max < limit.hard {
        let raised = libc::rlimit64 {
            rlim_max: limit.hard,
            ..present
        };
        exchange_limit(pid, limit.resource, Some(raised))?;
    }
    Ok(())
}

/// The limit as it was.
fn exchange_limit(pid: i32, resource: u32, new: Option<libc::rlimit64>) -> io::Result<libc::rlimit64> {
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both limits, where there are two, outlive the call.
    check(unsafe { libc::prlimit64(pid, resource, new, &raw mut old) }.into())?;
    Ok(old)
}
