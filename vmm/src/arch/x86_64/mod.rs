//! A PC without firmware: 64-bit Linux entry, MP table, in-kernel interrupt controllers, PCI by configuration mechanism #1.

pub mod boot;
pub mod cpuid;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod ports;
pub mod registers;
pub mod state;
