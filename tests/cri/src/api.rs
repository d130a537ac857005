//! The connection to containerd.

use std::{env, io, path::Path, sync::LazyLock, time::Duration};

use hyper_util::rt::TokioIo;
use k8s_cri::v1::{self, runtime_service_client::RuntimeServiceClient};
use tokio::{net::UnixStream, runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// The longest that one request may take: everything is slow in an emulated machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The runtime handler under test, from `CRI_HANDLER`; "sealock" without it.
#[must_use]
pub fn handler() -> &'static str {
    static HANDLER: LazyLock<String> =
        LazyLock::new(|| env::var("CRI_HANDLER").unwrap_or_else(|_| "sealock".to_owned()));
    &HANDLER
}

/// containerd's runtime service.
pub struct Cri {
    executor: runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
}

impl Cri {
    /// The connection that all tests share; it is made again by itself when containerd was restarted.
    ///
    /// # Panics
    /// There is no executor to be had.
    #[must_use]
    pub fn get() -> &'static Self {
        static CRI: LazyLock<Cri> = LazyLock::new(|| Cri::to("/run/containerd/containerd.sock"));
        &CRI
    }

    fn to(socket: &'static str) -> Self {
        let executor = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads can be started");
        let connector = tower::service_fn(move |_: Uri| async move {
            Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(Path::new(socket)).await?))
        });
        let channel = {
            let _inside = executor.enter();
            // The address is not used: the connector knows the socket.
            Endpoint::from_static("http://containerd")
                .timeout(DEADLINE)
                .connect_with_connector_lazy(connector)
        };
        // Verbose states of containers with long commands are long.
        let client = RuntimeServiceClient::new(channel).max_decoding_message_size(64 << 20);
        Self { executor, client }
    }
}

macro_rules! calls {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        impl Cri {
            $(
                #[doc = concat!("The call ", stringify!($name), " of the interface.")]
                ///
                /// # Errors
                /// What containerd answered.
                pub fn $name(&self, request: v1::$request) -> Result<v1::$response, Box<Status>> {
                    let mut client = self.client.clone();
                    let answer = self.executor.block_on(client.$name(request));
                    Ok(answer.map_err(Box::new)?.into_inner())
                }
            )*
        }
    };
}

calls! {
    version(VersionRequest) -> VersionResponse;
    status(StatusRequest) -> StatusResponse;
    run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    create_container(CreateContainerRequest) -> CreateContainerResponse;
    start_container(StartContainerRequest) -> StartContainerResponse;
    stop_container(StopContainerRequest) -> StopContainerResponse;
    remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    list_containers(ListContainersRequest) -> ListContainersResponse;
    container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    exec(ExecRequest) -> ExecResponse;
    attach(AttachRequest) -> AttachResponse;
    port_forward(PortForwardRequest) -> PortForwardResponse;
}
