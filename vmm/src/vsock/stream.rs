//! The host's end of a connection: a descriptor of any kind that streams bytes.

use std::{
    fs::File,
    io::{self, IoSlice, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::fs::FileTypeExt,
    },
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vm_memory::{ReadVolatile, VolatileMemoryError, WriteVolatile};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::packet::Pieces;

/// What a pipe that was full may hold, in bytes: the device and the reader take turns less often. The most that the host gives
/// to those without privileges, and what the pod's memory is charged for.
pub const LARGE_PIPE: i32 = 1024 * 1024;

/// A non-blocking descriptor, and which way it can be used now.
///
/// Readiness is edge-triggered: [`Stream::readable`] and [`Stream::writable`] are set by events and cleared when the
/// descriptor would block, so that an event that can't be acted upon is not reported again and again.
#[derive(Debug)]
pub struct Stream {
    file: File,
    socket: bool,
    /// A pipe of the usual capacity that has not been full yet.
    small: bool,
    source: bool,
    sink: bool,
    polled: bool,
    readable: bool,
    writable: bool,
    hung_up: bool,
}

/// What moving bytes came to.
#[derive(Debug)]
pub enum Moved {
    /// So many bytes, at least one; there may be more.
    Bytes(usize),
    /// Nothing for now: an event will tell.
    WouldBlock,
    /// The end of what can be read.
    End,
    /// No byte will ever move that way again.
    Failed,
}

impl Stream {
    /// Takes a descriptor over: a socket is used both ways, a pipe or FIFO as it was opened. A FIFO opened for both
    /// is one that the opener keeps from ending, as container output is: it is written only, for what is read from
    /// it would be missing at its other end.
    ///
    /// # Errors
    /// The descriptor has no mode or can't be made non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let kind = file.metadata()?.file_type();
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        if !flags.contains(OFlag::O_NONBLOCK) {
            fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        }
        let (source, sink) = match flags & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => (true, false),
            OFlag::O_WRONLY => (false, true),
            OFlag::O_RDWR => (!kind.is_fifo(), true),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        Ok(Self {
            file,
            socket: kind.is_socket(),
            small: kind.is_fifo(),
            source,
            sink,
            polled: false,
            readable: false,
            writable: sink,
            hung_up: false,
        })
    }

    /// Whether it was opened for reading.
    pub fn is_source(&self) -> bool {
        self.source
    }

    /// Whether it was opened for writing.
    pub fn is_sink(&self) -> bool {
        self.sink
    }

    /// Whether something may be read.
    pub fn readable(&self) -> bool {
        self.readable
    }

    /// Whether something may be written.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Whether the other side has gone altogether.
    pub fn hung_up(&self) -> bool {
        self.hung_up
    }

    /// Has events reported to `epoll` under `token`. What can't be polled (files, `/dev/null`) is always ready.
    ///
    /// # Errors
    /// The host refuses one more descriptor.
    pub fn watch(&mut self, epoll: &Epoll, token: u64) -> io::Result<()> {
        let mut events = EventSet::EDGE_TRIGGERED;
        events.set(EventSet::IN | EventSet::READ_HANG_UP, self.source);
        events.set(EventSet::OUT, self.sink);
        match epoll.ctl(ControlOperation::Add, self.raw(), EpollEvent::new(events, token)) {
            Ok(()) => self.polled = true,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => self.readable = self.source,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Ends what [`Stream::watch`] began. Needed before the descriptor is closed: events would go on for as long as
    /// another process has a duplicate of it.
    pub fn unwatch(&mut self, epoll: &Epoll) {
        if std::mem::take(&mut self.polled) {
            // Fails only for what is not registered.
            let _ = epoll.ctl(ControlOperation::Delete, self.raw(), EpollEvent::default());
        }
    }

    /// Takes note of what `epoll` reported.
    pub fn note(&mut self, events: EventSet) {
        let gone = EventSet::HANG_UP | EventSet::ERROR;
        if self.source && events.intersects(EventSet::IN | EventSet::READ_HANG_UP | gone) {
            self.readable = true;
        }
        if self.sink && events.intersects(EventSet::OUT | gone) {
            self.writable = true;
        }
        if events.intersects(gone) {
            self.hung_up = true;
        }
    }

    /// Reads straight into guest memory, at most `room`.
    pub fn read_into(&mut self, room: &Pieces<'_>) -> Moved {
        let mut total = 0;
        for slice in room.slices() {
            let result = retry(|| self.file.as_fd().read_volatile(&mut slice.clone()));
            match result {
                Ok(0) if total == 0 => return Moved::End,
                Ok(bytes) => {
                    total += bytes;
                    if bytes < slice.len() {
                        break;
                    }
                }
                Err(_) if total > 0 => break,
                Err(error) => {
                    let blocked = self.blocked(&error);
                    self.readable &= !blocked;
                    return if blocked { Moved::WouldBlock } else { Moved::Failed };
                }
            }
        }
        Moved::Bytes(total)
    }

    /// Writes straight from guest memory.
    pub fn write_from(&mut self, data: &Pieces<'_>) -> Moved {
        let mut total = 0;
        for slice in data.slices() {
            match retry(|| self.file.as_fd().write_volatile(slice)) {
                Ok(bytes) => {
                    total += bytes;
                    if bytes < slice.len() {
                        break;
                    }
                }
                Err(_) if total > 0 => break,
                Err(error) if self.blocked(&error) && self.enlarge() => return self.write_from(data),
                Err(error) => return self.not_written(&error),
            }
        }
        if total == 0 {
            Moved::Failed
        } else {
            Moved::Bytes(total)
        }
    }

    /// Writes from the host's own memory.
    pub fn write(&mut self, data: [&[u8]; 2]) -> Moved {
        loop {
            return match (&self.file).write_vectored(&data.map(IoSlice::new)) {
                Ok(0) => Moved::Failed,
                Ok(bytes) => Moved::Bytes(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if self.blocked(&error) && self.enlarge() => continue,
                Err(error) => self.not_written(&error),
            };
        }
    }

    /// Has a pipe hold more, once: whether it does now.
    fn enlarge(&mut self) -> bool {
        std::mem::take(&mut self.small) && fcntl(&self.file, FcntlArg::F_SETPIPE_SZ(LARGE_PIPE)).is_ok()
    }

    fn not_written(&mut self, error: &io::Error) -> Moved {
        let blocked = self.blocked(error);
        self.writable &= !blocked;
        if blocked { Moved::WouldBlock } else { Moved::Failed }
    }

    /// Whether an event will tell when to try again.
    fn blocked(&self, error: &io::Error) -> bool {
        self.polled && error.kind() == io::ErrorKind::WouldBlock
    }

    /// Tells the other side of a socket that one direction has ended; what isn't a socket ends with its descriptor.
    pub fn shut_down(&self, direction: Shutdown) {
        if self.socket {
            let how = match direction {
                Shutdown::Read => nix::sys::socket::Shutdown::Read,
                Shutdown::Write => nix::sys::socket::Shutdown::Write,
                Shutdown::Both => nix::sys::socket::Shutdown::Both,
            };
            // Fails only if the other side has gone, and then needs no telling.
            let _ = nix::sys::socket::shutdown(self.raw(), how);
        }
    }

    fn raw(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn retry(mut call: impl FnMut() -> Result<usize, VolatileMemoryError>) -> io::Result<usize> {
    loop {
        match call() {
            Ok(bytes) => return Ok(bytes),
            Err(VolatileMemoryError::IOError(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(VolatileMemoryError::IOError(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn direction(fd: impl Into<OwnedFd>) -> (bool, bool) {
        let stream = Stream::new(fd.into()).unwrap();
        (stream.is_source(), stream.is_sink())
    }

    #[test]
    fn a_descriptor_is_used_as_it_was_opened() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert_eq!(
            direction(OpenOptions::new().read(true).open(&path).unwrap()),
            (true, false)
        );
        assert_eq!(
            direction(OpenOptions::new().write(true).open(&path).unwrap()),
            (false, true)
        );
        assert_eq!(
            direction(both),
            (false, true),
            "container output is not to be read"
        );
        let (reader, writer) = io::pipe().unwrap();
        assert_eq!(direction(reader), (true, false));
        assert_eq!(direction(writer), (false, true));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(direction(socket), (true, true));
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open(directory.path().join("log"))
            .unwrap();
        assert_eq!(direction(log), (false, true));
    }

    #[test]
    fn what_cannot_be_polled_is_always_ready() {
        let epoll = Epoll::new().unwrap();
        let mut null = Stream::new(File::open("/dev/null").unwrap().into()).unwrap();
        assert!(!null.readable());
        null.watch(&epoll, 1).unwrap();
        assert!(null.readable());
        let mut bytes = [0; 4];
        assert!(matches!(
            null.read_into(&Pieces::of_bytes(&mut bytes)),
            Moved::End
        ));
    }

    #[test]
    fn a_pipe_that_is_full_is_enlarged_once() {
        let (reader, writer) = io::pipe().unwrap();
        let mut stream = Stream::new(writer.into()).unwrap();
        stream.watch(&Epoll::new().unwrap(), 1).unwrap();
        let mut written = 0;
        loop {
            match stream.write([&[0; 8192], &[]]) {
                Moved::Bytes(bytes) => written += bytes,
                Moved::WouldBlock => break,
                other => panic!("{other:?}"),
            }
            let capacity = fcntl(&reader, FcntlArg::F_GETPIPE_SZ).unwrap();
            assert!(capacity == LARGE_PIPE || written <= 64 * 1024);
        }
        assert_eq!(written, LARGE_PIPE as usize);
        assert!(!stream.writable());
    }

    #[test]
    fn a_fifo_nobody_has_opened_for_writing_has_not_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let open = nix::fcntl::open(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()).unwrap();
        let epoll = Epoll::new().unwrap();
        let mut stream = Stream::new(open).unwrap();
        stream.watch(&epoll, 1).unwrap();
        let mut events = [EpollEvent::default(); 1];
        assert_eq!(epoll.wait(0, &mut events).unwrap(), 0);
        assert!(!stream.readable());
        drop(OpenOptions::new().write(true).open(&path).unwrap());
        assert_eq!(epoll.wait(0, &mut events).unwrap(), 1);
        stream.note(events[0].event_set());
        assert!(stream.readable());
    }
}
