//! A task: a container, the processes that were added to it, and what containerd has been told about them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use containerd_shim_protos::{
    events::task::{TaskExecAdded, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart},
    topics::{
        TASK_EXEC_ADDED_EVENT_TOPIC, TASK_EXIT_EVENT_TOPIC, TASK_OOM_EVENT_TOPIC, TASK_PAUSED_EVENT_TOPIC,
        TASK_RESUMED_EVENT_TOPIC, TASK_START_EVENT_TOPIC,
    },
    ttrpc::{self, Code},
};
use sealock_sandbox::{Container, ExecRequest, Exit, stdio::Paths};
use tokio::{sync::watch, time::timeout};

use crate::{
    events::Events,
    exec::Exec,
    lifecycle::{Due, Lifecycle, Phase, Request},
    status,
};

/// How long the ends of a container's other processes may be waited for once its first has ended.
const EXECS_DEADLINE: Duration = Duration::from_secs(15);

/// How long a container that failed to start may take to end, and to hand over what its hooks said.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// A container as containerd's task.
#[derive(Debug)]
pub struct Task {
    bundle: String,
    stdio: Paths,
    pid: u32,
    container: Container,
    life: watch::Sender<Lifecycle>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    one_at_a_time: tokio::sync::Mutex<()>,
    events: Arc<Events>,
}

impl Task {
    /// The task of a container that has just been created.
    #[must_use]
    pub fn new(container: Container, bundle: String, stdio: Paths, events: Arc<Events>) -> Self {
        Self {
            bundle,
            stdio,
            pid: container.pid(),
            container,
            life: watch::Sender::new(Lifecycle::new()),
            execs: Mutex::default(),
            one_at_a_time: tokio::sync::Mutex::new(()),
            events,
        }
    }

    /// Its container.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Its bundle.
    #[must_use]
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// Its standard streams.
    #[must_use]
    pub fn stdio(&self) -> &Paths {
        &self.stdio
    }

    /// The number that stands for its processes on the host.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its life, for those who wait for something in it.
    #[must_use]
    pub fn life(&self) -> &watch::Sender<Lifecycle> {
        &self.life
    }

