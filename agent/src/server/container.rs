//! A container, from its creation to its removal.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::{fcntl::OFlag, sys::stat::Mode};
use sealock_protocol::agent::Stdio;
use serde::Serialize;
use tokio::{
    sync::{Mutex, RwLock, watch},
    time::timeout,
};

use super::{
    error::Error,
    events::OomKills,
    exec::Execs,
    init_link::{Exit, KILL_DEADLINE, exited},
    launch::{Conversation, Launch, Launched, NotLaunched},
    process::{Attendance, Ended, Process},
    surroundings::Surroundings,
};
use crate::{
    cgroup::Cgroup,
    container::{Failure, outside},
    init::log,
    link::{Join, NewNamespaces, Refusal, Role},
    oci,
};

/// The namespaces of the pod's first container, for others to join.
#[derive(Debug)]
pub struct SharedNamespaces {
    join: Vec<(Join, OwnedFd)>,
    /// Who is who in its user namespace; `None` where that is the guest's.
    id_mappings: Option<oci::IdMappings>,
}

impl SharedNamespaces {
    /// Those of a container whose first process has not been reaped.
    ///
    /// # Errors
    /// It has.
    pub fn of(container: &Container) -> Result<Self, Error> {
        let doing = "opening the container's namespaces";
        let pid = container.first.pid();
        let join = [Join::Pid, Join::Ipc, Join::Uts, Join::User]
            .into_iter()
            .map(|kind| {
                let path = format!("/proc/{pid}/ns/{}", kind.file());
                nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                    .map(|namespace| (kind, namespace))
                    .map_err(Error::system(doing))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            join,
            id_mappings: container.id_mappings.clone(),
        })
    }

    /// Completes the namespaces of a container that joins them.
    ///
    /// # Errors
    /// It is to have the pod's user namespace, and there is none, or one with other mappings.
    fn complete(&self, namespaces: &mut oci::Namespaces) -> Result<(), Error> {
        if namespaces.user != oci::NamespaceSource::Sandbox {
            return Ok(());
        }
        let Some(pods) = &self.id_mappings else {
            return Err(Error::State(
                "linux.namespaces: the pod has no user namespace of its own that could be joined",
            ));
        };
        let asked = &mut namespaces.id_mappings;
        if *asked == oci::IdMappings::default() {
            asked.clone_from(pods);
        }
        if asked == pods {
            Ok(())
        } else {
            Err(Error::State(
                "linux.uidMappings: differ from those of the pod's user namespace",
            ))
        }
    }
}

/// A created container.
#[derive(Debug)]
pub struct Container {
    /// Its first process.
    pub(super) first: Arc<Process>,
    pub(super) cgroup: Cgroup,
    /// Until the container is started.
    conversation: Mutex<Option<Conversation>>,
    /// Written while processes are frozen and thawed.
    pub(super) paused: RwLock<bool>,
    /// Processes that joined it.
    pub(super) execs: std::sync::Mutex<Execs>,
    /// What such a process has in common with the first one; the pod's own container has none.
    base: Option<oci::Container>,
    /// Who is who in its user namespace; `None` where that is the guest's.
    id_mappings: Option<oci::IdMappings>,
    oom_kills: OomKills,
    pub(super) around: Arc<Surroundings>,
}

impl Container {
    /// Creates a container up to the point where its process is about to execute: it may join the namespaces `shared` by the pod,
    /// and the process ids of the others that are `known`. After an error nothing of it is left.
    ///
    /// # Errors
    /// The specification can't be carried out: the message names the field, or says why the program can't be executed.
    pub async fn create(
        around: &Arc<Surroundings>,
        id: &str,
        spec: &[u8],
        ports: &Stdio,
        shared: Option<&SharedNamespaces>,
        known: impl FnOnce(&str) -> Result<Arc<Self>, Error>,
    ) -> Result<Arc<Self>, Error> {
        let (mut plan, limits) = oci::Container::parse(spec)?;
        check_terminal(&plan.process, ports)?;
        for warning in &plan.process.warnings {
            log(&format!("container {id}: {warning}"));
        }
        around.volumes.prepare(&mut plan.mounts).await?;
        if let Some(shared) = shared {
            shared.complete(&mut plan.namespaces)?;
        }
        let kinds = Join::of(&plan.namespaces);
        let target = match plan.namespaces.pid_of.as_str() {
            "" => None,
            id => Some(known(id)?),
        };
        let join: Vec<_> = shared
            .map_or(&[][..], |shared| &shared.join)
            .iter()
            .filter(|(kind, _)| kinds.contains(kind))
            .map(|(kind, namespace)| match &target {
                // The kernel takes a process for its namespace.
                Some(target) if *kind == Join::Pid => (*kind, target.first.pidfd().as_fd()),
                _ => (*kind, namespace.as_fd()),
            })
            .collect();
        if join.len() != kinds.len() {
            return Err(Error::State(
                "linux.namespaces: the pod has no container yet whose namespaces could be joined",
            ));
        }
        let launch = Launch {
            role: Role::Container,
            namespaces: NewNamespaces::of(&plan.namespaces),
            join,
            ports,
            container: Some(&plan),
        };
        let cgroup = create_cgroup(around, id, &limits).await?;
        let ready = get_ready(around, &cgroup, launch, &plan, |pid| outside::help(&plan, pid)).await;
        let base = oci::Container {
            mounts: Vec::new(),
            devices: Vec::new(),
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            sysctl: Vec::new(),
            hooks: oci::Hooks::default(),
            ..plan
        };
        let namespaces = base.namespaces.clone();
        Self::begin(around, id, cgroup, ready, &namespaces, Some(base))
    }

