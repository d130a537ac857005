//! One PCI bus (PCI Local Bus 3.0) with up to 32 functions, each with at most one memory region.
//!
//! The VMM places every region before the guest runs, in [`bus::Bus::region`]: the address follows from the slot. A
//! region always answers there: the guest's writes to a base address register tell it the region's size and move
//! nothing, and the command register's memory bit switches nothing off. So KVM's ioeventfds on queue notifications are
//! registered once, before a vCPU runs, when that costs no grace period.

pub mod bridge;
pub mod bus;
pub mod config;
pub mod msix;
