//! A container of a pod, as the host sees it.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{task::JoinHandle, time::timeout};

use crate::{
    agent::Agent,
    error::{Error, line},
    launch,
    mount::Request as MountRequest,
    sandbox::Sandbox,
    share::ContainerShare,
    spec, state,
    stdio::{Input, Paths, Streams},
};

/// The exit status of a container whose machine is gone: as if killed.
pub const KILLED: u8 = 128 + 9;

/// The exit status of a container about which the agent says nothing.
const UNKNOWN: u8 = 255;

/// How long what a container has written may take to get into its file after it has ended.
const COPY_DEADLINE: Duration = Duration::from_secs(10);

/// A container to be created.
#[derive(Clone, Debug, Default)]
pub struct ContainerRequest {
    /// Its identifier.
    pub id: String,
    /// The directory with its `config.json`.
    pub bundle: PathBuf,
    /// The mounts of its root file system; without any it is what the specification says.
    pub rootfs: Vec<MountRequest>,
    /// Its standard streams.
    pub stdio: Paths,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell reports it.
    pub status: u8,
    /// When the host heard of it: the guest's clock is the guest's.
    pub at: SystemTime,
}

/// A container's standard input.
#[derive(Debug)]
enum Stdin {
    /// The container isn't started yet.
    Waiting { input: Input, complete: bool },
    /// The client's input goes to the container.
    Open {
        writer: Option<OwnedFd>,
        feed: JoinHandle<()>,
    },
    /// There is none, or no more of it.
    Closed,
}

/// A created container. Dropping it undoes its mounts.
#[derive(Debug)]
pub struct Container {
    id: String,
    sandbox: Arc<Sandbox>,
    agent: Agent,
    guest_pid: u32,
    ports: [u32; 3],
    share: Mutex<Option<ContainerShare>>,
    stdin: Mutex<Stdin>,
    copies: Mutex<Vec<JoinHandle<std::io::Result<()>>>>,
}

impl Sandbox {
    /// Creates a container: prepares everything on the host while the guest may still be starting, then asks the agent.
    ///
    /// # Errors
    /// The pod didn't start, the specification can't be carried out, or the agent refuses. Nothing is left then.
    pub async fn create_container(self: &Arc<Self>, request: &ContainerRequest) -> Result<Container, Error> {
        state::check_name("the container's identifier", &request.id)?;
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let prepared = self.prepare(request);
        // A pod that failed meanwhile is the reason for whatever failed here.
        if let (Err(_), Some(failure)) = (&prepared, self.failure()) {
            return Err(failure);
        }
        let (share, spec, mut streams) = prepared?;
        let agent = self.ready().await?;

        let mut ports = [0; 3];
        let offered = [streams.stdin.take(), streams.stdout.take(), streams.stderr.take()];
        for (port, fd) in ports.iter_mut().zip(offered) {
            if let Some(fd) = fd {
                *port = self.ports().offer(fd).map_err(launch::Error::Socket)?;
            }
        }
        let created = tokio::select! {
            biased;
            created = agent.create_container(&request.id, spec, ports) => created.map_err(Error::from),
            reason = self.wait_ended() => Err(Error::Ended(reason)),
        };
        let guest_pid = created.inspect_err(|_| self.withdraw(ports))?;
        self.timeline().mark("container_created");
        Ok(Container {
            id: request.id.clone(),
            sandbox: Arc::clone(self),
            agent,
            guest_pid,
            ports,
            share: Mutex::new(Some(share)),
            stdin: Mutex::new(streams.input.map_or(Stdin::Closed, |input| Stdin::Waiting {
                input,
                complete: false,
            })),
            copies: Mutex::new(
                streams
                    .copies
                    .into_iter()
                    .map(|copy| tokio::spawn(copy.run()))
                    .collect(),
            ),
        })
    }

    fn prepare(&self, request: &ContainerRequest) -> Result<(ContainerShare, Vec<u8>, Streams), Error> {
        let spec = spec::read(&request.bundle)?;
        let root = spec::root(&spec, &request.bundle)?;
        let streams = Streams::open(&request.stdio)?;
        let mut share = self.share().add(&request.id)?;
        let spec = spec::prepare(spec, &request.id, &request.bundle, &mut share)?;
        share.mount_rootfs(&request.rootfs, &root)?;
        self.timeline().mark("rootfs_mounted");
        Ok((share, spec, streams))
    }

