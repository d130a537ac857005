//! bpf(2), as far as the device controller needs it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use super::{check, descriptor};

/// An instruction (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the lower half, source register in the upper one.
    pub registers: u8,
    /// Of a memory access in bytes, of a jump in instructions.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

// All arithmetic is on 32 bits (`BPF_ALU`, `BPF_JMP32`), so that constants are not sign-extended.
impl Instruction {
    fn new(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Self {
        Self {
            code,
            registers: from << 4 | to,
            offset,
            immediate: immediate as i32,
        }
    }

    /// to = *(u32 *)(from + offset)
    pub fn load32(to: u8, from: u8, offset: i16) -> Self {
        Self::new(0x61, to, from, offset, 0)
    }

    /// to = from
    pub fn copy32(to: u8, from: u8) -> Self {
        Self::new(0xbc, to, from, 0, 0)
    }

    /// to = value
    pub fn set32(to: u8, value: u32) -> Self {
        Self::new(0xb4, to, 0, 0, value)
    }

    /// to &= mask
    pub fn and32(to: u8, mask: u32) -> Self {
        Self::new(0x54, to, 0, 0, mask)
    }

    /// to >>= bits
    pub fn shift_right32(to: u8, bits: u32) -> Self {
        Self::new(0x74, to, 0, 0, bits)
    }

    /// Jumps over `over` instructions when the register is not `value`.
    pub fn jump_not_equal32(register: u8, value: u32, over: i16) -> Self {
        Self::new(0x56, register, 0, over, value)
    }

    /// Jumps over `over` instructions when the register has a bit of `mask`.
    pub fn jump_any_set32(register: u8, mask: u32, over: i16) -> Self {
        Self::new(0x46, register, 0, over, mask)
    }

    /// Jumps over `over` instructions.
    pub fn jump(over: i16) -> Self {
        Self::new(0x05, 0, 0, over, 0)
    }

    /// Returns register 0.
    pub fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// The beginning of `union bpf_attr` for [`BPF_PROG_LOAD`]; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for [`BPF_PROG_ATTACH`].
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has a program checked and kept by the kernel.
///
/// # Errors
/// The kernel's verifier refuses it, or there is no BPF.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        // The program calls no helper, so that any licence will do.
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `load` and what it points to live until the call returns, with the sizes given.
    descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) })
}

/// Makes a cgroup's accesses to devices depend on a program. The cgroup keeps it.
///
/// # Errors
/// The kernel refuses.
pub fn attach_device_program(program: &OwnedFd, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    // Descriptors are never negative.
    let attach = Attach {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: `attach` lives until the call returns and has the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    })?;
    Ok(())
}
