//! A container of a pod, as the host sees it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use sealock_protocol::agent::{ContainerStatsResponse, ExecPid};
use serde_json::Value;

use crate::{
    agent::{Agent, Of},
    attachment::Attachment,
    error::{Error, line},
    guest_process::{Exit, GuestProcess},
    hooks::Hooks,
    membership::is_pods_own,
    mount::Request as MountRequest,
    sandbox::Sandbox,
    share::ContainerShare,
    size::Limits,
    spec::{self, Numbers},
    stand_in::StandIn,
    state,
    stdio::{Owner, Paths, Streams},
};

/// A container to be created.
#[derive(Clone, Debug, Default)]
pub struct ContainerRequest {
    /// Its identifier.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// The directory with its `config.json`.
    pub bundle: PathBuf,
    /// The mounts of its root file system, unless it is the pod's own container; without any it is what the specification says.
    pub rootfs: Vec<MountRequest>,
    /// Its standard streams.
    pub stdio: Paths,
}

/// A created container. Dropping it undoes its mounts.
#[derive(Debug)]
pub struct Container {
    id: String,
    process: Arc<GuestProcess>,
    share: Mutex<Option<ContainerShare>>,
    hooks: Hooks,
    /// Unless the pod's monitor stands for it.
    stand_in: Option<StandIn>,
}

/// What a container needs on the host.
struct Prepared {
    /// Whether it is the pod's own container, which only holds what the others share: it gets no root file system, and no
    /// program of its image is run.
    pause: bool,
    /// Its part of the share.
    share: Option<ContainerShare>,
    /// Its specification for the guest.
    spec: Vec<u8>,
    /// Its streams.
    attachment: Attachment,
    hooks: Hooks,
    stand_in: Option<StandIn>,
}

impl Sandbox {
    /// Creates a container: prepares everything on the host while the guest may still be starting, then asks the agent.
    ///
    /// # Errors
    /// The pod didn't start, the specification can't be carried out, or the agent refuses. Nothing is left then.
    pub async fn create_container(self: &Arc<Self>, request: &ContainerRequest) -> Result<Container, Error> {
        state::check_name("the container's identifier", &request.id)?;
        self.timeline().mark("create_received");
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let prepared = self.prepare(request).await;
        // A pod that failed meanwhile is the reason for whatever failed here.
        if let (Err(_), Some(failure)) = (&prepared, self.failure()) {
            return Err(failure);
        }
        let prepared = prepared.inspect_err(|_| self.release_room(&request.id))?;
        self.create_prepared(&request.id, prepared).await
    }

    /// What stands on the host for the container `id`: none of its own for the one that the pod is named after.
    fn stand_in(&self, id: &str) -> Result<Option<StandIn>, Error> {
        if id == self.id() {
            return Ok(None);
        }
        self.stand_ins().start(id).map(Some).map_err(Error::StandIn)
    }

    /// Creates the pod's own container, which only holds what the others share, from `spec` alone.
    ///
    /// # Errors
    /// As [`Sandbox::create_container`].
    pub async fn create_pause(self: &Arc<Self>, id: &str, spec: Value) -> Result<Container, Error> {
        state::check_name("the container's identifier", id)?;
        self.timeline().mark("create_received");
        let attachment = Attachment::new(self, id, false, Streams::default())?;
        let spec = spec::prepare_pause(spec, self.vmm_pid())?;
        let prepared = Prepared {
            pause: true,
            share: None,
            spec,
            attachment,
            hooks: Hooks::default(),
            stand_in: None,
        };
        self.create_prepared(id, prepared).await
    }

