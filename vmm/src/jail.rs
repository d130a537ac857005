//! How the process gives up what it doesn't need, before the guest runs and before there is a second thread.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{self, Gid, Pid, Uid},
};

/// What could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: the VMM must be started by root")]
pub struct Error {
    what: &'static str,
    #[source]
    source: io::Error,
}

fn failed(what: &'static str) -> impl FnOnce(nix::Error) -> Error {
    move |source| Error {
        what,
        source: source.into(),
    }
}

/// Closes every descriptor from 3 on: whatever the starter's other threads let slip into this process.
///
/// # Safety
/// Nothing in the process may own such a descriptor: to be called first thing in `main`.
pub unsafe fn close_inherited() {
    // SAFETY: nobody uses the descriptors, says the caller. Linux 5.9 and later know the call; an older one keeps them
    // open, and KVM's capabilities are then missing too.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
}

/// Who started this process.
#[derive(Clone, Copy, Debug)]
pub struct Parent(Pid);

impl Parent {
    /// The parent as of now.
    #[must_use]
    pub fn current() -> Self {
        Self(unistd::getppid())
    }
}

/// Confines the process to `root`, an empty directory, and to the rights of `uid` and `gid`; 0 keeps the caller's. When
/// this returns, the process has no capability, can't get one, sees no file, and dies with its parent's thread.
///
/// # Errors
/// One of the steps was refused. The process is then to end.
pub fn enter(root: OwnedFd, uid: u32, gid: u32, parent: Parent) -> Result<(), Error> {
    unistd::fchdir(root.as_fd()).map_err(failed("enter the empty root directory"))?;
    unistd::chroot(".").map_err(failed("make the empty directory the root"))?;
    drop(root);
    // While there is the capability to do so.
    drop_bounding_set()?;
    unistd::setgroups(&[]).map_err(failed("give up supplementary groups"))?;
    if gid != 0 {
        let gid = Gid::from_raw(gid);
        unistd::setresgid(gid, gid, gid).map_err(failed("change the group"))?;
    }
    if uid != 0 {
        let uid = Uid::from_raw(uid);
        unistd::setresuid(uid, uid, uid).map_err(failed("change the user"))?;
    }
    drop_capabilities().map_err(failed("drop the capabilities"))?;
    prctl::set_no_new_privs().map_err(failed("renounce new privileges"))?;
    prctl::set_dumpable(false).map_err(failed("forbid core dumps"))?;
    // Changing the user has cleared it, so it comes last.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed("ask to die with the parent"))?;
    if Parent::current().0 != parent.0 {
        // It died before we asked.
        return Err(Error {
            what: "outlive the process that started it",
            source: io::ErrorKind::NotConnected.into(),
        });
    }
    Ok(())
}

/// More capabilities than any kernel knows: they are 64 bits wide at most.
const MAX_CAPABILITIES: libc::c_ulong = 64;

fn drop_bounding_set() -> Result<(), Error> {
    for capability in 0..MAX_CAPABILITIES {
        // SAFETY: a prctl with integers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return match nix::Error::last() {
                // The first that the kernel doesn't know.
                nix::Error::EINVAL if capability > 0 => Ok(()),
                error => Err(failed("drop the capability bounding set")(error)),
            };
        }
    }
    Ok(())
}

/// Clears the permitted, effective, inheritable and ambient sets.
fn drop_capabilities() -> nix::Result<()> {
    /// `struct __user_cap_header_struct`.
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    let header = Header {
        version: VERSION,
        pid: 0,
    };
    // Two of effective, permitted, inheritable.
    let sets = [0_u32; 6];
    // SAFETY: header and sets are laid out as capset(2) describes for that version, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    // Clearing the permitted set has cleared the ambient one (capabilities(7)).
    nix::Error::result(result).map(drop)
}
