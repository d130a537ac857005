//! The virtual machine monitor: boots one microVM from descriptors it is given, and opens nothing by itself.
//!
//! From `main` to a running guest:
//!
//! 1. [`run`] takes the control socket and waits for the configuration and its descriptors ([`control`]).
//! 2. [`jail`] gives up the rights that are left; each [`thread`] later all system calls but its own.
//! 3. [`machine`] makes the machine: [`memory`], kernel and [`initramfs`] ([`arch`]), [`pci`] with [`pvpanic`] and the
//!    [`virtio`] devices ([`vsock`], [`mod@fs`], [`net`], [`balloon`], [`mem`]), [`vcpu`]s.
//!    Or all of it comes out of a [`template`].
//! 4. The vCPUs' threads run the guest, the [`event_loop`]s serve the devices, the main thread answers the shim.
//! 5. Whoever finds that the machine has ended says so to [`ending`]; the main thread tells the shim and exits.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod arch;
pub mod balloon;
pub mod coalesced;
pub mod command_line;
pub mod console;
pub mod control;
pub mod ending;
pub mod event_loop;
pub mod fs;
pub mod initramfs;
pub mod jail;
pub mod machine;
pub mod mem;
pub mod memory;
pub mod net;
pub mod pci;
mod process;
pub mod pvpanic;
pub mod template;
pub mod thread;
pub mod vcpu;
pub mod virtio;
pub mod vsock;

pub use process::run;

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