    async fn create_prepared(self: &Arc<Self>, id: &str, prepared: Prepared) -> Result<Container, Error> {
        let Prepared {
            pause,
            share,
            spec,
            attachment,
            hooks,
            stand_in,
        } = prepared;
        let pid = stand_in.as_ref().map_or(self.vmm_pid(), StandIn::pid);
        let agent = self.ready().await?;
        self.refresh_volumes(&agent);
        let created = async {
            self.make_room().await?;
            // The machine is there, and the guest has not looked at the root file system yet.
            self.run_create_hooks(&hooks, pid).await?;
            self.answer(agent.create_container(id, spec, attachment.stdio(), pause))
                .await
        };
        let created = created.await;
        let guest_pid = match created {
            Ok(guest_pid) => guest_pid,
            Err(error) => {
                drop(share);
                self.release_room(id);
                hooks.stopped().await;
                return Err(error);
            }
        };
        self.timeline().mark("container_created");
        let of = Of {
            container: id.to_owned(),
            exec: String::new(),
        };
        Ok(Container {
            id: id.to_owned(),
            process: Arc::new(GuestProcess::new(
                Arc::clone(self),
                agent,
                of,
                guest_pid,
                attachment,
            )),
            share: Mutex::new(share),
            hooks,
            stand_in,
        })
    }

    async fn prepare(self: &Arc<Self>, request: &ContainerRequest) -> Result<Prepared, Error> {
        let mut spec = spec::read(&request.bundle)?;
        if let Some(files) = self.pod_files() {
            files.add_to(&mut spec);
        }
        let hooks = Hooks::take(&mut spec, &request.id, &request.bundle)?;
        let owner = Owner {
            namespace: &request.namespace,
            id: &request.id,
        };
        let streams = Streams::open(&request.stdio, owner).await?;
        let attachment = Attachment::new(self, &request.id, request.stdio.terminal, streams)?;
        if let Some(resources) = spec.pointer("/linux/resources") {
            self.promise(&request.id, Limits::of(resources));
        }
        let stand_in = self.stand_in(&request.id)?;
        if is_pods_own(&spec) {
            return Ok(Prepared {
                pause: true,
                share: None,
                spec: spec::prepare_pause(spec, self.vmm_pid())?,
                attachment,
                hooks,
                stand_in,
            });
        }
        let root = spec::root(&spec, &request.bundle)?;
        let mut share = self.share().add(&request.id)?;
        let numbers = Numbers {
            pod: self.vmm_pid(),
            containers: &self.stand_ins().all(),
        };
        let spec = spec::prepare(spec, &request.id, &request.bundle, numbers, &mut share)?;
        share.mount_rootfs(&request.rootfs, &root)?;
        self.timeline().mark("rootfs_mounted");
        Ok(Prepared {
            pause: false,
            share: Some(share),
            spec,
            attachment,
            hooks,
            stand_in,
        })
    }

    async fn run_create_hooks(&self, hooks: &Hooks, pid: u32) -> Result<(), Error> {
        tokio::select! {
            biased;
            run = hooks.create(pid) => Ok(run?),
            reason = self.wait_ended() => Err(Error::Ended(reason)),
        }
    }

    /// From the first volume that the guest copies on, has it look again whenever one changes, until the pod's end.
    fn refresh_volumes(self: &Arc<Self>, agent: &Agent) {
        let Some(watch) = self.share().volumes().watch_to_run() else {
            return;
        };
        let (pod, agent) = (Arc::clone(self), agent.clone());
        tokio::spawn(async move {
            let refresh = |volume: String| {
                let agent = agent.clone();
                async move {
                    if let Err(error) = agent.refresh_volume(&volume).await {
                        tracing::error!(volume, error = line(&error), "cannot refresh a volume");
                    }
                }
            };
            tokio::select! {
                _ = pod.wait_ended() => {}
                ended = watch.run(refresh) => if let Err(error) = ended {
                    tracing::error!(sandbox = pod.id(), %error, "volumes are not watched any longer");
                },
            }
        });
    }
}

