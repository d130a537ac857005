//! The file server of a pod: answers the FUSE messages that the VMM relays, below one directory.
//!
//! | module | what |
//! |---|---|
//! | [`jail`] | what the process gives up before it reads its first message |
//! | [`server`] | the threads that take requests from the relay socket and answer them |
//! | [`share`] | the file operations: one FUSE request each |
//! | [`inode`] | which file a FUSE node id stands for |
//! | [`directory`] | listing a directory |
//! | [`handle`] | which open file a FUSE file handle stands for |
//! | [`number`] | the inode numbers that the guest shows its programs |
//! | [`cache`] | for how long the guest may believe what it was told |
//! | [`identity`] | creating files in the name of the guest's process |
//! | [`descriptor`] | system calls on a descriptor instead of a path |
//!
//! `fuse-backend-rs` decodes requests and encodes answers. Its ready-made pass-through file system is not used: it
//! reaches extended attributes through the path `/proc/self/fd/N`, which a guest could make a link of its own in this
//! process's root; it keeps opened files to itself, while the VMM needs their descriptors; it gives up capabilities when
//! it takes on a caller's user id, so that what a supplementary group permits would be refused; and it remembers every
//! inode it ever saw.
//!
//! The guest kernel has checked permissions (virtio-fs is always mounted with `default_permissions`), so the server does
//! not check them again; what keeps a hostile guest inside its directory is that this process's root is that directory,
//! that a request names a single path component, and that no symbolic link is ever followed.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache;
pub mod descriptor;
pub mod directory;
pub mod handle;
pub mod identity;
pub mod inode;
pub mod jail;
pub mod number;
pub mod server;
pub mod share;
