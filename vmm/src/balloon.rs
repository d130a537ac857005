//! virtio-balloon (virtio 1.2, 5.5) for what it does by itself: the guest reports the memory it has free (5.5.6.7), and the
//! host gets it back at once.
//!
//! The host never asks for a balloon to be inflated: memory that is in use stays the guest's, and what is not comes by
//! itself. Pages that the driver puts into the balloon unasked are only taken note of.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::QueueT;

use crate::{
    memory::give_back,
    thread::Thread,
    virtio::device::{ActivateError, Activation, ActiveQueue, Memory, Part, VirtioDevice},
};

/// `VIRTIO_BALLOON_F_REPORTING`.
const REPORTING: u64 = 1 << 5;

/// The queue of reports. The specification numbers the queues as if all were there; Linux and QEMU count those that are.
const REPORTS: usize = 2;

/// The most reports for one notification; what is left has its turn afterwards.
const MAX_TURN: usize = 64;

/// The device.
#[derive(Debug, Default)]
pub struct Balloon;

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_max_sizes(&self) -> &[u16] {
        // Inflate, deflate, reports of up to 32 ranges each.
        &[64, 64, 64]
    }

    fn features(&self) -> u64 {
        REPORTING
    }

    /// No page is asked for, and none counted.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
        let Activation { memory, queues, .. } = activation;
        // Taking many pages away takes milliseconds, which no other device is to wait.
        Ok(vec![Part::own(Thread::Balloon, ActiveBalloon { memory, queues })])
    }
}

struct ActiveBalloon {
    memory: Memory,
    queues: Vec<ActiveQueue>,
}

impl ActiveBalloon {
    fn turn(&mut self, index: usize) {
        let memory = &self.memory;
        if let Some(queue) = self.queues.get_mut(index) {
            queue.turn(memory, MAX_TURN, |chain| {
                if index == REPORTS {
                    // A range that is none of the guest's, or not of whole pages, gives nothing back.
                    for range in chain.writable() {
                        give_back(memory, range.addr(), range.len().into());
                    }
                }
                0
            });
        }
    }
}

impl MutEventSubscriber for ActiveBalloon {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        self.turn(usize::try_from(events.data()).unwrap_or(usize::MAX));
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (index, queue) in (0..).zip(&self.queues) {
            if queue.queue.ready() {
                // Fails only if the host has no memory left: then nothing is given back.
                let _ = ops.add(Events::with_data(&queue.kick, index, EventSet::IN));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::{
        Queue,
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::virtio::device::DriverInterrupt;

    struct Silent;

    impl DriverInterrupt for Silent {
        fn trigger(&self) {}
    }

    /// Which of 16 pages from 64 KiB on are still as they were after the driver has put `ranges` into queue `index`.
    fn kept(index: usize, ranges: &[(u64, u32, u32)]) -> Vec<u64> {
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap());
        memory
            .write_slice(&[7; 0x1_0000], GuestAddress(0x1_0000))
            .unwrap();
        let ring = MockSplitQueue::new(memory.as_ref(), 16);
        let chains: Vec<_> = ranges
            .iter()
            .map(|&(address, length, flags)| {
                RawDescriptor::from(Descriptor::new(address, length, flags as u16, 0))
            })
            .collect();
        ring.add_desc_chains(&chains, 0).unwrap();
        let queue = |queue| ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: Arc::new(Silent),
        };
        let mut queues: Vec<_> = (0..3).map(|_| queue(Queue::new(16).unwrap())).collect();
        queues[index] = queue(ring.create_queue().unwrap());
        queues[index].kick.write(1).unwrap();
        let mut balloon = ActiveBalloon {
            memory: memory.clone(),
            queues,
        };
        balloon.turn(index);
        let used = u16::from_le(ring.used().idx().load());
        assert_eq!(usize::from(used), ranges.len(), "every report is answered");
        (0..16)
            .filter(|page| {
                let address = GuestAddress(0x1_0000 + page * 0x1000);
                memory.read_obj::<u8>(address).unwrap() == 7
            })
            .collect()
    }

    #[test]
    fn reported_memory_goes_back_to_the_host() {
        let ranges = [
            (0x1_2000, 0x3000, VRING_DESC_F_WRITE),
            (0x1_f000, 0x1000, VRING_DESC_F_WRITE),
        ];
        let kept = kept(REPORTS, &ranges);
        assert_eq!(kept, [0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn what_is_not_the_guests_or_not_whole_pages_is_left_alone() {
        let ranges = [
            (0x1_f000, 0x2000, VRING_DESC_F_WRITE),
            (0x1_0800, 0x1000, VRING_DESC_F_WRITE),
            (0x1_0000, 0x0800, VRING_DESC_F_WRITE),
            (0x2_0000, 0x1000, VRING_DESC_F_WRITE),
            (!0xfff, 0x1000, VRING_DESC_F_WRITE),
            // Not the device's to write.
            (0x1_0000, 0x1000, 0),
        ];
        assert_eq!(kept(REPORTS, &ranges).len(), 16);
    }

    #[test]
    fn what_is_put_into_the_balloon_unasked_stays() {
        assert_eq!(kept(0, &[(0x1_0000, 0x1_0000, VRING_DESC_F_WRITE)]).len(), 16);
    }
}
