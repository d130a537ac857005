//! A container, from its creation to its removal.

use std::{
    io::Write,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::memfd::{MFdFlags, memfd_create},
    sys::stat::Mode,
};
use sealock_protocol::{
    agent::Stdio,
    seqpacket::{self, SeqPacket},
};
use tokio::{
    sync::{Mutex, Notify, watch},
    time::timeout,
};

use super::{
    error::Error,
    init_link::{Created, Exit, InitLink, Packets, ProcessFds},
    stdio::{self, Pumps},
};
use crate::{
    cgroup::Cgroup,
    container::channel::{MAX_MESSAGE, Report, START},
    init::log,
    link::{Join, NewNamespaces},
    linux::process::signal,
    oci,
};

/// How long a container's process may take to get ready, and to execute its program: both wait for the host's files.
const SETUP_DEADLINE: Duration = Duration::from_secs(60);

/// How long killed processes may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How long the host may take to accept the output of a container that has ended.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(10);

/// The namespaces of the pod's first container, for others to join.
#[derive(Debug)]
pub struct SharedNamespaces(Vec<(Join, OwnedFd)>);

impl SharedNamespaces {
    /// Those of the process `pid`, which has not been reaped.
    ///
    /// # Errors
    /// It has.
    pub fn of(pid: i32) -> Result<Self, Error> {
        let doing = "opening the container's namespaces";
        [Join::Pid, Join::Ipc, Join::Uts]
            .into_iter()
            .map(|kind| {
                let path = format!("/proc/{pid}/ns/{}", kind.file());
                nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                    .map(|namespace| (kind, namespace))
                    .map_err(Error::system(doing))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// A created container.
#[derive(Debug)]
pub struct Container {
    pid: i32,
    pidfd: OwnedFd,
    cgroup: Cgroup,
    exit: watch::Receiver<Option<Exit>>,
    /// Like `exit`, but only when the output has been handed over.
    ended: watch::Receiver<Option<Exit>>,
    /// Until the container is started.
    channel: Mutex<Option<Packets>>,
    close_stdin: Arc<Notify>,
}

impl Container {
    /// Creates a container up to the point where its process is about to execute. After an error nothing of it is left.
    ///
    /// # Errors
    /// The specification can't be carried out: the message names the field, or says why the program can't be executed.
    pub async fn create(
        init: &InitLink,
        id: &str,
        spec: &[u8],
        ports: &Stdio,
        shared: Option<&SharedNamespaces>,
    ) -> Result<Arc<Self>, Error> {
        let (plan, limits) = oci::Container::parse(spec)?;
        let join = Join::of(&plan.namespaces);
        let shared = shared.map_or(&[][..], |shared| &shared.0);
        let join: Vec<_> = shared
            .iter()
            .filter(|(kind, _)| join.contains(kind))
            .map(|(kind, namespace)| (*kind, namespace.as_fd()))
            .collect();
        if join.len() != Join::of(&plan.namespaces).len() {
            return Err(Error::State(
                "linux.namespaces: the pod has no container yet whose namespaces could be joined",
            ));
        }
        let plan_file = write_plan(&plan)?;
        let (stdio, streams) = stdio::connect(ports).await?;
        let cgroup = Cgroup::create(id, &limits)?;
        let doing = "making the container's channel";
        let process = async {
            let (ours, theirs) = SeqPacket::pair().map_err(Error::system(doing))?;
            let channel = Packets::new(ours).map_err(Error::system(doing))?;
            let fds = ProcessFds {
                plan: plan_file,
                cgroup: cgroup.as_fd(),
                channel: theirs.into(),
                stdio,
                join,
            };
            let created = init.create(NewNamespaces::of(&plan.namespaces), fds).await?;
            Ok::<_, Error>((created, channel))
        };
        let (Created { pid, pidfd, exit }, channel) = match process.await {
            Ok(process) => process,
            Err(error) => {
                cgroup.remove()?;
                return Err(error);
            }
        };
        if let Err(error) = ready(&channel, exit.clone()).await {
            if let Err(other) = kill_and_remove(&cgroup, exit).await {
                log(&format!("undoing the creation of container {id}: {other}"));
            }
            return Err(error);
        }
        let close_stdin = Arc::new(Notify::new());
        let pumps = streams.pump(Arc::clone(&close_stdin));
        let (end, ended) = watch::channel(None);
        let container = Arc::new(Self {
            pid,
            pidfd,
            cgroup,
            exit,
            ended,
            channel: Mutex::new(Some(channel)),
            close_stdin,
        });
        tokio::spawn(Arc::clone(&container).attend(pumps, end));
        Ok(container)
    }

    /// The guest's id of the container's process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sees the container to its end: then its other processes are killed, and its output is handed over.
    async fn attend(self: Arc<Self>, mut pumps: Pumps, end: watch::Sender<Option<Exit>>) {
        let exit = exited(self.exit.clone()).await;
        // Does nothing where the process id namespace was the container's own, for it has ended with its first process.
        if let Err(error) = self.cgroup.kill() {
            log(&error.to_string());
        }
        if let Some(stdin) = pumps.stdin {
            stdin.abort();
        }
        let handed_over = async { while pumps.outputs.join_next().await.is_some() {} };
        if timeout(HANDOVER_DEADLINE, handed_over).await.is_err() {
            pumps.outputs.abort_all();
        }
        end.send_replace(exit);
    }

    /// Lets the process execute its program.
    ///
    /// # Errors
    /// It has been started already or has ended, or the program can't be executed.
    pub async fn start(&self) -> Result<(), Error> {
        let mut slot = self.channel.lock().await;
        if self.exit.borrow().is_some() {
            return Err(Error::State("cannot start a container that has stopped"));
        }
        let Some(channel) = slot.take() else {
            return Err(Error::State("cannot start a container that is already running"));
        };
        let doing = "starting the container's process";
        match channel.send(START, &[]).await {
            Ok(()) => {}
            // Killed just now.
            Err(seqpacket::Error::Closed) => return Ok(()),
            Err(error) => return Err(Error::Link { doing, error }),
        }
        let report = timeout(SETUP_DEADLINE, channel.receive(MAX_MESSAGE))
            .await
            .map_err(|_| Error::Deadline("executing the container's program"))?;
        match report {
            // execve(2) closes the channel.
            Err(seqpacket::Error::Closed) => Ok(()),
            Err(error) => Err(Error::Link { doing, error }),
            Ok((message, _)) => Err(match Report::decode(&message) {
                Some(Report::Refused(text)) => Error::Refused(text),
                Some(Report::Failed(text)) => Error::Setup(text),
                Some(Report::Ready) | None => Error::Setup(doing.to_owned()),
            }),
        }
    }

    /// Sends a signal to the container's process, or to all of its processes.
    ///
    /// # Errors
    /// [`Error::Finished`]
    pub fn signal(&self, number: i32, all: bool) -> Result<(), Error> {
        if all {
            if number == libc::SIGKILL {
                return Ok(self.cgroup.kill()?);
            }
            for pid in self.cgroup.processes()? {
                // The id is of a process that was in the cgroup a moment ago; one that has ended meanwhile is none to signal.
                let pid = i32::try_from(pid).map_err(|_| Error::Finished)?;
                // SAFETY: numbers alone; the agent itself and init are in no container's cgroup.
                unsafe { libc::kill(pid, number) };
            }
            return Ok(());
        }
        if self.exit.borrow().is_some() {
            return Err(Error::Finished);
        }
        signal(&self.pidfd, number).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Error::Finished,
            _ => Error::system("signalling the container's process")(error),
        })
    }

    /// Waits for the process's end, and until its output has been handed over.
    pub async fn wait(&self) -> Option<Exit> {
        exited(self.ended.clone()).await
    }

    /// The guest's ids of the container's processes.
    ///
    /// # Errors
    /// The container is being removed.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        Ok(self.cgroup.processes()?)
    }

    /// Ends the container's standard input, after what is on its way. It may have ended already.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// Kills every process of the container.
    ///
    /// # Errors
    /// The container is being removed.
    pub fn kill(&self) -> Result<(), Error> {
        Ok(self.cgroup.kill()?)
    }

    /// Removes what is left of a container: a stopped one, or with `force` any.
    ///
    /// # Errors
    /// It has not stopped, or its processes can't be ended.
    pub async fn remove(&self, force: bool) -> Result<(), Error> {
        if self.exit.borrow().is_none() && !force {
            return Err(Error::State("cannot remove a container that has not stopped"));
        }
        kill_and_remove(&self.cgroup, self.exit.clone()).await
    }
}

/// The plan as a file that only its reader sees.
fn write_plan(plan: &oci::Container) -> Result<OwnedFd, Error> {
    let doing = "writing the container's plan";
    let bytes = serde_json::to_vec(plan).map_err(Error::system(doing))?;
    let file = memfd_create(c"plan", MFdFlags::MFD_CLOEXEC).map_err(Error::system(doing))?;
    let mut file = std::fs::File::from(file);
    file.write_all(&bytes).map_err(Error::system(doing))?;
    Ok(file.into())
}

/// Waits for the process's report.
async fn ready(channel: &Packets, exit: watch::Receiver<Option<Exit>>) -> Result<(), Error> {
    let report = timeout(SETUP_DEADLINE, channel.receive(MAX_MESSAGE))
        .await
        .map_err(|_| Error::Deadline("setting the container up"))?;
    match report {
        Ok((message, _)) => match Report::decode(&message) {
            Some(Report::Ready) => Ok(()),
            Some(Report::Refused(text)) => Err(Error::Refused(text)),
            Some(Report::Failed(text)) => Err(Error::Setup(text)),
            None => Err(Error::Setup(
                "the container's process is not understood".to_owned(),
            )),
        },
        Err(seqpacket::Error::Closed) => {
            let status = timeout(KILL_DEADLINE, exited(exit)).await.ok().flatten();
            Err(Error::Setup(match status {
                Some(exit) if exit.status == 137 => {
                    "the container's process was killed while it was set up: is linux.resources.memory.limit too small?"
                        .to_owned()
                }
                Some(exit) => format!(
                    "the container's process ended with status {} while it was set up",
                    exit.status
                ),
                None => "the container's process ended while it was set up".to_owned(),
            }))
        }
        Err(error) => Err(Error::Link {
            doing: "waiting for the container's process",
            error,
        }),
    }
}

/// The end of a process; `None` when init will not tell any more.
async fn exited(mut exit: watch::Receiver<Option<Exit>>) -> Option<Exit> {
    exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
}

async fn kill_and_remove(cgroup: &Cgroup, exit: watch::Receiver<Option<Exit>>) -> Result<(), Error> {
    cgroup.kill()?;
    let gone = async {
        cgroup.wait_empty().await?;
        exited(exit).await;
        Ok::<_, Error>(())
    };
    timeout(KILL_DEADLINE, gone)
        .await
        .map_err(|_| Error::Deadline("ending the container's processes"))??;
    Ok(cgroup.remove()?)
}
