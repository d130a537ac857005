//! The state a vCPU starts in: long mode as the 64-bit boot protocol of Linux asks for (Intel SDM, volume 3).

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Descriptors: none, 64-bit code, data, task state.
const GDT: [u64; 4] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of the flags is always set.
const RFLAGS: u64 = 2;

const PAGE: u64 = 4096;
const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;

const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations, without which Linux doesn't use them on Intel's processors; no branch trace store and no
/// precise event sampling.
const MISC_ENABLE: u64 = 1 | 1 << 11 | 1 << 12;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// Enabled, and memory is write-back where nothing else is said.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;

/// Writes the descriptor tables and the page tables that [`boot_processor`] points to.
///
/// # Errors
/// The memory doesn't reach to them.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for (index, descriptor) in (0_u64..).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(layout::GDT.0 + index * 8))?;
    }
    memory.write_obj(0_u64, layout::IDT)?;
    let pml4 = layout::PAGE_TABLES.0;
    let (pdpt, directory) = (pml4 + PAGE, pml4 + 2 * PAGE);
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    // The first GiB in pages of 2 MiB.
    let entries: Vec<u8> = (0..512_u64)
        .flat_map(|page| (page << 21 | PRESENT_WRITABLE | LARGE_PAGE).to_le_bytes())
        .collect();
    memory.write_slice(&entries, GuestAddress(directory))
}

/// Sets up the boot processor to enter a 64-bit kernel at `entry`.
///
/// # Errors
/// KVM refuses something.
pub fn boot_processor(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), kvm_ioctls::Error> {
    let mut system = vcpu.get_sregs()?;
    let code = segment(1);
    let data = segment(2);
    system.cs = code;
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = segment(3);
    system.gdt.base = layout::GDT.0;
    system.gdt.limit = 4 * 8 - 1;
    system.idt.base = layout::IDT.0;
    system.idt.limit = 7;
    system.cr0 = CR0_PE | CR0_ET | CR0_PG;
    system.cr3 = layout::PAGE_TABLES.0;
    system.cr4 = CR4_PAE;
    system.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        rsp: layout::STACK.0,
        rbp: layout::STACK.0,
        rsi: layout::ZERO_PAGE.0,
        rflags: RFLAGS,
        ..Default::default()
    })?;
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })?;
    let mut apic = vcpu.get_lapic()?;
    set_delivery(&mut apic.regs, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery(&mut apic.regs, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&apic)
}

/// Sets the model specific registers that differ from KVM's defaults, on every processor.
///
/// # Errors
/// KVM refuses one of them.
pub fn model_specific(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let registers = Msrs::from_entries(&[
        entry(IA32_MISC_ENABLE, MISC_ENABLE),
        entry(IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ])
    .map_err(|_| kvm_ioctls::Error::new(libc::EINVAL))?;
    if vcpu.set_msrs(&registers)? < registers.as_slice().len() {
        return Err(kvm_ioctls::Error::new(libc::EINVAL));
    }
    Ok(())
}

/// Sets the delivery mode of an entry of the local vector table and clears its mask.
fn set_delivery(registers: &mut [std::os::raw::c_char], offset: usize, mode: u32) {
    for (byte, value) in registers[offset..offset + 4].iter_mut().zip(mode.to_le_bytes()) {
        *byte = value.cast_signed();
    }
}

/// The segment register for descriptor `index` of [`GDT`].
#[allow(clippy::cast_possible_truncation)]
fn segment(index: u16) -> kvm_segment {
    let descriptor = GDT[usize::from(index)];
    let bits = |shift: u32, count: u32| (descriptor >> shift & ((1 << count) - 1)) as u8;
    let granular = bits(55, 1);
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: 0,
        limit: if granular == 1 { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: granular,
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segments_are_64_bit_code_and_flat_data() {
        let code = segment(1);
        assert_eq!(
            (code.selector, code.l, code.db, code.type_, code.s),
            (8, 1, 0, 0xb, 1)
        );
        let data = segment(2);
        assert_eq!(
            (data.selector, data.limit, data.type_, data.s),
            (16, 0xffff_ffff, 3, 1)
        );
        let task = segment(3);
        assert_eq!((task.type_, task.s, task.present), (0xb, 0, 1));
    }

    #[test]
    fn the_page_tables_map_the_first_gib_to_itself() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        write_tables(&memory).unwrap();
        let read = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        for address in [0, 0x10_0000, layout::IDENTITY_MAPPED - 1] {
            let pdpt = read(layout::PAGE_TABLES.0) & !0xfff;
            let directory = read(pdpt) & !0xfff;
            let page = read(directory + (address >> 21) * 8);
            assert_eq!(page & 0xf_ffff_ffe0_0000, address >> 21 << 21);
            assert_eq!(page & 0x83, 0x83);
        }
    }
}
