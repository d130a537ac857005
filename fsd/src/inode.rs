//! Which file a FUSE node id stands for.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fuse_backend_rs::api::filesystem::ROOT_ID;

use crate::{
    cache::Cache,
    descriptor::{self, Status},
};

/// What tells files apart. A directory that is reached through two mounts is two, for other things may be mounted in it. A
/// file is one, so that containers which have it by way of two volumes share its locks, mappings and socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    number: u64,
    /// Of a directory; 0 otherwise, which is no mount's id.
    mount: u64,
    cache: Cache,
}

/// A file the guest knows of, held by an `O_PATH` descriptor: neither renaming nor unlinking it changes what it is.
#[derive(Debug)]
pub struct Inode {
    /// The FUSE node id; never used for another file again.
    pub id: u64,
    /// The file type: one of the `S_IF…` values.
    pub kind: u32,
    /// Who changes it.
    pub cache: Cache,
    file: OwnedFd,
    mount: u64,
    key: Key,
}

impl Inode {
    /// The id of the mount it was found through.
    pub fn mount(&self) -> u64 {
        self.mount
    }

    /// The device number of its file system.
    pub fn device(&self) -> u64 {
        self.key.device
    }
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Debug)]
struct Known {
    inode: Arc<Inode>,
    /// How many times the guest was told the node id without having forgotten it.
    lookups: u64,
}

#[derive(Debug)]
struct Table {
    by_id: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

/// All files that the guest knows of. Its size is bounded by the descriptors the process may have.
#[derive(Debug)]
pub struct Inodes(Mutex<Table>);

impl Inodes {
    /// Knows the root alone.
    pub fn new(root: OwnedFd, status: &Status) -> Self {
        let mut table = Table {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            next: ROOT_ID,
        };
        table.insert(root, status, Cache::Coherent);
        Self(Mutex::new(table))
    }

    /// The file behind a node id.
    ///
    /// # Errors
    /// `EBADF` for an id that the guest was not told or has forgotten.
    pub fn get(&self, id: u64) -> io::Result<Arc<Inode>> {
        let table = self.table();
        let known = table
            .by_id
            .get(&id)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        Ok(Arc::clone(&known.inode))
    }

    /// The guest is about to be told of `file`: counts that, and gives the file a node id if it has none.
    pub fn look_up(&self, file: OwnedFd, status: &Status, cache: Cache) -> Arc<Inode> {
        let mut table = self.table();
        let id = table.by_key.get(&key(status, cache)).copied();
        if let Some(known) = id.and_then(|id| table.by_id.get_mut(&id)) {
            known.lookups = known.lookups.saturating_add(1);
            // The guest may write it from now on, if it could not before.
            if known.inode.mount != status.mount
                && descriptor::is_read_only(known.inode.as_fd())
                && !descriptor::is_read_only(file.as_fd())
            {
                known.inode = Arc::new(Inode {
                    id: known.inode.id,
                    kind: known.inode.kind,
                    cache,
                    file,
                    mount: status.mount,
                    key: known.inode.key,
                });
            }
            return Arc::clone(&known.inode);
        }
        table.insert(file, status, cache)
    }

    /// The guest has forgotten `count` of the times it was told of a node id.
    pub fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let mut table = self.table();
        let Some(known) = table.by_id.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            let key = known.inode.key;
            table.by_key.remove(&key);
            table.by_id.remove(&id);
        }
    }

    /// The guest has unmounted the file system, and so forgotten everything.
    pub fn forget_all(&self) {
        let mut table = self.table();
        table.by_id.retain(|&id, _| id == ROOT_ID);
        table.by_key.retain(|_, &mut id| id == ROOT_ID);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is complete before anything that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, file: OwnedFd, status: &Status, cache: Cache) -> Arc<Inode> {
        let id = self.next;
        // A guest that asks for a billion files a second gets here in five centuries.
        self.next += 1;
        let inode = Arc::new(Inode {
            id,
            kind: status.kind(),
            cache,
            file,
            mount: status.mount,
            key: key(status, cache),
        });
        self.by_key.insert(inode.key, id);
        self.by_id.insert(
            id,
            Known {
                inode: Arc::clone(&inode),
                lookups: 1,
            },
        );
        inode
    }
}

fn key(status: &Status, cache: Cache) -> Key {
    Key {
        device: status.stat.st_dev,
        number: status.stat.st_ino,
        mount: if status.kind() == libc::S_IFDIR {
            status.mount
        } else {
            0
        },
        cache,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::descriptor;

    fn file() -> (OwnedFd, Status) {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let status = descriptor::status(file.as_fd()).unwrap();
        (file, status)
    }

    fn inodes() -> Inodes {
        let root: OwnedFd = File::open("/").unwrap().into();
        let status = descriptor::status(root.as_fd()).unwrap();
        Inodes::new(root, &status)
    }

    #[test]
    fn a_file_keeps_its_id_until_every_lookup_is_forgotten() {
        let inodes = inodes();
        let (file, status) = file();
        let again = file.try_clone().unwrap();
        let first = inodes.look_up(file, &status, Cache::Coherent).id;
        assert_eq!(
            inodes
                .look_up(again.try_clone().unwrap(), &status, Cache::Coherent)
                .id,
            first
        );
        inodes.forget(first, 1);
        assert!(inodes.get(first).is_ok());
        inodes.forget(first, u64::MAX);
        assert!(inodes.get(first).is_err());
        // An id is not reused, not even for the same file.
        assert_ne!(inodes.look_up(again, &status, Cache::Coherent).id, first);
    }

    #[test]
    fn a_file_is_one_through_every_mount_and_a_directory_is_not() {
        let inodes = inodes();
        let (file, mut status) = file();
        let first = inodes
            .look_up(file.try_clone().unwrap(), &status, Cache::Coherent)
            .id;
        status.mount += 1;
        let second = inodes
            .look_up(file.try_clone().unwrap(), &status, Cache::Coherent)
            .id;
        assert_eq!(first, second);
        // What the guest may cache is not the same file as what others change.
        let cached = inodes.look_up(file, &status, Cache::Exclusive).id;
        assert_ne!(first, cached);
        let directory: OwnedFd = File::open("/tmp").unwrap().into();
        let mut status = descriptor::status(directory.as_fd()).unwrap();
        let first = inodes
            .look_up(directory.try_clone().unwrap(), &status, Cache::Coherent)
            .id;
        status.mount += 1;
        assert_ne!(inodes.look_up(directory, &status, Cache::Coherent).id, first);
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let inodes = inodes();
        inodes.forget(ROOT_ID, u64::MAX);
        inodes.forget_all();
        assert_eq!(inodes.get(ROOT_ID).unwrap().kind, libc::S_IFDIR);
    }
}
