//! The host's hold on the device: how much memory it wants the guest to have.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddress;

use super::blocks::Blocks;
use crate::virtio::device::DriverInterrupt;

struct State {
    blocks: Blocks,
    /// How often the configuration has changed by itself.
    generation: u8,
    /// While a driver is there.
    interrupt: Option<Arc<dyn DriverInterrupt>>,
}

/// What device and machine share. Clones are the same.
#[derive(Clone)]
pub struct Growth(Arc<Mutex<State>>);

impl Growth {
    /// For a region of `length` bytes at `start` ([`Blocks::new`]).
    #[must_use]
    pub fn new(start: GuestAddress, length: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            blocks: Blocks::new(start, length),
            generation: 0,
            interrupt: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the guest have `bytes` of the region, or all if that is less; it keeps what it has. Returns what it may have.
    #[must_use]
    pub fn request(&self, bytes: u64) -> u64 {
        let mut state = self.state();
        let before = state.blocks.requested();
        if bytes > before {
            state.blocks.request(bytes);
        }
        let after = state.blocks.requested();
        if after != before {
            state.generation = state.generation.wrapping_add(1);
        }
        let interrupt = state.interrupt.clone();
        drop(state);
        if let (true, Some(interrupt)) = (after != before, interrupt) {
            interrupt.trigger();
        }
        after
    }

    /// Does something with the blocks.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Blocks) -> T) -> T {
        work(&mut self.state().blocks)
    }

    /// Changes with what the host wants.
    pub(super) fn generation(&self) -> u8 {
        self.state().generation
    }

    /// Whom to tell of changes.
    pub(super) fn connect(&self, interrupt: Option<Arc<dyn DriverInterrupt>>) {
        self.state().interrupt = interrupt;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::mem::blocks::BLOCK;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl DriverInterrupt for Count {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_driver_hears_of_what_is_new_to_it() {
        let growth = Growth::new(GuestAddress(4 << 30), 64 * BLOCK);
        assert_eq!(growth.request(BLOCK), BLOCK, "no driver yet");
        let count = Arc::new(Count::default());
        growth.connect(Some(count.clone()));
        assert_eq!(growth.request(10 * BLOCK), 10 * BLOCK);
        assert_eq!(growth.request(10 * BLOCK), 10 * BLOCK);
        assert_eq!(growth.request(2 * BLOCK), 10 * BLOCK, "nothing is taken away");
        assert_eq!(growth.request(u64::MAX), 64 * BLOCK);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }
}
