//! The ttrpc service: requests, turned into calls.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use sealock_protocol::agent::{
    Agent, AwaitMemoryPressureRequest, AwaitMemoryPressureResponse, CloseStdinRequest, CloseStdinResponse,
    ConnectPortRequest, ConnectPortResponse, ContainerStatsRequest, ContainerStatsResponse,
    CreateContainerRequest, CreateContainerResponse, CreateSandboxRequest, CreateSandboxResponse, ExecPid,
    ExecProcessRequest, ExecProcessResponse, ListProcessesRequest, ListProcessesResponse, NextEventRequest,
    NextEventResponse, PauseContainerRequest, PauseContainerResponse, RefreshVolumeRequest,
    RefreshVolumeResponse, RemoveContainerRequest, RemoveContainerResponse, RemoveProcessRequest,
    RemoveProcessResponse, ResizeSandboxRequest, ResizeSandboxResponse, ResizeTerminalRequest,
    ResizeTerminalResponse, RestRequest, RestResponse, ResumeContainerRequest, ResumeContainerResponse,
    SignalContainerRequest, SignalContainerResponse, StartContainerRequest, StartContainerResponse,
    StopSandboxRequest, StopSandboxResponse, UpdateContainerRequest, UpdateContainerResponse,
    UpdateNetworkRequest, UpdateNetworkResponse, WaitContainerRequest, WaitContainerResponse,
};
use tokio::task::spawn_blocking;
use ttrpc::r#async::TtrpcContext;

use super::{error::Error, network::connect_port, pod::Pod, restore};

/// Answers the host.
#[derive(Debug)]
pub struct Service {
    pod: Arc<Pod>,
}

impl Service {
    /// On behalf of a pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { pod }
    }
}

/// Does to the end what must not be left half done: ttrpc drops a handler when the caller's deadline has passed.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        // A panic ends the program, and nobody cancels.
        Err(error) => Err(Error::Setup(error.to_string())),
    }
}

/// Process ids are.
fn positive(pid: i32) -> u32 {
    u32::try_from(pid).unwrap_or(0)
}

#[async_trait]
impl Agent for Service {
    async fn rest(&self, _: &TtrpcContext, _: RestRequest) -> ttrpc::Result<RestResponse> {
        restore::rest()?;
        Ok(RestResponse::new())
    }

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.pod.set_up(&request)?;
        self.pod.around.machine.set_up(&request)?;
        Ok(CreateSandboxResponse::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let pod = Arc::clone(&self.pod);
        let pid = to_the_end(async move { pod.create(&request).await }).await?;
        let mut response = CreateContainerResponse::new();
        response.pid = positive(pid);
        Ok(response)
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let container = self.pod.container(&request.id)?;
        // A program may look at once how many CPUs it has.
        self.pod.around.machine.processors_online().await?;
        to_the_end(async move { container.start().await }).await?;
        Ok(StartContainerResponse::new())
    }

    async fn signal_container(
        &self,
        _: &TtrpcContext,
        request: SignalContainerRequest,
    ) -> ttrpc::Result<SignalContainerResponse> {
        let number = i32::try_from(request.signal)
            .ok()
            .filter(|number| (1..=64).contains(number))
            .ok_or_else(|| Error::Argument(format!("signal: {} is not between 1 and 64", request.signal)))?;
        let container = self.pod.container(&request.id)?;
        if request.all {
            container.signal_all(number)?;
        } else {
            container.process(&request.exec_id)?.signal(number)?;
        }
        Ok(SignalContainerResponse::new())
    }

    async fn wait_container(
        &self,
        _: &TtrpcContext,
        request: WaitContainerRequest,
    ) -> ttrpc::Result<WaitContainerResponse> {
        let process = self.pod.container(&request.id)?.process(&request.exec_id)?;
        let ended = process.wait().await.ok_or(Error::NoProcess)?;
        let mut response = WaitContainerResponse::new();
        response.exit_status = ended.exit.status.into();
        response.exited_at_ns = ended.exit.at_ns;
        response.oom_kills = ended.oom_kills;
        Ok(response)
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let mut response = ListProcessesResponse::new();
        let container = self.pod.container(&request.id)?;
        response.pids = container.processes()?;
        for (pid, exec_id) in container.running_execs() {
            let mut exec = ExecPid::new();
            exec.pid = positive(pid);
            exec.exec_id = exec_id;
            response.execs.push(exec);
        }
        Ok(response)
    }

