//! The shim itself: starts the pod's machine, serves containerd until it wants no more, undoes everything.

use std::{os::unix::net::UnixListener, path::PathBuf, sync::Arc, time::Duration};

use containerd_shim_protos::{
    sandbox_async::create_sandbox,
    shim_async::create_task,
    ttrpc::r#async::{Server, transport::Listener},
};
use sealock_sandbox::{
    Config, Error, PodRequest, Timeline,
    error::line,
    launch::{Launched, launch},
};
use serde_json::Value;
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{
    address::Address, events::Events, log, pod::Pod, pod_sandbox::PodSandbox,
    sandbox_service::SandboxService, service::Service,
};

/// The service's name for containerd 2, and as it is generated.
const TASK_V3: &str = "containerd.task.v3.Task";

/// Its name for containerd 1.7: the messages are the same.
const TASK_V2: &str = "containerd.task.v2.Task";

/// How long the last answers and events may take to reach containerd.
const FAREWELL: Duration = Duration::from_secs(10);

/// What a shim is started with.
#[derive(Debug)]
pub struct Shim {
    /// The socket it serves.
    pub listener: UnixListener,
    /// Where that is.
    pub address: Address,
    /// The first container's bundle.
    pub bundle: PathBuf,
    /// The first container's specification; none where the pod is made by the sandbox API.
    pub spec: Option<Value>,
    /// containerd's namespace.
    pub namespace: String,
    /// The pod's identifier.
    pub pod: String,
    /// Whether to log everything.
    pub debug: bool,
    /// The start so far.
    pub timeline: Timeline,
}

impl Shim {
    /// Serves until containerd wants no more. To be called on the process's only thread.
    pub fn run(self) {
        let config = Config::load();
        let level = match &config {
            _ if self.debug => sealock_sandbox::config::LogLevel::Debug,
            Ok(config) => config.log_level(),
            Err(_) => sealock_sandbox::config::LogLevel::Info,
        };
        log::start(&self.bundle, level);
        // Nothing is to be relative to the bundle, nor to keep it busy.
        let _ = std::env::set_current_dir("/");
        // Before there is a runtime: the machine starts while containerd still reads our address.
        let launched = self.spec.as_ref().map(|spec| {
            let request = PodRequest {
                namespace: &self.namespace,
                id: &self.pod,
                spec,
            };
            let timeline = self.timeline.clone();
            config
                .map_err(Error::from)
                .and_then(|config| launch(&config, request, timeline))
        });
        let served = Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| {
                runtime.block_on(serve(
                    self.listener,
                    launched,
                    &self.namespace,
                    &self.pod,
                    self.timeline,
                ))
            });
        if let Err(error) = served {
            tracing::error!(error = line(&error), "cannot serve containerd");
        }
        if let Err(error) = self.address.remove() {
            tracing::warn!(error = line(&error), "cannot remove the shim's socket");
        }
    }
}

async fn serve(
    listener: UnixListener,
    launched: Option<Result<Launched, Error>>,
    namespace: &str,
    id: &str,
    timeline: Timeline,
) -> std::io::Result<()> {
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let pod = Arc::new(Pod::new(namespace, Arc::new(Events::start(&address, namespace))));
    if let Some(launched) = launched {
        pod.run_on(launched.and_then(Launched::supervise).map_err(|error| {
            tracing::error!(error = line(&error), "the pod did not start");
            Arc::new(error)
        }));
    }
    let service = Arc::new(Service::new(Arc::clone(&pod)));
    let mut methods = create_task(service.clone());
    if let Some(same) = create_task(service).remove(TASK_V3) {
        methods.insert(TASK_V2.to_owned(), same);
    }
    let sandbox = Arc::new(PodSandbox::new(Arc::clone(&pod), id, timeline));
    methods.extend(create_sandbox(Arc::new(SandboxService::new(sandbox))));
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener)?)
        .register_service(methods);
    server.start().await.map_err(std::io::Error::other)?;

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = pod.wait_shutdown() => {}
        _ = terminate.recv() => tracing::info!("told to end by a signal"),
        _ = interrupt.recv() => tracing::info!("told to end by a signal"),
    }
    pod.stop().await;
    // As long as we are connected nobody takes us for dead and tells containerd about it again.
    pod.events().flush(FAREWELL).await;
    let _ = timeout(FAREWELL, server.shutdown()).await;
    Ok(())
}
