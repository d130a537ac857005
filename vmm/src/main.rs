//! Boots one microVM from descriptors it is given: the virtual machine monitor. Started by Sealock's shim, which speaks to it
//! over its standard input.

use std::os::fd::{FromRawFd, OwnedFd};

use sealock_protocol::timeline::Mark;

fn main() {
    let started = Mark::now("vmm_exec");
    // Threads' own heaps cost memory; and for those the C library looks into files of the host's, when it likes.
    // SAFETY: no memory is involved.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: nothing has opened a descriptor yet.
    let closed = unsafe { sealock_jail::descriptors::close_inherited() };
    if let Err(error) = closed {
        eprintln!("sealock-vmm: {}", sealock_vmm::chain(&error));
        std::process::exit(sealock_protocol::control::ExitReason::Host.status());
    }
    // SAFETY: descriptor 0 is the control socket by the protocol, and nothing in this process uses it as its standard input.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    std::process::exit(sealock_vmm::run(started, socket));
}
