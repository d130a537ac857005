//! The pod that a shim serves: its machine, once there is one, and its tasks.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use containerd_shim_protos::{
    api::{CreateTaskRequest, DeleteResponse},
    events::task::{TaskCreate, TaskDelete, TaskIO},
    topics::{TASK_CREATE_EVENT_TOPIC, TASK_DELETE_EVENT_TOPIC},
    ttrpc::{self, Code},
};
use sealock_sandbox::{
    ContainerRequest, Error, GuestEvent, Kind, Sandbox, error::line, mount::Request as MountRequest,
    stdio::Paths,
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::{
    events::Events,
    lifecycle::{Phase, Request},
    maker, status,
    task::Task,
};

/// How long a created container that is being deleted may take to end.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The least time between two things that a guest says have happened by themselves: containerd hears of no more of them.
const EVENT_PAUSE: Duration = Duration::from_millis(100);

/// A machine, or why there is none.
pub type Machine = Result<Arc<Sandbox>, Arc<Error>>;

/// A task's place in the pod.
#[derive(Clone, Debug)]
enum Slot {
    Creating,
    Created(Arc<Task>),
}

/// The pod.
#[derive(Debug)]
pub struct Pod {
    namespace: String,
    machine: watch::Sender<Option<Machine>>,
    /// Whether the pod's life is governed by the sandbox API, and not by its tasks'.
    governed: AtomicBool,
    tasks: Mutex<HashMap<String, Slot>>,
    events: Arc<Events>,
    shutdown: Notify,
}

impl Pod {
    /// A pod without a machine.
    #[must_use]
    pub fn new(namespace: &str, events: Arc<Events>) -> Self {
        Self {
            namespace: namespace.to_owned(),
            machine: watch::Sender::new(None),
            governed: AtomicBool::new(false),
            tasks: Mutex::default(),
            events,
            shutdown: Notify::new(),
        }
    }

    /// Gives it its machine, once. To be called within a runtime.
    pub fn run_on(self: &Arc<Self>, machine: Machine) {
        if let Ok(sandbox) = &machine {
            tokio::spawn(Arc::clone(self).attend(Arc::clone(sandbox)));
            tokio::spawn(maker::order(Arc::clone(sandbox)));
        }
        self.machine.send_replace(Some(machine));
    }

    /// Its machine.
    ///
    /// # Errors
    /// It has none yet, or none could be started.
    pub fn machine(&self) -> ttrpc::Result<Arc<Sandbox>> {
        match &*self.machine.borrow() {
            Some(Ok(sandbox)) => Ok(Arc::clone(sandbox)),
            Some(Err(error)) => Err(status::of(&Error::NotStarted(Arc::clone(error)))),
            None => Err(status::failed_precondition("the sandbox has not been created")),
        }
    }

    /// From now on its life is governed by the sandbox API: it goes on without tasks.
    pub fn govern(&self) {
        self.governed.store(true, Ordering::Relaxed);
    }

    /// Whether it has a machine, or none could be started.
    #[must_use]
    pub fn has_machine(&self) -> bool {
        self.machine.borrow().is_some()
    }

    /// Every task there is.
    #[must_use]
    pub fn all_tasks(&self) -> Vec<Arc<Task>> {
        let created = |slot: &Slot| match slot {
            Slot::Created(task) => Some(Arc::clone(task)),
            Slot::Creating => None,
        };
        self.tasks().values().filter_map(created).collect()
    }

    /// Tells containerd what happens by itself in the guest.
    async fn attend(self: Arc<Self>, sandbox: Arc<Sandbox>) {
        loop {
            match sandbox.next_event().await {
                Ok(GuestEvent::OutOfMemory { container, kills }) => {
                    if let Ok(task) = self.task(&container) {
                        task.out_of_memory(kills);
                    }
                }
                Err(error) => {
                    tracing::debug!(error = line(&error), "no more events from the guest");
                    return;
                }
            }
            sleep(EVENT_PAUSE).await;
        }
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task of that name.
    ///
    /// # Errors
    /// There is none yet, or any longer.
    pub fn task(&self, id: &str) -> ttrpc::Result<Arc<Task>> {
        match self.tasks().get(id) {
            Some(Slot::Created(task)) => Ok(Arc::clone(task)),
            _ => Err(status::not_found("container not created")),
        }
    }

    /// Where its events go.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// containerd's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Creates a task.
    ///
    /// # Errors
    /// It exists, or can't be created; then nothing of it is left.
    pub async fn create(&self, request: CreateTaskRequest) -> ttrpc::Result<Arc<Task>> {
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
        let created = self.create_container(&request).await;
        let mut tasks = self.tasks();
        let task = match created {
            Ok(task) => Arc::new(task),
            Err(error) => {
                tasks.remove(&request.id);
                tracing::error!(
                    container = request.id,
                    error = status::words(&error),
                    "cannot create a container"
                );
                return Err(error);
            }
        };
        tasks.insert(request.id.clone(), Slot::Created(Arc::clone(&task)));

        let mut io = TaskIO::new();
        io.stdin = request.stdin;
        io.stdout = request.stdout;
        io.stderr = request.stderr;
        io.terminal = request.terminal;
        let mut event = TaskCreate::new();
        event.container_id = request.id;
        event.bundle = request.bundle;
        event.rootfs = request.rootfs;
        event.io = Some(io).into();
        event.pid = task.pid();
        self.events.publish(TASK_CREATE_EVENT_TOPIC, &event);
        tokio::spawn(Arc::clone(&task).watch());
        Ok(task)
    }

    async fn create_container(&self, request: &CreateTaskRequest) -> ttrpc::Result<Task> {
        let machine = self.machine()?;
        let stdio = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let rootfs = request.rootfs.iter().map(|mount| MountRequest {
            fs_type: mount.type_.clone(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            options: mount.options.clone(),
        });
        let container = machine
            .create_container(&ContainerRequest {
                id: request.id.clone(),
                namespace: self.namespace.clone(),
                bundle: request.bundle.clone().into(),
                rootfs: rootfs.collect(),
                stdio: stdio.clone(),
            })
            .await
            .map_err(|error| status::of(&error))?;
        Ok(Task::new(
            container,
            request.bundle.clone(),
            stdio,
            Arc::clone(&self.events),
        ))
    }

    /// Deletes a task that doesn't run: with the whole pod, if it is the last and nobody else governs that.
    ///
    /// # Errors
    /// It runs, or something of it is left.
    pub async fn delete(&self, id: &str) -> ttrpc::Result<DeleteResponse> {
        let task = self.task(id)?;
        let _alone = task.alone().await;
        // Whoever was here before may have deleted it.
        self.task(id)?;
        task.check(Request::Delete)?;
        let created = task.life().borrow().phase() == Phase::Created;
        let last = self.tasks().len() == 1 && !self.governed.load(Ordering::Relaxed);
        let removed = match self.machine() {
            Ok(machine) if last => machine.stop().await,
            _ => task.container().remove(created).await,
        };
        if let Err(error) = removed {
            tracing::error!(container = id, error = line(&error), "cannot delete a container");
            return Err(status::of(&error));
        }
        task.container().run_poststop_hooks().await;
        // A created one has just been killed; containerd hears of that first.
        let exit = timeout(KILL_DEADLINE, task.exited()).await.ok().flatten();
        self.tasks().remove(id);

        let mut response = DeleteResponse::new();
        response.pid = task.pid();
        if let Some(exit) = exit {
            response.exit_status = exit.status.into();
            response.exited_at = status::timestamp(exit.at);
        }
        let mut event = TaskDelete::new();
        id.clone_into(&mut event.container_id);
        event.pid = task.pid();
        event.exit_status = response.exit_status;
        event.exited_at = response.exited_at.clone();
        self.events.publish(TASK_DELETE_EVENT_TOPIC, &event);
        Ok(response)
    }

    /// Ends the shim, unless there are tasks or somebody else governs its life; with `now` in any case.
    pub async fn shut_down(&self, now: bool) {
        if !now && (!self.tasks().is_empty() || self.governed.load(Ordering::Relaxed)) {
            return;
        }
        // Before the answer: what containerd does next is to look for what is left.
        self.stop().await;
        self.end();
    }

    /// Ends the shim.
    pub fn end(&self) {
        self.shutdown.notify_one();
    }

    /// Ends the machine and cleans up after it.
    pub async fn stop(&self) {
        if let Ok(machine) = self.machine()
            && let Err(error) = machine.stop().await
        {
            tracing::error!(error = line(&error), "cannot clean up");
        }
    }

    /// Waits until containerd wants no more of it.
    pub async fn wait_shutdown(&self) {
        self.shutdown.notified().await;
    }
}

/// What a request of containerd's for something that has gone with the pod means.
pub fn gone(error: &Error) -> ttrpc::Error {
    match error.kind() {
        Kind::Unavailable => status::not_found("the pod has ended"),
        _ => status::of(error),
    }
}
