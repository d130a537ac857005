//! The threads that take requests from the relay socket and answer them.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread,
};

use fuse_backend_rs::{
    abi::fuse_abi::Opcode,
    api::server::Server,
    transport::{FuseBuf, FuseDevWriter, Reader},
};
use sealock_protocol::{
    relay::MAX_MESSAGE,
    seqpacket::{Error, SeqPacket},
};

use crate::{handle::Handle, share::Share};

/// Requests that are worked on at once: a slow one must not hold up the others.
pub const THREADS: usize = 4;

/// What a thread's own frames need; the buffers are on the heap.
const STACK: usize = 128 * 1024;

/// `struct fuse_in_header` (linux/fuse.h).
const IN_HEADER: usize = 40;
/// `struct fuse_out_header`.
const OUT_HEADER: usize = 16;
/// `struct fuse_entry_out`.
const ENTRY_OUT: usize = 128;

/// Answers the requests of one VMM about one share.
pub struct FileServer {
    server: Server<Arc<Share>>,
    share: Arc<Share>,
    socket: SeqPacket,
}

impl FileServer {
    /// Serves `share` over `socket`, the file server's end of the relay (see [`sealock_protocol::relay`]).
    ///
    /// # Errors
    /// The socket cannot be made to hold an answer.
    pub fn new(share: Share, socket: SeqPacket) -> io::Result<Self> {
        // Headers of the socket layer are accounted to the buffer too.
        socket.set_send_buffer(2 * MAX_MESSAGE)?;
        // The guest kernel has applied its process's file mode creation mask.
        // SAFETY: no memory is involved.
        unsafe { libc::umask(0) };
        let share = Arc::new(share);
        Ok(Self {
            server: Server::new(Arc::clone(&share)),
            share,
            socket,
        })
    }

    /// Serves until the VMM closes the socket. The calling thread waits and keeps its own user id, on which its
    /// parent-death signal depends.
    ///
    /// # Errors
    /// A thread cannot be started, or the socket fails.
    pub fn run(&self) -> io::Result<()> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    thread::Builder::new()
                        .name("files".into())
                        .stack_size(STACK)
                        .spawn_scoped(scope, || self.work())
                })
                .collect::<io::Result<_>>()?;
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked")))
                })
                .fold(Ok(()), Result::and)
        })
    }

    fn work(&self) -> io::Result<()> {
        let mut request = vec![0; MAX_MESSAGE];
        let mut answer = vec![0; MAX_MESSAGE];
        loop {
            // Descriptors that come along are closed: the VMM has none to give.
            let length = match self.socket.receive(&mut request) {
                Ok((message, _)) => message.len(),
                Err(Error::Closed) => return Ok(()),
                Err(Error::Io(error)) => return Err(error),
                // Not what the VMM's device sends; whoever did gets no answer.
                Err(Error::TooLarge(_) | Error::TooManyDescriptors(_) | Error::Malformed(_)) => continue,
            };
            let (length, opened) = self.answer(&mut request[..length], &mut answer);
            if length == 0 {
                continue;
            }
            match self.send(&answer[..length], opened.as_deref()) {
                Ok(()) => {}
                Err(Error::Closed) => return Ok(()),
                Err(_) => {
                    // Too many descriptors on their way, or no memory: the guest must not wait for ever.
                    let unique = answer[8..OUT_HEADER].try_into().map_or(0, u64::from_ne_bytes);
                    write_error(&mut answer, unique, libc::EIO);
                    match self.send(&answer[..OUT_HEADER], None) {
                        Ok(()) => {}
                        Err(Error::Io(error)) => return Err(error),
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }

    fn send(&self, answer: &[u8], opened: Option<&Handle>) -> Result<(), Error> {
        let file: Option<BorrowedFd<'_>> = opened.map(AsFd::as_fd);
        self.socket.send(answer, file.as_slice())
    }

    /// Answers one request. Returns the length of the answer, 0 if there is to be none, and the file that was opened
    /// and goes along.
    pub fn answer(&self, request: &mut [u8], answer: &mut [u8]) -> (usize, Option<Arc<Handle>>) {
        let Some(header) = request.get(..IN_HEADER) else {
            return (0, None);
        };
        let field =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, opcode) = (field(0), field(4));
        let unique = u64::from(field(8)) | u64::from(field(12)) << 32;
        let inode = u64::from(field(16)) | u64::from(field(20)) << 32;
        let silent = [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt]
            .into_iter()
            .any(|silent| silent as u32 == opcode);
        if length as usize != request.len() {
            return if silent {
                (0, None)
            } else {
                (write_error(answer, unique, libc::EINVAL), None)
            };
        }
        let written = self.handle(request, answer);
        if silent {
            return (0, None);
        }
        if written < OUT_HEADER {
            // Could not be decoded, or the answer does not fit.
            return (write_error(answer, unique, libc::EIO), None);
        }
        let opened = if opcode == Opcode::Open as u32 {
            self.opened(inode, answer, OUT_HEADER, written)
        } else if opcode == Opcode::Create as u32 {
            let inode = u64_at(answer, OUT_HEADER, written).unwrap_or(0);
            self.opened(inode, answer, OUT_HEADER + ENTRY_OUT, written)
        } else {
            None
        };
        (written, opened)
    }

    /// Lets the library write an answer into `answer`, and returns its length.
    fn handle(&self, request: &mut [u8], answer: &mut [u8]) -> usize {
        answer[..OUT_HEADER].fill(0);
        let Ok(reader) = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)) else {
            return 0;
        };
        // The library means to write answers to a device. Without a descriptor, and split so that it collects them,
        // it leaves them in the buffer instead; what it returns then only says that there is no device.
        let Ok(mut writer) = FuseDevWriter::<()>::new(-1, answer) else {
            return 0;
        };
        let Ok(writer) = writer.split_at(0) else { return 0 };
        let _ = self.server.handle_message(reader, writer.into(), None, None);
        let length = u32::from_ne_bytes([answer[0], answer[1], answer[2], answer[3]]) as usize;
        if length <= answer.len() { length } else { 0 }
    }

    fn opened(&self, inode: u64, answer: &[u8], at: usize, length: usize) -> Option<Arc<Handle>> {
        let failed = answer[4..8] != [0; 4];
        if failed {
            return None;
        }
        self.share.handle(u64_at(answer, at, length)?, inode).ok()
    }
}

fn u64_at(message: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = message.get(..length)?.get(at..at + 8)?;
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

fn write_error(answer: &mut [u8], unique: u64, errno: i32) -> usize {
    let length = u32::try_from(OUT_HEADER).expect("16 fits");
    answer[0..4].copy_from_slice(&length.to_ne_bytes());
    answer[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    answer[8..OUT_HEADER].copy_from_slice(&unique.to_ne_bytes());
    OUT_HEADER
}
