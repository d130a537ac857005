//! What Sealock's processes say to each other.
//!
//! | module | between | carried by |
//! |---|---|---|
//! | [`control`] | shim and VMM | a seqpacket socket, JSON, descriptors |
//! | [`broker`] | shim and the VMM's vsock device | a seqpacket socket, JSON, descriptors |
//! | [`relay`] | the VMM's file system device and the file server | a seqpacket socket, FUSE messages, descriptors |
//! | [`guest`] | shim and agent | a vsock stream: a hello, then ttrpc |
//! | [`timeline`] | all | marks in one clock |
//! | [`files`] | shim and file server | nothing: what both must know |
//!
//! Whoever receives treats what it gets as hostile: sizes are bounded here, contents are checked by the receiver.

#[cfg(feature = "agent")]
pub mod agent;
pub mod broker;
pub mod control;
pub mod files;
pub mod guest;
pub mod relay;
pub mod seqpacket;
pub mod timeline;
