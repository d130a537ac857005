//! A pod's supervision, with this test in the place of the monitor and the agent.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use sealock_protocol::{
    agent::{
        Agent as AgentService, CreateContainerRequest, CreateContainerResponse, CreateSandboxRequest,
        CreateSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitContainerRequest,
        WaitContainerResponse, create_agent,
    },
    broker::{Answer, Request as Connect},
    control::{Event, ExitReason, Request},
    guest::HELLO_PORT,
    seqpacket::SeqPacket,
};
use tokio::{io::AsyncWriteExt, net::UnixStream};
use ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener};

use super::*;
use crate::{
    ContainerRequest,
    guest_process::KILLED,
    process::{self, Process, monotonic_deadline},
    size::Size,
    timeline::Timeline,
};

/// Records what it is asked, and never answers a wait.
#[derive(Clone, Default)]
struct FakeAgent(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl AgentService for FakeAgent {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        assert!(request.entropy.len() >= 64 && request.entropy.iter().any(|&byte| byte != 0));
        self.0
            .lock()
            .unwrap()
            .push(format!("sandbox {}", request.hostname));
        Ok(CreateSandboxResponse::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.0.lock().unwrap().push(format!("container {}", request.id));
        let mut response = CreateContainerResponse::new();
        response.pid = 5;
        Ok(response)
    }

    async fn wait_container(
        &self,
        _: &TtrpcContext,
        _: WaitContainerRequest,
    ) -> ttrpc::Result<WaitContainerResponse> {
        std::future::pending().await
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        _: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        self.0.lock().unwrap().push("stop".to_owned());
        Ok(StopSandboxResponse::new())
    }
}

/// The monitor's ends, and what is on the host.
struct Stage {
    control: AsyncSeqPacket,
    broker: AsyncSeqPacket,
    sandbox: Arc<Sandbox>,
    vmm: process::ProcessId,
    fsd: process::ProcessId,
    top: tempfile::TempDir,
}

fn sleeper() -> (Process, std::process::ChildStderr) {
    let (stdin, _) = std::io::pipe().unwrap();
    Process::start(Path::new("/bin/sleep"), &[Path::new("100")], stdin.into()).unwrap()
}

impl Stage {
    fn set(agent_timeout_ms: u32) -> Self {
        let top = tempfile::tempdir().unwrap();
        let text = format!(
            "agent_timeout_ms = {agent_timeout_ms}\nstate_dir = \"{}\"\n",
            top.path().join("state").display()
        );
        let config = Config::parse(&text, Path::new("/c"), Path::new("/usr")).unwrap();
        let dir = PodDir::create(config.state_dir(), "ns", "p1").unwrap();
        let uid = Uid::take(config.state_dir(), config.uids()).unwrap();
        let share = Share::create(dir.path().join("share")).expect("these tests need root");
        let (control, control_there) = SeqPacket::pair().unwrap();
        let (broker, broker_there) = SeqPacket::pair().unwrap();
        let (hello, hello_there) = std::os::unix::net::UnixStream::pair().unwrap();
        let ports = Ports::default();
        ports.offer_hello(hello_there.into());
        let ((vmm, vmm_stderr), (fsd, fsd_stderr)) = (sleeper(), sleeper());
        let (vmm_id, fsd_id) = (vmm.id(), fsd.id());
        let launched = Launched {
            network: None,
            vmm,
            fsd,
            share,
            cgroup: None,
            dir,
            uid,
            id: "p1".to_owned(),
            hostname: "host".to_owned(),
            size: Size {
                vcpus: 1,
                max_vcpus: 4,
                memory_mib: 128,
                max_memory_mib: 1024,
            },
            config,
            ports,
            hello,
            control,
            broker,
            vmm_stderr,
            fsd_stderr,
            timeline: Timeline::default(),
            template: None,
            order: None,
        };
        Self {
            sandbox: launched.supervise().unwrap(),
            control: AsyncSeqPacket::new(control_there).unwrap(),
            broker: AsyncSeqPacket::new(broker_there).unwrap(),
            vmm: vmm_id,
            fsd: fsd_id,
            top,
        }
    }

    /// Connects as the guest would, and says hello.
    async fn say_hello(&self, agent: &FakeAgent) -> (Server, std::os::unix::net::UnixStream) {
        let connect = Connect::Connect {
            id: 1,
            port: HELLO_PORT,
        };
        self.broker.send(&connect, &[]).await.unwrap();
        let (answer, mut fds) = self.broker.receive::<Answer>(512).await.unwrap();
        assert_eq!(answer, Answer::Accept { id: 1 });
        let stream = std::os::unix::net::UnixStream::from(fds.remove(0));
        stream.set_nonblocking(true).unwrap();
        let line = stream.try_clone().unwrap();
        let mut stream = UnixStream::from_std(stream).unwrap();
        let hello = br#"{"version":1,"init_ns":1,"hello_ns":2}"#;
        stream
            .write_all(&u32::try_from(hello.len()).unwrap().to_le_bytes())
            .await
            .unwrap();
        stream.write_all(hello).await.unwrap();
        // A listener that has one connection to give, and then waits.
        let mut stream = Some(stream);
        let connections = futures::stream::poll_fn(move |_| match stream.take() {
            Some(stream) => std::task::Poll::Ready(Some(Ok(stream))),
            None => std::task::Poll::Pending,
        });
        let mut server = Server::new()
            .add_listener(Listener::new(connections))
            .register_service(create_agent(Arc::new(agent.clone())));
        server.start().await.unwrap();
        (server, line)
    }

    fn kill(process: process::ProcessId) {
        process.kill(monotonic_deadline(Duration::from_secs(10))).unwrap();
    }

    fn assert_nothing_left(&self) {
        assert!(!self.vmm.is_alive() && !self.fsd.is_alive());
        let state = self.top.path().join("state");
        let left: Vec<_> = std::fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(left, [state.join(".uids")]);
        assert_eq!(std::fs::read_dir(state.join(".uids")).unwrap().count(), 0);
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        timeout(Duration::from_secs(60), test)
            .await
            .expect("the test hangs")
    });
}

