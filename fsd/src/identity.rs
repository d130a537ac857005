//! Creating files in the name of the guest's process.
//!
//! A new file belongs to the user and group of the calling thread, so a thread takes them on for that one system call.
//! It keeps its capabilities meanwhile ([`keep_capabilities`]): the guest kernel has decided already, knowing all of the
//! caller's groups, whether the caller may create the file and whether its set-group-id bit stays (inode_init_owner,
//! mode_strip_sgid). The host, knowing one group, would decide otherwise.

use std::{io, process};

use caps::{CapSet, Capability};

/// Keeps the calling thread's capabilities when its user id changes from 0 to another and back; threads it starts
/// inherit this. Needs `CAP_SETPCAP`.
///
/// # Errors
/// As prctl(2), `PR_SET_SECUREBITS`.
pub fn keep_capabilities() -> io::Result<()> {
    // Not locked: what the process may do is bounded by its capabilities, which it cannot regain.
    // SAFETY: no memory is involved.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP, 0, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The calling thread acts as another user until this is dropped.
#[derive(Debug)]
pub struct Identity {
    user: bool,
    group: bool,
}

impl Identity {
    /// Takes on `user` and `group`.
    ///
    /// # Errors
    /// `EINVAL` for the id that means "unchanged" to the kernel; as setresuid(2).
    pub fn take(user: u32, group: u32) -> io::Result<Self> {
        if user == u32::MAX || group == u32::MAX {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut taken = Self {
            user: false,
            group: false,
        };
        // The group first: in case the capabilities do not outlive the change of user after all.
        if group != 0 {
            set_effective(libc::SYS_setresgid, group)?;
            taken.group = true;
        }
        if user != 0 {
            set_effective(libc::SYS_setresuid, user)?;
            taken.user = true;
        }
        Ok(taken)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let user = if self.user {
            set_effective(libc::SYS_setresuid, 0)
        } else {
            Ok(())
        };
        let group = if self.group {
            set_effective(libc::SYS_setresgid, 0)
        } else {
            Ok(())
        };
        if user.and(group).is_err() {
            // Going on as somebody else would give the guest's files wrong owners.
            process::abort();
        }
    }
}

/// Sets the effective id of this thread alone; the C library's functions change every thread's.
fn set_effective(call: libc::c_long, id: u32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    if unsafe { libc::syscall(call, -1, id, -1) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Until this is dropped, changing a file's contents or size clears its set-user-id and set-group-id bits, as for a
/// process without `CAP_FSETID` (`FUSE_HANDLE_KILLPRIV_V2`).
#[derive(Debug)]
pub struct WithoutFsetid(bool);

impl WithoutFsetid {
    /// Gives up `CAP_FSETID` for a while if `wanted`.
    ///
    /// # Errors
    /// As capset(2).
    pub fn when(wanted: bool) -> io::Result<Self> {
        if !wanted
            || !caps::has_cap(None, CapSet::Effective, Capability::CAP_FSETID).map_err(io::Error::other)?
        {
            return Ok(Self(false));
        }
        caps::drop(None, CapSet::Effective, Capability::CAP_FSETID).map_err(io::Error::other)?;
        Ok(Self(true))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if self.0 && caps::raise(None, CapSet::Effective, Capability::CAP_FSETID).is_err() {
            // Set-group-id bits would be lost from now on.
            process::abort();
        }
    }
}
