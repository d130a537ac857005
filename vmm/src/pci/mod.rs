//! One PCI bus (PCI Local Bus 3.0) with up to 32 functions, each with at most one memory region.
//!
//! The VMM places every region before the guest sees it, in [`bus::Bus::region`]: the address follows from the slot, and a
//! guest that boots leaves it there. One that finds a function later places it itself, by its base address register: so
//! regions move. The command register's memory bit switches nothing off.

pub mod bridge;
pub mod bus;
pub mod config;
pub mod msix;
pub mod routing;
