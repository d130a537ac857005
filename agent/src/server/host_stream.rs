//! The stream to the host, and its end.

use std::{
    io,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
};
use tokio_vsock::VsockStream;

/// The stream that carries ttrpc. ttrpc itself does not tell when a connection is over.
#[derive(Debug)]
pub struct HostStream {
    stream: VsockStream,
    ended: Arc<Notify>,
}

impl HostStream {
    /// The stream, and what is notified when the host has closed it or ttrpc has given it up.
    pub fn new(fd: OwnedFd) -> (Self, Arc<Notify>) {
        let ended = Arc::new(Notify::new());
        let stream = Self {
            stream: VsockStream::from(fd),
            ended: Arc::clone(&ended),
        };
        (stream, ended)
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.ended.notify_one();
    }
}

impl AsyncRead for HostStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if result.is_err() || (before > 0 && buffer.remaining() == before) {
            self.ended.notify_one();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