    /// Creates the pod's own container, which has no files and no program. After an error nothing of it is left.
    ///
    /// # Errors
    /// The specification can't be carried out: the message names the field.
    pub async fn create_pause(around: &Arc<Surroundings>, id: &str, spec: &[u8]) -> Result<Arc<Self>, Error> {
        let (plan, limits) = oci::Pause::parse(spec)?;
        if !Join::of(&plan.namespaces).is_empty() {
            return Err(Error::State(
                "linux.namespaces: there is nobody before the pod's own container to share one with",
            ));
        }
        let launch = Launch {
            role: Role::Pause,
            namespaces: NewNamespaces::of(&plan.namespaces),
            join: Vec::new(),
            ports: &Stdio::new(),
            container: None,
        };
        let cgroup = create_cgroup(around, id, &limits).await?;
        let ready = get_ready(around, &cgroup, launch, &plan, |pid| {
            outside::help_pause(&plan, pid)
        })
        .await;
        Self::begin(around, id, cgroup, ready, &plan.namespaces, None)
    }

    fn begin(
        around: &Arc<Surroundings>,
        id: &str,
        cgroup: Cgroup,
        ready: Result<Ready, Error>,
        namespaces: &oci::Namespaces,
        base: Option<oci::Container>,
    ) -> Result<Arc<Self>, Error> {
        let Ready {
            first,
            attendance,
            conversation,
        } = match ready {
            Ok(ready) => ready,
            Err(error) => {
                // There are no processes in it.
                if let Err(other) = cgroup.remove() {
                    log(&format!("undoing the creation of container {id}: {other}"));
                }
                return Err(error);
            }
        };
        let container = Arc::new(Self {
            first,
            cgroup,
            conversation: Mutex::new(Some(conversation)),
            paused: RwLock::new(false),
            execs: std::sync::Mutex::default(),
            base,
            id_mappings: (namespaces.user != oci::NamespaceSource::Guest)
                .then(|| namespaces.id_mappings.clone()),
            oom_kills: OomKills::new(id, Arc::clone(&around.events)),
            around: Arc::clone(around),
        });
        tokio::spawn(Arc::clone(&container).attend(attendance));
        Ok(container)
    }

    /// What a process that joins the container carries out.
    ///
    /// # Errors
    /// It is to have a terminal and its streams are not, or the other way round; or it is the pod's own container.
    pub(super) fn plan_for(&self, process: oci::Process, ports: &Stdio) -> Result<oci::Container, Error> {
        check_terminal(&process, ports)?;
        let base = self
            .base
            .as_ref()
            .ok_or(Error::State("the pod's own container has no programs to run"))?;
        Ok(oci::Container {
            process: oci::Process {
                oom_score_adj: process.oom_score_adj.or(base.process.oom_score_adj),
                ..process
            },
            ..base.clone()
        })
    }

    /// Sees the container to its end: with its first process the others end, and its output is handed over.
    async fn attend(self: Arc<Self>, attendance: Attendance) {
        let exit = match self.cgroup.watch("memory.events") {
            Ok(events) => tokio::select! {
                exit = attendance.exited() => exit,
                never = async {
                    self.oom_kills.watch(events).await;
                    std::future::pending().await
                } => never,
            },
            Err(error) => {
                log(&format!("watching for want of memory: {error}"));
                attendance.exited().await
            }
        };
        let oom_kills = self.oom_kills();
        // Does nothing where the process id namespace was the container's own, for it has ended with its first process.
        if let Err(error) = self.cgroup.kill() {
            log(&error.to_string());
        }
        for process in self.all_execs() {
            process.exited().await;
        }
        let ended = exit.map(|exit| Ended { exit, oom_kills });
        attendance.conclude(ended).await;
    }

    /// How many of its processes have been killed for want of memory.
    pub(super) fn oom_kills(&self) -> u64 {
        self.oom_kills.count(&self.cgroup)
    }