fn request(top: &Path) -> ContainerRequest {
    let bundle = top.join("bundle");
    std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let spec = serde_json::json!({"root": {"path": "rootfs"}, "linux": {"namespaces": [{"type": "network"}, {"type": "pid"}, {"type": "ipc"}]}});
    std::fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    ContainerRequest {
        id: "c1".to_owned(),
        bundle,
        ..ContainerRequest::default()
    }
}

#[test]
fn a_pod_comes_up_and_is_stopped_in_order() {
    run(async {
        let stage = Stage::set(30_000);
        let agent = FakeAgent::default();
        let _server = stage.say_hello(&agent).await;
        let container = stage
            .sandbox
            .create_container(&request(stage.top.path()))
            .await
            .unwrap();
        assert_eq!(container.process().guest_pid(), 5);
        assert!(stage.sandbox.share().path().join("c1/rootfs").exists());
        stage.sandbox.stop().await.unwrap();
        stage.sandbox.stop().await.unwrap();
        assert_eq!(*agent.0.lock().unwrap(), ["sandbox host", "container c1", "stop"]);
        stage.assert_nothing_left();
        drop(container);
    });
}

#[test]
fn when_the_monitor_or_the_file_server_dies_its_containers_are_killed_at_once() {
    for victim in ["monitor", "file server"] {
        run(async {
            let stage = Stage::set(30_000);
            let agent = FakeAgent::default();
            let _server = stage.say_hello(&agent).await;
            let container = stage
                .sandbox
                .create_container(&request(stage.top.path()))
                .await
                .unwrap();
            Stage::kill(if victim == "monitor" { stage.vmm } else { stage.fsd });
            assert_eq!(container.wait().await.status, KILLED);
            let reason = stage.sandbox.ended().unwrap();
            assert!(reason.contains(victim) && reason.contains("signal 9"), "{reason}");
            assert!(matches!(stage.sandbox.ready().await, Err(Error::Ended(_))));
            stage.sandbox.stop().await.unwrap();
            stage.assert_nothing_left();
        });
    }
}

#[test]
fn a_lost_agent_takes_its_pod_along() {
    run(async {
        let stage = Stage::set(30_000);
        let agent = FakeAgent::default();
        let (_server, line) = stage.say_hello(&agent).await;
        let container = stage
            .sandbox
            .create_container(&request(stage.top.path()))
            .await
            .unwrap();
        line.shutdown(std::net::Shutdown::Both).unwrap();
        let exit = container.wait().await;
        assert_eq!(exit.status, KILLED);
        stage.sandbox.stop().await.unwrap();
        stage.assert_nothing_left();
    });
}

#[test]
fn a_silent_agent_is_given_up_with_the_consoles_last_words() {
    run(async {
        let stage = Stage::set(200);
        let began = Instant::now();
        let answer = async {
            let (asked, _) = stage.control.receive::<Request>(4096).await.unwrap();
            assert_eq!(asked, Request::ReadConsole);
            let tail = "one\ntwo\nthree\n\nKernel panic\x1b[0m - not syncing\n".to_owned();
            stage.control.send(&Event::Console { tail }, &[]).await.unwrap();
        };
        let ((), ready) = tokio::join!(answer, stage.sandbox.ready());
        let line = line(&ready.unwrap_err());
        assert!(line.contains("did not answer within"), "{line}");
        assert!(
            line.contains("two | three | Kernel panic [0m - not syncing"),
            "{line}"
        );
        assert!(began.elapsed() >= Duration::from_millis(200));
        stage.assert_nothing_left();
        let error = stage
            .sandbox
            .create_container(&request(stage.top.path()))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::NotStarted(_)));
        stage.sandbox.stop().await.unwrap();
    });
}

#[test]
fn what_a_monitor_says_last_is_passed_on() {
    run(async {
        let stage = Stage::set(30_000);
        let exited = Event::Exited {
            reason: ExitReason::Config,
            detail: "the kernel is not an ELF file".to_owned(),
            console: String::new(),
        };
        stage.control.send(&exited, &[]).await.unwrap();
        Stage::kill(stage.vmm);
        drop(stage.control);
        let line = line(&stage.sandbox.ready().await.unwrap_err());
        assert!(line.contains("the kernel is not an ELF file"), "{line}");
    });
}

#[test]
fn a_monitor_that_breaks_the_protocol_is_ended() {
    run(async {
        let stage = Stage::set(30_000);
        stage.broker.send(&"nonsense", &[]).await.unwrap();
        let reason = stage.sandbox.wait_ended().await;
        assert!(reason.contains("broke off"), "{reason}");
        assert!(stage.sandbox.ready().await.is_err());
        stage.assert_nothing_left();
    });
}

#[test]
fn nothing_is_left_when_a_launched_pod_is_dropped_with_its_runtime() {
    let stage = std::cell::RefCell::new(None);
    run(async {
        *stage.borrow_mut() = Some(Stage::set(30_000));
    });
    let Stage {
        sandbox,
        vmm,
        fsd,
        top,
        ..
    } = stage.into_inner().unwrap();
    drop(sandbox);
    assert!(!vmm.is_alive() && !fsd.is_alive());
    assert_eq!(std::fs::read_dir(top.path().join("state")).unwrap().count(), 1);
}
