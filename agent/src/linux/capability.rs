//! capabilities(7) of the calling process.

use std::io;

use super::check;
use crate::oci::Capabilities;

/// `struct __user_cap_header_struct`
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`
#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words for each set.
const VERSION_3: u32 = 0x2008_0522;

fn prctl(option: libc::c_int, argument: u64, other: u64) -> io::Result<()> {
    // SAFETY: the options used in this file take numbers alone.
    check(unsafe { libc::prctl(option, argument, other, 0, 0) }.into())?;
    Ok(())
}

/// Gives up, for ever, what is not in the bounding set.
///
/// # Errors
/// The process may not.
pub fn limit_bounding(capabilities: &Capabilities) -> io::Result<()> {
    for number in 0..Capabilities::COUNT {
        if capabilities.bounding & (1 << number) == 0 {
            prctl(libc::PR_CAPBSET_DROP, number.into(), 0)?;
        }
    }
    Ok(())
}

/// Whether a change of user takes the permitted set away.
///
/// # Errors
/// None that is known.
pub fn keep_over_user_change(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0)
}

/// Sets all but the bounding set.
///
/// # Errors
/// The process does not have what it should keep.
pub fn set(capabilities: &Capabilities) -> io::Result<()> {
    let header = Header {
        version: VERSION_3,
        pid: 0,
    };
    // The halves of each set: truncation is what is wanted.
    let word = |shift: u32| Data {
        effective: (capabilities.effective >> shift) as u32,
        permitted: (capabilities.permitted >> shift) as u32,
        inheritable: (capabilities.inheritable >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: header and data are what the version 3 of the call reads, and outlive it.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for number in 0..Capabilities::COUNT {
        if capabilities.ambient & (1 << number) != 0 {
            prctl(
                libc::PR_CAP_AMBIENT,
                libc::PR_CAP_AMBIENT_RAISE as u64,
                number.into(),
            )?;
        }
    }
    Ok(())
}
