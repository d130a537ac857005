//! virtio-vsock (virtio 1.2, 5.10).
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the queues and the events: what is particular to virtio |
//! | `packet` | a packet in a descriptor chain, checked |
//! | `muxer` | all connections: who a packet is for, whose turn it is |
//! | `connection` | one connection: its states, credit and buffer |
//! | `stream` | the descriptor at its end |
//! | `broker` | the shim, which decides on connections |
//! | `deadline` | how long is waited for an answer |
//!
//! Nothing here blocks, and nothing grows without a bound: a guest that sends more than it was granted is cut off, one
//! that takes no answers is not listened to.

mod broker;
mod connection;
mod deadline;
pub mod device;
mod muxer;
mod packet;
mod stream;

#[cfg(test)]
mod tests;

pub use device::Vsock;
