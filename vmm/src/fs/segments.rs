//! The guest memory of a descriptor chain.

use std::{marker::PhantomData, ops::Deref};

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// The most descriptors in one chain. A driver may not make a chain longer than the queue (virtio 1.2, 2.7.5.3.1).
pub const MAX_SEGMENTS: usize = super::device::REQUEST_QUEUE_SIZE as usize;

/// The most pieces that one system call takes (`UIO_MAXIOV`).
const MAX_IOVECS: usize = 1024;

/// A descriptor points outside the guest's memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault;

/// Pieces of guest memory that stand for one buffer.
#[derive(Debug, Default)]
pub struct Segments {
    parts: Vec<(GuestAddress, usize)>,
    length: usize,
}

impl Segments {
    /// The device-readable and the device-writable part of a chain; `None` if the chain is too long to be one.
    pub fn of_chain<M>(chain: DescriptorChain<M>) -> Option<(Self, Self)>
    where
        M: Deref<Target = GuestMemoryMmap>,
    {
        let (mut readable, mut writable) = (Self::default(), Self::default());
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_SEGMENTS {
                return None;
            }
            let side = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            let length = descriptor.len() as usize;
            side.length = side.length.checked_add(length)?;
            side.parts.push((descriptor.addr(), length));
        }
        Some((readable, writable))
    }

    /// The length of the buffer.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Copies the beginning of the buffer out of guest memory.
    ///
    /// # Errors
    /// The buffer is shorter than `into` or not in guest memory.
    pub fn read(&self, memory: &GuestMemoryMmap, into: &mut [u8]) -> Result<(), Fault> {
        self.read_at(memory, 0, into)
    }

    /// As [`Segments::read`], from `skip` bytes on.
    ///
    /// # Errors
    /// As [`Segments::read`].
    pub fn read_at(&self, memory: &GuestMemoryMmap, skip: usize, mut into: &mut [u8]) -> Result<(), Fault> {
        for (address, length) in self.range(skip, into.len())? {
            let (part, rest) = into.split_at_mut(length);
            memory.read_slice(part, address).map_err(|_| Fault)?;
            into = rest;
        }
        Ok(())
    }

    /// Copies to the beginning of the buffer in guest memory.
    ///
    /// # Errors
    /// As [`Segments::read`].
    pub fn write(&self, memory: &GuestMemoryMmap, mut from: &[u8]) -> Result<(), Fault> {
        for (address, length) in self.range(0, from.len())? {
            let (part, rest) = from.split_at(length);
            memory.write_slice(part, address).map_err(|_| Fault)?;
            from = rest;
        }
        Ok(())
    }

    /// `length` bytes of the buffer from `skip` on, or as many of them as one system call takes, where they are.
    ///
    /// # Errors
    /// As [`Segments::read`].
    pub fn iovecs<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        skip: usize,
        length: usize,
    ) -> Result<Iovecs<'m>, Fault> {
        let mut pieces = Vec::with_capacity(self.parts.len());
        for (address, length) in self.range(skip, length)? {
            for slice in memory.get_slices(address, length) {
                let slice = slice.map_err(|_| Fault)?;
                pieces.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
        }
        pieces.truncate(MAX_IOVECS);
        Ok(Iovecs {
            pieces,
            memory: PhantomData,
        })
    }

    fn range(
        &self,
        mut skip: usize,
        mut length: usize,
    ) -> Result<impl Iterator<Item = (GuestAddress, usize)>, Fault> {
        if skip.checked_add(length).is_none_or(|end| end > self.length) {
            return Err(Fault);
        }
        Ok(self.parts.iter().filter_map(move |&(address, part)| {
            let skipped = skip.min(part);
            skip -= skipped;
            let taken = (part - skipped).min(length);
            length -= taken;
            // An address beyond the end of the address space is not in memory either, and is refused there.
            let start = GuestAddress(address.0.saturating_add(skipped as u64));
            (taken > 0).then_some((start, taken))
        }))
    }
}

/// Pieces of guest memory, for as long as it is mapped.
#[derive(Debug)]
pub struct Iovecs<'m> {
    pieces: Vec<libc::iovec>,
    memory: PhantomData<&'m GuestMemoryMmap>,
}

impl Iovecs<'_> {
    pub fn as_ptr(&self) -> *const libc::iovec {
        self.pieces.as_ptr()
    }

    pub fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.pieces.len()).expect("at most 1024")
    }
}
