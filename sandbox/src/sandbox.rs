//! A pod under supervision: from its agent's hello to its end.

mod control;
mod processes;

use std::{
    io,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sealock_protocol::{
    agent::next_event_response,
    control::{GuestClock, Start},
};
use tokio::{
    net::UnixStream,
    sync::{Notify, watch},
    task::spawn_blocking,
    time::timeout,
};

pub(crate) use self::control::Control;
use self::{
    control::MONITOR_DEADLINE,
    processes::{Processes, last_lines, log_console},
};
use crate::{
    agent::{self, Agent, printable},
    broker::{self, Ports},
    cgroup::PodCgroup,
    child_log,
    config::Config,
    error::{Error, line},
    launch::{self, Launched},
    network::{self, Attached, Forward},
    pod_files::{PodFile, PodFiles},
    resize::Sizing,
    share::Share,
    socket::{self, AsyncSeqPacket},
    stand_in::StandIns,
    state::{PodDir, Uid},
    template::{self, InUse, Order},
    timeline::Timeline,
};

/// How long processes may take to go away after they were killed.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

type Readiness = Option<Result<Agent, Arc<Error>>>;

/// A pod. Its machine is killed when [`Sandbox::stop`] is called or the process ends.
#[derive(Debug)]
pub struct Sandbox {
    id: String,
    config: Config,
    vmm_pid: u32,
    share: Share,
    ports: Arc<Ports>,
    timeline: Arc<Mutex<Timeline>>,
    ready: watch::Receiver<Readiness>,
    ended: watch::Receiver<Option<String>>,
    kill: Arc<Notify>,
    stopping: Arc<AtomicBool>,
    stop: tokio::sync::Mutex<()>,
    network: Mutex<Option<Attached>>,
    files: Mutex<Option<(Option<PodCgroup>, PodDir, Uid)>>,
    control: Arc<Control>,
    pub(crate) sizing: Sizing,
    stand_ins: StandIns,
    template: Option<InUse>,
    restored: AtomicBool,
    order: Mutex<Option<Order>>,
    pod_files: OnceLock<PodFiles>,
}

/// What happens by itself in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// A process was killed because a container's memory limit was reached.
    OutOfMemory {
        /// The container, as the guest names it.
        container: String,
        /// How many have been in its life.
        kills: u64,
    },
}

impl Launched {
    /// Supervises the pod from now on: answers its processes, waits for its agent, notices its end. To be called within a
    /// runtime; returns at once.
    ///
    /// # Errors
    /// The runtime can't watch the pod's descriptors. Nothing is left then.
    pub fn supervise(self) -> Result<Arc<Sandbox>, Error> {
        let failed = |error| Error::Launch(launch::Error::Socket(error));
        self.hello.set_nonblocking(true).map_err(failed)?;
        let hello = UnixStream::from_std(self.hello).map_err(failed)?;
        let control = Arc::new(Control::new(AsyncSeqPacket::new(self.control).map_err(failed)?));
        let processes = Processes {
            vmm_end: socket::watch(self.vmm.pidfd().map_err(failed)?).map_err(failed)?,
            fsd_end: socket::watch(self.fsd.pidfd().map_err(failed)?).map_err(failed)?,
            vmm: self.vmm,
            fsd: self.fsd,
        };
        let (ready_sender, ready) = watch::channel(None);
        let (ended_sender, ended) = watch::channel(None);
        let sandbox = Arc::new(Sandbox {
            vmm_pid: processes.vmm.id().pid,
            id: self.id,
            config: self.config,
            share: self.share,
            ports: Arc::new(self.ports),
            timeline: Arc::new(Mutex::new(self.timeline)),
            ready,
            ended,
            kill: Arc::new(Notify::new()),
            stopping: Arc::new(AtomicBool::new(false)),
            stop: tokio::sync::Mutex::new(()),
            network: Mutex::new(self.network),
            files: Mutex::new(Some((self.cgroup, self.dir, self.uid))),
            control: Arc::clone(&control),
            sizing: Sizing::new(self.size),
            stand_ins: StandIns::default(),
            template: self.template,
            restored: AtomicBool::new(false),
            order: Mutex::new(self.order),
            pod_files: OnceLock::new(),
        });

        for (name, stderr) in [("sealock-vmm", self.vmm_stderr), ("sealock-fsd", self.fsd_stderr)] {
            let id = sandbox.id.clone();
            tokio::spawn(async move { child_log::run(name, &id, stderr).await });
        }
        let (ports, kill) = (Arc::clone(&sandbox.ports), Arc::clone(&sandbox.kill));
        let broker = self.broker;
        tokio::spawn(async move {
            if let Err(error) = broker::serve(broker, &ports).await {
                tracing::error!(
                    error = line(&error),
                    "the monitor's vsock device broke the protocol"
                );
                kill.notify_one();
            }
        });
        let (listener, timeline) = (Arc::clone(&control), Arc::clone(&sandbox.timeline));
        tokio::spawn(async move { listener.run(&timeline).await });
        tokio::spawn(processes.run(
            sandbox.id.clone(),
            Arc::clone(&sandbox.kill),
            Arc::clone(&sandbox.stopping),
            control.subscribe(),
            ended_sender,
        ));
        let coming = Arc::clone(&sandbox);
        let hostname = self.hostname;
        tokio::spawn(async move {
            let result = match coming.bring_up(hello, &hostname, &control).await {
                Ok(agent) => {
                    tokio::spawn(Arc::clone(&coming).relieve(agent.clone()));
                    let (sandbox, control) = (Arc::clone(&coming), Arc::clone(&control));
                    let agent_too = agent.clone();
                    tokio::spawn(async move { sandbox.tend_network(&control, agent_too).await });
                    Ok(agent)
                }
                Err(error) => {
                    if coming.stopping.load(Ordering::Relaxed) {
                        tracing::info!(sandbox = coming.id, "the pod was stopped before it was ready");
                    } else {
                        tracing::error!(sandbox = coming.id, error = line(&error), "the pod did not start");
                    }
                    // Whoever waits for the pod hears of it when nothing is left.
                    if let Err(error) = coming.end().await {
                        tracing::error!(sandbox = coming.id, error = line(&error), "cannot clean up");
                    }
                    Err(Arc::new(error))
                }
            };
            ready_sender.send_replace(Some(result));
            // Held until now: the machine ends when the socket is closed.
            coming.wait_ended().await;
            drop(control);
        });
        Ok(sandbox)
    }
}

