//! The server's end of [`crate::link`].

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sealock_protocol::seqpacket::{self, SeqPacket};
use tokio::{
    io::unix::AsyncFd,
    sync::{oneshot, watch},
    time::timeout,
};

use super::error::Error;
use crate::{
    link::{Create, Event, Join, MAX_MESSAGE, NewNamespaces, Refusal, Role},
    linux::process::signal,
};

/// How long killed processes may take to be gone.
pub const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How a container's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell reports it.
    pub status: u8,
    /// `CLOCK_REALTIME`, nanoseconds since the epoch.
    pub at_ns: i64,
}

/// A process that init has created.
#[derive(Debug)]
pub struct Created {
    /// The guest's process id.
    pub pid: i32,
    /// Refers to it, also when the id has been used again.
    pub pidfd: OwnedFd,
    /// Holds its end once it was reaped.
    pub exit: watch::Receiver<Option<Exit>>,
}

impl Created {
    /// Ends the process and waits for that, as long as it may take.
    pub async fn kill(&self) {
        // It may have ended by itself.
        let _ = signal(&self.pidfd, libc::SIGKILL);
        let _ = timeout(KILL_DEADLINE, exited(self.exit.clone())).await;
    }
}

/// The end of a process; `None` when init will not tell any more.
pub async fn exited(mut exit: watch::Receiver<Option<Exit>>) -> Option<Exit> {
    exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
}

/// A seqpacket socket whose waits are the runtime's.
#[derive(Debug)]
pub struct Packets(AsyncFd<SeqPacket>);

