//! The border between the common transport and one device type.

use std::{io, sync::Arc};

use event_manager::MutEventSubscriber;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::{
    template::{Mismatch, NotAtRest},
    thread::Thread,
};

/// The guest's memory as devices see it.
pub type Memory = Arc<GuestMemoryMmap>;

/// A device before the driver is ready for it (virtio 1.2, 3.1.1): it says what it offers. Lives in the transport.
pub trait VirtioDevice: Send {
    /// The device type's number (virtio 1.2, 5).
    fn device_type(&self) -> u32;

    /// The largest size of each virtqueue, in descriptors, a power of two; their number is the device's queue count.
    fn queue_max_sizes(&self) -> &[u16];

    /// The device type's own feature bits offered (virtio 1.2, 5.x.3). The transport adds what it implements itself:
    /// `VIRTIO_F_VERSION_1`, `VIRTIO_RING_F_EVENT_IDX`, `VIRTIO_RING_F_INDIRECT_DESC`.
    fn features(&self) -> u64 {
        0
    }

    /// Reads from the device-specific configuration space; what lies beyond its end reads as zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to it; most device types have nothing to be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Changes whenever what [`VirtioDevice::read_config`] reads does (virtio 1.2, 2.5.2).
    fn config_generation(&self) -> u8 {
        0
    }

    /// Begins to serve the queues: called once when the driver sets DRIVER_OK, with addresses and sizes that have been
    /// checked and stay frozen from then on. What is returned is put on event loops and dropped on reset.
    ///
    /// # Errors
    /// The device cannot work with what the driver set up; the transport sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError>;

    /// The driver has reset the device; its parts are dropped already. What belonged to that driver is to be forgotten.
    fn reset(&mut self) {}

    /// What a queue that is not being served may hold for the machine to be saved.
    fn rest(&self) -> Rest {
        Rest::InOrder
    }

    /// What the device has of its own that the guest depends on, in an encoding of its own; its parts are dropped already. What
    /// the driver has set up is the transport's, what is in the queues the memory's.
    ///
    /// # Errors
    /// The device has something that can't be saved.
    fn save(&self) -> Result<Vec<u8>, NotAtRest> {
        Ok(Vec::new())
    }

    /// Takes back what [`VirtioDevice::save`] has returned, perhaps in another process, before the device is activated.
    ///
    /// # Errors
    /// It is nothing that this device could have saved.
    fn restore(&mut self, state: &[u8]) -> Result<(), Mismatch> {
        match state {
            [] => Ok(()),
            _ => Err(Mismatch::Damaged(
                "a device has something that it knows nothing of",
            )),
        }
    }
}

/// What the queues of a device tell about it when it is not served. How far it had got is not saved: it is in the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It returns every chain that it takes, in their order, before it takes another one: what has not been returned has not been
    /// taken.
    InOrder,
    /// It takes several chains: there must never have been any.
    Untouched,
}

/// A part of an active device, served by itself; most devices have one.
pub struct Part {
    /// What serves it.
    pub subscriber: Box<dyn MutEventSubscriber + Send>,
    /// Where.
    pub event_loop: EventLoop,
}

impl Part {
    /// A part with the other devices.
    #[must_use]
    pub fn shared(subscriber: impl MutEventSubscriber + Send + 'static) -> Self {
        Self {
            subscriber: Box::new(subscriber),
            event_loop: EventLoop::Shared,
        }
    }

    /// A part on a thread of its own.
    #[must_use]
    pub fn own(thread: Thread, subscriber: impl MutEventSubscriber + Send + 'static) -> Self {
        Self {
            subscriber: Box::new(subscriber),
            event_loop: EventLoop::Own(thread),
        }
    }
}