impl Sandbox {
    async fn bring_up(
        &self,
        mut hello: UnixStream,
        hostname: &str,
        control: &Control,
    ) -> Result<Agent, Error> {
        let deadline = self.config.agent_timeout();
        let clock = tokio::select! {
            biased;
            begun = timeout(deadline, self.begun(&mut hello, control)) => match begun {
                Ok(Ok(clock)) => clock,
                Ok(Err(error)) => return Err(self.ended_or(error.into()).await),
                Err(_) => {
                    let console = control.read_console().await;
                    log_console(&self.id, &console);
                    return Err(launch::Error::Deadline {
                        deadline,
                        console: last_lines(&console),
                    }
                    .into());
                }
            },
            reason = self.wait_ended() => return Err(launch::Error::Ended(reason).into()),
        };
        let agent = Agent::new(hello, deadline);
        let mut entropy = vec![0; 64];
        broker::fill_random(&mut entropy).map_err(launch::Error::Socket)?;
        let network = self.network().as_ref().map(|attached| attached.network().clone());
        let size = self.sizing.at_start();
        if size.vcpus > 1 {
            // It has said so long since: they are made while the guest boots.
            control.running().await;
        }
        tokio::select! {
            biased;
            created = agent.create_sandbox(hostname, entropy, size, network, clock) => if let Err(error) = created {
                return Err(self.ended_or(error.into()).await);
            },
            reason = self.wait_ended() => return Err(launch::Error::Ended(reason).into()),
        }
        self.timeline().mark("sandbox_created");
        Ok(agent)
    }

    /// Waits until the agent can be spoken to. A restored machine's has said hello already, and needs to be told the time.
    async fn begun(
        &self,
        hello: &mut UnixStream,
        control: &Control,
    ) -> Result<Option<GuestClock>, agent::Error> {
        let mut greeting = pin!(agent::read_hello(hello));
        let greeted = tokio::select! {
            biased;
            start = control.running() => Err(start),
            times = &mut greeting => Ok(times?),
        };
        let times = match greeted {
            Ok(times) => times,
            Err(Some(Start::Restored { clock })) => {
                self.restored.store(true, Ordering::Relaxed);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let unknown = GuestClock {
                    tsc: 0,
                    tsc_khz: 0,
                    realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                };
                return Ok(Some(clock.unwrap_or(unknown)));
            }
            // A monitor that has ended closes the hello.
            Err(start) => {
                if let Some(Start::Booted { instead }) = start
                    && !instead.is_empty()
                {
                    self.give_up_template(&instead);
                }
                greeting.await?
            }
        };
        let mut timeline = self.timeline();
        timeline.mark_at("guest_kernel_entered", times.kernel_entered);
        timeline.mark_at("agent_init", times.agent_init);
        timeline.mark_at("agent_hello", times.hello);
        Ok(None)
    }

