//! The border between the common transport and one device type.

use std::{io, sync::Arc};

use event_manager::MutEventSubscriber;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

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

    /// Begins to serve the queues: called once when the driver sets DRIVER_OK, with addresses and sizes that have been
    /// checked and stay frozen from then on. What is returned is put on an event loop and dropped on reset.
    ///
    /// # Errors
    /// The device cannot work with what the driver set up; the transport sets DEVICE_NEEDS_RESET.
    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Box<dyn MutEventSubscriber + Send>, ActivateError>;

    /// The event loop that [`VirtioDevice::activate`]'s result is to run on.
    fn event_loop(&self) -> EventLoop {
        EventLoop::Shared
    }
}

/// Where an active device runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventLoop {
    /// With the other devices, in the one event loop thread: its work never blocks.
    Shared,
    /// On a thread of its own of this name, because its system calls can block.
    Own(&'static str),
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
}

/// One queue of an active device.
pub struct ActiveQueue {
    /// The split virtqueue, event index set up as negotiated.
    pub queue: Queue,
    /// Readable when the driver has made descriptor chains available.
    pub kick: EventFd,
    /// Tells the driver that chains were used.
    pub interrupt: Arc<dyn QueueInterrupt>,
}

impl ActiveQueue {
    /// Interrupts the driver about used chains unless it asked not to be (virtio 1.2, 2.7.7 and 2.7.10).
    pub fn notify_driver(&mut self, memory: &GuestMemoryMmap) {
        use virtio_queue::QueueT;
        // A ring that can't be read leaves the choice to us: an interrupt too many is harmless.
        if self.queue.needs_notification(memory).unwrap_or(true) {
            self.interrupt.trigger();
        }
    }
}

/// The interrupt of a queue.
pub trait QueueInterrupt: Send + Sync {
    /// Interrupts the driver: the queue has used chains. Never blocks; callable from any thread.
    fn trigger(&self);
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