impl Packets {
    /// Takes the socket over.
    ///
    /// # Errors
    /// It can't be watched.
    pub fn new(socket: SeqPacket) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the socket is the `AsyncFd`'s own, and stays open and the same for as long as it is watched.
        let watched = unsafe { AsyncFd::register(socket) };
        Ok(Self(watched?))
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The socket's.
    pub async fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), seqpacket::Error> {
        loop {
            let mut ready = self.0.writable().await?;
            match self.0.get_ref().send(message, fds) {
                Err(seqpacket::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready()
                }
                result => return result,
            }
        }
    }

    /// Receives a message of at most `limit` bytes.
    ///
    /// # Errors
    /// The socket's.
    pub async fn receive(&self, limit: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), seqpacket::Error> {
        let mut buffer = vec![0; limit];
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().receive(&mut buffer) {
                Err(seqpacket::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready()
                }
                Ok((message, fds)) => return Ok((message.to_vec(), fds)),
                Err(error) => return Err(error),
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    last_token: u64,
    asked: HashMap<u64, oneshot::Sender<Result<Created, Refusal>>>,
    running: HashMap<i32, watch::Sender<Option<Exit>>>,
}

/// Asks init for processes and hears of their ends.
#[derive(Debug)]
pub struct InitLink {
    packets: Packets,
    state: Mutex<State>,
}

/// The descriptors of a process to create.
#[derive(Debug)]
pub struct ProcessFds<'a> {
    /// A file with its plan.
    pub plan: OwnedFd,
    /// Its cgroup.
    pub cgroup: BorrowedFd<'a>,
    /// Its end of the channel.
    pub channel: OwnedFd,
    /// Its standard streams, unless it opens a terminal.
    pub stdio: Option<[OwnedFd; 3]>,
    /// Namespaces to join.
    pub join: Vec<(Join, BorrowedFd<'a>)>,
}

impl InitLink {
    /// Takes the socket over.
    ///
    /// # Errors
    /// It can't be watched.
    pub fn new(socket: SeqPacket) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            packets: Packets::new(socket)?,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and a panic ends the program.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a process created. All descriptors given by value are closed on this side.
    ///
    /// # Errors
    /// Speaking with init fails. The inner error is init's refusal.
    pub async fn create(
        &self,
        role: Role,
        namespaces: NewNamespaces,
        fds: ProcessFds<'_>,
    ) -> Result<Result<Created, Refusal>, Error> {
        const DOING: &str = "asking init for a process";
        let (answer, answered) = oneshot::channel();
        let token = {
            let mut state = self.state();
            state.last_token += 1;
            let token = state.last_token;
            state.asked.insert(token, answer);
            token
        };
        let request = Create {
            token,
            role,
            stdio: fds.stdio.is_some(),
            namespaces,
            join: fds.join.iter().map(|(kind, _)| *kind).collect(),
        };
        let message = serde_json::to_vec(&request).map_err(|error| Error::Link {
            doing: DOING,
            error: seqpacket::Error::Malformed(error),
        })?;
        let mut descriptors = vec![fds.plan.as_fd(), fds.cgroup, fds.channel.as_fd()];
        descriptors.extend(fds.stdio.iter().flatten().map(AsFd::as_fd));
        descriptors.extend(fds.join.iter().map(|(_, namespace)| *namespace));
        self.packets
            .send(&message, &descriptors)
            .await
            .map_err(|error| Error::Link { doing: DOING, error })?;
        // The process's ends are the process's alone from here on.
        drop(fds);
        answered.await.map_err(|_| Error::Link {
            doing: DOING,
            error: seqpacket::Error::Closed,
        })
    }

    /// Hears init out, for ever.
    ///
    /// # Errors
    /// Init is gone, or not understood.
    pub async fn run(&self) -> Result<(), seqpacket::Error> {
        loop {
            let (message, fds) = self.packets.receive(MAX_MESSAGE).await?;
            let event = serde_json::from_slice(&message).map_err(seqpacket::Error::Malformed)?;
            self.heard(event, fds);
        }
    }

    fn heard(&self, event: Event, mut fds: Vec<OwnedFd>) {
        let mut state = self.state();
        match event {
            Event::Created { token, pid } => {
                let Some(pidfd) = fds.pop() else { return };
                let (end, exit) = watch::channel(None);
                state.running.insert(pid, end);
                if let Some(answer) = state.asked.remove(&token) {
                    let _ = answer.send(Ok(Created { pid, pidfd, exit }));
                }
            }
            Event::Refused { token, refusal } => {
                if let Some(answer) = state.asked.remove(&token) {
                    let _ = answer.send(Err(refusal));
                }
            }
            Event::Exited { pid, status, at_ns } => {
                if let Some(end) = state.running.remove(&pid) {
                    end.send_replace(Some(Exit { status, at_ns }));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(cgroup: BorrowedFd<'_>) -> ProcessFds<'_> {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        ProcessFds {
            plan: file(),
            cgroup,
            channel: file(),
            stdio: Some([file(), file(), file()]),
            join: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_process_that_ends_at_once_is_heard_of_nevertheless() {
        let (server, init) = SeqPacket::pair().unwrap();
        let link = InitLink::new(server).unwrap();
        let cgroup = tempfile::tempfile().unwrap();
        let running = Arc::clone(&link);
        tokio::spawn(async move { running.run().await });
        let asking = link.create(Role::Container, NewNamespaces::NONE, fds(cgroup.as_fd()));
        let answering = tokio::task::spawn_blocking(move || {
            let (request, received) = init.receive_json::<Create>(MAX_MESSAGE).unwrap();
            assert_eq!(received.len(), crate::link::CREATE_FDS + 3);
            let token = request.token;
            let pidfd = tempfile::tempfile().unwrap();
            init.send_json(&Event::Created { token, pid: 7 }, &[pidfd.as_fd()])
                .unwrap();
            let exited = Event::Exited {
                pid: 7,
                status: 3,
                at_ns: 9,
            };
            init.send_json(&exited, &[]).unwrap();
            init
        });
        let (created, _init) = tokio::join!(asking, answering);
        let mut created = created.unwrap().unwrap();
        let exit = *created.exit.wait_for(Option::is_some).await.unwrap();
        assert_eq!(exit, Some(Exit { status: 3, at_ns: 9 }));
    }

    #[tokio::test]
    async fn inits_refusal_is_the_callers_error() {
        let (server, init) = SeqPacket::pair().unwrap();
        let link = InitLink::new(server).unwrap();
        let cgroup = tempfile::tempfile().unwrap();
        let running = Arc::clone(&link);
        tokio::spawn(async move { running.run().await });
        let answering = tokio::task::spawn_blocking(move || {
            let (request, _) = init.receive_json::<Create>(MAX_MESSAGE).unwrap();
            let token = request.token;
            let refusal = Refusal::Clone(libc::EAGAIN);
            init.send_json(&Event::Refused { token, refusal }, &[]).unwrap();
            init
        });
        let (created, _init) = tokio::join!(
            link.create(Role::Exec, NewNamespaces::NONE, fds(cgroup.as_fd())),
            answering
        );
        assert_eq!(created.unwrap().unwrap_err(), Refusal::Clone(libc::EAGAIN));
    }
}
