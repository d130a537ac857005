//! Takes every TCP connection that is made inside a network namespace, to whatever port of whichever local address, to
//! one listening socket (Linux, `Documentation/bpf/prog_sk_lookup.rst`).
//!
//! Packets from outside never get that far: they are redirected to the guest before the namespace's own network code
//! sees them. What is left is what processes in the namespace say to its own addresses. A program for sockets, rather
//! than rules for packets, needs no packet filter, no connection tracking and no addresses, and is gone with its descriptor.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

/// The program, for a map whose only element is the socket.
fn program(map: BorrowedFd<'_>) -> [Instruction; 19] {
    const PROTOCOL: i16 = 12;
    const LOOKUP_ELEMENT: i32 = 1;
    const ASSIGN: i32 = 124;
    const RELEASE: i32 = 86;
    [
        // r6 = the context; only TCP is of interest.
        instruction(0xbf, 6, 1, 0, 0),
        instruction(0x61, 2, 6, PROTOCOL, 0),
        instruction(0x55, 2, 0, 14, libc::IPPROTO_TCP),
        // r0 = the element of the map with the key 0, which is on the stack.
        instruction(0x62, 10, 0, -4, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -4),
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0x85, 0, 0, 0, LOOKUP_ELEMENT),
        instruction(0x15, 0, 0, 7, 0),
        // The connection is the socket's.
        instruction(0xbf, 7, 0, 0, 0),
        instruction(0xbf, 1, 6, 0, 0),
        instruction(0xbf, 2, 7, 0, 0),
        instruction(0xb7, 3, 0, 0, 0),
        instruction(0x85, 0, 0, 0, ASSIGN),
        instruction(0xbf, 1, 7, 0, 0),
        instruction(0x85, 0, 0, 0, RELEASE),
        // SK_PASS
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// The beginning of `union bpf_attr` for each command; the kernel takes the rest as zero.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

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
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are those of the command, of the size given, and live until the call returns, as does
    // whatever they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made the descriptor, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative.
    fd.as_raw_fd().unsigned_abs()
}

/// Steers the namespace's TCP connections to `listener`, a listening socket in it, for as long as the result lives.
///
/// # Errors
/// The kernel has no such programs (before Linux 5.9, or built without BPF), or refuses this one.
pub fn steer(namespace: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = descriptor(bpf(
        BPF_MAP_CREATE,
        &MapCreate {
            kind: BPF_MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
        },
    )?)?;
    let (key, value) = (0_u32, u64::from(number(listener)));
    bpf(
        BPF_MAP_UPDATE_ELEM,
        &MapUpdate {
            map: number(map.as_fd()),
            padding: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        },
    )?;
    let program = program(map.as_fd());
    let mut name = [0; 16];
    name[..7].copy_from_slice(b"sealock");
    let program = descriptor(bpf(
        BPF_PROG_LOAD,
        &Load {
            program_type: BPF_PROG_TYPE_SK_LOOKUP,
            // Less than twenty.
            instruction_count: program.len() as u32,
            instructions: program.as_ptr() as u64,
            // None of the helpers asks for another.
            license: c"Apache-2.0".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name,
            interface: 0,
            expected_attach_type: BPF_SK_LOOKUP,
        },
    )?)?;
    // The link keeps the program, and that the map.
    descriptor(bpf(
        BPF_LINK_CREATE,
        &LinkCreate {
            program: number(program.as_fd()),
            target: number(namespace),
            attach_type: BPF_SK_LOOKUP,
            flags: 0,
        },
    )?)
}
