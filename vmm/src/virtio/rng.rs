//! virtio-rng (virtio 1.2, 5.4): the host's random numbers.

use std::io::{self, Write};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::device::{ActivateError, Activation, ActiveQueue, Memory, Part, VirtioDevice};

/// The most bytes for one request: a driver that asks for more gets fewer, as it must expect.
const MAX_REQUEST: usize = 4096;
/// The most bytes for one notification; what is still asked for has its turn after the other devices.
const MAX_TURN: usize = 64 * 1024;

/// The device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
        let Activation { memory, queues, .. } = activation;
        match queues.into_iter().next() {
            Some(queue) if queue.queue.ready() => Ok(vec![Part::shared(ActiveRng { memory, queue })]),
            _ => Err(ActivateError::QueueNotEnabled(0)),
        }
    }
}

struct ActiveRng {
    memory: Memory,
    queue: ActiveQueue,
}

impl ActiveRng {
    /// Serves what the driver has made available, up to [`MAX_TURN`]. Returns whether there was anything.
    fn serve(&mut self) -> bool {
        let memory = self.memory.as_ref();
        let mut served = 0;
        // A ring that makes no sense is the guest's: it gets no random numbers from it.
        while served < MAX_TURN
            && let Some(chain) = next(&mut self.queue.queue, memory)
        {
            let head = chain.head_index();
            let mut buffer = [0; MAX_REQUEST];
            let length = chain.writer(memory).ok().and_then(|mut writer| {
                let wanted = writer.available_bytes().min(MAX_REQUEST);
                fill(&mut buffer[..wanted]).ok()?;
                writer.write(&buffer[..wanted]).ok()
            });
            let length = length.unwrap_or(0);
            // At most MAX_REQUEST.
            if self.queue.queue.add_used(memory, head, length as u32).is_err() {
                break;
            }
            // A request costs something however small it is.
            served += length.max(64);
        }
        served > 0
    }
}

fn next<'m>(queue: &mut Queue, memory: &'m GuestMemoryMmap) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
    queue.iter(memory).ok()?.next()
}

impl MutEventSubscriber for ActiveRng {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        // Nothing to read is nothing to do: the eventfd is non-blocking.
        if self.queue.kick.read().is_err() {
            return;
        }
        let served = self.serve();
        if served {
            self.queue.notify_driver(&self.memory);
        }
        // What came since, or was left, has its turn after the other devices. Without progress there would be none then
        // either: such a ring waits for the next notification.
        let more = self.queue.queue.enable_notification(self.memory.as_ref());
        if served && more.unwrap_or(false) {
            let _ = self.queue.kick.write(1);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Fails only if the host has no memory left: the guest then waits for random numbers in vain.
        let _ = ops.add(Events::new(&self.queue.kick, EventSet::IN));
    }
}

/// Fills `buffer`, of at most 256 bytes at once without interruption by signals, from the host's generator.
fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        // SAFETY: the pointer and length are those of a live, exclusively borrowed slice.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => rest = &mut rest[got..],
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::{
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::virtio::device::DriverInterrupt;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl DriverInterrupt for Count {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn served(requests: &[(u32, u16)]) -> (Memory, Vec<u32>, usize) {
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap());
        let interrupt = Arc::new(Count::default());
        let lengths = {
            let ring = MockSplitQueue::new(memory.as_ref(), 16);
            let chains: Vec<_> = (0x1_0000_u64..)
                .step_by(0x2000)
                .zip(requests)
                .map(|(address, (length, flags))| {
                    RawDescriptor::from(Descriptor::new(address, *length, *flags, 0))
                })
                .collect();
            ring.add_desc_chains(&chains, 0).unwrap();
            let mut device = ActiveRng {
                memory: memory.clone(),
                queue: ActiveQueue {
                    queue: ring.create_queue().unwrap(),
                    kick: EventFd::new(EFD_NONBLOCK).unwrap(),
                    interrupt: interrupt.clone(),
                },
            };
            if device.serve() {
                device.queue.notify_driver(&memory);
            }
            let used = ring.used();
            (0..usize::from(u16::from_le(used.idx().load())))
                .map(|index| used.ring().ref_at(index).unwrap().load().len())
                .collect()
        };
        (memory, lengths, interrupt.0.load(Ordering::Relaxed))
    }

    #[test]
    fn a_request_is_filled_and_its_length_told() {
        let (memory, lengths, interrupts) = served(&[(32, VRING_DESC_F_WRITE as u16)]);
        assert_eq!((lengths, interrupts), (vec![32], 1));
        let mut bytes = [0; 64];
        memory.read_slice(&mut bytes, GuestAddress(0x1_0000)).unwrap();
        assert_ne!(bytes[..32], [0; 32]);
        assert_eq!(bytes[32..], [0; 32]);
    }

    #[test]
    fn a_request_larger_than_the_bound_gets_less() {
        let (_, lengths, _) = served(&[(0x2000, VRING_DESC_F_WRITE as u16)]);
        assert_eq!(lengths, [4096]);
    }

    #[test]
    fn a_buffer_the_device_may_not_write_is_returned_empty() {
        let (memory, lengths, _) = served(&[(32, 0), (16, VRING_DESC_F_WRITE as u16)]);
        assert_eq!(lengths, [0, 16]);
        let mut bytes = [0; 32];
        memory.read_slice(&mut bytes, GuestAddress(0x1_0000)).unwrap();
        assert_eq!(bytes, [0; 32]);
    }
}