    fn withdraw(&self, ports: [u32; 3]) {
        for port in ports {
            self.ports().withdraw(port);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The guest's number of its first process.
    #[must_use]
    pub fn guest_pid(&self) -> u32 {
        self.guest_pid
    }

    /// Lets its process run. The pod's timeline is complete with its first container, and logged.
    ///
    /// # Errors
    /// The program can't be executed, the container is not in a state to, or the pod has ended.
    pub async fn start(&self) -> Result<(), Error> {
        self.open_stdin();
        self.alive(self.agent.start_container(&self.id)).await?;
        let mut timeline = self.sandbox.timeline();
        if timeline
            .steps()
            .iter()
            .all(|step| step.step != "container_started")
        {
            timeline.mark("container_started");
            timeline.log(self.sandbox.id());
        }
        Ok(())
    }

    /// Sends a signal to its first process, or to all.
    ///
    /// # Errors
    /// It isn't running, or the pod has ended.
    pub async fn signal(&self, signal: u32, all: bool) -> Result<(), Error> {
        self.alive(self.agent.signal_container(&self.id, signal, all))
            .await
    }

    /// The guest's numbers of its processes.
    ///
    /// # Errors
    /// The pod has ended.
    pub async fn processes(&self) -> Result<Vec<u32>, Error> {
        self.alive(self.agent.list_processes(&self.id)).await
    }

    /// Waits for its end, or the pod's. When this returns its output has been handed over.
    pub async fn wait(&self) -> Exit {
        let answer = tokio::select! {
            biased;
            answer = self.agent.wait_container(&self.id) => Some(answer),
            _ = self.sandbox.wait_ended() => None,
        };
        let status = match answer {
            None => KILLED,
            Some(Ok(status)) => status,
            Some(Err(error)) if error.is_gone() => {
                // Nobody can speak to this pod any longer.
                self.sandbox.kill();
                self.sandbox.wait_ended().await;
                KILLED
            }
            Some(Err(error)) => {
                tracing::error!(
                    container = self.id,
                    error = line(&error),
                    "cannot wait for a container"
                );
                UNKNOWN
            }
        };
        let at = SystemTime::now();
        self.sandbox.withdraw(self.ports);
        if let Stdin::Open { feed, .. } = std::mem::replace(&mut *lock(&self.stdin), Stdin::Closed) {
            feed.abort();
        }
        self.finish_copies().await;
        Exit { status, at }
    }

    async fn finish_copies(&self) {
        let copies = std::mem::take(&mut *lock(&self.copies));
        for mut copy in copies {
            match timeout(COPY_DEADLINE, &mut copy).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => {
                    tracing::error!(container = self.id, %error, "cannot write a container's output")
                }
                Ok(Err(_)) => {}
                Err(_) => copy.abort(),
            }
        }
    }

    fn open_stdin(&self) {
        let mut stdin = lock(&self.stdin);
        let Stdin::Waiting { input, complete } = std::mem::replace(&mut *stdin, Stdin::Closed) else {
            return;
        };
        match input.open() {
            Ok((feed, writer)) => {
                *stdin = Stdin::Open {
                    writer: (!complete).then_some(writer),
                    feed: tokio::spawn(feed.run()),
                };
            }
            Err(error) => {
                tracing::warn!(container = self.id, %error, "cannot open a container's input: it is empty")
            }
        }
    }

    /// Says that standard input is complete: it ends for the container as soon as its other writers have closed it too.
    pub fn close_stdin(&self) {
        match &mut *lock(&self.stdin) {
            Stdin::Waiting { complete, .. } => *complete = true,
            Stdin::Open { writer, .. } => *writer = None,
            Stdin::Closed => {}
        }
    }

    /// Removes it: in the guest, unless that has ended, and on the host. `force` kills it first.
    ///
    /// # Errors
    /// The agent refuses, or something is left.
    pub async fn remove(&self, force: bool) -> Result<(), Error> {
        match self.alive(self.agent.remove_container(&self.id, force)).await {
            Ok(()) | Err(Error::Ended(_)) => {}
            Err(error) => return Err(error),
        }
        self.sandbox.withdraw(self.ports);
        let share = lock(&self.share).take();
        match share {
            None => Ok(()),
            Some(mut share) => share.remove().map_err(Error::Cleanup),
        }
    }

    /// The answer to a request, unless the pod ends first.
    async fn alive<T>(
        &self,
        request: impl Future<Output = Result<T, crate::agent::Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            answer = request => match answer {
                Err(error) if error.is_gone() => {
                    self.sandbox.kill();
                    Err(Error::Ended(self.sandbox.wait_ended().await))
                }
                answer => Ok(answer?),
            },
            reason = self.sandbox.wait_ended() => Err(Error::Ended(reason)),
        }
    }
}
