//! One queue of a tap interface (Linux: `Documentation/networking/tuntap.rst`).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    features::USO,
    header,
    pieces::{MAX_PIECES, Pieces},
};

/// What the flags must be: Ethernet frames with a virtio header. That there is nothing else before them (`IFF_NO_PI`) can't be
/// seen: the kernel uses the same bit for something else when it is asked.
const NEEDED: libc::c_int = libc::IFF_TAP | libc::IFF_VNET_HDR;

/// Why a descriptor can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No tap interface.
    #[error("the descriptor is not that of a tap interface")]
    NotTap(#[source] io::Error),
    /// One that was made otherwise.
    #[error(
        "the tap interface has the flags {flags:#06x}: it must be made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, and \
         with IFF_MULTI_QUEUE if and only if it has more than one queue"
    )]
    Flags {
        /// Those it has.
        flags: u16,
    },
    /// The host refuses something.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// What became of an attempt to read or write a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// A packet went through: its length with its header. Larger than the room there was: the packet was cut off.
    Packet(usize),
    /// Not now: the descriptor's events say when.
    Later,
    /// This packet can't be passed.
    Dropped,
    /// The interface exists no longer.
    Gone,
}

/// The queue.
pub struct Tap {
    fd: OwnedFd,
    /// Whether the queue is one of several, which the interface can be told not to use.
    several: bool,
    attached: AtomicBool,
    /// A socket in its place.
    #[cfg(test)]
    stand_in: bool,
}

impl Tap {
    /// The queue behind `fd`; `several`: whether the interface has others. It gets headers of [`header::LENGTH`] bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn new(fd: OwnedFd, several: bool) -> Result<Self, Error> {
        let tap = Self {
            fd,
            several,
            attached: AtomicBool::new(true),
            #[cfg(test)]
            stand_in: false,
        };
        // SAFETY: all zeroes is a value of this structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        tap.ioctl(libc::TUNGETIFF, &raw mut request)
            .map_err(Error::NotTap)?;
        // SAFETY: the call has filled in this member of the union.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let has = i32::from(flags);
        if has & NEEDED != NEEDED || (has & libc::IFF_MULTI_QUEUE != 0) != several {
            return Err(Error::Flags {
                flags: flags.cast_unsigned(),
            });
        }
        let mut length = header::LENGTH as libc::c_int;
        tap.ioctl(libc::TUNSETVNETHDRSZ, &raw mut length)
            .map_err(host("set the length of the tap's header"))?;
        tap.unblock()?;
        Ok(tap)
    }

    /// A socket that keeps messages apart, to be used as a tap.
    #[cfg(test)]
    pub fn stand_in(fd: OwnedFd) -> Self {
        let tap = Self {
            fd,
            several: false,
            attached: AtomicBool::new(true),
            stand_in: true,
        };
        tap.unblock().unwrap();
        tap
    }

    fn unblock(&self) -> Result<(), Error> {
        fcntl(&self.fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map(drop)
            .map_err(|error| host("make the tap's descriptor non-blocking")(error.into()))
    }

    /// An ioctl with a pointer to a `T`, which must be what it takes.
    fn ioctl<T>(&self, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
        // SAFETY: the pointer is valid for the structure that the request reads or writes, as its callers here ensure.
        match unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Leaves to the guest what `offloads` say (`TUN_F_…`), for all queues of the interface.
    ///
    /// # Errors
    /// The host doesn't know one of them, or the interface is gone.
    pub fn set_offloads(&self, offloads: libc::c_uint) -> io::Result<()> {
        #[cfg(test)]
        if self.stand_in {
            return Ok(());
        }
        // The argument is a number, not a pointer.
        self.ioctl(
            libc::TUNSETOFFLOAD,
            ptr::without_provenance_mut::<u8>(offloads as usize),
        )
    }

    /// Whether the interface knows segmentation of UDP.
    ///
    /// # Errors
    /// It doesn't even know what every one does.
    pub fn knows_uso(&self) -> Result<bool, Error> {
        let basic = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        if self.set_offloads(basic | USO).is_ok() {
            return Ok(true);
        }
        self.set_offloads(basic)
            .map(|()| false)
            .map_err(host("set the tap's offloads"))
    }

    /// Lets the interface use this queue, or not, if it has others.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn attach(&self, attach: bool) -> io::Result<()> {
        if !self.several || self.attached.load(Ordering::Acquire) == attach {
            return Ok(());
        }
        // SAFETY: all zeroes is a value of this structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = if attach {
            libc::IFF_ATTACH_QUEUE as libc::c_short
        } else {
            libc::IFF_DETACH_QUEUE as libc::c_short
        };
        // Whoever finds that the interface doesn't answer must not take that for its end: so this comes before the one
        // and after the other.
        if !attach {
            self.attached.store(false, Ordering::Release);
        }
        self.ioctl(libc::TUNSETQUEUE, &raw mut request)?;
        self.attached.store(attach, Ordering::Release);
        Ok(())
    }

    /// Reads a packet, header first, into `pieces`, which are at most [`MAX_PIECES`].
    pub fn read(&self, pieces: &mut Pieces) -> Passed {
        // A packet that doesn't fit is cut off without a word; this byte tells.
        let mut beyond = 0_u8;
        let after = libc::iovec {
            iov_base: (&raw mut beyond).cast(),
            iov_len: 1,
        };
        pieces.with(None, Some(after), |pieces| {
            let count = pieces.len().min(MAX_PIECES + 1);
            // SAFETY: the pieces are guest memory that stays mapped and that nothing in this process has references to,
            // and a byte that lives until the call returns.
            self.passed(unsafe { libc::readv(self.fd.as_raw_fd(), pieces.as_ptr(), count as libc::c_int) })
        })
    }

    /// Writes a packet: `header`, and the `pieces` of the frame, which are at most [`MAX_PIECES`].
    pub fn write(&self, header: &mut [u8; header::LENGTH], pieces: &mut Pieces) -> Passed {
        let before = libc::iovec {
            iov_base: header.as_mut_ptr().cast(),
            iov_len: header.len(),
        };
        pieces.with(Some(before), None, |pieces| {
            let count = pieces.len().min(MAX_PIECES + 1);
            // SAFETY: as in `read`; the kernel only reads.
            self.passed(unsafe { libc::writev(self.fd.as_raw_fd(), pieces.as_ptr(), count as libc::c_int) })
        })
    }

    fn passed(&self, result: isize) -> Passed {
        if let Ok(length) = usize::try_from(result) {
            return Passed::Packet(length);
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN) => Passed::Later,
            // So says a queue without an interface: it was deleted, or it does not use the queue.
            Some(libc::EBADFD | libc::ENODEV) if self.attached.load(Ordering::Acquire) => Passed::Gone,
            _ => Passed::Dropped,
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
