//! Standard streams: pipes on the container's side, vsock streams on the host's.
//!
//! Pipes, because a program may open /dev/stdout anew, which a socket does not allow. A full pipe stops the container, a
//! full stream stops reading from the pipe: nothing is buffered without bound.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use nix::{fcntl::OFlag, unistd::pipe2};
use sealock_protocol::agent::Stdio as Ports;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use super::error::Error;

/// Bytes moved at once: as many as a pipe holds.
const BUFFER: usize = 64 * 1024;

/// How long the host's standard input may be silent, once it is to be closed, before nothing more is taken to be on its way.
const STDIN_SILENCE: Duration = Duration::from_millis(500);

/// The agent's ends of a container's streams, those that are not /dev/null.
#[derive(Debug, Default)]
pub struct Streams {
    stdin: Option<(VsockStream, pipe::Sender)>,
    outputs: Vec<(pipe::Receiver, VsockStream)>,
}

/// Connects the streams to the host, all at once. Gives the container's ends, in the order of their numbers.
///
/// # Errors
/// The host refuses one.
pub async fn connect(ports: &Ports) -> Result<([OwnedFd; 3], Streams), Error> {
    let (stdin, stdout, stderr) = tokio::try_join!(
        stream("stdin", ports.stdin_port),
        stream("stdout", ports.stdout_port),
        stream("stderr", ports.stderr_port),
    )?;
    let doing = "making the pipes of the standard streams";
    let mut streams = Streams::default();
    let input = match stdin {
        Some(stream) => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system(doing))?;
            let write = pipe::Sender::from_owned_fd(write).map_err(Error::system(doing))?;
            streams.stdin = Some((stream, write));
            read
        }
        None => null()?,
    };
    let mut output = |stream: Option<VsockStream>| match stream {
        Some(stream) => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(Error::system(doing))?;
            let read = pipe::Receiver::from_owned_fd(read).map_err(Error::system(doing))?;
            streams.outputs.push((read, stream));
            Ok(write)
        }
        None => null(),
    };
    let fds = [input, output(stdout)?, output(stderr)?];
    Ok((fds, streams))
}

fn null() -> Result<OwnedFd, Error> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(Error::system("opening /dev/null"))
}

async fn stream(name: &str, port: u32) -> Result<Option<VsockStream>, Error> {
    if port == 0 {
        return Ok(None);
    }
    // The kernel gives up by itself when the host does not answer.
    VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port))
        .await
        .map(Some)
        .map_err(Error::system(format!(
            "connecting {name} to port {port} of the host"
        )))
}

/// The tasks that move the bytes.
#[derive(Debug)]
pub struct Pumps {
    /// End when every writer of their pipe is gone and all was handed to the host.
    pub outputs: JoinSet<()>,
    /// Ends with the host's stream.
    pub stdin: Option<JoinHandle<()>>,
}

impl Streams {
    /// Begins to move bytes. `close_stdin` ends the container's standard input, after what is on its way.
    pub fn pump(self, close_stdin: Arc<Notify>) -> Pumps {
        let mut outputs = JoinSet::new();
        for (pipe, stream) in self.outputs {
            outputs.spawn(pump_output(pipe, stream));
        }
        Pumps {
            outputs,
            stdin: self
                .stdin
                .map(|(stream, pipe)| tokio::spawn(pump_stdin(stream, pipe, close_stdin))),
        }
    }
}

async fn pump_output<R, W>(mut pipe: R, mut stream: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut heard = true;
    loop {
        buffer.clear();
        match pipe.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        // A host that no longer listens is not the container's fault: it goes on, unheard.
        heard = heard && stream.write_all(&buffer).await.is_ok();
    }
    let _ = stream.shutdown().await;
}

async fn pump_stdin<R, W>(mut stream: R, pipe: W, close: Arc<Notify>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut pipe = Some(pipe);
    let mut closing = false;
    loop {
        buffer.clear();
        let read = if closing {
            match timeout(STDIN_SILENCE, stream.read_buf(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => Ok(0),
            }
        } else {
            tokio::select! {
                biased;
                read = stream.read_buf(&mut buffer) => read,
                () = close.notified() => {
                    closing = true;
                    continue;
                }
            }
        };
        if end_of(read) {
            return;
        }
        // A container that closed its standard input misses nothing: what still comes is taken and forgotten, so that
        // the host is not kept waiting.
        if let Some(open) = &mut pipe
            && open.write_all(&buffer).await.is_err()
        {
            pipe = None;
        }
    }
}

fn end_of(read: io::Result<usize>) -> bool {
    matches!(read, Ok(0) | Err(_))
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn output_reaches_the_host_whole_and_ends_with_its_last_writer() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1000);
        let pump = tokio::spawn(pump_output(pipe::Receiver::from_owned_fd(read).unwrap(), guest));
        let data: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
        let mut container = pipe::Sender::from_owned_fd(write).unwrap();
        let sent = data.clone();
        tokio::spawn(async move { container.write_all(&sent).await.unwrap() });
        let mut received = Vec::new();
        host.read_to_end(&mut received).await.unwrap();
        assert!(received == data);
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn a_container_whose_output_nobody_hears_goes_on() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (host, guest) = duplex(1000);
        drop(host);
        let pump = tokio::spawn(pump_output(pipe::Receiver::from_owned_fd(read).unwrap(), guest));
        let mut container = pipe::Sender::from_owned_fd(write).unwrap();
        container.write_all(&[0; 300_000]).await.unwrap();
        drop(container);
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn closing_stdin_delivers_what_is_on_its_way_first() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(1 << 20);
        host.write_all(&[7; 200_000]).await.unwrap();
        let close = Arc::new(Notify::new());
        close.notify_one();
        tokio::spawn(pump_stdin(
            guest,
            pipe::Sender::from_owned_fd(write).unwrap(),
            close,
        ));
        let mut received = Vec::new();
        pipe::Receiver::from_owned_fd(read)
            .unwrap()
            .read_to_end(&mut received)
            .await
            .unwrap();
        assert_eq!(received.len(), 200_000);
    }

    #[tokio::test]
    async fn stdin_ends_with_the_hosts_stream() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(100);
        let pump = tokio::spawn(pump_stdin(
            guest,
            pipe::Sender::from_owned_fd(write).unwrap(),
            Arc::new(Notify::new()),
        ));
        host.write_all(b"last").await.unwrap();
        drop(host);
        let mut received = Vec::new();
        pipe::Receiver::from_owned_fd(read)
            .unwrap()
            .read_to_end(&mut received)
            .await
            .unwrap();
        assert_eq!(received, b"last");
        pump.await.unwrap();
    }

    #[tokio::test]
    async fn the_host_is_not_kept_waiting_by_a_container_that_closed_its_stdin() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, guest) = duplex(100);
        let pump = tokio::spawn(pump_stdin(
            guest,
            pipe::Sender::from_owned_fd(write).unwrap(),
            Arc::new(Notify::new()),
        ));
        drop(read);
        host.write_all(&[0; 500_000]).await.unwrap();
        drop(host);
        pump.await.unwrap();
    }
}
