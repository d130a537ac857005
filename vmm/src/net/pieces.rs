//! Pieces of the guest's memory, as system calls take them.

use std::collections::VecDeque;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::virtio::device::Memory;

/// The most pieces that one system call takes (`UIO_MAXIOV`), without two for what isn't the guest's.
pub const MAX_PIECES: usize = 1022;

/// An address is not in the guest's memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault;

/// A list of pieces of guest memory, which stays mapped as long as the list exists.
pub struct Pieces {
    memory: Memory,
    pieces: VecDeque<libc::iovec>,
}

// SAFETY: the pointers are into guest memory, which any thread may access, and which `memory` keeps mapped.
unsafe impl Send for Pieces {}

impl Pieces {
    /// No pieces of `memory` yet.
    pub fn new(memory: &Memory) -> Self {
        Self {
            memory: memory.clone(),
            pieces: VecDeque::new(),
        }
    }

    /// The memory that they are pieces of.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The number of pieces.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Adds the `length` bytes at `address`, which are one piece unless they span regions of memory.
    ///
    /// # Errors
    /// They aren't all in the guest's memory. Some of them may have been added.
    pub fn push(&mut self, address: GuestAddress, length: usize) -> Result<(), Fault> {
        for slice in self.memory.get_slices(address, length) {
            let slice = slice.map_err(|_| Fault)?;
            self.pieces.push_back(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
        }
        Ok(())
    }

    /// Removes all but the first `count` pieces.
    pub fn truncate(&mut self, count: usize) {
        self.pieces.truncate(count);
    }

    /// Removes the first `count` pieces.
    pub fn remove_first(&mut self, count: usize) {
        self.pieces.drain(..count.min(self.pieces.len()));
    }

    /// Calls `call` with the pieces, the pointer to a buffer of the host's before or after them. The pieces are valid for reads and
    /// writes by the kernel during the call.
    pub fn with<T>(
        &mut self,
        before: Option<libc::iovec>,
        after: Option<libc::iovec>,
        call: impl FnOnce(&[libc::iovec]) -> T,
    ) -> T {
        if let Some(before) = before {
            self.pieces.push_front(before);
        }
        if let Some(after) = after {
            self.pieces.push_back(after);
        }
        let result = call(self.pieces.make_contiguous());
        if after.is_some() {
            self.pieces.pop_back();
        }
        if before.is_some() {
            self.pieces.pop_front();
        }
        result
    }
}