impl Container {
    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number of what stands for it on the host: a thread of this program, or the pod's monitor for the container that
    /// the pod is named after.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.stand_in
            .as_ref()
            .map_or(self.sandbox().vmm_pid(), StandIn::pid)
    }

    /// Its first process.
    #[must_use]
    pub fn process(&self) -> &Arc<GuestProcess> {
        &self.process
    }

    fn sandbox(&self) -> &Sandbox {
        self.process.sandbox()
    }

    /// Lets its process run. The pod's timeline is complete with its first container, logged and kept.
    ///
    /// # Errors
    /// The program can't be executed, the container is not in a state to, or the pod has ended.
    pub async fn start(&self) -> Result<(), Error> {
        self.sandbox().timeline().mark("start_received");
        self.process.attachment().open_stdin();
        let agent = self.process.agent();
        self.sandbox().answer(agent.start_container(&self.id)).await?;
        self.hooks.started(self.pid()).await;
        let sandbox = self.sandbox();
        if sandbox.complete_timeline() {
            sandbox.learn_working_set();
        }
        Ok(())
    }

    /// Freezes its processes.
    ///
    /// # Errors
    /// It isn't running, or the pod has ended.
    pub async fn pause(&self) -> Result<(), Error> {
        let agent = self.process.agent();
        self.sandbox().answer(agent.pause_container(&self.id)).await
    }

    /// Thaws them.
    ///
    /// # Errors
    /// It isn't paused, or the pod has ended.
    pub async fn resume(&self) -> Result<(), Error> {
        let agent = self.process.agent();
        self.sandbox().answer(agent.resume_container(&self.id)).await
    }

    /// Changes its limits to `resources`, an OCI `linux.resources` in JSON; what that doesn't name stays as it is. The machine
    /// grows where that is more than it has.
    ///
    /// # Errors
    /// A limit can't be applied; then none is.
    pub async fn update(&self, resources: Vec<u8>) -> Result<(), Error> {
        let agent = self.process.agent();
        // What is not JSON is the agent's to refuse.
        if let Ok(resources) = serde_json::from_slice(&resources) {
            self.sandbox().promise(&self.id, Limits::of(&resources));
            self.sandbox().make_room().await?;
        }
        self.sandbox()
            .answer(agent.update_container(&self.id, resources))
            .await
    }

    /// What it uses.
    ///
    /// # Errors
    /// It isn't there any longer, or the pod has ended.
    pub async fn stats(&self) -> Result<ContainerStatsResponse, Error> {
        let agent = self.process.agent();
        self.sandbox().answer(agent.container_stats(&self.id)).await
    }

    /// The guest's numbers of its processes, and which of them were started by exec.
    ///
    /// # Errors
    /// The pod has ended.
    pub async fn processes(&self) -> Result<(Vec<u32>, Vec<ExecPid>), Error> {
        let agent = self.process.agent();
        self.sandbox().answer(agent.list_processes(&self.id)).await
    }

    /// Waits for the end of its first process, or the pod's. When this returns its output has been handed over.
    pub async fn wait(&self) -> Exit {
        self.process.wait().await
    }

    /// Runs what the specification wants to be run on the host when the container is gone: to be called once, after
    /// [`Container::remove`] or [`Sandbox::stop`].
    pub async fn run_poststop_hooks(&self) {
        self.hooks.stopped().await;
    }

    /// Removes it: in the guest, unless that has ended, and on the host. `force` kills it first.
    ///
    /// # Errors
    /// The agent refuses, or something is left.
    pub async fn remove(&self, force: bool) -> Result<(), Error> {
        let agent = self.process.agent();
        match self
            .sandbox()
            .answer(agent.remove_container(&self.id, force))
            .await
        {
            Ok(()) | Err(Error::Ended(_)) => {}
            Err(error) => return Err(error),
        }
        self.sandbox().release_room(&self.id);
        let share = self.share.lock().unwrap_or_else(PoisonError::into_inner).take();
        match share {
            None => Ok(()),
            Some(mut share) => share.remove().map_err(Error::Cleanup),
        }
    }
}
