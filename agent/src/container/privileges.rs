//! `process.user`, `capabilities`, `rlimits`, `noNewPrivileges` and `oomScoreAdj`, carried out.

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
    linux::capability,
    oci::{Process, Rlimit},
};

/// Sets the process's standing with the kernel's out-of-memory killer.
///
/// # Errors
/// The kernel refuses.
pub fn adjust_oom_score(process: &Process, proc: &GuestProc) -> Result<(), Failure> {
    match process.oom_score_adj {
        Some(score) => proc
            .write("self/oom_score_adj", &score.to_string())
            .doing(|| "process.oomScoreAdj"),
        None => Ok(()),
    }
}

/// Sets the limits.
///
/// # Errors
/// The limit that the kernel refuses.
pub fn limit(process: &Process) -> Result<(), Failure> {
    for Rlimit {
        name,
        resource,
        soft,
        hard,
    } in &process.rlimits
    {
        let limit = libc::rlimit64 {
            rlim_cur: *soft,
            rlim_max: *hard,
        };
        // SAFETY: the limit outlives the call.
        let result = unsafe { libc::setrlimit64(*resource, &raw const limit) };
        Errno::result(result).doing(|| format!("process.rlimits: setting {name}"))?;
    }
    Ok(())
}

/// Becomes the container's user, with the container's capabilities and no others. Not to be undone.
///
/// # Errors
/// The kernel refuses.
pub fn give_up(process: &Process) -> Result<(), Failure> {
    let user = &process.user;
    capability::limit_bounding(&process.capabilities).doing(|| "process.capabilities.bounding")?;
    capability::keep_over_user_change(true).doing(|| "process.capabilities")?;
    let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).doing(|| "process.user.additionalGids")?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setresgid(gid, gid, gid).doing(|| "process.user.gid")?;
    setresuid(uid, uid, uid).doing(|| "process.user.uid")?;
    capability::keep_over_user_change(false).doing(|| "process.capabilities")?;
    capability::set(&process.capabilities).doing(|| "process.capabilities")?;
    if process.no_new_privileges {
        prctl::set_no_new_privs().doing(|| "process.noNewPrivileges")?;
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(user.umask));
    Ok(())
}
