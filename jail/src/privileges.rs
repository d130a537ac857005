//! What the process may do as the user it is, and that it can't become another.

use crate::{Error, check, check_long};

/// The last capability there could be: the sets are 64 bits wide.
const LAST_CAPABILITY: u32 = 63;

/// A set of capabilities: bit *n* is capability *n* (linux/capability.h).
pub type Capabilities = u64;

/// Takes all but `kept` from the bounding set: nothing that is executed could have them. Needs `CAP_SETPCAP`.
///
/// # Errors
/// The kernel refuses.
pub fn bound(kept: Capabilities) -> Result<(), Error> {
    for capability in (0..=LAST_CAPABILITY).filter(|capability| kept & (1 << capability) == 0) {
        // SAFETY: a prctl with integers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) } != 0 {
            let error = Error::last("drop the capability bounding set");
            // The first that the kernel doesn't know.
            return match error.source.raw_os_error() {
                Some(libc::EINVAL) if capability > 0 => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// Becomes `user` with `group` and no other. 0 for both keeps the caller's.
///
/// # Errors
/// The process isn't root.
pub fn become_user(user: u32, group: u32) -> Result<(), Error> {
    // SAFETY: no group is read.
    check("give up supplementary groups", unsafe {
        libc::setgroups(0, std::ptr::null())
    })?;
    if group != 0 {
        // SAFETY: no memory is involved.
        check("change the group", unsafe {
            libc::setresgid(group, group, group)
        })?;
    }
    if user != 0 {
        // SAFETY: no memory is involved.
        check("change the user", unsafe { libc::setresuid(user, user, user) })?;
    }
    Ok(())
}

/// Gives up all capabilities but those of `kept` that the process has, the ways to get more, and being looked into by others;
/// and has the process die with the thread that started it. After the last change of user, which undoes some of it.
///
/// # Errors
/// The kernel refuses.
pub fn renounce(kept: Capabilities) -> Result<(), Error> {
    keep(kept)?;
    // SAFETY: prctls with integers only.
    unsafe {
        check(
            "give up ambient capabilities",
            libc::prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong,
                0,
                0,
                0,
            ),
        )?;
        check(
            "give up gaining privileges",
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        )?;
        check(
            "refuse to be traced",
            libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0),
        )?;
        check(
            "ask to die with the parent",
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0),
        )?;
    }
    Ok(())
}

/// `struct __user_cap_header_struct` (linux/capability.h).
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// Limits the permitted and effective sets to `kept` and clears the inheritable one.
fn keep(kept: Capabilities) -> Result<(), Error> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    // Two of effective, permitted, inheritable: capabilities 0 to 31, and from 32 on.
    let mut sets = [[0_u32; 3]; 2];
    // SAFETY: header and sets are laid out as capget(2) describes for that version, and outlive the call.
    check_long("read the capabilities", unsafe {
        libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr())
    })?;
    for (half, set) in sets.iter_mut().enumerate() {
        // The half's 32 bits.
        let permitted = set[1] & (kept >> (32 * half)) as u32;
        *set = [permitted, permitted, 0];
    }
    // SAFETY: as above; the kernel only reads.
    check_long("give up capabilities", unsafe {
        libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr())
    })
    .map(drop)
}
