//! Standard streams: pipes or a terminal on the program's side, vsock streams on the host's.
//!
//! Pipes, because a program may open /dev/stdout anew, which a socket does not allow. A full pipe stops the program, a
//! full stream stops reading from the pipe: nothing is buffered without bound.

use std::{fs::File, io, os::fd::OwnedFd, time::Duration};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{getsockopt, sockopt::SocketError},
    unistd::pipe2,
};
use sealock_protocol::agent::Stdio as Ports;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};
use tokio_vsock::VsockStream;

use super::error::Error;
use crate::linux::vsock;

/// How long the host may take to accept a stream: as long as a process may take to get ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host's ends; what is absent is /dev/null to the program.
#[derive(Debug, Default)]
pub struct HostEnds {
    /// Standard input.
    pub stdin: Option<VsockStream>,
    /// Standard output.
    pub stdout: Option<VsockStream>,
    /// Standard error.
    pub stderr: Option<VsockStream>,
}

impl HostEnds {
    /// Connects to the host's ports, all at once.
    ///
    /// # Errors
    /// The host refuses one.
    pub async fn connect(ports: &Ports) -> Result<Self, Error> {
        let (stdin, stdout, stderr) = tokio::try_join!(
            stream("stdin", ports.stdin_port),
            stream("stdout", ports.stdout_port),
            stream("stderr", ports.stderr_port),
        )?;
        Ok(Self {
            stdin,
            stdout,
            stderr,
        })
    }
}

async fn stream(name: &str, port: u32) -> Result<Option<VsockStream>, Error> {
    if port == 0 {
        return Ok(None);
    }
    connect(port).await.map(Some).map_err(Error::system(format!(
        "connecting {name} to port {port} of the host"
    )))
}

/// Connects to a port of the host.
///
/// # Errors
/// The host refuses, or does not answer.
pub async fn connect(port: u32) -> io::Result<VsockStream> {
    let socket = vsock::begin_to_connect(port, PATIENCE)?;
    // SAFETY: it is the `AsyncFd`'s own, and stays open and the same for as long as it is watched.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) }?;
    let mut ready = socket.writable().await?;
    // Whatever became of it, it won't be waited for again.
    ready.clear_ready();
    drop(ready);
    let socket = socket.into_inner();
    match getsockopt(&socket, SocketError)? {
        0 => Ok(VsockStream::from(socket)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The agent's ends of a program's streams, those that are not /dev/null.
#[derive(Debug, Default)]
pub struct GuestEnds {
    /// Takes what the program is to read.
    pub stdin: Option<pipe::Sender>,
    /// Gives what the program has written to its standard output.
    pub stdout: Option<pipe::Receiver>,
    /// Gives what it has written to its standard error.
    pub stderr: Option<pipe::Receiver>,
}

impl GuestEnds {
    /// Makes pipes for the streams that have a port. Gives the program's ends, in the order of their numbers.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn pipes(ports: &Ports) -> Result<([OwnedFd; 3], Self), Error> {
        let mut ends = Self::default();
        let stdin = if ports.stdin_port == 0 {
            null()?
        } else {
            let (read, write) = new_pipe()?;
            ends.stdin = Some(sender(write)?);
            read
        };
        let output = |port| -> Result<_, Error> {
            if port == 0 {
                return Ok((null()?, None));
            }
            let (read, write) = new_pipe()?;
            Ok((write, Some(receiver(read)?)))
        };
        let (stdout, stderr);
        (stdout, ends.stdout) = output(ports.stdout_port)?;
        (stderr, ends.stderr) = output(ports.stderr_port)?;
        Ok(([stdin, stdout, stderr], ends))
    }

    /// The ends of a terminal, whose output is read whether anybody hears it or not: otherwise the program would stop.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn terminal(master: &OwnedFd) -> Result<Self, Error> {
        let doing = "watching the terminal";
        let flags = fcntl(master, FcntlArg::F_GETFL).map_err(Error::system(doing))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(master, FcntlArg::F_SETFL(flags)).map_err(Error::system(doing))?;
        // One descriptor for each direction: the runtime watches each for itself.
        let copy = || master.try_clone().map_err(Error::system(doing));
        Ok(Self {
            stdin: Some(pipe::Sender::from_owned_fd_unchecked(copy()?).map_err(Error::system(doing))?),
            stdout: Some(pipe::Receiver::from_owned_fd_unchecked(copy()?).map_err(Error::system(doing))?),
            stderr: None,
        })
    }
}

const PIPES: &str = "making the pipes of the standard streams";

fn new_pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    pipe2(OFlag::O_CLOEXEC).map_err(Error::system(PIPES))
}

fn sender(fd: OwnedFd) -> Result<pipe::Sender, Error> {
    pipe::Sender::from_owned_fd(fd).map_err(Error::system(PIPES))
}

fn receiver(fd: OwnedFd) -> Result<pipe::Receiver, Error> {
    pipe::Receiver::from_owned_fd(fd).map_err(Error::system(PIPES))
}

fn null() -> Result<OwnedFd, Error> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map(OwnedFd::from)
        .map_err(Error::system("opening /dev/null"))
}
