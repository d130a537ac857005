//! The socket.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_ALIGNTO, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket, sockopt,
    },
    time::TimeVal,
};

/// Room for one datagram of the kernel's: it makes none of more than 32 KiB.
const BUFFER: usize = 64 * 1024;

/// How long the kernel may take to answer, in seconds. It does so before `send` returns.
const DEADLINE: i64 = 10;

/// How often a dump is begun anew because things changed under it.
const ATTEMPTS: usize = 16;

/// What the kernel, or what it says, is wrong about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket fails.
    #[error("the netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refuses a request.
    #[error(transparent)]
    Refused(io::Error),
    /// The kernel says what this program can't read.
    #[error("the kernel's netlink answer is not understood: {0}")]
    Malformed(String),
    /// Things changed too often to be read.
    #[error("the network changes too often to be read")]
    Unsettled,
}

impl Error {
    /// The kernel's error number, if it refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused(error) => error.raw_os_error(),
            _ => None,
        }
    }
}

fn broken(error: nix::Error) -> Error {
    Error::Socket(error.into())
}

/// A socket for requests.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> Result<Self, Error> {
        let fd = open(SockFlag::SOCK_CLOEXEC, 0)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(DEADLINE, 0)).map_err(broken)?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Has something done. `flags` are `NLM_F_CREATE` and its like.
    ///
    /// # Errors
    /// [`Error::Refused`], and the socket's own.
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.send(message, NLM_F_ACK | flags)?;
        self.answers(|_| {}).map(drop)
    }

    /// Everything of a kind: `message` is a `Get…`, the answers are `New…`.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unsettled`], and the socket's own.
    pub fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..ATTEMPTS {
            let mut all = Vec::new();
            self.send(message.clone(), NLM_F_DUMP)?;
            if self.answers(|message| all.push(message))? {
                return Ok(all);
            }
        }
        Err(Error::Unsettled)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(broken)?;
        Ok(())
    }

    /// Reads the answers to the last request, and tells whether nothing changed while they were made.
    fn answers(&mut self, mut take: impl FnMut(RouteNetlinkMessage)) -> Result<bool, Error> {
        let mut settled = true;
        loop {
            let received = loop {
                match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                    Err(nix::Error::EINTR) => {}
                    other => break other.map_err(broken)?,
                }
            };
            let mut rest = self
                .buffer
                .get(..received)
                .ok_or_else(|| Error::Malformed(format!("{received} bytes at once")))?;
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| Error::Malformed(error.to_string()))?;
                // At least a header's size: it has been read.
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                let aligned = length.next_multiple_of(usize::from(NLMSG_ALIGNTO)).max(1);
                rest = rest.get(aligned..).unwrap_or_default();
                // What is left of an earlier request that was given up.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                settled &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => take(message),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(settled),
                            Some(_) => Err(Error::Refused(error.to_io())),
                        };
                    }
                    NetlinkPayload::Done(done) => {
                        return match done.code {
                            0 => Ok(settled),
                            code => Err(Error::Refused(io::Error::from_raw_os_error(
                                code.saturating_abs(),
                            ))),
                        };
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A socket that becomes readable whenever links, addresses or routes change. What has changed is for the reader to find
/// out: messages get lost when there are many.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// Opens one in the network namespace of the calling thread. It never blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> Result<Self, Error> {
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        // A mask of the lowest eleven groups.
        open(
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            groups.unsigned_abs(),
        )
        .map(Self)
    }

    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Forgets what has been reported so far: readable again means changed again.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn clear(&self) -> io::Result<()> {
        let mut buffer = [0; 64];
        // As many as fit the socket's buffer; if more come meanwhile there is another turn.
        for _ in 0..4096 {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                // Some were lost: that is a change, too.
                Ok(_) | Err(nix::Error::EINTR | nix::Error::ENOBUFS) => {}
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn open(flags: SockFlag, groups: u32) -> Result<OwnedFd, Error> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkRoute,
    )
    .map_err(broken)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(broken)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// In an empty network namespace.
    fn alone(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
                test();
            });
        });
    }

    fn links(socket: &mut Socket) -> Vec<LinkMessage> {
        let all = socket.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()));
        let links = all.unwrap().into_iter().map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => link,
            other => panic!("{other:?}"),
        });
        links.collect()
    }

    #[test]
    fn an_empty_namespace_has_the_loopback_interface_only() {
        alone(|| {
            let mut socket = Socket::open().unwrap();
            // Other kinds make themselves in every namespace where their modules are there.
            let names: Vec<_> = links(&mut socket)
                .iter()
                .flat_map(|link| &link.attributes)
                .filter_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                })
                .collect();
            assert!(names.contains(&"lo".to_owned()), "{names:?}");
        });
    }

    #[test]
    fn a_refusal_is_the_kernels() {
        alone(|| {
            let mut socket = Socket::open().unwrap();
            let mut link = LinkMessage::default();
            link.header.index = 4711;
            let error = socket.request(RouteNetlinkMessage::SetLink(link), 0).unwrap_err();
            assert_eq!(error.errno(), Some(libc::ENODEV));
            // The socket is as good as before.
            assert!(!links(&mut socket).is_empty());
        });
    }

    #[test]
    fn changes_are_reported_until_cleared() {
        use netlink_packet_route::link::LinkFlags;
        alone(|| {
            let events = Events::open().unwrap();
            let readable = || {
                let mut fds = [nix::libc::pollfd {
                    fd: events.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                }];
                // SAFETY: one valid element.
                unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) == 1 }
            };
            assert!(!readable());
            let mut link = LinkMessage::default();
            link.header.index = 1;
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
            Socket::open()
                .unwrap()
                .request(RouteNetlinkMessage::SetLink(link), 0)
                .unwrap();
            assert!(readable());
            events.clear().unwrap();
            assert!(!readable());
        });
    }
}
