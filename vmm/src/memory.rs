//! The guest's memory.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::{arch::x86_64::layout, virtio::device::Memory};

/// Whether to ask the host for huge pages. Booting touches some 700 pages one by one otherwise, each of which is a nested
/// page fault; measured in the lab, a kernel reaches its init in half the time with them, and an idle guest has 34 MiB
/// resident instead of 27.
const HUGE_PAGES: bool = true;

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than addresses exist for, or none.
    #[error("memory_mib = {0} is not an amount of memory a machine can have")]
    Amount(u32),
    /// The host has no room.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// How much was asked for.
        mib: u32,
        /// Why not.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refuses a region.
    #[error("cannot give the guest its memory")]
    Kvm(#[source] kvm_ioctls::Error),
}

/// Maps `mib` MiB of anonymous private memory. Nothing of it is touched yet.
///
/// # Errors
/// See [`Error`].
pub fn allocate(mib: u32) -> Result<Memory, Error> {
    let regions = match layout::memory_regions(u64::from(mib) << 20) {
        Some(regions) if mib > 0 => regions,
        _ => return Err(Error::Amount(mib)),
    };
    let memory = GuestMemoryMmap::from_ranges(&regions).map_err(|source| Error::Map { mib, source })?;
    if HUGE_PAGES {
        for region in memory.iter() {
            // SAFETY: advice on a mapping that is ours, which changes nothing of its contents. A host without huge pages
            // refuses it, and does without.
            unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
        }
    }
    Ok(Arc::new(memory))
}

/// Makes `memory` the memory of `vm`. It must stay mapped as long as a vCPU of `vm` runs.
///
/// # Errors
/// [`Error::Kvm`].
pub fn give(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is a mapping of its own of exactly that size, shared with nothing but devices, which
        // access it through volatile operations; the caller keeps it mapped.
        unsafe { vm.set_user_memory_region(region) }.map_err(Error::Kvm)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_refused() {
        assert!(matches!(allocate(0), Err(Error::Amount(0))));
    }

    #[test]
    fn memory_beyond_the_hole_is_in_two_regions() {
        let memory = allocate(3073).unwrap();
        assert_eq!(memory.num_regions(), 2);
    }
}
