//! The root directory of a process in a mount namespace of its own.

use std::os::fd::AsFd;

use nix::{
    mount::{MntFlags, umount2},
    unistd::{chdir, fchdir, pivot_root},
};

use super::failure::{Doing, Failure};

/// Makes `root`, which is mounted somewhere, the root of the process's mount namespace, and its working directory; the guest's
/// is left for good.
///
/// # Errors
/// The kernel refuses.
pub fn exchange_root(root: impl AsFd) -> Result<(), Failure> {
    // The old root ends up on top of the new one, where it is unmounted (pivot_root(2), "pivot_root(".", ".")").
    fchdir(root).doing(|| "root: entering")?;
    pivot_root(".", ".").doing(|| "root: exchanging the guest's for the container's")?;
    umount2(".", MntFlags::MNT_DETACH).doing(|| "root: leaving the guest's")?;
    chdir("/").doing(|| "root: entering")
}
