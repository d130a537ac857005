//! How a machine ends: the first reason counts.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, OnceLock},
};

use sealock_protocol::control::ExitReason;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Told by any thread that the machine has ended, watched by the one that speaks with the shim. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ending(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    first: OnceLock<(ExitReason, String)>,
    wake: EventFd,
}

impl Ending {
    /// Of a machine that has not ended.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self(Arc::new(Inner {
            first: OnceLock::new(),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })))
    }

    /// Ends the machine, unless it has ended already.
    pub fn end(&self, reason: ExitReason, detail: impl Into<String>) {
        if self.0.first.set((reason, detail.into())).is_ok() {
            // Fails only if the counter overflows, and it is written once.
            let _ = self.0.wake.write(1);
        }
    }

    /// Why the machine ended, and the detail for a person; `None` while it runs.
    #[must_use]
    pub fn reason(&self) -> Option<(ExitReason, &str)> {
        self.0
            .first
            .get()
            .map(|(reason, detail)| (*reason, detail.as_str()))
    }
}

impl AsFd for Ending {
    /// Readable when the machine has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the eventfd, which `self` keeps.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.0.wake)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let ending = Ending::new().unwrap();
        assert_eq!(ending.reason(), None);
        ending.clone().end(ExitReason::Panic, "one");
        ending.end(ExitReason::Reboot, "two");
        assert_eq!(ending.reason(), Some((ExitReason::Panic, "one")));
    }
}
