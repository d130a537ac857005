//! What of `process` and `linux` is the process's own: who it is, what it may do, what it may use.

use nix::{
    errno::Errno,
    sys::{prctl, stat::Mode},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};

use super::{
    failure::{Doing, Failure},
    namespaces::GuestProc,
};
use crate::{
    linux::{capability, scheduling, seccomp},
    oci::{Capabilities, Container, Process, Seccomp},
};

/// Sets the process's standing with the kernel's out-of-memory killer. `pid` is the process in the guest, or 0 for the caller,
/// whose own directory below `proc` is `self`.
///
/// # Errors
/// The kernel refuses.
pub fn adjust_oom_score(process: &Process, pid: i32, proc: &GuestProc) -> Result<(), Failure> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    let directory = match pid {
        0 => "self".to_owned(),
        pid => pid.to_string(),
    };
    proc.write(&format!("{directory}/oom_score_adj"), &score.to_string())
        .doing(|| "process.oomScoreAdj")
}

/// Sets how the process is scheduled; `pid` as for [`adjust_oom_score`]. A deadline keeps it from forking.
///
/// # Errors
/// The field that the kernel refuses.
pub fn schedule(process: &Process, pid: i32) -> Result<(), Failure> {
    if let Some(scheduler) = &process.scheduler {
        scheduling::set_scheduler(pid, scheduler).doing(|| "process.scheduler")?;
    }
    if let Some(priority) = process.io_priority {
        scheduling::set_io_priority(pid, priority).doing(|| "process.ioPriority")?;
    }
    Ok(())
}

/// Raises the limits as far as they have to be, for a process that may only lower them by [`limit`]; `pid` as for
/// [`adjust_oom_score`].
///
/// # Errors
/// The limit that the kernel refuses.
pub fn raise_limits(process: &Process, pid: i32) -> Result<(), Failure> {
    for limit in &process.rlimits {
        scheduling::raise_limit(pid, limit).doing(|| format!("process.rlimits: raising {}", limit.name))?;
    }
    Ok(())
}

/// Sets the limits. Late: what is done before could need more.
///
/// # Errors
/// The limit that the kernel refuses.
pub fn limit(process: &Process) -> Result<(), Failure> {
    for limit in &process.rlimits {
        scheduling::set_limit(0, limit).doing(|| format!("process.rlimits: setting {}", limit.name))?;
    }
    Ok(())
}

/// What is left to be done just before the program is executed.
#[derive(Debug)]
pub struct Confinement {
    seccomp: Option<Seccomp>,
    /// Those to have from then on, if others are needed until then.
    capabilities: Option<Capabilities>,
}

/// Becomes the container's user, with the container's capabilities and no others. Not to be undone.
///
/// # Errors
/// The kernel refuses.
pub fn give_up(container: &Container) -> Result<Confinement, Failure> {
    let process = &container.process;
    let user = &process.user;
    if let Some(personality) = container.personality {
        // SAFETY: a number alone.
        Errno::result(unsafe { libc::personality(personality.number()) }).doing(|| "linux.personality")?;
    }
    capability::limit_bounding(&process.capabilities).doing(|| "process.capabilities.bounding")?;
    capability::keep_over_user_change(true).doing(|| "process.capabilities")?;
    let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).doing(|| "process.user.additionalGids")?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).doing(|| "process.user.gid")?;
    setresuid(uid, uid, uid).doing(|| "process.user.uid")?;
    capability::keep_over_user_change(false).doing(|| "process.capabilities")?;
    // Without no_new_privs only the guest's administrator may load a filter.
    let administrator = container.seccomp.is_some() && !process.no_new_privileges;
    let until_then = Capabilities {
        effective: process.capabilities.effective | Capabilities::SYS_ADMIN,
        permitted: process.capabilities.permitted | Capabilities::SYS_ADMIN,
        ..process.capabilities
    };
    let capabilities = if administrator {
        &until_then
    } else {
        &process.capabilities
    };
    capability::set(capabilities).doing(|| "process.capabilities")?;
    if process.no_new_privileges {
        prctl::set_no_new_privs().doing(|| "process.noNewPrivileges")?;
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(user.umask));
    Ok(Confinement {
        seccomp: container.seccomp.clone(),
        capabilities: administrator.then_some(process.capabilities),
    })
}

impl Confinement {
    /// Loads the filter, as late as possible: everything until then may need system calls that it forbids.
    ///
    /// # Errors
    /// The kernel refuses; the program must not be executed then.
    pub fn apply(&self) -> Result<(), Failure> {
        if let Some(filter) = &self.seccomp {
            seccomp::load(filter).doing(|| "linux.seccomp: loading the filter")?;
        }
        if let Some(capabilities) = &self.capabilities {
            // Only the filter can be the reason.
            capability::set(capabilities).doing(
                || "linux.seccomp: calling capset, which it has to allow without process.noNewPrivileges",
            )?;
        }
        Ok(())
    }
}
