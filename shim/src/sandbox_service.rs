//! containerd's sandbox service: the requests, turned into calls.

use std::{sync::Arc, time::SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::{
    sandbox_api::{
        CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
        PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
        SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
        StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
        WaitSandboxResponse,
    },
    sandbox_async::Sandbox,
    ttrpc::{self, r#async::TtrpcContext},
};

use crate::{
    pod_sandbox::{Description, PodSandbox},
    service::to_the_end,
    status,
};

/// The service.
#[derive(Debug)]
pub struct SandboxService {
    sandbox: Arc<PodSandbox>,
}

impl SandboxService {
    /// Serves `sandbox`.
    #[must_use]
    pub fn new(sandbox: Arc<PodSandbox>) -> Self {
        Self { sandbox }
    }

    fn of(&self, id: &str) -> ttrpc::Result<Arc<PodSandbox>> {
        self.sandbox.check(id)?;
        Ok(Arc::clone(&self.sandbox))
    }
}

/// What Go calls the processors of this machine.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let sandbox = self.of(&request.sandbox_id)?;
        if !request.rootfs.is_empty() {
            return Err(status::refusal(
                ttrpc::Code::INVALID_ARGUMENT,
                "rootfs: a microVM has no root file system of its own",
            ));
        }
        let description = Description {
            netns: request.netns_path,
            options: request.options.into_option().unwrap_or_default(),
            annotations: request.annotations.into_iter().collect(),
        };
        to_the_end(async move { sandbox.create(description).await }).await?;
        Ok(CreateSandboxResponse::new())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = self.of(&request.sandbox_id)?;
        let mut response = StartSandboxResponse::new();
        response.pid = sandbox.pid();
        let started = to_the_end(async move { sandbox.start().await }).await?;
        response.created_at = status::timestamp(started);
        Ok(response)
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.of(&request.sandbox_id)?;
        let mut response = PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        "linux".clone_into(&mut platform.os);
        ARCHITECTURE.clone_into(&mut platform.architecture);
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let sandbox = self.of(&request.sandbox_id)?;
        to_the_end(async move {
            sandbox.stop().await;
            Ok(StopSandboxResponse::new())
        })
        .await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let exit = self.of(&request.sandbox_id)?.wait().await?;
        let mut response = WaitSandboxResponse::new();
        response.exit_status = exit.status.into();
        response.exited_at = status::timestamp(exit.at);
        Ok(response)
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let sandbox = self.of(&request.sandbox_id)?;
        let mut response = SandboxStatusResponse::new();
        response.pid = sandbox.pid();
        // CRI's names.
        let state = if sandbox.is_ready() {
            "SANDBOX_READY"
        } else {
            "SANDBOX_NOTREADY"
        };
        state.clone_into(&mut response.state);
        let (started, exit) = sandbox.times();
        if let Some(started) = started {
            response.created_at = status::timestamp(started);
        }
        if let Some(exit) = exit {
            response.exited_at = status::timestamp(exit.at);
        }
        response.sandbox_id = request.sandbox_id;
        Ok(response)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.of(&request.sandbox_id)?;
        Ok(PingResponse::new())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let sandbox = self.of(&request.sandbox_id)?;
        to_the_end(async move {
            sandbox.shut_down().await;
            Ok(ShutdownSandboxResponse::new())
        })
        .await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let data = self.of(&request.sandbox_id)?.metrics().await?;
        let mut response = SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = status::timestamp(SystemTime::now());
        metrics.id = request.sandbox_id;
        metrics.data = Some(data).into();
        Ok(response)
    }
}
