//! Port writes that KVM keeps for later (`KVM_REGISTER_COALESCED_MMIO` with `KVM_CAP_COALESCED_PIO`).
//!
//! Every access to PCI configuration space is a write to the address register and an access to the data register. The
//! write by itself does nothing, so it need not leave the guest: KVM puts it into a ring, and whoever handles the next
//! exit, on any vCPU, first carries out what is in there. That saves four exits out of ten of a whole boot.

use std::{
    io,
    os::fd::AsRawFd,
    ptr::{NonNull, null_mut},
    sync::{Mutex, PoisonError},
};

use kvm_bindings::{kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;

/// The size of the ring: a page.
const SIZE: usize = 4096;

/// The ring of a virtual machine.
pub struct CoalescedWrites(Mutex<Ring>);

struct Ring(NonNull<kvm_coalesced_mmio_ring>);

// SAFETY: the pointer is to a mapping of its own, which any thread may use.
unsafe impl Send for Ring {}

impl CoalescedWrites {
    /// Maps the ring that all vCPUs share from one of them, where it is at page `page` (`KVM_CAP_COALESCED_MMIO`).
    ///
    /// # Errors
    /// The host has no room.
    pub fn new(vcpu: &VcpuFd, page: u32) -> io::Result<Self> {
        let offset = i64::from(page) * SIZE as i64;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which no other memory depends on.
        let ring = unsafe {
            libc::mmap(
                null_mut(),
                SIZE,
                protection,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset,
            )
        };
        match NonNull::new(ring) {
            Some(ring) if ring.as_ptr() != libc::MAP_FAILED => Ok(Self(Mutex::new(Ring(ring.cast())))),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Carries out the writes in the ring, in their order: port and bytes. When this returns, all that came before the
    /// caller's exit are done, whichever thread did them.
    pub fn carry_out(&self, mut write: impl FnMut(u16, &[u8])) {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(entry) = ring.pop() {
            let length = usize::try_from(entry.len).unwrap_or(0).min(entry.data.len());
            if let Ok(port) = u16::try_from(entry.phys_addr) {
                write(port, &entry.data[..length]);
            }
        }
    }
}

impl Ring {
    /// The entries that fit the page.
    const ENTRIES: u32 =
        ((SIZE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

    fn pop(&self) -> Option<kvm_coalesced_mmio> {
        let ring = self.0.as_ptr();
        // SAFETY: the ring is mapped as long as `self` exists, KVM is the only other side, and the lock makes this the
        // only one on ours. On x86 loads and stores are seen in the order of the program, which volatile ones keep:
        // the entry is read after KVM has published it and before it may write there again. The index is bounded, so
        // the entry lies within the page.
        unsafe {
            let first = (&raw const (*ring).first).read_volatile();
            let last = (&raw const (*ring).last).read_volatile();
            if first == last || first >= Self::ENTRIES {
                return None;
            }
            let entries = (&raw const (*ring).coalesced_mmio).cast::<kvm_coalesced_mmio>();
            let entry = entries.add(first as usize).read_volatile();
            (&raw mut (*ring).first).write_volatile((first + 1) % Self::ENTRIES);
            Some(entry)
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no pointer to it is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page that nothing but the test writes to.
    fn ring() -> Ring {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping.
        let page = unsafe { libc::mmap(null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        Ring(NonNull::new(page).unwrap().cast())
    }

    fn push(ring: &Ring, port: u64, value: u32) {
        let mut entry = kvm_coalesced_mmio {
            phys_addr: port,
            len: 4,
            ..Default::default()
        };
        entry.data[..4].copy_from_slice(&value.to_le_bytes());
        let page = ring.0.as_ptr();
        // SAFETY: the index is the ring's own, so the entry lies within the page.
        unsafe {
            let last = (*page).last;
            (&raw mut (*page).coalesced_mmio)
                .cast::<kvm_coalesced_mmio>()
                .add(last as usize)
                .write(entry);
            (*page).last = (last + 1) % Ring::ENTRIES;
        }
    }

    #[test]
    fn writes_are_carried_out_once_and_in_order_around_the_end_of_the_ring() {
        let writes = CoalescedWrites(Mutex::new(ring()));
        let mut next = 0;
        for round in 0..100_u32 {
            for value in 0..7 {
                push(&writes.0.lock().unwrap(), 0xcf8, round * 7 + value);
            }
            writes.carry_out(|port, data| {
                assert_eq!((port, data), (0xcf8, &u32::to_le_bytes(next)[..]));
                next += 1;
            });
        }
        assert_eq!(next, 700);
    }

    #[test]
    fn what_is_no_port_is_left_out() {
        let writes = CoalescedWrites(Mutex::new(ring()));
        push(&writes.0.lock().unwrap(), 1 << 32, 1);
        writes.carry_out(|_, _| panic!("not a port"));
    }
}
