//! virtio-fs (virtio 1.2, 5.11): the guest's way to the pod's files.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the device before the driver is ready: its tag |
//! | `session` | the active device: takes requests from the queues, relays them to the file server, returns the answers |
//! | `transfer` | reading and writing between a file's descriptor and guest memory, which the file server has no part in |
//! | `pool` | the threads for transfers that have to wait for a disk |
//! | `files` | the opened files that the file server has handed over |
//! | `segments` | the guest memory of a descriptor chain |
//! | `wire` | as much of the FUSE protocol as is needed for this |
//!
//! Neither side is trusted: what the guest sends is checked for what is served here and otherwise goes to the file
//! server unread; what the file server answers is checked to be an answer to that request, of a size the guest has room
//! for.

pub mod device;
mod files;
mod pool;
mod segments;
mod session;
mod transfer;
mod wire;

pub use device::FileSystem;
pub use files::MAX_FILES;

#[cfg(test)]
mod tests;
