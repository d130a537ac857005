//! `FUSE_READ` and `FUSE_WRITE`: between a file's descriptor and guest memory, without a copy in between.
//!
//! A short count means the end of the file to the guest kernel, so both go on until all is done or nothing more comes.
//!
//! `FUSE_WRITE_KILL_SUIDGID` needs nothing: the VMM has no `CAP_FSETID`, so the host kernel clears the set-user-id and
//! set-group-id bits on every write. That includes writes by a guest process with that capability, for which a host
//! would keep them.

use std::{io, os::fd::AsRawFd, sync::Arc};

use vm_memory::GuestMemoryMmap;

use super::{
    files::OpenFile,
    segments::Segments,
    wire::{IN_HEADER, OUT_HEADER, OutHeader, TRANSFER_IN, TransferIn, WRITE_CACHE, WRITE_OUT},
};

/// Which way the data goes, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the file into the answer.
    Read,
    /// From the request into the file.
    Write,
}

/// A request to read or write, and how far it has got.
#[derive(Debug)]
pub struct Transfer {
    direction: Direction,
    file: Arc<OpenFile>,
    unique: u64,
    request: Segments,
    answer: Segments,
    offset: i64,
    length: usize,
    done: usize,
    append: bool,
    /// The file was opened to wait for its device each time.
    waits: bool,
}

impl Transfer {
    /// A transfer of which all numbers fit; otherwise the error number and where the answer goes.
    pub fn new(
        direction: Direction,
        file: Arc<OpenFile>,
        unique: u64,
        arguments: TransferIn,
        request: Segments,
        answer: Segments,
    ) -> Result<Self, (i32, Segments)> {
        let length = arguments.size as usize;
        let room = match direction {
            Direction::Read => answer
                .len()
                .checked_sub(OUT_HEADER)
                .is_some_and(|room| room >= length),
            Direction::Write => {
                request.len().checked_sub(IN_HEADER + TRANSFER_IN) == Some(length)
                    && answer.len() >= OUT_HEADER + WRITE_OUT
            }
        };
        let offset = i64::try_from(arguments.offset)
            .ok()
            .filter(|offset| offset.checked_add(i64::from(arguments.size)).is_some());
        let (true, Some(offset)) = (room, offset) else {
            return Err((libc::EINVAL, answer));
        };
        let waiting = match direction {
            Direction::Read => libc::O_DIRECT,
            Direction::Write => libc::O_DIRECT | libc::O_DSYNC,
        };
        Ok(Self {
            direction,
            file,
            unique,
            request,
            answer,
            offset,
            length,
            done: 0,
            // The descriptor is not in append mode, because pages of a mapping belong where they are.
            append: direction == Direction::Write
                && arguments.file_flags & libc::O_APPEND != 0
                && arguments.fuse_flags & WRITE_CACHE == 0,
            waits: arguments.file_flags & waiting != 0,
        })
    }

    /// Does as much as is possible without waiting for the disk. Returns the length of the answer, now in guest
    /// memory, or `None` if the rest has to wait.
    pub fn try_now(&mut self, memory: &GuestMemoryMmap) -> Option<u32> {
        if self.waits || !self.file.tells_waiting(self.direction) {
            return None;
        }
        match self.run(memory, libc::RWF_NOWAIT) {
            Err(libc::EAGAIN) => None,
            Err(libc::EOPNOTSUPP) => {
                self.file.never_tells_waiting(self.direction);
                None
            }
            result => Some(self.answer(memory, result)),
        }
    }

    /// Does the rest, and returns the length of the answer, now in guest memory.
    pub fn finish(mut self, memory: &GuestMemoryMmap) -> u32 {
        let result = self.run(memory, 0);
        self.answer(memory, result)
    }

    fn run(&mut self, memory: &GuestMemoryMmap, flags: libc::c_int) -> Result<(), i32> {
        while self.done < self.length {
            let (segments, skip) = match self.direction {
                Direction::Read => (&self.answer, OUT_HEADER),
                Direction::Write => (&self.request, IN_HEADER + TRANSFER_IN),
            };
            let iovecs = segments
                .iovecs(memory, skip + self.done, self.length - self.done)
                .map_err(|_| libc::EFAULT)?;
            let done = i64::try_from(self.done).expect("no more than a u32");
            // Checked when this was made: the sum with the whole length fits.
            let offset = self.offset + done;
            let file = self.file.file_descriptor();
            // SAFETY: the pieces are in guest memory, which stays mapped while they exist, and which nothing in this
            // process refers to other than by such pointers.
            let count = unsafe {
                match self.direction {
                    Direction::Read => libc::preadv2(file, iovecs.as_ptr(), iovecs.count(), offset, flags),
                    Direction::Write => {
                        let append = if self.append { libc::RWF_APPEND } else { 0 };
                        libc::pwritev2(file, iovecs.as_ptr(), iovecs.count(), offset, flags | append)
                    }
                }
            };
            match usize::try_from(count) {
                Ok(0) => break,
                Ok(count) => self.done += count,
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    error => return Err(error.unwrap_or(libc::EIO)),
                },
            }
        }
        Ok(())
    }

    fn answer(&self, memory: &GuestMemoryMmap, result: Result<(), i32>) -> u32 {
        let done = u32::try_from(self.done).expect("no more than the size, a u32");
        match (self.direction, result) {
            (Direction::Read, Ok(())) => answer(memory, &self.answer, self.unique, 0, &[], done),
            // What was written is written.
            (Direction::Write, result) if result.is_ok() || done > 0 => {
                let mut written = [0; WRITE_OUT];
                written[0..4].copy_from_slice(&done.to_ne_bytes());
                answer(memory, &self.answer, self.unique, 0, &written, 0)
            }
            (_, Err(error)) => answer_error(memory, &self.answer, self.unique, error),
            (Direction::Write, Ok(())) => unreachable!("taken above"),
        }
    }
}

impl OpenFile {
    fn file_descriptor(&self) -> libc::c_int {
        use std::os::fd::AsFd;
        self.as_fd().as_raw_fd()
    }
}

/// Puts an error into the answer and returns the answer's length: 0 if there is no room for it in guest memory.
pub fn answer_error(memory: &GuestMemoryMmap, to: &Segments, unique: u64, errno: i32) -> u32 {
    answer(memory, to, unique, -errno, &[], 0)
}

/// Puts a header and `payload` into the answer, after which `more` bytes are there already.
fn answer(
    memory: &GuestMemoryMmap,
    to: &Segments,
    unique: u64,
    error: i32,
    payload: &[u8],
    more: u32,
) -> u32 {
    let own = u32::try_from(OUT_HEADER + payload.len()).expect("at most 24");
    // A chain is at most 4 GiB long, header included.
    let length = own.saturating_add(more);
    let mut bytes = OutHeader {
        length,
        error,
        unique,
    }
    .to_bytes()
    .to_vec();
    bytes.extend_from_slice(payload);
    if to.write(memory, &bytes).is_ok() {
        length
    } else {
        0
    }
}
