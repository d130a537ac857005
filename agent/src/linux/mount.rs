//! The mount system calls on descriptors: nothing here takes a path that could be exchanged under way.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
};

use super::{check, descriptor};
use crate::oci::{AttributeChange, Propagation};

/// A file system being configured (fsopen(2)).
#[derive(Debug)]
pub struct NewFileSystem(OwnedFd);

impl NewFileSystem {
    /// Begins an instance of the file system of that name.
    ///
    /// # Errors
    /// The kernel has none of that name.
    pub fn open(name: &CStr) -> io::Result<Self> {
        // SAFETY: the name is a C string that outlives the call.
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), libc::FSOPEN_CLOEXEC) }).map(Self)
    }

    /// Sets an option, with a value or as a flag.
    ///
    /// # Errors
    /// The file system has no such option, or not with that value.
    pub fn set(&self, name: &CStr, value: Option<&CStr>) -> io::Result<()> {
        let (command, value) = match value {
            Some(value) => (libc::FSCONFIG_SET_STRING, value.as_ptr()),
            None => (libc::FSCONFIG_SET_FLAG, ptr::null()),
        };
        self.configure(command, name.as_ptr(), value)
    }

    /// Creates the instance and a mount of it, which is nowhere yet.
    ///
    /// # Errors
    /// The options don't fit together, or the kernel refuses.
    pub fn mount(self) -> io::Result<OwnedFd> {
        self.configure(libc::FSCONFIG_CMD_CREATE, ptr::null(), ptr::null())?;
        // SAFETY: numbers alone.
        descriptor(unsafe { libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) })
    }

    fn configure(
        &self,
        command: libc::fsconfig_command,
        key: *const libc::c_char,
        value: *const libc::c_char,
    ) -> io::Result<()> {
        // SAFETY: both are null or C strings that their owners, the callers, hold until the call has returned.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) })?;
        Ok(())
    }
}

/// Clones the mount at a descriptor, with the mounts below it when `recursive`; the clone is nowhere yet.
///
/// # Errors
/// The mount may not be cloned.
pub fn clone_tree(of: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= libc::AT_RECURSIVE as u32;
    }
    // SAFETY: the empty path is a C string.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, of.as_fd().as_raw_fd(), c"".as_ptr(), flags) })
}

/// Puts a mount that is nowhere yet on top of the file or directory `onto`.
///
/// # Errors
/// One is a directory and the other is not, or the kernel refuses.
pub fn attach(mount: impl AsFd, onto: impl AsFd) -> io::Result<()> {
    // SAFETY: the empty paths are C strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            onto.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Changes the attributes of a mount, and of those below it when `recursive`.
///
/// # Errors
/// The kernel refuses.
pub fn change_attributes(mount: impl AsFd, change: AttributeChange, recursive: bool) -> io::Result<()> {
    if change.is_empty() {
        return Ok(());
    }
    set_attributes(
        mount,
        recursive,
        libc::mount_attr {
            attr_set: change.set,
            attr_clr: change.clear,
            propagation: 0,
            userns_fd: 0,
        },
    )
}

/// Makes a mount read-only.
///
/// # Errors
/// The kernel refuses.
pub fn make_read_only(mount: impl AsFd, recursive: bool) -> io::Result<()> {
    let change = AttributeChange {
        set: libc::MOUNT_ATTR_RDONLY,
        clear: 0,
    };
    change_attributes(mount, change, recursive)
}

/// Changes the propagation of a mount.
///
/// # Errors
/// The kernel refuses.
pub fn set_propagation(mount: impl AsFd, propagation: Propagation) -> io::Result<()> {
    set_attributes(
        mount,
        propagation.recursive,
        libc::mount_attr {
            attr_set: 0,
            attr_clr: 0,
            propagation: propagation.kind,
            userns_fd: 0,
        },
    )
}

/// Maps the ids of the files of a mount that is nowhere yet, as the user namespace says, and of those below it when
/// `recursive`.
///
/// # Errors
/// The file system can't be mapped, or the kernel refuses.
pub fn map_ids(mount: impl AsFd, namespace: impl AsFd, recursive: bool) -> io::Result<()> {
    set_attributes(
        mount,
        recursive,
        libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP,
            attr_clr: 0,
            propagation: 0,
            // Descriptors are never negative.
            userns_fd: namespace.as_fd().as_raw_fd() as u64,
        },
    )
}

fn set_attributes(mount: impl AsFd, recursive: bool, attributes: libc::mount_attr) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the attributes live until the call returns and have the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
