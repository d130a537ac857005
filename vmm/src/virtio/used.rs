//! A used ring written in batches (virtio 1.2, 2.7.8): chains become visible to the driver together, which a packet that
//! is spread over several needs (5.1.6.4.1), and cost one interrupt.

use std::{
    num::Wrapping,
    sync::atomic::{Ordering, fence},
};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Flags and index before the entries.
const HEADER: u64 = 4;
/// Where the index is.
const INDEX: u64 = 2;
/// The size of an entry: head and length.
const ENTRY: u64 = 8;

/// The used ring of a queue, written by this alone.
pub struct UsedRing {
    ring: u64,
    available: u64,
    size: u16,
    event_index: bool,
    next: Wrapping<u16>,
    published: Wrapping<u16>,
    /// As far as the driver was told or did not want to be.
    told: Wrapping<u16>,
}

impl UsedRing {
    /// The used ring of `queue`, whose addresses have been checked, and to which nothing else adds.
    #[must_use]
    pub fn of(queue: &Queue) -> Self {
        let next = Wrapping(queue.next_used());
        Self {
            ring: queue.used_ring(),
            available: queue.avail_ring(),
            size: queue.size(),
            event_index: queue.event_idx_enabled(),
            next,
            published: next,
            told: next,
        }
    }

    /// Adds the chain that begins with descriptor `head`, of which the device has written `length` bytes.
    ///
    /// # Errors
    /// The ring isn't in the guest's memory.
    pub fn push(&mut self, memory: &GuestMemoryMmap, head: u16, length: u32) -> Result<(), GuestMemoryError> {
        // The size is not 0 for any queue that is ready, and the ring lies below the end of the address space.
        let place = u64::from(self.next.0 % self.size.max(1));
        let entry = u64::from(head) | u64::from(length) << 32;
        memory.write_obj(entry.to_le(), GuestAddress(self.ring + HEADER + place * ENTRY))?;
        self.next += 1;
        Ok(())
    }

    /// Lets the driver see what was added.
    ///
    /// # Errors
    /// As [`UsedRing::push`].
    pub fn publish(&mut self, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        if self.published != self.next {
            memory.store(
                self.next.0.to_le(),
                GuestAddress(self.ring + INDEX),
                Ordering::Release,
            )?;
            self.published = self.next;
        }
        Ok(())
    }

    /// Whether the driver is to be interrupted about what was published since the last call (virtio 1.2, 2.7.7 and
    /// 2.7.10).
    pub fn driver_waits(&mut self, memory: &GuestMemoryMmap) -> bool {
        if self.told == self.published {
            return false;
        }
        let told = std::mem::replace(&mut self.told, self.published);
        // The index must be seen before the driver is asked: it looks again after it has answered.
        fence(Ordering::SeqCst);
        let asked = if self.event_index {
            HEADER + 2 * u64::from(self.size)
        } else {
            0
        };
        let answer = memory.load::<u16>(GuestAddress(self.available + asked), Ordering::Relaxed);
        match answer.map(u16::from_le) {
            Ok(event) if self.event_index => {
                self.published - Wrapping(event) - Wrapping(1) < self.published - told
            }
            Ok(flags) => flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0,
            // An interrupt too many is harmless.
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::virtio::{device::Memory, ring::Ring};

    const BASE: u64 = 0x1000;
    const SIZE: u16 = 8;

    fn rings(event_index: bool) -> (Memory, Ring, UsedRing) {
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap());
        let driver = Ring::new(&memory, BASE, SIZE, event_index);
        let used = UsedRing::of(&driver.queue());
        (memory, driver, used)
    }

    #[test]
    fn nothing_is_seen_before_it_is_published() {
        let (memory, mut driver, mut used) = rings(true);
        for round in 0..5_u16 {
            for head in 0..3 {
                used.push(&memory, head, u32::from(round * 10 + head)).unwrap();
            }
            assert_eq!(driver.take_used(), None);
            used.publish(&memory).unwrap();
            for head in 0..3 {
                assert_eq!(driver.take_used(), Some((head, u32::from(round * 10 + head))));
            }
        }
    }

    #[test]
    fn the_driver_is_interrupted_once_when_it_waits_for_one_of_the_batch() {
        let (memory, _, mut used) = rings(true);
        assert!(!used.driver_waits(&memory), "nothing was used");
        // The driver waits for the second chain (used_event is 1).
        let event = GuestAddress(BASE + 16 * u64::from(SIZE) + HEADER + 2 * u64::from(SIZE));
        memory.write_obj(1_u16.to_le(), event).unwrap();
        let mut publish = |count| {
            for _ in 0..count {
                used.push(&memory, 0, 0).unwrap();
            }
            used.publish(&memory).unwrap();
            used.driver_waits(&memory)
        };
        assert!(!publish(1));
        assert!(publish(3));
        assert!(!publish(1));
    }

    #[test]
    fn a_driver_that_wants_no_interrupts_gets_none() {
        let (memory, _, mut used) = rings(false);
        let flags = GuestAddress(BASE + 16 * u64::from(SIZE));
        for (value, waits) in [(0_u16, true), (1, false)] {
            memory.write_obj(value.to_le(), flags).unwrap();
            used.push(&memory, 0, 0).unwrap();
            used.publish(&memory).unwrap();
            assert_eq!(used.driver_waits(&memory), waits);
        }
    }
}
