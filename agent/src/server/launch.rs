//! The way of a process from a request to its program: created by init, it reports to the server and waits for its word.

use std::{
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::{Uid, fchown},
};
use sealock_protocol::{
    agent::Stdio,
    seqpacket::{self, SeqPacket},
};
use serde::Serialize;
use tokio::{sync::watch, time::timeout};

use super::{
    error::Error,
    init_link::{Created, Exit, InitLink, KILL_DEADLINE, Packets, ProcessFds, exited},
    stdio::{GuestEnds, HostEnds},
};
use crate::{
    container::{
        Failure,
        channel::{HELP, HELPED, MAX_MESSAGE, Report, START},
        outside,
    },
    link::{Join, NewNamespaces, Refusal, Role},
    oci,
};

/// How long a process may take to get ready, and to execute its program: both wait for the host's files.
const SETUP_DEADLINE: Duration = Duration::from_secs(60);

/// What a process is created with.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What it is to become.
    pub role: Role,
    /// Namespaces to create.
    pub namespaces: NewNamespaces,
    /// Namespaces to join.
    pub join: Vec<(Join, BorrowedFd<'a>)>,
    /// Where its streams lead; `terminal` is whether it opens one itself.
    pub ports: &'a Stdio,
    /// The container whose program it is to execute, if any.
    pub container: Option<&'a oci::Container>,
}

/// A process that gets ready to execute its program.
#[derive(Debug)]
pub struct Launched {
    /// The process.
    pub created: Created,
    /// What is said to it.
    pub conversation: Conversation,
    /// The host's ends of its streams.
    pub host: HostEnds,
    /// Its own; `None` when it opens a terminal.
    pub guest: Option<GuestEnds>,
}

/// Why a process was not launched.
#[derive(Debug)]
pub enum NotLaunched {
    /// Init refuses.
    Refused(Refusal),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for NotLaunched {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Launch<'_> {
    /// Has the process created in `cgroup` while its streams are connected. After an error nothing of it is left.
    ///
    /// # Errors
    /// Init refuses, or the host refuses a stream.
    pub async fn go(
        self,
        init: &InitLink,
        cgroup: BorrowedFd<'_>,
        plan: &impl Serialize,
    ) -> Result<Launched, NotLaunched> {
        let doing = "making the process's channel";
        let (ours, theirs) = SeqPacket::pair().map_err(Error::system(doing))?;
        let packets = Packets::new(ours).map_err(Error::system(doing))?;
        let (stdio, guest) = if self.ports.terminal {
            (None, None)
        } else {
            let (stdio, ends) = GuestEnds::pipes(self.ports)?;
            let owner = self.container.map_or(Ok(None), outside::streams_owner);
            if let Some(owner) = owner.map_err(Error::from)? {
                for stream in stdio.iter().filter(|stream| is_pipe(stream)) {
                    let given = fchown(stream, Some(Uid::from_raw(owner)), None);
                    given.map_err(Error::system("giving the streams to process.user.uid"))?;
                }
            }
            (Some(stdio), Some(ends))
        };
        let fds = ProcessFds {
            plan: write_plan(plan)?,
            cgroup,
            channel: theirs.into(),
            stdio,
            join: self.join,
        };
        let (created, host) = tokio::join!(
            init.create(self.role, self.namespaces, fds),
            HostEnds::connect(self.ports)
        );
        let created = created?.map_err(NotLaunched::Refused)?;
        match host {
            Ok(host) => Ok(Launched {
                created,
                conversation: Conversation {
                    packets,
                    terminal: None,
                },
                host,
                guest,
            }),
            Err(error) => {
                created.kill().await;
                Err(error.into())
            }
        }
    }
}

/// /dev/null stays everybody's.
fn is_pipe(stream: &OwnedFd) -> bool {
    fstat(stream).is_ok_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

/// The plan as a file that only its reader sees.
fn write_plan(plan: &impl Serialize) -> Result<OwnedFd, Error> {
    let doing = "writing the process's plan";
    let bytes = serde_json::to_vec(plan).map_err(Error::system(doing))?;
    let file = memfd_create(c"plan", MFdFlags::MFD_CLOEXEC).map_err(Error::system(doing))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&bytes).map_err(Error::system(doing))?;
    Ok(file.into())
}

/// The server's end of a process's channel ([`crate::container::channel`]).
#[derive(Debug)]
pub struct Conversation {
    packets: Packets,
    /// The master of the terminal that the process has opened.
    pub terminal: Option<OwnedFd>,
}

/// What a process has to say when nothing failed.
#[derive(Debug)]
enum Heard {
    Ready,
    /// It waits for help.
    Unprivileged,
    /// It has executed its program, or has ended.
    Closed,
}

impl Conversation {
    /// Waits until a container's first process is ready to execute its program. To one in a user namespace everything is sent that
    /// `help` makes ([`crate::container::outside`]).
    ///
    /// # Errors
    /// It can't be made ready: the message names the field. It ends by itself then.
    pub async fn ready(
        &mut self,
        exit: watch::Receiver<Option<Exit>>,
        help: impl FnOnce() -> Result<Vec<OwnedFd>, Failure>,
    ) -> Result<(), Error> {
        let doing = "waiting for the container's process";
        let conversation = async {
            let heard = self.hear(doing).await?;
            if let Heard::Unprivileged = heard {
                let made = help()?;
                self.say(doing, HELPED, &[]).await?;
                for fd in made {
                    self.say(doing, HELP, &[fd.as_fd()]).await?;
                }
                return self.hear(doing).await;
            }
            Ok(heard)
        };
        let heard = timeout(SETUP_DEADLINE, conversation)
            .await
            .map_err(|_| Error::Deadline("setting the container up"))?;
        match heard? {
            Heard::Ready => Ok(()),
            Heard::Unprivileged => Err(Error::Setup(doing.to_owned())),
            Heard::Closed => Err(Error::Setup(untimely_end(exit).await)),
        }
    }

