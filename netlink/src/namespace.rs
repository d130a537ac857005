//! Network namespaces: entered by a thread of their own, never by one that lives on.

use std::{io, os::fd::BorrowedFd, thread};

use nix::sched::{CloneFlags, setns};

/// Does `work` in the network namespace, on a thread that ends with it, and waits for it.
///
/// # Errors
/// There is no thread to be had, or the descriptor is not a network namespace's.
pub fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}
