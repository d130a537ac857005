//! containerd's task service: the requests, the tasks of the pod, and what is told about them.
//!
//! A task's process number is its pod's machine monitor's: containerd and network plug-ins look processes up on the host,
//! where the container's own don't exist.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    events::task::{TaskCreate, TaskDelete, TaskExit, TaskIO, TaskStart},
    shim_async::Task as TaskService,
    topics::{
        TASK_CREATE_EVENT_TOPIC, TASK_DELETE_EVENT_TOPIC, TASK_EXIT_EVENT_TOPIC, TASK_START_EVENT_TOPIC,
    },
    ttrpc::{self, Code, r#async::TtrpcContext},
};
use sealock_sandbox::{
    Container, ContainerRequest, Error, Exit, Kind, Sandbox, error::line, mount::Request as MountRequest,
    stdio::Paths,
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::{
    events::Events,
    lifecycle::{Lifecycle, Phase},
    status,
};

/// How long a created container that is being deleted may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A task: a container and what containerd has been told about it.
#[derive(Debug)]
struct Task {
    bundle: String,
    stdio: Paths,
    pid: u32,
    container: Container,
    life: Mutex<Lifecycle>,
    exit: watch::Sender<Option<Exit>>,
    deleting: tokio::sync::Mutex<()>,
}

/// A task's place in the pod.
#[derive(Clone, Debug)]
enum Slot {
    Creating,
    Created(Arc<Task>),
}

/// The pod, or why there is none.
pub type Pod = Result<Arc<Sandbox>, Arc<Error>>;

/// The service.
#[derive(Debug)]
pub struct Service {
    pod: Pod,
    tasks: Mutex<HashMap<String, Slot>>,
    events: Arc<Events>,
    shutdown: Arc<Notify>,
}

impl Service {
    /// Serves `pod`; `shutdown` is notified when containerd wants no more of it.
    #[must_use]
    pub fn new(pod: Pod, events: Arc<Events>, shutdown: Arc<Notify>) -> Self {
        Self {
            pod,
            tasks: Mutex::new(HashMap::new()),
            events,
            shutdown,
        }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        lock(&self.tasks)
    }

    fn task(&self, id: &str) -> ttrpc::Result<Arc<Task>> {
        match self.tasks().get(id) {
            Some(Slot::Created(task)) => Ok(Arc::clone(task)),
            _ => Err(status::not_found("container not created")),
        }
    }

    /// The task, where its first process is meant.
    fn process(&self, id: &str, exec_id: &str) -> ttrpc::Result<Arc<Task>> {
        let task = self.task(id)?;
        if exec_id.is_empty() {
            Ok(task)
        } else {
            Err(status::not_found(&format!("process {exec_id} does not exist")))
        }
    }

    async fn create_task(&self, request: &CreateTaskRequest) -> Result<Task, Error> {
        let pod = self
            .pod
            .as_ref()
            .map_err(|error| Error::NotStarted(Arc::clone(error)))?;
        let stdio = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let container = pod
            .create_container(&ContainerRequest {
                id: request.id.clone(),
                bundle: request.bundle.clone().into(),
                rootfs: request
                    .rootfs
                    .iter()
                    .map(|mount| MountRequest {
                        fs_type: mount.type_.clone(),
                        source: mount.source.clone(),
                        target: mount.target.clone(),
                        options: mount.options.clone(),
                    })
                    .collect(),
                stdio: stdio.clone(),
            })
            .await?;
        Ok(Task {
            bundle: request.bundle.clone(),
            stdio,
            pid: pod.vmm_pid(),
            container,
            life: Mutex::new(Lifecycle::new()),
            exit: watch::Sender::new(None),
            deleting: tokio::sync::Mutex::new(()),
        })
    }

    /// Removes a task's container: with the whole pod, if it is the last.
    async fn remove(&self, task: &Task, force: bool) -> Result<(), Error> {
        let last = self.tasks().len() == 1;
        match &self.pod {
            Ok(pod) if last => pod.stop().await,
            _ => task.container.remove(force).await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task {
    fn exit_event(&self, exit: Exit, events: &Events) {
        let mut event = TaskExit::new();
        self.container.id().clone_into(&mut event.container_id);
        self.container.id().clone_into(&mut event.id);
        event.pid = self.pid;
        event.exit_status = exit.status.into();
        event.exited_at = status::timestamp(exit.at);
        events.publish(TASK_EXIT_EVENT_TOPIC, &event);
        self.exit.send_replace(Some(exit));
    }

    /// Waits for the container's end and tells containerd.
    async fn watch(self: Arc<Self>, events: Arc<Events>) {
        let exit = self.container.wait().await;
        let mut life = lock(&self.life);
        if let Some(exit) = life.exited(exit) {
            self.exit_event(exit, &events);
        }
    }

    async fn exited(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }
}

#[async_trait]
impl TaskService for Service {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(status::unimplemented("restoring a checkpoint"));
        }
        {
            let mut tasks = self.tasks();
            if tasks.contains_key(&request.id) {
                return Err(status::refusal(
                    Code::ALREADY_EXISTS,
                    format!("container {} exists already", request.id),
                ));
            }
            tasks.insert(request.id.clone(), Slot::Creating);
        }
        let created = self.create_task(&request).await;
        let mut tasks = self.tasks();
        let task = match created {
            Ok(task) => Arc::new(task),
            Err(error) => {
                tasks.remove(&request.id);
                tracing::error!(
                    container = request.id,
                    error = line(&error),
                    "cannot create a container"
                );
                return Err(status::of(&error));
            }
        };
        tasks.insert(request.id.clone(), Slot::Created(Arc::clone(&task)));

        let mut io = TaskIO::new();
        io.stdin = request.stdin;
        io.stdout = request.stdout;
        io.stderr = request.stderr;
        let mut event = TaskCreate::new();
        event.container_id = request.id;
        event.bundle = request.bundle;
        event.rootfs = request.rootfs;
        event.io = Some(io).into();
        event.pid = task.pid;
        self.events.publish(TASK_CREATE_EVENT_TOPIC, &event);
        tokio::spawn(Arc::clone(&task).watch(Arc::clone(&self.events)));

        let mut response = CreateTaskResponse::new();
        response.pid = task.pid;
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let task = self.process(&request.id, &request.exec_id)?;
        lock(&task.life)
            .begin_start()
            .map_err(status::failed_precondition)?;
        let started = task.container.start().await;
        {
            let mut life = lock(&task.life);
            if started.is_ok() {
                let mut event = TaskStart::new();
                event.container_id.clone_from(&request.id);
                event.pid = task.pid;
                self.events.publish(TASK_START_EVENT_TOPIC, &event);
            }
            if let Some(exit) = life.finish_start(started.is_ok()) {
                task.exit_event(exit, &self.events);
            }
        }
        started.map_err(|error| status::of(&error))?;
        let mut response = StartResponse::new();
        response.pid = task.pid;
        Ok(response)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let task = self.process(&request.id, &request.exec_id)?;
        let exit = task
            .exited()
            .await
            .ok_or_else(|| status::not_found("container not created"))?;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status.into();
        response.exited_at = status::timestamp(exit.at);
        Ok(response)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let task = self.process(&request.id, &request.exec_id)?;
        let phase = lock(&task.life).phase();
        let mut response = StateResponse::new();
        response.id = request.id;
        response.bundle.clone_from(&task.bundle);
        response.pid = task.pid;
        response.status = match phase {
            Phase::Created | Phase::Starting => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Stopped => Status::STOPPED,
        }
        .into();
        response.stdin.clone_from(&task.stdio.stdin);
        response.stdout.clone_from(&task.stdio.stdout);
        response.stderr.clone_from(&task.stdio.stderr);
        if let Some(exit) = *task.exit.borrow() {
            response.exit_status = exit.status.into();
            response.exited_at = status::timestamp(exit.at);
        }
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let task = self.task(&request.id)?;
        let mut response = PidsResponse::new();
        if lock(&task.life).phase() != Phase::Stopped {
            let pids = task
                .container
                .processes()
                .await
                .map_err(|error| status::of(&error))?;
            response.processes = pids
                .into_iter()
                .map(|pid| {
                    let mut process = ProcessInfo::new();
                    process.pid = pid;
                    process
                })
                .collect();
        }
        Ok(response)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let task = self.process(&request.id, &request.exec_id)?;
        let finished = || status::not_found("process already finished");
        if lock(&task.life).phase() == Phase::Stopped {
            return Err(finished());
        }
        match task.container.signal(request.signal, request.all).await {
            Ok(()) => Ok(Empty::new()),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unavailable) => Err(finished()),
            Err(error) => Err(status::of(&error)),
        }
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let task = self.process(&request.id, &request.exec_id)?;
        let _one_at_a_time = task.deleting.lock().await;
        self.task(&request.id)?;
        let phase = lock(&task.life).phase();
        match phase {
            Phase::Starting | Phase::Running => {
                return Err(status::failed_precondition("cannot delete a running process"));
            }
            Phase::Created | Phase::Stopped => {}
        }
        if let Err(error) = self.remove(&task, phase == Phase::Created).await {
            tracing::error!(
                container = request.id,
                error = line(&error),
                "cannot delete a container"
            );
            return Err(status::of(&error));
        }
        // A created one has just been killed; containerd hears of that first.
        let exit = timeout(KILL_DEADLINE, task.exited()).await.ok().flatten();
        self.tasks().remove(&request.id);

        let mut response = DeleteResponse::new();
        response.pid = task.pid;
        if let Some(exit) = exit {
            response.exit_status = exit.status.into();
            response.exited_at = status::timestamp(exit.at);
        }
        let mut event = TaskDelete::new();
        event.container_id = request.id;
        event.pid = task.pid;
        event.exit_status = response.exit_status;
        event.exited_at = response.exited_at.clone();
        self.events.publish(TASK_DELETE_EVENT_TOPIC, &event);
        Ok(response)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let task = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            task.container.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self.task(&request.id).map_or(0, |task| task.pid);
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        if !request.now && !self.tasks().is_empty() {
            return Ok(Empty::new());
        }
        // Before the answer: what containerd does next is to look for what is left.
        if let Ok(pod) = &self.pod
            && let Err(error) = pod.stop().await
        {
            tracing::error!(error = line(&error), "cannot clean up");
        }
        self.shutdown.notify_one();
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.task(&request.id)?;
        Err(status::unimplemented("exec"))
    }

    async fn resize_pty(&self, _: &TtrpcContext, _: ResizePtyRequest) -> ttrpc::Result<Empty> {
        Err(status::unimplemented("resizing a terminal"))
    }

    async fn pause(&self, _: &TtrpcContext, _: PauseRequest) -> ttrpc::Result<Empty> {
        Err(status::unimplemented("pause"))
    }

    async fn resume(&self, _: &TtrpcContext, _: ResumeRequest) -> ttrpc::Result<Empty> {
        Err(status::unimplemented("resume"))
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(status::unimplemented("checkpoint"))
    }

    async fn update(&self, _: &TtrpcContext, _: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        Err(status::unimplemented("update"))
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Err(status::unimplemented("stats"))
    }
}
