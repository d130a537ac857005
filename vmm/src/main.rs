//! Boots one microVM from descriptors it is given: the virtual machine monitor. Started by Sealock's shim, which speaks to it
//! over its standard input.

use std::os::fd::{FromRawFd, OwnedFd};

use sealock_protocol::timeline::Mark;
use sealock_vmm::jail::{self, Parent};

fn main() {
    let started = Mark::now("vmm_exec");
    let parent = Parent::current();
    // SAFETY: nothing has opened a descriptor yet.
    unsafe { jail::close_inherited() };
    // SAFETY: descriptor 0 is the control socket by the protocol, and nothing in this process uses it as its standard input.
    let socket = unsafe { OwnedFd::from_raw_fd(0) };
    std::process::exit(sealock_vmm::run(started, parent, socket));
}
