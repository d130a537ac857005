//! The MultiProcessor Specification's tables (Intel, version 1.4, section 4): the CPUs and how interrupts reach them.
//!
//! There is an I/O APIC, but the tables don't name it: PCI functions use message-signalled interrupts only, and the serial
//! port's does with the legacy controller. Setting the I/O APIC up would cost the kernel 600 exits.

use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const SPECIFICATION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;

const NMI: u8 = 1;
const EXTINT: u8 = 3;

const ISA_BUS: u8 = 0;
const PCI_BUS: u8 = 1;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes the tables for `vcpus` CPUs, whose APIC ids are 0 to `vcpus` - 1.
///
/// # Errors
/// The memory does not reach to [`layout::MP_TABLE`].
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&pointer(), layout::MP_POINTER)?;
    memory.write_slice(&table(vcpus), layout::MP_TABLE)
}

fn pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    // The table lies in the first 64 KiB.
    pointer[4..12]
        .copy_from_slice(&(layout::MP_TABLE.0 | 1 << 32 | u64::from(SPECIFICATION) << 40).to_le_bytes());
    pointer[10] = checksum(&pointer);
    pointer
}

fn table(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count += 1;
    };
    for id in 0..vcpus {
        let flags = if id == 0 {
            ENABLED | BOOT_PROCESSOR
        } else {
            ENABLED
        };
        // Signature: family 6. Features: FPU and local APIC.
        add(&[
            PROCESSOR,
            id,
            LOCAL_APIC_VERSION,
            flags,
            0,
            6,
            0,
            0,
            1,
            2,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
    }
    add(&[BUS, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    add(&[BUS, PCI_BUS, b'P', b'C', b'I', b' ', b' ', b' ']);
    add(&[LOCAL_INTERRUPT, EXTINT, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut table = vec![0; 44];
    table.append(&mut entries);
    // At most 255 CPUs of 20 bytes: below 64 KiB.
    let length = u16::try_from(table.len()).unwrap_or(u16::MAX);
    table[..4].copy_from_slice(b"PCMP");
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = SPECIFICATION;
    table[8..16].copy_from_slice(b"SEALOCK ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&count.to_le_bytes());
    table[36..40].copy_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    table[7] = checksum(&table);
    table
}

/// The byte that makes the sum of all of them zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn the_pointer_leads_to_the_table_and_both_add_up_to_zero() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        write(&memory, 4).unwrap();
        let mut pointer = [0; 16];
        memory.read_slice(&mut pointer, layout::MP_POINTER).unwrap();
        assert_eq!(&pointer[..4], b"_MP_");
        assert_eq!(pointer[8], 1, "the length in paragraphs");
        assert_eq!(pointer[9], 4, "the version");
        assert_eq!(sum(&pointer), 0);
        let address = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        let mut table = vec![0; table(4).len()];
        memory
            .read_slice(&mut table, GuestAddress(u64::from(address)))
            .unwrap();
        assert_eq!(&table[..4], b"PCMP");
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(sum(&table), 0);
    }

    #[test]
    fn the_entries_are_as_many_as_the_header_says() {
        let table = table(layout::MAX_VCPUS);
        assert!(table.len() <= layout::MP_TABLE_SIZE);
        let mut rest = &table[44..];
        let mut entries = 0;
        while let Some(kind) = rest.first() {
            rest = &rest[if *kind == PROCESSOR { 20 } else { 8 }..];
            entries += 1;
        }
        assert_eq!(entries, u16::from_le_bytes([table[34], table[35]]));
    }
}
