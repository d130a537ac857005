//! The device's side of the broker socket: who gets which descriptor is the shim's decision.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sealock_protocol::{
    broker::{Answer, MAX_MESSAGE, Request},
    seqpacket::{Error, SeqPacket},
};

/// Connects of the guest's that the shim has not answered, at most.
const MAX_UNANSWERED: usize = 256;

/// The shim, behind a socket that never blocks.
#[derive(Debug)]
pub struct Broker {
    socket: SeqPacket,
    open: bool,
    unanswered: BTreeSet<u64>,
    /// What the shim is still to be told about its own requests, of which each gives one entry. While there are any,
    /// no further requests are received.
    outbox: VecDeque<Request>,
}

impl Broker {
    /// Takes the socket over.
    ///
    /// # Errors
    /// It can't be made non-blocking.
    pub fn new(socket: SeqPacket) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            socket,
            open: true,
            unanswered: BTreeSet::new(),
            outbox: VecDeque::new(),
        })
    }

    /// Whether there is a shim to ask.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether answers wait until the shim receives.
    pub fn has_backlog(&self) -> bool {
        self.open && !self.outbox.is_empty()
    }

    /// Asks for what is behind `port`; false if the shim can't be asked, or not now: that is a refusal.
    pub fn ask(&mut self, id: u64, port: u32) -> bool {
        if !self.open || self.unanswered.len() >= MAX_UNANSWERED || !self.outbox.is_empty() {
            return false;
        }
        match self.socket.send_json(&Request::Connect { id, port }, &[]) {
            Ok(()) => self.unanswered.insert(id),
            Err(error) => {
                self.open = is_full(&error);
                false
            }
        }
    }

    /// Tells the shim what became of its request `id`.
    pub fn dialed(&mut self, id: u64, connected: bool) {
        if self.open {
            self.outbox.push_back(Request::Dialed { id, connected });
            self.flush();
        }
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush(&mut self) {
        while let Some(request) = self.outbox.front().filter(|_| self.open) {
            match self.socket.send_json(request, &[]) {
                Ok(()) => {
                    self.outbox.pop_front();
                }
                Err(error) if is_full(&error) => return,
                Err(_) => self.open = false,
            }
        }
    }

    /// The next thing the shim says, with its descriptor; `None` when there is nothing more for now.
    pub fn receive(&mut self) -> Option<(Answer, Option<OwnedFd>)> {
        while self.open && self.outbox.is_empty() {
            match self.socket.receive_json(MAX_MESSAGE) {
                Ok((answer, mut fds)) => {
                    let known = match &answer {
                        Answer::Accept { id } | Answer::Refuse { id } => self.unanswered.remove(id),
                        Answer::Dial { .. } => true,
                    };
                    if known {
                        // Surplus descriptors are closed: none is meant to come.
                        fds.truncate(1);
                        return Some((answer, fds.pop()));
                    }
                }
                Err(error) if is_full(&error) => return None,
                // One message is lost; what it was to answer runs into its deadline.
                Err(Error::Malformed(_) | Error::TooLarge(_) | Error::TooManyDescriptors(_)) => {}
                Err(Error::Closed | Error::Io(_)) => self.open = false,
            }
        }
        None
    }

    /// The requests that nobody will answer now that the shim is gone.
    pub fn abandoned(&mut self) -> BTreeSet<u64> {
        if self.open {
            BTreeSet::new()
        } else {
            self.outbox.clear();
            std::mem::take(&mut self.unanswered)
        }
    }
}

impl AsRawFd for Broker {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}
