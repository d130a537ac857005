//! Which open file a FUSE file handle stands for.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    /// The node id it was opened by.
    pub inode: u64,
    file: OwnedFd,
    position: Mutex<()>,
}

impl Handle {
    /// Excludes others from using the file's position, by which a directory is read.
    pub fn hold_position(&self) -> MutexGuard<'_, ()> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug, Default)]
struct Table {
    handles: HashMap<u64, Arc<Handle>>,
    last: u64,
}

/// All files that the guest has open. Their number is bounded by the descriptors the process may have.
#[derive(Debug, Default)]
pub struct Handles(Mutex<Table>);

impl Handles {
    /// Gives an opened file a handle, which is never given again.
    pub fn insert(&self, inode: u64, file: OwnedFd) -> u64 {
        let mut table = self.table();
        table.last += 1;
        let id = table.last;
        table.handles.insert(
            id,
            Arc::new(Handle {
                inode,
                file,
                position: Mutex::new(()),
            }),
        );
        id
    }

    /// The file behind a handle.
    ///
    /// # Errors
    /// `EBADF` for a handle that is not of this node.
    pub fn get(&self, id: u64, inode: u64) -> io::Result<Arc<Handle>> {
        self.table()
            .handles
            .get(&id)
            .filter(|handle| handle.inode == inode)
            .cloned()
            .ok_or_else(bad)
    }

    /// The guest has closed the file.
    ///
    /// # Errors
    /// As [`Handles::get`].
    pub fn remove(&self, id: u64, inode: u64) -> io::Result<()> {
        let mut table = self.table();
        match table.handles.get(&id) {
            Some(handle) if handle.inode == inode => {
                table.handles.remove(&id);
                Ok(())
            }
            _ => Err(bad()),
        }
    }

    /// The guest has unmounted the file system.
    pub fn clear(&self) {
        self.table().handles.clear();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is complete before anything that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bad() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
