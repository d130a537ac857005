//! A `SOCK_SEQPACKET` Unix socket that carries bounded messages and descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    sys::socket::{self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType},
};
use serde::{Serialize, de::DeserializeOwned};

/// What a message could not be sent or received for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side has closed its end.
    #[error("the other side closed the socket")]
    Closed,
    /// The message does not fit its bound.
    #[error("a message larger than {0} bytes")]
    TooLarge(usize),
    /// More descriptors than may come with one message.
    #[error("more than {0} descriptors with one message")]
    TooManyDescriptors(usize),
    /// Not what the protocol says.
    #[error("a malformed message")]
    Malformed(#[source] serde_json::Error),
    /// The socket's own error; `WouldBlock` on a non-blocking socket.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One end of a connected `SOCK_SEQPACKET` socket: a message goes and comes whole or not at all.
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

/// The most descriptors that [`SeqPacket::receive`] takes with one message.
const MAX_FDS: usize = crate::control::MAX_FDS;

/// The most that the kernel lets anyone send with one message (unix(7), `SCM_MAX_FD`). There is room for all of them,
/// so that none is installed in this process without being seen, and closed, here.
const KERNEL_MAX_FDS: usize = 253;

impl SeqPacket {
    /// A connected pair, close-on-exec and blocking.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socket::socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// Another descriptor of the same end.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes room for messages of up to `bytes` in this end's send buffer, as far as the host allows.
    ///
    /// # Errors
    /// The kernel refuses the size.
    pub fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        // A privileged process may go beyond net.core.wmem_max, another is cut to it silently.
        if socket::setsockopt(&self.0, socket::sockopt::SndBufForce, &bytes).is_err() {
            socket::setsockopt(&self.0, socket::sockopt::SndBuf, &bytes)?;
        }
        Ok(())
    }

    /// Sends one message with its descriptors, which stay the caller's.
    ///
    /// # Errors
    /// [`Error::Closed`], or [`Error::Io`].
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.send_vectored(&[IoSlice::new(message)], fds)
    }

    /// As [`SeqPacket::send`], with the message in pieces.
    ///
    /// # Errors
    /// As [`SeqPacket::send`].
    pub fn send_vectored(&self, message: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        loop {
            match socket::sendmsg::<()>(self.0.as_raw_fd(), message, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(Error::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }

    /// Receives one message into `buffer` and returns the part of it that was filled, with the descriptors that came
    /// along, close-on-exec.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the message does not fit, [`Error::TooManyDescriptors`]; whatever descriptors came
    /// with such a message are closed.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> Result<(&'b [u8], Vec<OwnedFd>), Error> {
        let size = buffer.len();
        let mut control = cmsg_space!([RawFd; KERNEL_MAX_FDS]);
        let (bytes, flags, fds) = loop {
            let mut parts = [IoSliceMut::new(buffer)];
            match socket::recvmsg::<()>(
                self.0.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Ok(message) => break (message.bytes, message.flags, take_descriptors(&message)),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECONNRESET) => return Err(Error::Closed),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        };
        if flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(Error::TooLarge(size));
        }
        if fds.len() > MAX_FDS || flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(Error::TooManyDescriptors(MAX_FDS));
        }
        if bytes == 0 {
            return Err(Error::Closed);
        }
        Ok((&buffer[..bytes], fds))
    }

    /// Sends `message` as JSON.
    ///
    /// # Errors
    /// As [`SeqPacket::send`].
    pub fn send_json<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = serde_json::to_vec(message).map_err(Error::Malformed)?;
        self.send(&bytes, fds)
    }

    /// Receives a message of at most `limit` bytes of JSON.
    ///
    /// # Errors
    /// As [`SeqPacket::receive`], and [`Error::Malformed`].
    pub fn receive_json<T: DeserializeOwned>(&self, limit: usize) -> Result<(T, Vec<OwnedFd>), Error> {
        let mut buffer = vec![0; limit];
        let (bytes, fds) = self.receive(&mut buffer)?;
        let message = serde_json::from_slice(bytes).map_err(Error::Malformed)?;
        Ok((message, fds))
    }
}

fn take_descriptors<S>(message: &socket::RecvMsg<'_, '_, S>) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // An error here means that the control data was cut, which the message's flags say too.
    for part in message.cmsgs().into_iter().flatten() {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    fds
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SeqPacket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for SeqPacket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<SeqPacket> for OwnedFd {
    fn from(socket: SeqPacket) -> Self {
        socket.0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
    };

    use super::*;
    use crate::control::{ExitReason, Request};

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (one, other) = SeqPacket::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send_json(&Request::ReadConsole, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (message, mut fds) = other.receive_json::<Request>(64).unwrap();
        assert_eq!(message, Request::ReadConsole);
        File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_message_over_its_bound_is_refused() {
        let (one, other) = SeqPacket::pair().unwrap();
        one.send(&[7; 65], &[]).unwrap();
        assert!(matches!(other.receive(&mut [0; 64]), Err(Error::TooLarge(64))));
    }

    #[test]
    fn descriptors_over_the_bound_are_refused_and_closed() {
        let (one, other) = SeqPacket::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let fds = vec![writer.as_fd(); MAX_FDS + 8];
        one.send(b"x", &fds).unwrap();
        assert!(matches!(
            other.receive(&mut [0; 8]),
            Err(Error::TooManyDescriptors(MAX_FDS))
        ));
        drop(writer);
        // Reads to the end only if no copy of the writing end is left open.
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn the_end_of_the_other_side_is_told_apart() {
        let (one, other) = SeqPacket::pair().unwrap();
        drop(one);
        assert!(matches!(other.receive(&mut [0; 8]), Err(Error::Closed)));
        assert!(matches!(other.send(b"x", &[]), Err(Error::Closed)));
    }

    #[test]
    fn an_unknown_field_is_malformed() {
        let (one, other) = SeqPacket::pair().unwrap();
        one.send(
            br#"{"exited":{"reason":"poweroff","detail":"","console":"","more":1}}"#,
            &[],
        )
        .unwrap();
        assert!(matches!(
            other.receive_json::<crate::control::Event>(1024),
            Err(Error::Malformed(_))
        ));
    }

    #[test]
    fn the_ends_of_a_guest_have_statuses_of_their_own() {
        let statuses = [
            ExitReason::Poweroff,
            ExitReason::Reboot,
            ExitReason::Panic,
            ExitReason::TripleFault,
        ]
        .map(ExitReason::status);
        let distinct: std::collections::BTreeSet<_> = statuses.into_iter().collect();
        assert_eq!(distinct.len(), statuses.len());
    }
}
