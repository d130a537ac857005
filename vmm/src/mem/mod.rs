//! virtio-mem (virtio 1.2, 5.15): memory that the guest gets while it runs.
//!
//! The region is mapped and given to KVM when the machine is made, so nothing is left to fail later, and costs the host
//! nothing until the guest writes to it. A block that isn't plugged reads as zeroes, and a guest that writes to one has memory
//! that it was not asked to use: no more than the machine's bound, which the host's cgroup accounts like the rest.
//!
//! | module | what |
//! |---|---|
//! | [`blocks`] | which blocks are plugged, and what the guest may ask for |
//! | [`device`] | the device with its queue of requests |
//! | [`growth`] | the host's hold on it |

pub mod blocks;
pub mod device;
pub mod growth;

pub use device::Mem;
pub use growth::Growth;
