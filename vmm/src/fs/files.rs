//! The opened files that the file server has handed over.

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::transfer::Direction;

/// The most files open at once. The process's own limit on descriptors may be lower.
pub const MAX_FILES: usize = 64 * 1024;

/// A regular file that the guest has open.
#[derive(Debug)]
pub struct OpenFile {
    node: u64,
    file: OwnedFd,
    /// Whether the file's file system can say that it would have to wait (`RWF_NOWAIT`). Many can for reads alone;
    /// overlayfs and tmpfs cannot at all.
    tells_waiting: Tells,
}

#[derive(Debug)]
struct Tells {
    reading: AtomicBool,
    writing: AtomicBool,
}

impl OpenFile {
    /// Whether it makes sense to try without waiting.
    pub fn tells_waiting(&self, direction: Direction) -> bool {
        self.tells(direction).load(Ordering::Relaxed)
    }

    /// Its file system has refused to try without waiting.
    pub fn never_tells_waiting(&self, direction: Direction) {
        self.tells(direction).store(false, Ordering::Relaxed);
    }

    fn tells(&self, direction: Direction) -> &AtomicBool {
        match direction {
            Direction::Read => &self.tells_waiting.reading,
            Direction::Write => &self.tells_waiting.writing,
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Open files by FUSE file handle.
#[derive(Debug, Default)]
pub struct Files(HashMap<u64, Arc<OpenFile>>);

/// Why a descriptor was not taken: the error number for the guest.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub i32);

impl Files {
    /// Takes the descriptor of a file that was opened.
    ///
    /// # Errors
    /// It is not a regular file, or there are too many.
    pub fn insert(&mut self, node: u64, handle: u64, file: OwnedFd) -> Result<(), Refused> {
        // Reading from anything else could wait for somebody for ever.
        if !is_regular(file.as_fd()) {
            return Err(Refused(libc::EIO));
        }
        if self.0.len() >= MAX_FILES {
            return Err(Refused(libc::ENFILE));
        }
        let file = OpenFile {
            node,
            file,
            tells_waiting: Tells {
                reading: AtomicBool::new(true),
                writing: AtomicBool::new(true),
            },
        };
        self.0.insert(handle, Arc::new(file));
        Ok(())
    }

    /// The file behind a handle of a node.
    pub fn get(&self, node: u64, handle: u64) -> Option<Arc<OpenFile>> {
        self.0.get(&handle).filter(|file| file.node == node).cloned()
    }

    /// Closes a file once nobody uses it any more.
    pub fn remove(&mut self, node: u64, handle: u64) {
        if self.get(node, handle).is_some() {
            self.0.remove(&handle);
        }
    }

    /// Closes all files.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn is_regular(file: BorrowedFd<'_>) -> bool {
    let mut status = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the buffer has the size that the kernel writes.
    let result = unsafe { libc::fstat(file.as_raw_fd(), status.as_mut_ptr()) };
    // SAFETY: zeroes are a valid stat, and the kernel may have filled it in.
    let status = unsafe { status.assume_init() };
    result == 0 && status.st_mode & libc::S_IFMT == libc::S_IFREG
}
