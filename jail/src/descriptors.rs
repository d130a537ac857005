//! Descriptors that nobody meant to pass on.

use crate::{Error, check};

/// Closes every descriptor from 3 on: whatever the starter's other threads let slip into this process.
///
/// # Errors
/// The host's kernel is older than 5.9.
///
/// # Safety
/// Nothing in the process may own such a descriptor: to be called first thing in `main`.
pub unsafe fn close_inherited() -> Result<(), Error> {
    // SAFETY: nobody uses the descriptors, says the caller.
    let closed = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    check(
        "close inherited descriptors (Linux 5.9 or later is needed)",
        closed,
    )
    .map(drop)
}
