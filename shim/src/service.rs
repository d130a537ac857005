//! containerd's task service: the requests, turned into calls.
//!
//! A task's process number is that of what stands for its container on the host, where the container's own processes don't
//! exist: the machine's monitor for the container that the pod is named after, a thread of the shim's for each other one.

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
        StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    protobuf::{Message, well_known_types::any::Any},
    shim::oci::ProcessDetails,
    shim_async::Task as TaskService,
    ttrpc::{self, Code, r#async::TtrpcContext},
};
use sealock_sandbox::{ExecRequest, stdio::Paths};
use tokio::sync::watch;

use crate::{
    lifecycle::{Lifecycle, Phase, Request},
    metrics,
    pod::{Pod, gone},
    status,
    task::exited,
};

/// The service.
#[derive(Debug)]
pub struct Service {
    pod: Arc<Pod>,
}

impl Service {
    /// Serves `pod`.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

/// Carries out to the end what must not be left half done: a handler is dropped when the caller's deadline has passed, and
/// when its connection breaks.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(status::refusal(Code::INTERNAL, error)),
    }
}

/// A number of characters as a terminal has them.
fn characters(field: &str, number: u32) -> ttrpc::Result<u16> {
    u16::try_from(number).map_err(|_| {
        status::refusal(
            Code::INVALID_ARGUMENT,
            format!("{field}: {number} is more than 65535"),
        )
    })
}

fn status_of(phase: Phase) -> Status {
    match phase {
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running => Status::RUNNING,
        Phase::Paused => Status::PAUSED,
        Phase::Stopped => Status::STOPPED,
    }
}

fn fill_state(response: &mut StateResponse, life: &watch::Sender<Lifecycle>, stdio: &Paths) {
    let life = life.borrow();
    response.status = status_of(life.phase()).into();
    response.stdin.clone_from(&stdio.stdin);
    response.stdout.clone_from(&stdio.stdout);
    response.stderr.clone_from(&stdio.stderr);
    response.terminal = stdio.terminal;
    if let Some(exit) = life.exit() {
        response.exit_status = exit.status.into();
        response.exited_at = status::timestamp(exit.at);
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
        let pod = Arc::clone(&self.pod);
        let task = to_the_end(async move { pod.create(request).await }).await?;
        let mut response = CreateTaskResponse::new();
        response.pid = task.pid();
        Ok(response)
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let task = self.pod.task(&request.id)?;
        let mut response = StartResponse::new();
        response.pid = task.pid();
        to_the_end(async move {
            if request.exec_id.is_empty() {
                task.start().await
            } else {
                task.start_exec(&request.exec_id).await
            }
        })
        .await?;
        Ok(response)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let task = self.pod.task(&request.id)?;
        let exit = if request.exec_id.is_empty() {
            task.exited().await
        } else {
            exited(task.exec(&request.exec_id)?.life()).await
        };
        let exit = exit.ok_or_else(|| status::not_found("container not created"))?;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status.into();
        response.exited_at = status::timestamp(exit.at);
        Ok(response)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let task = self.pod.task(&request.id)?;
        let mut response = StateResponse::new();
        task.bundle().clone_into(&mut response.bundle);
        response.pid = task.pid();
        if request.exec_id.is_empty() {
            fill_state(&mut response, task.life(), task.stdio());
        } else {
            let exec = task.exec(&request.exec_id)?;
            fill_state(&mut response, exec.life(), &exec.request().stdio);
        }
        response.id = request.id;
        response.exec_id = request.exec_id;
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let task = self.pod.task(&request.id)?;
        let mut response = PidsResponse::new();
        let stopped = task.life().borrow().phase() == Phase::Stopped;
        if stopped {
            // containerd, when it starts again, takes a shim without processes for one that it has to clean up, and the
            // task's exit status would be lost.
            let mut process = ProcessInfo::new();
            process.pid = task.pid();
            response.processes.push(process);
            return Ok(response);
        }
        let (pids, execs) = task.container().processes().await.map_err(|error| gone(&error))?;
        for pid in pids {
            let mut process = ProcessInfo::new();
            process.pid = pid;
            if let Some(exec) = execs.iter().find(|exec| exec.pid == pid) {
                let mut details = ProcessDetails::new();
                details.exec_id.clone_from(&exec.exec_id);
                let mut info = Any::new();
                "containerd.runc.v1.ProcessDetails".clone_into(&mut info.type_url);
                info.value = details
                    .write_to_bytes()
                    .map_err(|error| status::refusal(Code::INTERNAL, error))?;
                process.info = Some(info).into();
            }
            response.processes.push(process);
        }
        Ok(response)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        if !request.exec_id.is_empty() {
            task.exec(&request.exec_id)?.kill(request.signal).await?;
            return Ok(Empty::new());
        }
        let phase = task.life().borrow().phase();
        if phase == Phase::Stopped {
            return Err(status::finished());
        }
        let process = task.container().process();
        status::signalled(process.signal(request.signal, request.all).await)?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let pod = Arc::clone(&self.pod);
        if request.exec_id.is_empty() {
            return to_the_end(async move { pod.delete(&request.id).await }).await;
        }
        let task = pod.task(&request.id)?;
        let mut response = DeleteResponse::new();
        response.pid = task.pid();
        let exit = to_the_end(async move { task.delete_exec(&request.exec_id).await }).await?;
        if let Some(exit) = exit {
            response.exit_status = exit.status.into();
            response.exited_at = status::timestamp(exit.at);
        }
        Ok(response)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        if !request.exec_id.is_empty() {
            let exec = task.exec(&request.exec_id)?;
            if request.stdin {
                exec.close_stdin();
            }
        } else if request.stdin {
            task.container().process().close_stdin();
        }
        Ok(Empty::new())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.task_pid = self.pod.task(&request.id).map_or(0, |task| task.pid());
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        let pod = Arc::clone(&self.pod);
        to_the_end(async move {
            pod.shut_down(request.now).await;
            Ok(Empty::new())
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        let spec = request.spec.into_option().unwrap_or_default();
        task.add_exec(ExecRequest {
            id: request.exec_id,
            namespace: self.pod.namespace().to_owned(),
            process: spec.value,
            stdio: Paths {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
        })?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        let rows = characters("height", request.height)?;
        let columns = characters("width", request.width)?;
        if !request.exec_id.is_empty() {
            task.exec(&request.exec_id)?.resize(rows, columns).await?;
        } else if task.stdio().terminal {
            task.container()
                .process()
                .resize(rows, columns)
                .await
                .map_err(|error| status::of(&error))?;
        }
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        to_the_end(async move { task.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        to_the_end(async move { task.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.pod.task(&request.id)?;
        Err(status::unimplemented("checkpoint"))
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let task = self.pod.task(&request.id)?;
        task.check(Request::Update)?;
        let resources = request.resources.into_option().unwrap_or_default();
        // The type is named differently by each version of containerd; the content says enough.
        if !serde_json::from_slice::<serde_json::Value>(&resources.value).is_ok_and(|value| value.is_object())
        {
            return Err(status::refusal(
                Code::INVALID_ARGUMENT,
                format!(
                    "resources: {:?} is not an OCI linux.resources in JSON",
                    resources.type_url
                ),
            ));
        }
        to_the_end(async move {
            task.container()
                .update(resources.value)
                .await
                .map_err(|error| status::of(&error))
        })
        .await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let task = self.pod.task(&request.id)?;
        let stats = task.container().stats().await.map_err(|error| gone(&error))?;
        let mut response = StatsResponse::new();
        response.stats = Some(metrics::any(stats)?).into();
        Ok(response)
    }
}
