//! The file operations below one directory: one FUSE request each.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use fuse_backend_rs::{
    abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID},
    api::filesystem::{
        Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
        SetattrValid,
    },
};

use crate::{
    cache::Cache,
    descriptor::{self, ProcFds, Status, check},
    directory,
    handle::{Handle, Handles},
    identity::{Identity, WithoutFsetid},
    inode::{Inode, Inodes},
    number::Numbers,
};

/// What of open(2)'s flags a guest may choose. Not `O_APPEND`: the VMM appends write by write, because the guest kernel
/// writes pages of a mapping through whatever handle it finds, to where they belong.
const OPEN_FLAGS: i32 =
    libc::O_ACCMODE | libc::O_TRUNC | libc::O_DIRECT | libc::O_DSYNC | libc::O_SYNC | libc::O_NOATIME;

/// The permission bits, with set-user-id, set-group-id and sticky.
const MODE_BITS: u32 = 0o7777;

/// The largest value of an extended attribute and the largest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: u32 = 64 * 1024;

/// One directory, shared.
#[derive(Debug)]
pub struct Share {
    proc_fds: ProcFds,
    inodes: Inodes,
    handles: Handles,
    numbers: Numbers,
    /// The mount that the directory itself is of.
    mount: u64,
}

impl Share {
    /// Shares `directory`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(directory: &Path, proc_fds: ProcFds) -> io::Result<Self> {
        let root: OwnedFd = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
            .open(directory)?
            .into();
        let status = descriptor::status(root.as_fd())?;
        Ok(Self {
            proc_fds,
            mount: status.mount,
            numbers: Numbers::new(status.stat.st_dev),
            inodes: Inodes::new(root, &status),
            handles: Handles::default(),
        })
    }

    /// The open file behind a handle.
    ///
    /// # Errors
    /// `EBADF`.
    pub fn handle(&self, handle: u64, inode: u64) -> io::Result<Arc<Handle>> {
        self.handles.get(handle, inode)
    }

    /// Finds `name` in `parent`, which the guest is then told of.
    pub(crate) fn find(&self, parent: &Inode, name: &CStr) -> io::Result<Entry> {
        let file = descriptor::open_at(parent.as_fd(), name, libc::O_PATH, 0)?;
        self.tell(parent, name, file).map(|(_, entry)| entry)
    }

    pub(crate) fn forget_entry(&self, entry: &Entry) {
        self.inodes.forget(entry.inode, 1);
    }

    /// The inode number that the guest shows for an entry of a directory.
    pub(crate) fn number(&self, directory: &Inode, number: u64) -> u64 {
        self.numbers.shown(directory.device(), number)
    }

    fn tell(&self, parent: &Inode, name: &CStr, file: OwnedFd) -> io::Result<(Arc<Inode>, Entry)> {
        let status = descriptor::status(file.as_fd())?;
        let mount_begins = status.mount != parent.mount();
        if mount_begins && descriptor::is_of_the_kernel(file.as_fd()) {
            return Err(error(libc::EACCES));
        }
        let cache = parent
            .cache
            .below(name.to_bytes(), mount_begins, parent.mount() == self.mount);
        let inode = self.inodes.look_up(file, &status, cache);
        let entry = Entry {
            inode: inode.id,
            attr: self.attributes(&status),
            attr_timeout: inode.cache.timeout(),
            entry_timeout: inode.cache.timeout(),
            ..Entry::default()
        };
        Ok((inode, entry))
    }

    fn attributes(&self, status: &Status) -> libc::stat64 {
        let mut stat = status.stat;
        stat.st_ino = self.numbers.shown(stat.st_dev, stat.st_ino);
        stat
    }

    fn directory(&self, inode: u64, name: &CStr) -> io::Result<Arc<Inode>> {
        check_name(name)?;
        self.inodes.get(inode)
    }

    /// Makes something new called `name` in the caller's name, and finds it.
    fn make(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        make: impl FnOnce(BorrowedFd<'_>) -> libc::c_int,
    ) -> io::Result<Entry> {
        let parent = self.directory(parent, name)?;
        {
            let _caller = Identity::take(context.uid, context.gid)?;
            check(make(parent.as_fd()))?;
        }
        self.find(&parent, name)
    }

    /// Opens a regular file's contents. Device nodes, FIFOs and sockets are the guest kernel's own to open: here they
    /// would be the host's.
    fn open_contents(&self, inode: &Inode, flags: u32, kill_privileges: bool) -> io::Result<OwnedFd> {
        match inode.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(error(libc::EISDIR)),
            libc::S_IFLNK => return Err(error(libc::ELOOP)),
            _ => return Err(error(libc::ENXIO)),
        }
        let _guard = WithoutFsetid::when(kill_privileges)?;
        self.proc_fds.reopen(inode.as_fd(), open_flags(flags)?)
    }

    /// A descriptor for the f…xattr calls, which refuse `O_PATH`: of regular files and directories, opened to read.
    /// Nothing else is opened.
    fn open_for_xattr(&self, inode: u64) -> io::Result<Option<OwnedFd>> {
        let inode = self.inodes.get(inode)?;
        match inode.kind {
            libc::S_IFREG | libc::S_IFDIR => self
                .proc_fds
                .reopen(inode.as_fd(), libc::O_RDONLY | libc::O_NONBLOCK)
                .map(Some),
            _ => Ok(None),
        }
    }

    fn truncate(&self, inode: &Inode, handle: Option<u64>, size: i64, kill: bool) -> io::Result<()> {
        let open = match handle {
            Some(handle) => Ok(self.handles.get(handle, inode.id)?),
            None => Err(self.open_contents(inode, libc::O_WRONLY.cast_unsigned(), false)?),
        };
        let file = match &open {
            Ok(handle) => handle.as_fd(),
            Err(file) => file.as_fd(),
        };
        let _guard = WithoutFsetid::when(kill)?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::ftruncate(file.as_raw_fd(), size) })?;
        Ok(())
    }
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        // A new mount knows of nothing, whatever became of the one before.
        self.destroy();
        // Not the write-back cache: the host is to see what was written. Not POSIX locks and flock: every process that
        // can hold one is in this guest, whose kernel does them faster.
        Ok(FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::DO_READDIRPLUS
            | FsOptions::READDIRPLUS_AUTO
            // Else the guest would ask for security.capability before every single write.
            | FsOptions::HANDLE_KILLPRIV_V2
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS)
    }

    fn destroy(&self) {
        self.handles.clear();
        self.inodes.forget_all();
    }

    fn lookup(&self, _context: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.directory(parent, name)?;
        match self.find(&parent, name) {
            Err(absent)
                if absent.raw_os_error() == Some(libc::ENOENT) && parent.cache == Cache::Exclusive =>
            {
                // Node id 0: the name's absence may be cached.
                Ok(Entry {
                    entry_timeout: parent.cache.timeout(),
                    ..Entry::default()
                })
            }
            found => found,
        }
    }

    fn forget(&self, _context: &Context, inode: u64, count: u64) {
        self.inodes.forget(inode, count);
    }

    fn getattr(
        &self,
        _context: &Context,
        inode: u64,
        _handle: Option<u64>,
    ) -> io::Result<(libc::stat64, Duration)> {
        let inode = self.inodes.get(inode)?;
        let status = descriptor::status(inode.as_fd())?;
        Ok((self.attributes(&status), inode.cache.timeout()))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: u64,
        wanted: libc::stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(libc::stat64, Duration)> {
        let file = self.inodes.get(inode)?;
        let entry = self.proc_fds.entry(file.as_fd());
        let proc_fds = self.proc_fds.directory().as_raw_fd();
        if valid.contains(SetattrValid::MODE) {
            // SAFETY: the entry is NUL-terminated.
            check(unsafe { libc::fchmodat(proc_fds, entry.as_ptr(), wanted.st_mode & MODE_BITS, 0) })?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let unchanged = u32::MAX;
            let user = if valid.contains(SetattrValid::UID) {
                wanted.st_uid
            } else {
                unchanged
            };
            let group = if valid.contains(SetattrValid::GID) {
                wanted.st_gid
            } else {
                unchanged
            };
            // SAFETY: the empty path is NUL-terminated.
            check(unsafe {
                libc::fchownat(
                    file.as_raw_fd(),
                    c"".as_ptr(),
                    user,
                    group,
                    libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW,
                )
            })?;
        }
        if valid.contains(SetattrValid::SIZE) {
            self.truncate(
                &file,
                handle,
                wanted.st_size,
                valid.contains(SetattrValid::KILL_SUIDGID),
            )?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time = |given: SetattrValid, now: SetattrValid, seconds, nanoseconds| libc::timespec {
                tv_sec: seconds,
                tv_nsec: match (valid.contains(given), valid.contains(now)) {
                    (false, _) => libc::UTIME_OMIT,
                    (true, true) => libc::UTIME_NOW,
                    (true, false) => nanoseconds,
                },
            };
            let times = [
                time(
                    SetattrValid::ATIME,
                    SetattrValid::ATIME_NOW,
                    wanted.st_atime,
                    wanted.st_atime_nsec,
                ),
                time(
                    SetattrValid::MTIME,
                    SetattrValid::MTIME_NOW,
                    wanted.st_mtime,
                    wanted.st_mtime_nsec,
                ),
            ];
            // SAFETY: the entry is NUL-terminated and there are two times.
            check(unsafe { libc::utimensat(proc_fds, entry.as_ptr(), times.as_ptr(), 0) })?;
        }
        self.getattr(context, inode, handle)
    }

    fn readlink(&self, _context: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inodes.get(inode)?;
        let mut target = vec![0; libc::PATH_MAX as usize];
        // SAFETY: the empty path is NUL-terminated and the buffer is as long as said.
        let length = unsafe {
            libc::readlinkat(
                inode.as_raw_fd(),
                c"".as_ptr(),
                target.as_mut_ptr().cast(),
                target.len(),
            )
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        target.truncate(length);
        Ok(target)
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        // SAFETY: both strings are NUL-terminated.
        self.make(context, parent, name, |directory| unsafe {
            libc::symlinkat(target.as_ptr(), directory.as_raw_fd(), name.as_ptr())
        })
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        // SAFETY: the name is NUL-terminated.
        self.make(context, parent, name, |directory| unsafe {
            libc::mknodat(
                directory.as_raw_fd(),
                name.as_ptr(),
                mode & !(umask & 0o777),
                device.into(),
            )
        })
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        // SAFETY: the name is NUL-terminated.
        self.make(context, parent, name, |directory| unsafe {
            libc::mkdirat(
                directory.as_raw_fd(),
                name.as_ptr(),
                mode & MODE_BITS & !(umask & 0o777),
            )
        })
    }

    fn unlink(&self, _context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let parent = self.directory(parent, name)?;
        // SAFETY: the name is NUL-terminated.
        check(unsafe { libc::unlinkat(parent.as_raw_fd(), name.as_ptr(), 0) })?;
        Ok(())
    }

    fn rmdir(&self, _context: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        let parent = self.directory(parent, name)?;
        // SAFETY: the name is NUL-terminated.
        check(unsafe { libc::unlinkat(parent.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) })?;
        Ok(())
    }

    fn rename(
        &self,
        _context: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let old_parent = self.directory(old_parent, old_name)?;
        let new_parent = self.directory(new_parent, new_name)?;
        // SAFETY: the names are NUL-terminated.
        check(unsafe {
            libc::renameat2(
                old_parent.as_raw_fd(),
                old_name.as_ptr(),
                new_parent.as_raw_fd(),
                new_name.as_ptr(),
                flags,
            )
        })?;
        Ok(())
    }

    fn link(&self, _context: &Context, inode: u64, new_parent: u64, new_name: &CStr) -> io::Result<Entry> {
        let file = self.inodes.get(inode)?;
        let parent = self.directory(new_parent, new_name)?;
        let entry = self.proc_fds.entry(file.as_fd());
        // The link that is followed is the kernel's own. An empty path instead would need CAP_DAC_READ_SEARCH, which
        // opens files by handle, out of any directory.
        // SAFETY: the names are NUL-terminated.
        check(unsafe {
            libc::linkat(
                self.proc_fds.directory().as_raw_fd(),
                entry.as_ptr(),
                parent.as_raw_fd(),
                new_name.as_ptr(),
                libc::AT_SYMLINK_FOLLOW,
            )
        })?;
        self.find(&parent, new_name)
    }

    fn open(
        &self,
        _context: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let inode = self.inodes.get(inode)?;
        let file = self.open_contents(&inode, flags, fuse_flags & FOPEN_IN_KILL_SUIDGID != 0)?;
        let handle = self.handles.insert(inode.id, file);
        Ok((Some(handle), inode.cache.file_options(), None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let parent = self.directory(parent, name)?;
        let flags = open_flags(arguments.flags)?;
        let exclusive = arguments.flags & libc::O_EXCL.cast_unsigned() != 0;
        let mode = arguments.mode & MODE_BITS & !(arguments.umask & 0o777);
        let created = {
            let _caller = Identity::take(context.uid, context.gid)?;
            descriptor::open_at(parent.as_fd(), name, flags | libc::O_CREAT | libc::O_EXCL, mode)
        };
        let (inode, entry, file) = match created {
            Ok(file) => {
                // The very file, whatever the name means by now.
                let known = self.proc_fds.reopen(file.as_fd(), libc::O_PATH)?;
                let (inode, entry) = self.tell(&parent, name, known)?;
                (inode, entry, file)
            }
            Err(exists) if exists.raw_os_error() == Some(libc::EEXIST) && !exclusive => {
                let known = descriptor::open_at(parent.as_fd(), name, libc::O_PATH, 0)?;
                let (inode, entry) = self.tell(&parent, name, known)?;
                let kill = arguments.fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
                match self.open_contents(&inode, arguments.flags, kill) {
                    Ok(file) => (inode, entry, file),
                    Err(error) => {
                        self.forget_entry(&entry);
                        return Err(error);
                    }
                }
            }
            Err(error) => return Err(error),
        };
        let handle = self.handles.insert(inode.id, file);
        Ok((entry, Some(handle), inode.cache.file_options(), None))
    }

    // Reading and writing are the VMM's, on the descriptor it was given. Flushing has nothing to do, since nothing is
    // held back here: ENOSYS spares the guest a message per close(2). Access is checked by the guest kernel.

    fn release(
        &self,
        _context: &Context,
        inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.handles.remove(handle, inode)
    }

    fn fsync(&self, _context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        let file = handle.as_fd().as_raw_fd();
        // SAFETY: no memory is involved.
        check(unsafe {
            if data_only {
                libc::fdatasync(file)
            } else {
                libc::fsync(file)
            }
        })?;
        Ok(())
    }

    fn fallocate(
        &self,
        context: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        let invalid = |_| error(libc::EINVAL);
        let mode = mode.try_into().map_err(invalid)?;
        let offset = offset.try_into().map_err(invalid)?;
        let length = length.try_into().map_err(invalid)?;
        let _guard = WithoutFsetid::when(context.uid != 0)?;
        // SAFETY: no memory is involved.
        check(unsafe { libc::fallocate(handle.as_fd().as_raw_fd(), mode, offset, length) })?;
        Ok(())
    }

    fn lseek(
        &self,
        _context: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let handle = self.handles.get(handle, inode)?;
        let whence = i32::try_from(whence).map_err(|_| error(libc::EINVAL))?;
        // The guest kernel knows the rest by itself.
        if whence != libc::SEEK_DATA && whence != libc::SEEK_HOLE {
            return Err(error(libc::EINVAL));
        }
        let offset = offset.try_into().map_err(|_| error(libc::ENXIO))?;
        let _position = handle.hold_position();
        // SAFETY: no memory is involved.
        let found = unsafe { libc::lseek(handle.as_fd().as_raw_fd(), offset, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    }

    fn statfs(&self, _context: &Context, inode: u64) -> io::Result<libc::statvfs64> {
        let inode = self.inodes.get(inode)?;
        let mut result = std::mem::MaybeUninit::zeroed();
        // SAFETY: the buffer has the size that the C library writes.
        check(unsafe { libc::fstatvfs64(inode.as_raw_fd(), result.as_mut_ptr()) })?;
        // SAFETY: it has been filled in, and zeroes are valid anyway.
        Ok(unsafe { result.assume_init() })
    }

    fn setxattr(
        &self,
        _context: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let file = self.open_for_xattr(inode)?.ok_or_else(|| error(libc::EPERM))?;
        let flags = flags.try_into().map_err(|_| error(libc::EINVAL))?;
        // SAFETY: the name is NUL-terminated and the value is as long as said.
        check(unsafe {
            libc::fsetxattr(
                file.as_raw_fd(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                flags,
            )
        })?;
        Ok(())
    }

    fn getxattr(&self, _context: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let file = self.open_for_xattr(inode)?.ok_or_else(|| error(libc::ENODATA))?;
        let mut value = vec![0_u8; size.min(XATTR_MAX) as usize];
        // SAFETY: the name is NUL-terminated and the buffer is as long as said; with length 0 it is not touched.
        let length = unsafe {
            libc::fgetxattr(
                file.as_raw_fd(),
                name.as_ptr(),
                value.as_mut_ptr().cast(),
                value.len(),
            )
        };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        Ok(if size == 0 {
            GetxattrReply::Count(u32::try_from(length).unwrap_or(u32::MAX))
        } else {
            value.truncate(length);
            GetxattrReply::Value(value)
        })
    }

    fn listxattr(&self, _context: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let Some(file) = self.open_for_xattr(inode)? else {
            return Ok(if size == 0 {
                ListxattrReply::Count(0)
            } else {
                ListxattrReply::Names(Vec::new())
            });
        };
        let mut names = vec![0_u8; size.min(XATTR_MAX) as usize];
        // SAFETY: the buffer is as long as said; with length 0 it is not touched.
        let length = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        Ok(if size == 0 {
            ListxattrReply::Count(u32::try_from(length).unwrap_or(u32::MAX))
        } else {
            names.truncate(length);
            ListxattrReply::Names(names)
        })
    }

    fn removexattr(&self, _context: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        let file = self.open_for_xattr(inode)?.ok_or_else(|| error(libc::EPERM))?;
        // SAFETY: the name is NUL-terminated.
        check(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) })?;
        Ok(())
    }

    fn opendir(&self, _context: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let inode = self.inodes.get(inode)?;
        if inode.kind != libc::S_IFDIR {
            return Err(error(libc::ENOTDIR));
        }
        let file = self
            .proc_fds
            .reopen(inode.as_fd(), libc::O_RDONLY | libc::O_DIRECTORY)?;
        let handle = self.handles.insert(inode.id, file);
        Ok((Some(handle), inode.cache.directory_options()))
    }

    fn readdir(
        &self,
        _context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        directory::list(self, &*self.inodes.get(inode)?, &handle, size, offset, add)
    }

    fn readdirplus(
        &self,
        _context: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        directory::list_with_attributes(self, &*self.inodes.get(inode)?, &handle, size, offset, add)
    }

    fn releasedir(&self, _context: &Context, inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        self.handles.remove(handle, inode)
    }

    fn fsyncdir(&self, context: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        self.fsync(context, inode, data_only, handle)
    }
}

impl AsRawFd for Inode {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A request names one component of a path: never a way up, a way down or the directory itself.
fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(error(libc::EINVAL));
    }
    Ok(())
}

fn open_flags(flags: u32) -> io::Result<i32> {
    let flags = flags.cast_signed() & OPEN_FLAGS;
    if flags & libc::O_ACCMODE == libc::O_ACCMODE {
        return Err(error(libc::EINVAL));
    }
    Ok(flags)
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
