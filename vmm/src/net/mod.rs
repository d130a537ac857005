//! virtio-net (virtio 1.2, 5.1): packets between the guest's queues and a tap interface of the host's.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the device before its driver is ready |
//! | [`tap`] | the host's side: one queue of a tap interface |
//! | [`features`] | what is offered, and what of it the tap is told |
//! | [`header`] | the header before each packet of the guest's |
//! | [`pieces`] | the guest's memory of packets, for system calls without a copy |
//! | [`pair`] | a receive and a transmit queue, on a thread of their own |
//! | [`receive`], [`transmit`] | the two halves of it |
//! | [`vhost`] | the host's kernel in place of both |
//! | [`bucket`] | limits on rates |
//! | [`command`] | the control queue |
//! | [`link`] | what the configuration space says, and who may change it |
//!
//! The guest chooses what is in a packet and where, the host's other machines choose what comes: nothing of either is kept
//! beyond the guest's own buffers, a packet that can't be carried is dropped, and each turn is bounded.

pub mod bucket;
mod command;
pub mod device;
pub mod features;
mod header;
mod link;
mod pair;
mod pieces;
mod receive;
pub mod tap;
mod transmit;
pub mod vhost;

pub use device::{Error, Net};

#[cfg(test)]
mod tests;
