//! A seqpacket socket that is waited on without blocking.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sealock_protocol::seqpacket::{Error, SeqPacket};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime wait for a descriptor.
pub(crate) fn watch<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what implements `AsFd` keeps its descriptor open, and the same, for as long as it lives.
    Ok(unsafe { AsyncFd::register(inner) }?)
}

/// One end of a seqpacket socket in a runtime.
#[derive(Debug)]
pub(crate) struct AsyncSeqPacket(AsyncFd<SeqPacket>);

impl AsyncSeqPacket {
    pub(crate) fn new(socket: SeqPacket) -> io::Result<Self> {
        fcntl(
            socket.as_fd(),
            FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK),
        )?;
        Ok(Self(watch(socket)?))
    }

    /// The next message, of at most `limit` bytes of JSON; memory is taken only when there is one.
    pub(crate) async fn receive<T: DeserializeOwned>(
        &self,
        limit: usize,
    ) -> Result<(T, Vec<OwnedFd>), Error> {
        self.retry(Interest::READABLE, |socket| socket.receive_json(limit))
            .await
    }

    pub(crate) async fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        self.retry(Interest::WRITABLE, |socket| socket.send_json(message, fds))
            .await
    }

    async fn retry<T>(
        &self,
        interest: Interest,
        mut attempt: impl FnMut(&SeqPacket) -> Result<T, Error>,
    ) -> Result<T, Error> {
        loop {
            let mut ready = self.0.ready(interest).await?;
            match attempt(self.0.get_ref()) {
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                result => return result,
            }
        }
    }
}