    async fn say(&self, doing: &'static str, words: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.packets.send(words, fds).await {
            // One that has ended has said why, or will be heard of.
            Ok(()) | Err(seqpacket::Error::Closed) => Ok(()),
            Err(error) => Err(Error::Link { doing, error }),
        }
    }

    /// Lets the process execute its program, and waits until it has.
    ///
    /// # Errors
    /// The program can't be executed. The process ends by itself then.
    pub async fn execute(&mut self) -> Result<(), Error> {
        let doing = "starting the process";
        self.say(doing, START, &[]).await?;
        let heard = timeout(SETUP_DEADLINE, self.hear(doing))
            .await
            .map_err(|_| Error::Deadline("executing the program"))?;
        match heard? {
            // execve(2) closes the channel. So does the end of a process that was killed just now.
            Heard::Closed => Ok(()),
            Heard::Ready | Heard::Unprivileged => Err(Error::Setup(doing.to_owned())),
        }
    }

    async fn hear(&mut self, doing: &'static str) -> Result<Heard, Error> {
        loop {
            let (message, mut fds) = match self.packets.receive(MAX_MESSAGE).await {
                Ok(received) => received,
                Err(seqpacket::Error::Closed) => return Ok(Heard::Closed),
                Err(error) => return Err(Error::Link { doing, error }),
            };
            match Report::decode(&message) {
                Some(Report::Ready) => return Ok(Heard::Ready),
                Some(Report::Unprivileged) => return Ok(Heard::Unprivileged),
                Some(Report::Terminal) => self.terminal = fds.pop(),
                Some(Report::Refused(text)) => return Err(Error::Refused(text)),
                Some(Report::Failed(text)) => return Err(Error::Setup(text)),
                None => return Err(Error::Setup("the process is not understood".to_owned())),
            }
        }
    }
}

async fn untimely_end(exit: watch::Receiver<Option<Exit>>) -> String {
    match timeout(KILL_DEADLINE, exited(exit)).await.ok().flatten() {
        Some(exit) if exit.status == 137 => {
            "the container's process was killed while it was set up: is linux.resources.memory.limit too small?"
                .to_owned()
        }
        Some(exit) => format!(
            "the container's process ended with status {} while it was set up",
            exit.status
        ),
        None => "the container's process ended while it was set up".to_owned(),
    }
}