    /// The machine could not be restored, and no other one is to try.
    fn give_up_template(&self, why: &str) {
        let Some(InUse { key, order, .. }) = &self.template else {
            return;
        };
        tracing::warn!(
            sandbox = self.id,
            template = key.as_str(),
            error = printable(why, 512),
            "the pod boots: its template is of no use"
        );
        template::discard(&self.config, key);
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order.clone());
    }

    /// The cgroup that the pod's supervisor was in before it entered the pod's; none if it has not.
    #[must_use]
    pub fn origin_cgroup(&self) -> Option<PathBuf> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = files.as_ref()?.0.as_ref()?;
        Some(cgroup.origin().to_owned())
    }

    /// Takes note of what the machine has touched, if it is the first of its template to come so far.
    pub(crate) fn learn_working_set(&self) {
        let restored = self.restored.swap(false, Ordering::Relaxed);
        let Some(used) = self
            .template
            .clone()
            .filter(|used| restored && !used.has_working_set)
        else {
            return;
        };
        let (config, pid) = (self.config.clone(), self.vmm_pid);
        // It may take a while, and nobody waits for it.
        drop(spawn_blocking(move || template::learn(&config, &used, pid)));
    }

    /// The template that the pod would have been restored from, if there were one: to be made for the next ones. Once.
    pub fn take_order(&self) -> Option<Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Carries what happens in the pod's network namespace into the guest, until the pod ends.
    async fn tend_network(&self, control: &Control, agent: Agent) {
        let namespace = match self
            .network()
            .as_ref()
            .map(|network| network.namespace().try_clone())
        {
            None => return,
            Some(Ok(namespace)) => namespace,
            Some(Err(error)) => {
                tracing::error!(sandbox = self.id, %error, "cannot hold the pod's network");
                return;
            }
        };
        let (ports, to) = (Arc::clone(&self.ports), agent.clone());
        let forward = async {
            let begun = spawn_blocking(move || Forward::begin(&namespace)).await;
            let failed = match begun {
                Ok(Ok(forward)) => match forward.run(ports, to).await {
                    Ok(()) => return,
                    Err(error) => error.to_string(),
                },
                Ok(Err(error)) => line(&error),
                Err(error) => error.to_string(),
            };
            tracing::warn!(
                sandbox = self.id,
                error = failed,
                "connections from inside the pod's network namespace, as by port forwarding, are not possible"
            );
        };
        let watch = network::watch::run(&self.id, &self.network, control, &agent);
        tokio::select! {
            ((), ()) = async { tokio::join!(forward, watch) } => {}
            _ = self.wait_ended() => {}
        }
    }

    fn network(&self) -> MutexGuard<'_, Option<Attached>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the machine ended, if it did so just now, which then is why `error` came to be.
    async fn ended_or(&self, error: Error) -> Error {
        match timeout(MONITOR_DEADLINE, self.wait_ended()).await {
            Ok(reason) => launch::Error::Ended(reason).into(),
            Err(_) => error,
        }
    }

    /// The pod's identifier.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The monitor's number on the host: what stands for the pod there.
    #[must_use]
    pub fn vmm_pid(&self) -> u32 {
        self.vmm_pid
    }

    /// The agent, once the pod is ready for containers.
    ///
    /// # Errors
    /// The pod didn't start, or has ended.
    pub async fn ready(&self) -> Result<Agent, Error> {
        let mut ready = self.ready.clone();
        // The sender lives until it has said something.
        let agent = match ready.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(agent))) => agent.clone(),
            Ok(Some(Err(error))) => return Err(Error::NotStarted(Arc::clone(error))),
            _ => return Err(Error::Ended("it is not supervised any longer".to_owned())),
        };
        match self.ended() {
            None => Ok(agent),
            Some(reason) => Err(Error::Ended(reason)),
        }
    }

    /// Why the pod didn't start, if that is known already.
    pub(crate) fn failure(&self) -> Option<Error> {
        match &*self.ready.borrow() {
            Some(Err(error)) => Some(Error::NotStarted(Arc::clone(error))),
            _ => None,
        }
    }

    /// Why the pod has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits for the pod's end, however it comes, and returns why.
    pub async fn wait_ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            _ => "it is not supervised any longer".to_owned(),
        }
    }

    /// The agent's answer to a request, unless the pod ends first.
    pub(crate) async fn answer<T>(
        &self,
        request: impl Future<Output = Result<T, agent::Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            biased;
            answer = request => match answer {
                Err(error) if error.is_gone() => {
                    self.kill();
                    Err(Error::Ended(self.wait_ended().await))
                }
                answer => Ok(answer?),
            },
            reason = self.wait_ended() => Err(Error::Ended(reason)),
        }
    }

    /// Waits for something that happens by itself in the pod. To be called by one caller at a time.
    ///
    /// # Errors
    /// The pod didn't start, or has ended, or its agent doesn't tell.
    pub async fn next_event(&self) -> Result<GuestEvent, Error> {
        let agent = self.ready().await?;
        loop {
            if let Some(next_event_response::Event::OutOfMemory(event)) =
                self.answer(agent.next_event()).await?
            {
                return Ok(GuestEvent::OutOfMemory {
                    container: event.id,
                    kills: event.kills,
                });
            }
        }
    }

    /// Kills the pod's processes.
    pub fn kill(&self) {
        self.kill.notify_one();
    }

    /// Ends the pod: lets the agent write everything back if it still can, kills the processes, undoes every mount and
    /// directory. To be called as often as one likes.
    ///
    /// # Errors
    /// Something is left.
    pub async fn stop(&self) -> Result<(), Error> {
        let _one_at_a_time = self.stop.lock().await;
        self.stopping.store(true, Ordering::Relaxed);
        let agent = self
            .ready
            .borrow()
            .as_ref()
            .and_then(|ready| ready.as_ref().ok().cloned());
        if let (Some(agent), None) = (agent, self.ended()) {
            tokio::select! {
                stopped = agent.stop_sandbox() => if let Err(error) = stopped {
                    tracing::warn!(sandbox = self.id, error = line(&error), "the agent did not stop the pod");
                },
                _ = self.wait_ended() => {}
            }
        }
        self.end().await
    }

    async fn end(&self) -> Result<(), Error> {
        self.stopping.store(true, Ordering::Relaxed);
        self.kill();
        if timeout(KILL_DEADLINE, self.wait_ended()).await.is_err() {
            return Err(Error::Undead(KILL_DEADLINE));
        }
        self.clean_up().map_err(Error::Cleanup)
    }

    fn clean_up(&self) -> io::Result<()> {
        // What is not gone with the monitor's descriptors is undone when it is dropped.
        drop(self.network().take());
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner).take();
        match files {
            None => Ok(()),
            // What fails here is tried once more when the directory is dropped.
            Some((cgroup, mut dir, _uid)) => {
                if let Some(mut cgroup) = cgroup {
                    cgroup.remove()?;
                }
                dir.remove()
            }
        }
    }

    /// Whether its end was asked for.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn share(&self) -> &Share {
        &self.share
    }

    /// Gives every container that is created from now on `files` in its `/etc`, and the pod's shared memory. To be called once.
    ///
    /// # Errors
    /// The pod has ended, or they can't be made.
    pub fn provide(&self, files: &[PodFile]) -> Result<(), Error> {
        let held = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, directory, _)) = &*held else {
            return Err(Error::Ended("its files are gone".to_owned()));
        };
        let files = PodFiles::create(directory.path(), files).map_err(Error::PodFiles)?;
        // Who comes second has made the same files.
        let _ = self.pod_files.set(files);
        Ok(())
    }

    pub(crate) fn pod_files(&self) -> Option<&PodFiles> {
        self.pod_files.get()
    }

    pub(crate) fn stand_ins(&self) -> &StandIns {
        &self.stand_ins
    }

    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The first container runs: writes the timeline down, the first time. Returns whether it is that.
    pub(crate) fn complete_timeline(&self) -> bool {
        let mut timeline = self.timeline();
        if timeline.has("container_started") {
            return false;
        }
        timeline.mark("container_started");
        timeline.log(&self.id);
        let held = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, directory, _)) = &*held
            && let Err(error) = timeline.keep(directory.path())
        {
            tracing::warn!(sandbox = self.id, %error, "cannot keep the timeline");
        }
        true
    }

    pub(crate) fn timeline(&self) -> MutexGuard<'_, Timeline> {
        lock(&self.timeline)
    }
}

fn lock(timeline: &Mutex<Timeline>) -> MutexGuard<'_, Timeline> {
    timeline.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
