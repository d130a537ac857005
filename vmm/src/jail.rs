//! How the process gives up what it doesn't need, before the guest runs and before there is a second thread.

use sealock_jail::{
    Error, landlock,
    limits::{self, Limits},
    namespaces, privileges, root,
};

use crate::fs::MAX_FILES;

/// Descriptors beyond those of the guest's open files: of devices, connections, and one for each thing of KVM's.
const OWN_DESCRIPTORS: u64 = 64 * 1024;

/// The most threads there can be: a virtual CPU each, four for each pair of queues of network devices, some for files.
const THREADS: u64 = 256;

/// Leaves the host's namespaces and files: nothing that the process could name is left. What remains is root's rights over nothing.
/// Needs no configuration, so that it is done by the time that comes.
///
/// # Errors
/// One of the steps was refused. The process is then to end.
pub fn leave_host() -> Result<(), Error> {
    namespaces::leave_host()?;
    root::enter_nothing()
}

/// Confines the process to the rights of `user` and `group`; 0 keeps the caller's. When this returns, the process has no capability,
/// can't get one, and dies with its parent's thread.
///
/// # Errors
/// As [`leave_host`].
pub fn renounce(user: u32, group: u32) -> Result<(), Error> {
    // While there is the capability to do so.
    limits::set(Limits {
        descriptors: MAX_FILES as u64 + OWN_DESCRIPTORS,
        threads: THREADS,
    })?;
    privileges::bound(0)?;
    privileges::become_user(user, group)?;
    privileges::renounce(0)?;
    landlock::renounce_everything()
}