/// Where a part of an active device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLoop {
    /// With the other devices, in the one event loop thread: its work never blocks.
    Shared,
    /// On a thread of its own of this kind, because its system calls can block or take long.
    Own(Thread),
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: Memory,
    /// The feature bits that were negotiated: those of the device type and the transport's.
    pub features: u64,
    /// The queues in the device type's order. A queue that the driver has not enabled is there, not ready
    /// (`Queue::ready()` is false) and never kicked.
    pub queues: Vec<ActiveQueue>,
    /// Tells the driver that the device-specific configuration has changed.
    pub config_interrupt: Arc<dyn DriverInterrupt>,
}

/// One queue of an active device.
pub struct ActiveQueue {
    /// The split virtqueue, event index set up as negotiated.
    pub queue: Queue,
    /// Readable when the driver has made descriptor chains available.
    pub kick: EventFd,
    /// Tells the driver that chains were used.
    pub interrupt: Arc<dyn DriverInterrupt>,
}

/// The driver has broken the rules of the queue: it is not to be looked at again.
#[derive(Debug)]
pub struct Broken;

impl ActiveQueue {
    /// The next available chain. When there is none, the driver is asked to notify, and will; while there are some, not.
    ///
    /// # Errors
    /// The available ring contradicts itself.
    pub fn next_chain<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, Broken> {
        let queue = &mut self.queue;
        let mut chain = queue.iter(memory).map_err(|_| Broken)?.next();
        if chain.is_none() {
            if !queue.enable_notification(memory).map_err(|_| Broken)? {
                return Ok(None);
            }
            // Some became available in between. If there are none even so, the ring contradicts itself.
            chain = queue.iter(memory).map_err(|_| Broken)?.next();
            if chain.is_none() {
                return Err(Broken);
            }
        }
        queue.disable_notification(memory).map_err(|_| Broken)?;
        Ok(chain)
    }

    /// Has the event loop come back to this queue.
    pub fn come_back(&self) {
        // Fails only when the counter is full, and then the event is there.
        let _ = self.kick.write(1);
    }

    /// Interrupts the driver about used chains unless it asked not to be (virtio 1.2, 2.7.7 and 2.7.10).
    pub fn notify_driver(&mut self, memory: &GuestMemoryMmap) {
        // A ring that can't be read leaves the choice to us: an interrupt too many is harmless.
        if self.queue.needs_notification(memory).unwrap_or(true) {
            self.interrupt.trigger();
        }
    }

    /// After a kick: hands the available chains to `serve`, which returns the number of bytes it has written, and tells the
    /// driver. What is left after `most` chains has its turn after whatever else the event loop has to do.
    pub fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        most: usize,
        mut serve: impl FnMut(DescriptorChain<&GuestMemoryMmap>) -> u32,
    ) {
        // Nothing to read is nothing to do: the eventfd is non-blocking.
        if self.kick.read().is_err() {
            return;
        }
        let mut served = 0;
        // Whether there may be more: not when the ring makes no sense, which is the guest's own trouble.
        let mut more = true;
        while more && served < most {
            more = match self.next_chain(memory) {
                Ok(Some(chain)) => {
                    let head = chain.head_index();
                    let written = serve(chain);
                    served += 1;
                    self.queue.add_used(memory, head, written).is_ok()
                }
                Ok(None) | Err(Broken) => false,
            };
        }
        if served > 0 {
            self.notify_driver(memory);
        }
        if more {
            self.come_back();
        }
    }
}

/// An interrupt for the driver, of a queue or of the configuration.
pub trait DriverInterrupt: Send + Sync {
    /// Interrupts the driver. Never blocks; callable from any thread.
    fn trigger(&self);

    /// Has the host's kernel interrupt the driver with each event of `event`, where and while it can. Otherwise the event stays
    /// to be read, by whoever then has to call [`DriverInterrupt::trigger`].
    fn connect(&self, _event: &EventFd) {}

    /// Undoes [`DriverInterrupt::connect`].
    fn disconnect(&self) {}
}

/// Why a device could not be activated.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue unready that the device cannot do without.
    #[error("the driver did not enable queue {0}")]
    QueueNotEnabled(usize),
    /// The host refused something.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