    async fn close_stdin(
        &self,
        _: &TtrpcContext,
        request: CloseStdinRequest,
    ) -> ttrpc::Result<CloseStdinResponse> {
        let container = self.pod.container(&request.id)?;
        container.process(&request.exec_id)?.close_stdin();
        Ok(CloseStdinResponse::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ExecProcessResponse> {
        let pod = Arc::clone(&self.pod);
        let pid = to_the_end(async move { pod.exec(&request).await }).await?;
        let mut response = ExecProcessResponse::new();
        response.pid = positive(pid);
        Ok(response)
    }

    async fn remove_process(
        &self,
        _: &TtrpcContext,
        request: RemoveProcessRequest,
    ) -> ttrpc::Result<RemoveProcessResponse> {
        self.pod
            .container(&request.id)?
            .remove_process(&request.exec_id)?;
        Ok(RemoveProcessResponse::new())
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<ResizeTerminalResponse> {
        let size = |field: &str, value: u32| {
            u16::try_from(value).map_err(|_| Error::Argument(format!("{field}: {value} is more than 65535")))
        };
        let (rows, columns) = (size("rows", request.rows)?, size("columns", request.columns)?);
        let container = self.pod.container(&request.id)?;
        container.process(&request.exec_id)?.resize(rows, columns)?;
        Ok(ResizeTerminalResponse::new())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<PauseContainerResponse> {
        let container = self.pod.container(&request.id)?;
        to_the_end(async move { container.pause().await }).await?;
        Ok(PauseContainerResponse::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<ResumeContainerResponse> {
        let container = self.pod.container(&request.id)?;
        to_the_end(async move { container.resume().await }).await?;
        Ok(ResumeContainerResponse::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        self.pod.container(&request.id)?.update(&request.resources)?;
        Ok(UpdateContainerResponse::new())
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerStatsRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        Ok(self.pod.container(&request.id)?.stats())
    }

    async fn refresh_volume(
        &self,
        _: &TtrpcContext,
        request: RefreshVolumeRequest,
    ) -> ttrpc::Result<RefreshVolumeResponse> {
        let pod = Arc::clone(&self.pod);
        to_the_end(async move { pod.around.volumes.refresh(&request.source).await }).await?;
        Ok(RefreshVolumeResponse::new())
    }

    async fn next_event(&self, _: &TtrpcContext, _: NextEventRequest) -> ttrpc::Result<NextEventResponse> {
        Ok(self.pod.around.events.next().await)
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<RemoveContainerResponse> {
        let pod = Arc::clone(&self.pod);
        to_the_end(async move { pod.remove(&request.id, request.force).await }).await?;
        Ok(RemoveContainerResponse::new())
    }

    async fn resize_sandbox(
        &self,
        _: &TtrpcContext,
        request: ResizeSandboxRequest,
    ) -> ttrpc::Result<ResizeSandboxResponse> {
        let machine = Arc::clone(&self.pod.around.machine);
        to_the_end(async move { machine.resize(request.vcpus, request.memory_mib).await }).await?;
        Ok(ResizeSandboxResponse::new())
    }

    async fn await_memory_pressure(
        &self,
        _: &TtrpcContext,
        request: AwaitMemoryPressureRequest,
    ) -> ttrpc::Result<AwaitMemoryPressureResponse> {
        let mut response = AwaitMemoryPressureResponse::new();
        response.memory_mib = self.pod.around.machine.pressure(request.memory_mib).await;
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        _: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let pod = Arc::clone(&self.pod);
        to_the_end(async move { pod.stop().await }).await?;
        Ok(StopSandboxResponse::new())
    }

    async fn update_network(
        &self,
        _: &TtrpcContext,
        request: UpdateNetworkRequest,
    ) -> ttrpc::Result<UpdateNetworkResponse> {
        let pod = Arc::clone(&self.pod);
        to_the_end(async move {
            spawn_blocking(move || pod.update_network(&request))
                .await
                .unwrap_or_else(|error| Err(Error::Setup(error.to_string())))
        })
        .await?;
        Ok(UpdateNetworkResponse::new())
    }

    async fn connect_port(
        &self,
        _: &TtrpcContext,
        request: ConnectPortRequest,
    ) -> ttrpc::Result<ConnectPortResponse> {
        connect_port(&request).await?;
        Ok(ConnectPortResponse::new())
    }
}
