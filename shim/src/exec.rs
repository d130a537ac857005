//! A further process of a task: added by containerd, then started, ended, deleted.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use containerd_shim_protos::{
    events::task::{TaskExecStarted, TaskExit},
    topics::{TASK_EXEC_STARTED_EVENT_TOPIC, TASK_EXIT_EVENT_TOPIC},
    ttrpc,
};
use sealock_sandbox::{Container, ExecRequest, Exit, GuestProcess, error::line};
use tokio::sync::watch;

use crate::{
    events::Events,
    lifecycle::{Lifecycle, Phase, Request},
    status,
};

/// A process that containerd has added to a task.
#[derive(Debug)]
pub struct Exec {
    request: ExecRequest,
    container: String,
    pid: u32,
    life: watch::Sender<Lifecycle>,
    process: OnceLock<Arc<GuestProcess>>,
    /// Rows and columns, where they came before the start.
    size: Mutex<Option<(u16, u16)>>,
    stdin_complete: AtomicBool,
    one_at_a_time: tokio::sync::Mutex<()>,
    events: Arc<Events>,
}

impl Exec {
    /// A process of the task `container` that is yet to be started; `pid` stands for it on the host.
    #[must_use]
    pub fn new(request: ExecRequest, container: &str, pid: u32, events: Arc<Events>) -> Self {
        Self {
            request,
            container: container.to_owned(),
            pid,
            life: watch::Sender::new(Lifecycle::new()),
            process: OnceLock::new(),
            size: Mutex::new(None),
            stdin_complete: AtomicBool::new(false),
            one_at_a_time: tokio::sync::Mutex::new(()),
            events,
        }
    }

    /// What was asked for.
    #[must_use]
    pub fn request(&self) -> &ExecRequest {
        &self.request
    }

    /// Its life, for those who wait for something in it.
    #[must_use]
    pub fn life(&self) -> &watch::Sender<Lifecycle> {
        &self.life
    }

    fn size(&self) -> MutexGuard<'_, Option<(u16, u16)>> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it in `container`, the task's.
    ///
    /// # Errors
    /// It has been started before, or can't be.
    pub async fn start(self: &Arc<Self>, container: &Container) -> ttrpc::Result<()> {
        let mut begun = Ok(());
        self.life.send_modify(|life| begun = life.begin_start());
        begun.map_err(status::failed_precondition)?;
        let process = match container.exec(&self.request).await {
            Ok(process) => Arc::new(process),
            Err(error) => {
                self.life.send_modify(|life| {
                    // An end without a start is nobody's business.
                    let _ = life.finish_start(false);
                });
                tracing::warn!(
                    container = self.container,
                    exec = self.request.id,
                    error = line(&error),
                    "cannot start a process"
                );
                return Err(status::of(&error));
            }
        };
        let process = self.process.get_or_init(|| process);
        if self.stdin_complete.load(Ordering::Relaxed) {
            process.close_stdin();
        }
        let size = self.size().take();
        if let Some((rows, columns)) = size
            && let Err(error) = process.resize(rows, columns).await
        {
            tracing::debug!(
                exec = self.request.id,
                error = line(&error),
                "cannot size a terminal"
            );
        }
        self.life.send_modify(|life| {
            let mut event = TaskExecStarted::new();
            event.container_id.clone_from(&self.container);
            event.exec_id.clone_from(&self.request.id);
            event.pid = self.pid;
            self.events.publish(TASK_EXEC_STARTED_EVENT_TOPIC, &event);
            let due = life.finish_start(true);
            self.publish_exit(due.exit);
        });
        let (this, process) = (Arc::clone(self), Arc::clone(process));
        tokio::spawn(async move { this.exited(process.wait().await) });
        Ok(())
    }

    /// It has ended: tells containerd, once.
    pub fn exited(&self, exit: Exit) {
        // Lack of memory is the container's matter.
        self.life
            .send_modify(|life| self.publish_exit(life.exited(exit).exit));
    }

    fn publish_exit(&self, exit: Option<Exit>) {
        let Some(exit) = exit else { return };
        let mut event = TaskExit::new();
        event.container_id.clone_from(&self.container);
        event.id.clone_from(&self.request.id);
        event.pid = self.pid;
        event.exit_status = exit.status.into();
        event.exited_at = status::timestamp(exit.at);
        self.events.publish(TASK_EXIT_EVENT_TOPIC, &event);
    }

    /// Waits until it neither runs nor is being started.
    pub async fn settled(&self) {
        let mut life = self.life.subscribe();
        // Its sender is here.
        let _ = life
            .wait_for(|life| matches!(life.phase(), Phase::Created | Phase::Stopped))
            .await;
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It isn't started, or has ended.
    pub async fn kill(&self, signal: u32) -> ttrpc::Result<()> {
        let phase = self.life.borrow().phase();
        match (phase, self.process.get()) {
            (Phase::Stopped, _) => Err(status::finished()),
            (_, None) => Err(status::failed_precondition("process not created")),
            (_, Some(process)) => status::signalled(process.signal(signal, false).await),
        }
    }

    /// Sets its terminal's size, now or once it has one.
    ///
    /// # Errors
    /// It has ended.
    pub async fn resize(&self, rows: u16, columns: u16) -> ttrpc::Result<()> {
        if self.life.borrow().phase() == Phase::Stopped {
            return Err(status::failed_precondition("cannot resize a stopped container"));
        }
        if !self.request.stdio.terminal {
            return Ok(());
        }
        let Some(process) = self.process.get() else {
            *self.size() = Some((rows, columns));
            return Ok(());
        };
        process
            .resize(rows, columns)
            .await
            .map_err(|error| status::of(&error))
    }

    /// Says that its input is complete.
    pub fn close_stdin(&self) {
        self.stdin_complete.store(true, Ordering::Relaxed);
        if let Some(process) = self.process.get() {
            process.close_stdin();
        }
    }

    /// Forgets it; returns how it ended, if it was started at all.
    ///
    /// # Errors
    /// It runs.
    pub async fn delete(&self) -> ttrpc::Result<Option<Exit>> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let (phase, exit) = {
            let life = self.life.borrow();
            (life.phase(), life.exit())
        };
        if let Some(refusal) = Request::Delete.refusal(phase) {
            return Err(status::failed_precondition(refusal));
        }
        if let Some(process) = self.process.get() {
            process.forget().await.map_err(|error| status::of(&error))?;
        }
        Ok(exit)
    }
}
