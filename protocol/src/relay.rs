//! The VMM's file system device and the file server: FUSE messages, one a packet.
//!
//! A request is what the guest put into the device-readable part of a descriptor chain: `fuse_in_header` and its
//! arguments. An answer is what goes into the device-writable part: `fuse_out_header` and its payload; both sides match
//! them by `unique`. `FUSE_FORGET`, `FUSE_BATCH_FORGET` and `FUSE_INTERRUPT` have no answer.
//!
//! A successful answer to `FUSE_OPEN` or `FUSE_CREATE` carries one descriptor: the opened file. The device serves
//! `FUSE_READ` and `FUSE_WRITE` of that file handle by itself and closes the descriptor on `FUSE_RELEASE`, which it
//! relays too. It never relays `FUSE_READ` or `FUSE_WRITE`.

/// The largest request or answer, in bytes: what a guest of 4 KiB pages sends at most is an extended attribute of
/// 64 KiB (`XATTR_SIZE_MAX`), what it asks for at most is a directory listing of 128 KiB.
pub const MAX_MESSAGE: usize = 136 * 1024;

/// Requests the device has under way at the file server at most; further ones wait in the queue.
pub const MAX_IN_FLIGHT: usize = 256;