    fn phase(&self) -> Phase {
        self.life.borrow().phase()
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when `request` can't be carried out in the phase it is in.
    ///
    /// # Errors
    /// Says why.
    pub fn check(&self, request: Request) -> ttrpc::Result<()> {
        request
            .refusal(self.phase())
            .map_or(Ok(()), |refusal| Err(status::failed_precondition(refusal)))
    }

    /// Starts its first process.
    ///
    /// # Errors
    /// It has been started before, or can't be.
    pub async fn start(&self) -> ttrpc::Result<()> {
        let mut begun = Ok(());
        self.life.send_modify(|life| begun = life.begin_start());
        begun.map_err(status::failed_precondition)?;
        let started = self.container.start().await;
        self.life.send_modify(|life| {
            if started.is_ok() {
                let mut event = TaskStart::new();
                self.container.id().clone_into(&mut event.container_id);
                event.pid = self.pid;
                self.events.publish(TASK_START_EVENT_TOPIC, &event);
            }
            let due = life.finish_start(started.is_ok());
            self.publish(due);
        });
        if started.is_err() {
            self.stop_after_failed_start().await;
        }
        started.map_err(|error| status::of(&error))
    }

    /// A container that could not be started is stopped (OCI runtime.md, "Lifecycle"), and is so when its client hears of the
    /// failure: a task that is only created is one that containerd's client does not delete.
    async fn stop_after_failed_start(&self) {
        const SIGKILL: u32 = 9;
        // As a rule the process has ended by itself.
        let _ = self.container.process().signal(SIGKILL, true).await;
        if timeout(STOP_DEADLINE, self.exited()).await.is_err() {
            tracing::error!(
                container = self.container.id(),
                "a container that failed to start does not end"
            );
        }
    }

    fn publish(&self, due: Due) {
        if due.out_of_memory {
            let mut event = TaskOOM::new();
            self.container.id().clone_into(&mut event.container_id);
            self.events.publish(TASK_OOM_EVENT_TOPIC, &event);
        }
        if let Some(exit) = due.exit {
            let mut event = TaskExit::new();
            self.container.id().clone_into(&mut event.container_id);
            self.container.id().clone_into(&mut event.id);
            event.pid = self.pid;
            event.exit_status = exit.status.into();
            event.exited_at = status::timestamp(exit.at);
            self.events.publish(TASK_EXIT_EVENT_TOPIC, &event);
        }
    }

    /// So many of its processes have been killed for lack of memory: tells containerd, once for each time.
    pub fn out_of_memory(&self, kills: u64) {
        self.life
            .send_modify(|life| self.publish(life.out_of_memory(kills)));
    }

    /// Waits for the end of its first process and tells containerd, after the ends of the others, which die with it.
    pub async fn watch(self: Arc<Self>) {
        let exit = self.container.wait().await;
        let execs: Vec<_> = self.execs().values().cloned().collect();
        let others = async {
            for exec in &execs {
                exec.settled().await;
            }
        };
        if timeout(EXECS_DEADLINE, others).await.is_err() {
            for exec in &execs {
                exec.exited(Exit::killed());
            }
        }
        self.life.send_modify(|life| self.publish(life.exited(exit)));
    }

    /// Freezes its processes.
    ///
    /// # Errors
    /// It doesn't run, or can't be.
    pub async fn pause(&self) -> ttrpc::Result<()> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        self.check(Request::Pause)?;
        self.container.pause().await.map_err(|error| status::of(&error))?;
        self.life.send_modify(Lifecycle::paused);
        let mut event = TaskPaused::new();
        self.container.id().clone_into(&mut event.container_id);
        self.events.publish(TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Thaws them.
    ///
    /// # Errors
    /// It isn't paused, or can't be.
    pub async fn resume(&self) -> ttrpc::Result<()> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        self.check(Request::Resume)?;
        self.container
            .resume()
            .await
            .map_err(|error| status::of(&error))?;
        self.life.send_modify(Lifecycle::resumed);
        let mut event = TaskResumed::new();
        self.container.id().clone_into(&mut event.container_id);
        self.events.publish(TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Adds a process, to be started by [`Exec::start`].
    ///
    /// # Errors
    /// Its identifier is taken or none, or the task doesn't run.
    pub fn add_exec(&self, request: ExecRequest) -> ttrpc::Result<()> {
        let mut execs = self.execs();
        let taken = request.id == self.container.id();
        match execs.entry(request.id.clone()) {
            Entry::Vacant(free) if !taken => {
                self.check(Request::Exec)?;
                request.check().map_err(|error| status::of(&error))?;
                let mut event = TaskExecAdded::new();
                self.container.id().clone_into(&mut event.container_id);
                event.exec_id.clone_from(&request.id);
                free.insert(Arc::new(Exec::new(
                    request,
                    self.container.id(),
                    self.pid,
                    Arc::clone(&self.events),
                )));
                self.events.publish(TASK_EXEC_ADDED_EVENT_TOPIC, &event);
                Ok(())
            }
            _ => Err(status::refusal(
                Code::ALREADY_EXISTS,
                format!("id {}", request.id),
            )),
        }
    }

    /// The process of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn exec(&self, id: &str) -> ttrpc::Result<Arc<Exec>> {
        self.execs()
            .get(id)
            .cloned()
            .ok_or_else(|| status::not_found(&format!("process does not exist {id}")))
    }

    /// Starts one of its further processes.
    ///
    /// # Errors
    /// There is none of this name, it has been started before, or can't be.
    pub async fn start_exec(&self, id: &str) -> ttrpc::Result<()> {
        let exec = self.exec(id)?;
        // In a frozen container it would never get as far as its program.
        self.check(Request::Exec)?;
        exec.start(&self.container).await
    }

    /// Forgets one of its further processes; returns how it ended, if it was started.
    ///
    /// # Errors
    /// There is none of this name, or it runs.
    pub async fn delete_exec(&self, id: &str) -> ttrpc::Result<Option<Exit>> {
        let exit = self.exec(id)?.delete().await?;
        self.execs().remove(id);
        Ok(exit)
    }

    /// Keeps whoever else wants to delete it waiting for as long as the answer lives.
    pub async fn alone(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.one_at_a_time.lock().await
    }

    /// How its first process ended, when it has.
    pub async fn exited(&self) -> Option<Exit> {
        exited(&self.life).await
    }
}

/// How a process ended, when it has; none if it is forgotten before.
pub async fn exited(life: &watch::Sender<Lifecycle>) -> Option<Exit> {
    let mut life = life.subscribe();
    life.wait_for(|life| life.exit().is_some())
        .await
        .ok()
        .and_then(|life| life.exit())
}
