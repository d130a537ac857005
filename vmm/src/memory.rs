//! The guest's memory.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use sealock_protocol::control::memory_step_mib;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

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
        mib: usize,
        /// Why not.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refuses a region.
    #[error("cannot give the guest its memory")]
    Kvm(#[source] kvm_ioctls::Error),
}

/// Where a machine has memory: address and length of each region, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// At boot.
    pub ram: Vec<(GuestAddress, usize)>,
    /// What it can grow by.
    pub growth: Option<(GuestAddress, usize)>,
}

impl Plan {
    /// Of a machine that boots with `boot_mib` MiB and may have `most_mib`.
    ///
    /// # Errors
    /// [`Error::Amount`]
    pub fn new(boot_mib: u32, most_mib: u32) -> Result<Self, Error> {
        let boot = u64::from(boot_mib) << 20;
        let ram = match layout::memory_regions(boot) {
            Some(ram) if boot_mib > 0 => ram,
            _ => return Err(Error::Amount(boot_mib)),
        };
        let step = u64::from(memory_step_mib(boot_mib)) << 20;
        let growth = layout::growth_region(boot, u64::from(most_mib) << 20, step);
        Ok(Self { ram, growth })
    }
}

/// Maps anonymous private memory for a plan, without reserving room for it. Nothing of it is touched yet.
///
/// # Errors
/// See [`Error`].
pub fn allocate(plan: &Plan) -> Result<Memory, Error> {
    let regions: Vec<_> = plan.ram.iter().chain(&plan.growth).copied().collect();
    let memory = GuestMemoryMmap::from_ranges(&regions).map_err(|source| Error::Map {
        mib: regions.iter().map(|(_, length)| length >> 20).sum(),
        source,
    })?;
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

const PAGE: u64 = 4096;

/// Gives the pages of a range of the guest's memory back to the host; the guest finds zeroes there. Returns whether it did:
/// the range must be of whole pages and lie within one region.
pub fn give_back(memory: &GuestMemoryMmap, start: GuestAddress, length: u64) -> bool {
    let Some(region) = memory.find_region(start) else {
        return false;
    };
    let offset = start.0 - region.start_addr().0;
    let fits = offset.checked_add(length).is_some_and(|end| end <= region.len());
    if !fits || length == 0 || !offset.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) {
        return false;
    }
    // Within the region, so they fit a usize.
    let (offset, length) = (offset as usize, length as usize);
    // SAFETY: the range lies within the region's mapping, which is anonymous and private, and in which the guest may change
    // everything at any time anyway.
    unsafe { libc::madvise(region.as_ptr().add(offset).cast(), length, libc::MADV_DONTNEED) == 0 }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn no_memory_is_refused() {
        assert!(matches!(Plan::new(0, 64), Err(Error::Amount(0))));
    }

    #[test]
    fn memory_beyond_the_hole_is_in_two_regions() {
        let memory = allocate(&Plan::new(3073, 3073).unwrap()).unwrap();
        assert_eq!(memory.num_regions(), 2);
    }

    #[test]
    fn what_a_machine_can_grow_by_is_a_region_of_its_own_in_whole_steps() {
        let plan = Plan::new(64, 400).unwrap();
        assert_eq!(plan.growth, Some((GuestAddress(4 << 30), 256 << 20)));
        assert_eq!(allocate(&plan).unwrap().num_regions(), 2);
        assert_eq!(Plan::new(512, 256).unwrap().growth, None);
    }

    #[test]
    fn only_whole_pages_within_a_region_are_given_back() {
        let memory = allocate(&Plan::new(1, 129).unwrap()).unwrap();
        let filled = [7_u8; 3 * 4096];
        memory.write_slice(&filled, GuestAddress(0)).unwrap();
        let given = |start, length| give_back(&memory, GuestAddress(start), length);
        for (start, length) in [
            (1, 4096),
            (4096, 1),
            (4096, 0),
            (0, (1 << 20) + 4096),
            (1 << 20, 4096),
            (4096, !4095),
            (!4095, 4096),
        ] {
            assert!(!given(start, length), "{start:#x} {length:#x}");
        }
        assert!(given(4096, 4096));
        assert!(given(4 << 30, 128 << 20));
        let mut read = [1_u8; 3 * 4096];
        memory.read_slice(&mut read, GuestAddress(0)).unwrap();
        assert_eq!(read[..4096], filled[..4096]);
        assert_eq!(read[4096..8192], [0; 4096]);
        assert_eq!(read[8192..], filled[8192..]);
    }
}
