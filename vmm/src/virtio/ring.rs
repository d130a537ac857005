//! The driver's side of a split virtqueue (virtio 1.2, 2.7).

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::Memory;

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;

/// One queue, as the driver has it in its memory.
pub struct Ring {
    memory: Memory,
    base: u64,
    size: u16,
    event_index: bool,
    available: u16,
    used: u16,
}

impl Ring {
    /// An empty queue of `size` descriptors at `base`, in zeroed memory.
    pub fn new(memory: &Memory, base: u64, size: u16, event_index: bool) -> Self {
        Self {
            memory: memory.clone(),
            base,
            size,
            event_index,
            available: 0,
            used: 0,
        }
    }

    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// What the transport would make of it.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        queue.set_desc_table_address(low(self.base), Some(0));
        queue.set_avail_ring_address(low(self.avail_ring()), Some(0));
        queue.set_used_ring_address(low(self.used_ring()), Some(0));
        queue.set_event_idx(self.event_index);
        queue.set_ready(true);
        assert!(queue.is_valid::<GuestMemoryMmap>(&self.memory));
        queue
    }

    fn store(&self, address: u64, value: u16) {
        self.memory
            .write_obj(value.to_le(), GuestAddress(address))
            .unwrap();
    }

    fn load(&self, address: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(address)).unwrap())
    }

    /// Writes a descriptor.
    pub fn describe(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        self.memory.write_obj(address.to_le(), GuestAddress(at)).unwrap();
        self.memory.write_obj(len.to_le(), GuestAddress(at + 8)).unwrap();
        self.store(at + 12, flags);
        self.store(at + 14, next);
    }

    /// Makes the chain at `head` available; whether the device wants to be kicked for it.
    pub fn publish(&mut self, head: u16) -> bool {
        let slot = u64::from(self.available % self.size);
        self.store(self.avail_ring() + 4 + 2 * slot, head);
        self.set_available(self.available.wrapping_add(1))
    }

    /// Moves the available index, honestly or not.
    pub fn set_available(&mut self, index: u16) -> bool {
        let old = std::mem::replace(&mut self.available, index);
        self.store(self.avail_ring() + 2, index);
        if self.event_index {
            let event = self.load(self.used_ring() + 4 + 8 * u64::from(self.size));
            index.wrapping_sub(event).wrapping_sub(1) < index.wrapping_sub(old)
        } else {
            self.load(self.used_ring()) & 1 == 0
        }
    }

    /// The next chain that the device has used, and how much of it.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used_ring() + 2) == self.used {
            return None;
        }
        let at = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((self.load(at), u32::from_le(len)))
    }

    /// Chains that the device has not used yet.
    pub fn outstanding(&self) -> u16 {
        self.available.wrapping_sub(self.load(self.used_ring() + 2))
    }
}
