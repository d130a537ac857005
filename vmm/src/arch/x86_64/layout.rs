//! The guest's physical address space.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | 640 KiB | RAM; its first 64 KiB hold what the VMM leaves for the kernel, which never uses them for anything else |
//! | 640 KiB | 1 MiB | nothing the guest is told of |
//! | 1 MiB | 3 GiB at most | RAM |
//! | 3 GiB | 4 GiB | the functions' registers, and the interrupt controllers at their usual places |
//! | 4 GiB | | the rest of the RAM |
//! | a multiple of 2 GiB beyond | | what the RAM can grow by |

use vm_memory::GuestAddress;

/// The MP floating pointer: the kernel looks for it in the first KiB before it looks elsewhere.
pub const MP_POINTER: GuestAddress = GuestAddress(0x10);
/// The global descriptor table the vCPU starts with.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The interrupt descriptor table it starts with: empty.
pub const IDT: GuestAddress = GuestAddress(0x520);
/// The MP configuration table, of at most [`MP_TABLE_SIZE`] bytes.
pub const MP_TABLE: GuestAddress = GuestAddress(0x800);
/// The room for the MP configuration table, in bytes.
pub const MP_TABLE_SIZE: usize = 0x800;
/// The `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// The top of the stack the kernel starts with.
pub const STACK: GuestAddress = GuestAddress(0x8ff0);
/// The page tables the kernel starts with: three pages that map the first GiB to itself.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel's command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0xc000);
/// The longest command line, its final zero included.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// The end of the low RAM that the guest is told of.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// The lowest address a kernel may be loaded at.
pub const HIGH_RAM: u64 = 0x10_0000;

/// The end of the addresses that [`PAGE_TABLES`] map: the kernel must lie below.
pub const IDENTITY_MAPPED: u64 = 1 << 30;

/// Where RAM makes room for devices.
pub const MMIO_HOLE: u64 = 3 << 30;
/// Where RAM goes on.
pub const HIGH_MEMORY: u64 = 4 << 30;

/// Where the PCI functions' memory regions begin.
pub const PCI_WINDOW: u64 = MMIO_HOLE;
/// The local interrupt controllers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM wants on Intel's processors, and the page with an identity map just below.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// See [`KVM_TSS`].
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// The most virtual CPUs: what the guest kernel is built for (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;

/// Where `size` bytes of RAM go: address and length of each region, in ascending order. `None` when they don't fit the
/// address space.
#[must_use]
pub fn memory_regions(size: u64) -> Option<Vec<(GuestAddress, usize)>> {
    let low = size.min(MMIO_HOLE);
    let high = size - low;
    HIGH_MEMORY.checked_add(high)?;
    let mut regions = vec![(GuestAddress(0), usize::try_from(low).ok()?)];
    if high > 0 {
        regions.push((GuestAddress(HIGH_MEMORY), usize::try_from(high).ok()?));
    }
    Some(regions)
}

/// The alignment of [`growth_region`], in bytes: the largest unit in which Linux adds memory.
const GROWTH_ALIGNMENT: u64 = 2 << 30;

/// Where a machine that boots with `boot` bytes of RAM and may have `most` has the rest: address and length, `None` when
/// there is none. The length is a multiple of `step`, the unit in which the guest can add memory: it is rounded down.
#[must_use]
pub fn growth_region(boot: u64, most: u64, step: u64) -> Option<(GuestAddress, usize)> {
    let length = most.checked_sub(boot)? / step * step;
    let start = match boot.checked_sub(MMIO_HOLE) {
        None | Some(0) => HIGH_MEMORY,
        Some(high) => HIGH_MEMORY
            .checked_add(high)?
            .checked_next_multiple_of(GROWTH_ALIGNMENT)?,
    };
    start.checked_add(length)?;
    (length > 0).then_some((GuestAddress(start), usize::try_from(length).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_beyond_the_devices_and_what_is_there() {
        const MIB: u64 = 1 << 20;
        let step = 128 * MIB;
        let at = |address, mib: usize| Some((GuestAddress(address), mib << 20));
        assert_eq!(growth_region(64 * MIB, 64 * MIB, step), None);
        assert_eq!(growth_region(64 * MIB, 191 * MIB, step), None);
        assert_eq!(growth_region(64 * MIB, 1100 * MIB, step), at(4 << 30, 1024));
        assert_eq!(growth_region(3 << 30, 4 << 30, step), at(4 << 30, 1024));
        assert_eq!(growth_region((3 << 30) + 1, 5 << 30, step), at(6 << 30, 1920));
        assert_eq!(growth_region(128 * MIB, 64 * MIB, step), None);
        assert_eq!(growth_region(u64::MAX - 1, u64::MAX, 1), None);
    }

    #[test]
    fn memory_makes_room_for_devices_below_4_gib() {
        assert_eq!(memory_regions(1 << 20).unwrap(), [(GuestAddress(0), 1 << 20)]);
        assert_eq!(memory_regions(3 << 30).unwrap(), [(GuestAddress(0), 3 << 30)]);
        assert_eq!(
            memory_regions((3 << 30) + 4096).unwrap(),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 4096)]
        );
        assert_eq!(memory_regions(u64::MAX), None);
    }
}
