//! What the kernel finds in memory when it is entered: the 64-bit protocol of Linux' `Documentation/arch/x86/boot.rst`.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::{
    kernel::{self, Kernel},
    layout, mptable, registers,
};
use crate::initramfs::{self, Initramfs};

/// Why the guest's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel's image.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The initramfs.
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    /// The memory is too small to boot in.
    #[error("memory_mib = {given} is too little: the kernel and initramfs need at least {needed} MiB")]
    MemoryTooSmall {
        /// What was configured.
        given: u64,
        /// What would do.
        needed: u64,
    },
    /// The command line is longer than the protocol's bound.
    #[error("the kernel's command line has {0} bytes, {max} fit", max = layout::COMMAND_LINE_SIZE - 1)]
    CommandLineTooLong(usize),
    /// The boot structures don't fit the memory.
    #[error("cannot write the boot parameters")]
    Memory(#[from] GuestMemoryError),
}

const MIB: u64 = 1 << 20;
/// What the kernel itself needs to come up, besides its image and the initramfs: the page array, per-CPU areas, its
/// hash tables and caches.
const KERNEL_NEEDS: u64 = 24 * MIB;
const PAGE: u64 = 4096;

const E820_RAM: u32 = 1;

/// Loads kernel and initramfs and writes everything else the kernel expects: that it has `ram` of the memory, and `vcpus`
/// CPUs. Returns where it is to be entered.
///
/// # Errors
/// See [`Error`].
pub fn load(
    memory: &GuestMemoryMmap,
    ram: &[(GuestAddress, usize)],
    vcpus: u8,
    kernel: Kernel,
    initramfs: Initramfs,
    command_line: &str,
) -> Result<GuestAddress, Error> {
    let low_end = ram.first().map_or(0, |(_, length)| *length as u64);
    let total: u64 = ram.iter().map(|(_, length)| *length as u64).sum();
    check_size(total, kernel.end(), initramfs.size())?;
    // Above the kernel, and at the end of the memory below the hole: check_size has seen to it that it fits.
    let ramdisk = low_end.saturating_sub(initramfs.size()) / PAGE * PAGE;
    let ramdisk_size = initramfs.size();
    let entry = kernel.load(memory)?;
    initramfs.load(memory, GuestAddress(ramdisk))?;

    if command_line.len() >= layout::COMMAND_LINE_SIZE {
        return Err(Error::CommandLineTooLong(command_line.len()));
    }
    memory.write_slice(command_line.as_bytes(), layout::COMMAND_LINE)?;
    memory.write_obj(
        0_u8,
        GuestAddress(layout::COMMAND_LINE.0 + command_line.len() as u64),
    )?;
    memory.write_obj(
        zero_page(&e820(ram), ramdisk, ramdisk_size, command_line.len()),
        layout::ZERO_PAGE,
    )?;
    mptable::write(memory, vcpus)?;
    registers::write_tables(memory)?;
    Ok(entry)
}

fn check_size(total: u64, kernel_end: u64, initramfs: u64) -> Result<(), Error> {
    // The archive and the files unpacked from it exist side by side for a moment.
    let needed = kernel_end
        .saturating_add(initramfs.saturating_mul(2))
        .saturating_add(KERNEL_NEEDS);
    if total < needed {
        return Err(Error::MemoryTooSmall {
            given: total / MIB,
            needed: needed.div_ceil(MIB),
        });
    }
    Ok(())
}

/// The memory map: RAM without the hole between 640 KiB and 1 MiB.
fn e820(regions: &[(GuestAddress, usize)]) -> Vec<boot_e820_entry> {
    let ram = |addr: u64, end: u64| boot_e820_entry {
        addr,
        size: end - addr,
        r#type: E820_RAM,
    };
    let mut map = Vec::new();
    for (start, length) in regions {
        let start = start.0;
        let end = start + *length as u64;
        if start == 0 {
            map.push(ram(0, layout::LOW_RAM_END.min(end)));
            if end > layout::HIGH_RAM {
                map.push(ram(layout::HIGH_RAM, end));
            }
        } else {
            map.push(ram(start, end));
        }
    }
    map
}

#[allow(clippy::cast_possible_truncation)]
fn zero_page(map: &[boot_e820_entry], ramdisk: u64, ramdisk_size: u64, command_line: usize) -> boot_params {
    let mut page = boot_params::default();
    page.hdr.boot_flag = 0xaa55;
    page.hdr.header = u32::from_le_bytes(*b"HdrS");
    // "Undefined": a boot loader without a number of its own.
    page.hdr.type_of_loader = 0xff;
    // Below the hole, so 32 bits hold both.
    page.hdr.ramdisk_image = ramdisk as u32;
    page.hdr.ramdisk_size = ramdisk_size as u32;
    page.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
    page.hdr.cmdline_size = command_line as u32;
    page.e820_entries = map.len() as u8;
    page.e820_table[..map.len()].copy_from_slice(map);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_leaves_out_the_legacy_hole_and_the_devices() {
        let regions = layout::memory_regions((3 << 30) + (1 << 20)).unwrap();
        let map: Vec<_> = e820(&regions)
            .iter()
            .map(|entry| ({ entry.addr }, { entry.addr + entry.size }, { entry.r#type }))
            .collect();
        assert_eq!(
            map,
            [
                (0, 0xa_0000, 1),
                (0x10_0000, 3 << 30, 1),
                (4 << 30, (4 << 30) + (1 << 20), 1)
            ]
        );
    }

    #[test]
    fn memory_that_is_too_small_is_refused_with_what_would_do() {
        let error = check_size(16 * MIB, 30 * MIB, 5 * MIB).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory_mib = 16 is too little: the kernel and initramfs need at least 64 MiB"
        );
        assert!(check_size(64 * MIB, 30 * MIB, 5 * MIB).is_ok());
        assert!(check_size(64 * MIB, 30 * MIB, u64::MAX).is_err());
    }

    #[test]
    fn the_zero_page_says_where_things_are() {
        let page = zero_page(&e820(&[(GuestAddress(0), 16 << 20)]), 0x1234_5000, 77, 5);
        let header = page.hdr;
        assert_eq!({ header.header }, 0x5372_6448);
        assert_eq!(
            ({ header.ramdisk_image }, { header.ramdisk_size }),
            (0x1234_5000, 77)
        );
        assert_eq!(page.e820_entries, 2);
    }
}
