//! The agent's first words to the host ([`sealock_protocol::guest`]).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, getsockopt, send, sockopt::SocketError},
};
use sealock_protocol::{
    guest::{self, HELLO_PORT, VERSION},
    timeline::boottime_ns,
};

use crate::linux::vsock;

/// How long the host may take to accept: as long as it may wait for the hello itself, which it decides (`agent_timeout_ms`), so that
/// it is not the guest that gives up first when the host has much to do.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Why the host was not greeted.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// There is no vsock device, or the kernel has no driver for it.
    #[error("reaching the host: vsock: {0}; does the machine have a vsock device?")]
    Connect(#[source] io::Error),
    /// The host has refused the stream, or not answered.
    #[error("reaching the host: vsock port {HELLO_PORT}: {0}")]
    Refused(#[source] io::Error),
    /// The hello was not taken.
    #[error("saying hello to the host: {0}")]
    Say(#[source] io::Error),
}

/// A stream to the host on which the hello is said as soon as it is connected.
#[derive(Debug)]
pub struct Hello {
    stream: OwnedFd,
    began_ns: u64,
    said: bool,
}

impl Hello {
    /// Asks the host for a stream, without waiting for it.
    ///
    /// # Errors
    /// [`HelloError::Connect`]
    pub fn begin(began_ns: u64) -> Result<Self, HelloError> {
        Ok(Self {
            stream: vsock::begin_to_connect(HELLO_PORT, PATIENCE).map_err(HelloError::Connect)?,
            began_ns,
            said: false,
        })
    }

    /// Says hello if the host has answered meanwhile.
    ///
    /// # Errors
    /// [`HelloError::Refused`], [`HelloError::Say`]
    pub fn advance(&mut self) -> Result<(), HelloError> {
        self.wait(PollTimeout::ZERO)
    }

    /// Waits for the host's answer if there was none yet; hands the stream over.
    ///
    /// # Errors
    /// [`HelloError::Refused`], [`HelloError::Say`]
    pub fn finish(mut self) -> Result<OwnedFd, HelloError> {
        // The kernel gives up before.
        let patience = PollTimeout::try_from(2 * PATIENCE).unwrap_or(PollTimeout::MAX);
        self.wait(patience)?;
        if !self.said {
            return Err(HelloError::Refused(io::ErrorKind::TimedOut.into()));
        }
        Ok(self.stream)
    }

    fn wait(&mut self, timeout: PollTimeout) -> Result<(), HelloError> {
        if self.said {
            return Ok(());
        }
        let refused = |error: Errno| HelloError::Refused(error.into());
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut fds, timeout).map_err(refused)? == 0 {
            return Ok(());
        }
        match getsockopt(&self.stream, SocketError).map_err(refused)? {
            0 => {}
            error => return Err(refused(Errno::from_raw(error))),
        }
        let frame = frame(self.began_ns, boottime_ns()).map_err(HelloError::Say)?;
        // The first bytes of a fresh stream always find room; a part of them would not be a hello.
        let sent = send(self.stream.as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL)
            .map_err(|error| HelloError::Say(error.into()))?;
        if sent != frame.len() {
            return Err(HelloError::Say(io::ErrorKind::WriteZero.into()));
        }
        self.said = true;
        Ok(())
    }
}

fn frame(init_ns: u64, hello_ns: u64) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(&guest::Hello {
        version: VERSION,
        init_ns,
        hello_ns,
    })?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok([length.to_le_bytes().as_slice(), &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hello_is_a_length_and_a_body() {
        let frame = frame(1, 2).unwrap();
        let (length, body) = frame.split_at(4);
        assert_eq!(
            u32::from_le_bytes(length.try_into().unwrap()) as usize,
            body.len()
        );
        assert!(body.len() <= guest::MAX_HELLO);
        let hello: guest::Hello = serde_json::from_slice(body).unwrap();
        assert_eq!((hello.version, hello.init_ns, hello.hello_ns), (VERSION, 1, 2));
    }
}
