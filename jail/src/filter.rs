//! The system calls that a thread may still make (seccomp(2)).
//!
//! What they are is in files that one can read (`vmm/filters`, `fsd/filters`); build scripts compile them. A thread
//! that does anything else is ended by the kernel with its whole process, which the shim takes for what it is.

use crate::{Error, check_long};

/// An instruction of a compiled filter (linux/filter.h).
pub type Instruction = libc::sock_filter;

/// A compiled filter.
#[derive(Clone, Copy)]
pub struct Filter(&'static [Instruction]);

impl Filter {
    /// Of what the compiler made.
    #[must_use]
    pub const fn new(program: &'static [Instruction]) -> Self {
        Self(program)
    }

    /// Leaves the calling thread, and those that it starts, with what the filter allows, and what was left to it before. For
    /// ever. Needs [`crate::privileges::renounce`].
    ///
    /// # Errors
    /// The kernel has no seccomp, or no memory left.
    pub fn install(self) -> Result<(), Error> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).unwrap_or(u16::MAX),
            // The kernel only reads.
            filter: self.0.as_ptr().cast_mut(),
        };
        // SAFETY: the program is of static instructions, as many as said; the kernel checks them.
        check_long("restrict the thread's system calls", unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        })
        .map(drop)
    }
}