    /// Lets the process execute its program.
    ///
    /// # Errors
    /// It has been started already, is paused or has ended, or the program can't be executed.
    pub async fn start(&self) -> Result<(), Error> {
        let paused = self.paused.read().await;
        let mut slot = self.conversation.lock().await;
        if self.first.has_ended() {
            return Err(Error::State("cannot start a container that has stopped"));
        }
        if *paused {
            return Err(Error::State("cannot start a paused container"));
        }
        let Some(mut conversation) = slot.take() else {
            return Err(Error::State("cannot start a container that is already running"));
        };
        conversation.execute().await
    }

    /// Sends a signal to all of the container's processes.
    ///
    /// # Errors
    /// The container is being removed.
    pub fn signal_all(&self, number: i32) -> Result<(), Error> {
        if number == libc::SIGKILL {
            return self.kill();
        }
        for pid in self.cgroup.processes()? {
            // The id is of a process that was in the cgroup a moment ago; one that has ended meanwhile is none to signal.
            let pid = i32::try_from(pid).map_err(|_| Error::Finished)?;
            // SAFETY: numbers alone; the agent itself and init are in no container's cgroup.
            unsafe { libc::kill(pid, number) };
        }
        Ok(())
    }

    /// Changes the container's limits: all, or after an error none.
    ///
    /// # Errors
    /// It has stopped, or a limit can't be applied: the message names the field.
    pub fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let update = oci::Update::parse(resources)?;
        if self.first.has_ended() {
            return Err(Error::State("cannot update a container that has stopped"));
        }
        Ok(self.cgroup.update(&update)?)
    }

    /// The guest's ids of the container's processes.
    ///
    /// # Errors
    /// The container is being removed.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        Ok(self.cgroup.processes()?)
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
        if !self.first.has_ended() && !force {
            return Err(Error::State("cannot remove a container that has not stopped"));
        }
        kill(&self.cgroup, self.first.exit()).await?;
        self.cgroup.remove()?;
        self.first.forget();
        for process in self.all_execs() {
            process.forget();
        }
        Ok(())
    }
}

/// A container's first process, ready to execute its program.
struct Ready {
    first: Arc<Process>,
    attendance: Attendance,
    conversation: Conversation,
}

/// Processors that the limits name are there before.
async fn create_cgroup(around: &Surroundings, id: &str, limits: &oci::Limits) -> Result<Cgroup, Error> {
    if limits.name_processors() {
        around.machine.processors_online().await?;
    }
    Ok(Cgroup::create(id, limits)?)
}

/// Has a container's first process created and waits until it is ready. After an error there is none in the cgroup.
async fn get_ready(
    around: &Surroundings,
    cgroup: &Cgroup,
    launch: Launch<'_>,
    plan: &impl Serialize,
    help: impl FnOnce(i32) -> Result<Vec<OwnedFd>, Failure>,
) -> Result<Ready, Error> {
    let joins_pids = launch.join.iter().any(|(kind, _)| *kind == Join::Pid);
    let launched = launch.go(&around.init, cgroup.as_fd(), plan).await;
    let Launched {
        created,
        mut conversation,
        host,
        guest,
    } = launched.map_err(|error| match error {
        NotLaunched::Failed(error) => error,
        NotLaunched::Refused(Refusal::Join(libc::ESRCH) | Refusal::Clone(libc::ENOMEM)) if joins_pids => {
            Error::State("linux.namespaces: the process id namespace has ended with its first process")
        }
        NotLaunched::Refused(refusal) => Error::not_created(refusal),
    })?;
    let exit = created.exit.clone();
    let pid = created.pid;
    let process = match conversation.ready(exit.clone(), || help(pid)).await {
        Ok(()) => Process::attend(
            created,
            guest,
            conversation.terminal.take(),
            host,
            &around.undelivered,
        ),
        Err(error) => Err(error),
    };
    match process {
        Ok((first, attendance)) => Ok(Ready {
            first,
            attendance,
            conversation,
        }),
        Err(error) => {
            if let Err(other) = kill(cgroup, exit).await {
                log(&other.to_string());
            }
            Err(error)
        }
    }
}

/// The streams are made for a terminal or for none.
fn check_terminal(process: &oci::Process, ports: &Stdio) -> Result<(), Error> {
    let wanted = process.terminal.is_some();
    if wanted != ports.terminal {
        return Err(Error::Argument(format!(
            "process.terminal is {wanted}, but the streams are made for {}",
            if ports.terminal { "one" } else { "none" }
        )));
    }
    if wanted && ports.stderr_port != 0 {
        return Err(Error::Argument(
            "stdio.stderr_port: a terminal has one output".to_owned(),
        ));
    }
    Ok(())
}

/// Kills every process of a cgroup, among them the one whose end is `exit`, and waits until they are gone.
async fn kill(cgroup: &Cgroup, exit: watch::Receiver<Option<Exit>>) -> Result<(), Error> {
    cgroup.kill()?;
    let gone = async {
        cgroup.wait_empty().await?;
        exited(exit).await;
        Ok::<_, Error>(())
    };
    timeout(KILL_DEADLINE, gone)
        .await
        .map_err(|_| Error::Deadline("ending the container's processes"))?
}
