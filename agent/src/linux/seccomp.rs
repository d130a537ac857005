//! Loading a seccomp filter.

use std::io;

use super::check;
use crate::oci::Seccomp;

/// Loads a filter for the calling process, for ever. Needs `CAP_SYS_ADMIN` or no_new_privs.
///
/// # Errors
/// The kernel refuses it.
pub fn load(filter: &Seccomp) -> io::Result<()> {
    let length = u16::try_from(filter.program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog {
        len: length,
        // The kernel only reads. A `sock_filter` is eight bytes with an alignment of four, as which they were written.
        filter: filter.program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: program and instructions outlive the call; the length is that of the instructions.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags,
            &raw const program,
        )
    })?;
    Ok(())
}
