//! The guest's agent as the host sees it: a hello, then one request a step, each with a deadline.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use sealock_protocol::{
    agent::{
        AgentClient, AwaitMemoryPressureRequest, Clock, ConnectPortRequest, ContainerStatsRequest,
        ContainerStatsResponse, CreateContainerRequest, CreateSandboxRequest, ExecPid, ExecProcessRequest,
        ListProcessesRequest, Network, NextEventRequest, PauseContainerRequest, RefreshVolumeRequest,
        RemoveContainerRequest, RemoveProcessRequest, ResizeSandboxRequest, ResizeTerminalRequest,
        RestRequest, ResumeContainerRequest, SignalContainerRequest, StartContainerRequest, Stdio,
        StopSandboxRequest, UpdateContainerRequest, UpdateNetworkRequest, WaitContainerRequest,
        next_event_response,
    },
    control::GuestClock,
    guest::{Hello, MAX_HELLO, VERSION},
    timeline::monotonic_ns,
};
use tokio::{io::AsyncReadExt, net::UnixStream};
use ttrpc::{
    asynchronous::{Client, transport::Socket},
    context::{self, Context},
    proto::Code,
};

use crate::{error::Kind, size::Size};

/// What is wrong with an agent, or what it finds wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection broke before or while the agent said hello.
    #[error("the guest's agent broke off its hello")]
    Broken(#[source] io::Error),
    /// Its hello is too long.
    #[error("the guest's agent said a hello of {0} bytes, more than {MAX_HELLO}")]
    TooLong(u32),
    /// Its hello is not one.
    #[error("the guest's agent said something that is not a hello")]
    Malformed(#[source] serde_json::Error),
    /// It is from another build.
    #[error(
        "the guest's agent speaks version {0}, this is version {VERSION}: install the initramfs and the shim together"
    )]
    Version(u32),
    /// It refused a request.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        kind: Kind,
        /// The agent's words, made one line.
        message: String,
    },
    /// It didn't answer in time.
    #[error("the guest's agent did not answer {request} within {} s", .deadline.as_secs_f64())]
    Deadline {
        /// The request.
        request: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// The connection is gone.
    #[error("the guest's agent went away during {request}: {reason}")]
    Gone {
        /// The request.
        request: &'static str,
        /// The transport's words.
        reason: String,
    },
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Deadline { .. } => Kind::DeadlineExceeded,
            Self::Gone { .. } => Kind::Unavailable,
            Self::Broken(_) | Self::TooLong(_) | Self::Malformed(_) | Self::Version(_) => Kind::Internal,
        }
    }

    /// Whether the agent can't be spoken to any longer.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}

/// When things happened in the guest, in the host's `CLOCK_MONOTONIC` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTimes {
    /// The kernel was entered.
    pub kernel_entered: u64,
    /// The agent's init began.
    pub agent_init: u64,
    /// The hello was received.
    pub hello: u64,
}

/// Reads the agent's hello from `stream`. The caller sets the deadline.
///
/// # Errors
/// It isn't a hello, or not one of this version.
pub async fn read_hello(stream: &mut UnixStream) -> Result<GuestTimes, Error> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(Error::Broken)?;
    let length = u32::from_le_bytes(length);
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > MAX_HELLO {
        return Err(Error::TooLong(length));
    }
    let mut body = vec![0; size];
    stream.read_exact(&mut body).await.map_err(Error::Broken)?;
    let received = monotonic_ns();
    let hello: Hello = serde_json::from_slice(&body).map_err(Error::Malformed)?;
    if hello.version != VERSION {
        return Err(Error::Version(hello.version));
    }
    // Numbers of the guest: whatever they are, they only make a wrong timeline.
    let kernel_entered = received.saturating_sub(hello.hello_ns);
    Ok(GuestTimes {
        kernel_entered,
        agent_init: kernel_entered.saturating_add(hello.init_ns).min(received),
        hello: received,
    })
}

/// Which process of the guest is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Of {
    /// The container's identifier.
    pub container: String,
    /// The exec's; empty for the container's first process.
    pub exec: String,
}

/// How a process of the guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As a shell reports it, at most 255.
    pub status: u8,
    /// How many of the container's processes have been killed for lack of memory so far.
    pub oom_kills: u64,
}

/// An agent that has said hello.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    deadline: Duration,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Speaks to the agent on `stream`, giving it `deadline` for each answer. To be called within a runtime.
    #[must_use]
    pub fn new(stream: UnixStream, deadline: Duration) -> Self {
        Self {
            client: AgentClient::new(Client::new(Socket::from(stream))),
            deadline,
        }
    }

    /// Has the guest let go of what a template is not to hold.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn rest(&self) -> Result<(), Error> {
        let answer = self.client.rest(self.within(), &RestRequest::new()).await;
        self.check("Rest", answer).map(drop)
    }

    /// Sets the pod up in a machine of `size`, with a network if it has one, and with a clock if it has been restored.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn create_sandbox(
        &self,
        hostname: &str,
        entropy: Vec<u8>,
        size: Size,
        network: Option<Network>,
        clock: Option<GuestClock>,
    ) -> Result<(), Error> {
        let mut request = CreateSandboxRequest::new();
        request.hostname = hostname.to_owned();
        request.entropy = entropy;
        request.network = network.into();
        request.clock = clock
            .map(|known| {
                let mut clock = Clock::new();
                clock.realtime_ns = known.realtime_ns;
                clock.tsc = known.tsc;
                clock.tsc_khz = known.tsc_khz;
                clock
            })
            .into();
        request.vcpus = size.vcpus.into();
        request.memory_mib = size.memory_mib;
        if size.max_memory_mib > size.memory_mib {
            request.max_memory_mib = size.max_memory_mib;
        }
        let answer = self.client.create_sandbox(self.within(), &request).await;
        self.check("CreateSandbox", answer).map(drop)
    }

    /// Changes the pod's network.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn update_network(&self, request: &UpdateNetworkRequest) -> Result<(), Error> {
        let answer = self.client.update_network(self.within(), request).await;
        self.check("UpdateNetwork", answer).map(drop)
    }

    /// Has a port of the guest connected with what is offered at `stream_port`.
    ///
    /// # Errors
    /// Nobody listens there, or the agent doesn't answer.
    pub async fn connect_port(&self, to: SocketAddr, stream_port: u32) -> Result<(), Error> {
        let mut request = ConnectPortRequest::new();
        request.address = match to.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        request.port = to.port().into();
        request.stream_port = stream_port;
        let answer = self.client.connect_port(self.within(), &request).await;
        self.check("ConnectPort", answer).map(drop)
    }

    /// Creates a container, or with `pause` the pod's own one. Returns its first process's number in the guest.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn create_container(
        &self,
        id: &str,
        spec: Vec<u8>,
        stdio: Stdio,
        pause: bool,
    ) -> Result<u32, Error> {
        let mut request = CreateContainerRequest::new();
        request.id = id.to_owned();
        request.spec = spec;
        request.stdio = Some(stdio).into();
        request.pause = pause;
        let answer = self.client.create_container(self.within(), &request).await;
        Ok(self.check("CreateContainer", answer)?.pid)
    }

    /// Lets a container's process run.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        let mut request = StartContainerRequest::new();
        request.id = id.to_owned();
        let answer = self.client.start_container(self.within(), &request).await;
        self.check("StartContainer", answer).map(drop)
    }

    /// Runs another process, an OCI `process` in JSON, in a running container. Returns its number in the guest.
    ///
    /// # Errors
    /// The program can't be executed, the agent refuses or doesn't answer.
    pub async fn exec_process(&self, of: &Of, process: Vec<u8>, stdio: Stdio) -> Result<u32, Error> {
        let mut request = ExecProcessRequest::new();
        request.id.clone_from(&of.container);
        request.exec_id.clone_from(&of.exec);
        request.process = process;
        request.stdio = Some(stdio).into();
        let answer = self.client.exec_process(self.within(), &request).await;
        Ok(self.check("ExecProcess", answer)?.pid)
    }

    /// Forgets an exec process that has ended.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn remove_process(&self, of: &Of) -> Result<(), Error> {
        let mut request = RemoveProcessRequest::new();
        request.id.clone_from(&of.container);
        request.exec_id.clone_from(&of.exec);
        let answer = self.client.remove_process(self.within(), &request).await;
        self.check("RemoveProcess", answer).map(drop)
    }

    /// Sets the size of a process's terminal, in characters.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn resize_terminal(&self, of: &Of, rows: u16, columns: u16) -> Result<(), Error> {
        let mut request = ResizeTerminalRequest::new();
        request.id.clone_from(&of.container);
        request.exec_id.clone_from(&of.exec);
        request.rows = rows.into();
        request.columns = columns.into();
        let answer = self.client.resize_terminal(self.within(), &request).await;
        self.check("ResizeTerminal", answer).map(drop)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn pause_container(&self, id: &str) -> Result<(), Error> {
        let mut request = PauseContainerRequest::new();
        request.id = id.to_owned();
        let answer = self.client.pause_container(self.within(), &request).await;
        self.check("PauseContainer", answer).map(drop)
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn resume_container(&self, id: &str) -> Result<(), Error> {
        let mut request = ResumeContainerRequest::new();
        request.id = id.to_owned();
        let answer = self.client.resume_container(self.within(), &request).await;
        self.check("ResumeContainer", answer).map(drop)
    }

    /// Changes a container's limits to an OCI `linux.resources` in JSON.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn update_container(&self, id: &str, resources: Vec<u8>) -> Result<(), Error> {
        let mut request = UpdateContainerRequest::new();
        request.id = id.to_owned();
        request.resources = resources;
        let answer = self.client.update_container(self.within(), &request).await;
        self.check("UpdateContainer", answer).map(drop)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn container_stats(&self, id: &str) -> Result<ContainerStatsResponse, Error> {
        let mut request = ContainerStatsRequest::new();
        request.id = id.to_owned();
        let answer = self.client.container_stats(self.within(), &request).await;
        self.check("ContainerStats", answer)
    }

    /// Waits, without a deadline, for something that happens by itself. `None` is something unknown.
    ///
    /// # Errors
    /// The agent refuses or goes away.
    pub async fn next_event(&self) -> Result<Option<next_event_response::Event>, Error> {
        let answer = self
            .client
            .next_event(Context::default(), &NextEventRequest::new())
            .await;
        Ok(self.check("NextEvent", answer)?.event)
    }

    /// Sends a signal to a process, or to all of its container's.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn signal(&self, of: &Of, signal: u32, all: bool) -> Result<(), Error> {
        let mut request = SignalContainerRequest::new();
        request.id.clone_from(&of.container);
        request.exec_id.clone_from(&of.exec);
        request.signal = signal;
        request.all = all;
        let answer = self.client.signal_container(self.within(), &request).await;
        self.check("SignalContainer", answer).map(drop)
    }

    /// Waits, without a deadline, for a process to end.
    ///
    /// # Errors
    /// The agent refuses or goes away.
    pub async fn wait(&self, of: &Of) -> Result<Ended, Error> {
        let mut request = WaitContainerRequest::new();
        request.id.clone_from(&of.container);
        request.exec_id.clone_from(&of.exec);
        let answer = self.client.wait_container(Context::default(), &request).await;
        let answer = self.check("WaitContainer", answer)?;
        Ok(Ended {
            status: u8::try_from(answer.exit_status).unwrap_or(u8::MAX),
            oom_kills: answer.oom_kills,
        })
    }

    /// The guest's numbers of a container's processes, and which of them have been started by exec; at most 65536 each.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn list_processes(&self, id: &str) -> Result<(Vec<u32>, Vec<ExecPid>), Error> {
        let mut request = ListProcessesRequest::new();
        request.id = id.to_owned();
        let answer = self.client.list_processes(self.within(), &request).await;
        let mut answer = self.check("ListProcesses", answer)?;
        answer.pids.truncate(65_536);
        answer.execs.truncate(65_536);
        Ok((answer.pids, answer.execs))
    }

    /// Removes a container.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn remove_container(&self, id: &str, force: bool) -> Result<(), Error> {
        let mut request = RemoveContainerRequest::new();
        request.id = id.to_owned();
        request.force = force;
        let answer = self.client.remove_container(self.within(), &request).await;
        self.check("RemoveContainer", answer).map(drop)
    }

    /// Says that a volume which the guest copies, known by its path below the share's root, has changed.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn refresh_volume(&self, source: &str) -> Result<(), Error> {
        let mut request = RefreshVolumeRequest::new();
        request.source = source.to_owned();
        let answer = self.client.refresh_volume(self.within(), &request).await;
        self.check("RefreshVolume", answer).map(drop)
    }

    /// Has the guest use `vcpus` CPUs and `memory_mib` MiB of memory, which its machine offers.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn resize_sandbox(&self, vcpus: u8, memory_mib: u32) -> Result<(), Error> {
        let mut request = ResizeSandboxRequest::new();
        request.vcpus = vcpus.into();
        request.memory_mib = memory_mib;
        let answer = self.client.resize_sandbox(self.within(), &request).await;
        self.check("ResizeSandbox", answer).map(drop)
    }

    /// Waits, without a deadline, until the guest needs more than the `memory_mib` MiB it has, and returns what it wants.
    ///
    /// # Errors
    /// The agent refuses or goes away.
    pub async fn await_memory_pressure(&self, memory_mib: u32) -> Result<u32, Error> {
        let mut request = AwaitMemoryPressureRequest::new();
        request.memory_mib = memory_mib;
        let answer = self
            .client
            .await_memory_pressure(Context::default(), &request)
            .await;
        Ok(self.check("AwaitMemoryPressure", answer)?.memory_mib)
    }

    /// Ends the pod, with what it has written on the host's side.
    ///
    /// # Errors
    /// The agent refuses or doesn't answer.
    pub async fn stop_sandbox(&self) -> Result<(), Error> {
        let answer = self
            .client
            .stop_sandbox(self.within(), &StopSandboxRequest::new())
            .await;
        self.check("StopSandbox", answer).map(drop)
    }

    fn within(&self) -> Context {
        context::with_duration(self.deadline)
    }

    fn check<T>(&self, request: &'static str, answer: ttrpc::Result<T>) -> Result<T, Error> {
        answer.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => {
                let kind = match status.code() {
                    Code::NOT_FOUND => Kind::NotFound,
                    Code::ALREADY_EXISTS => Kind::AlreadyExists,
                    Code::FAILED_PRECONDITION => Kind::FailedPrecondition,
                    Code::INVALID_ARGUMENT => Kind::InvalidArgument,
                    Code::UNIMPLEMENTED => Kind::Unimplemented,
                    Code::DEADLINE_EXCEEDED => {
                        return Error::Deadline {
                            request,
                            deadline: self.deadline,
                        };
                    }
                    _ => Kind::Internal,
                };
                Error::Refused {
                    kind,
                    message: printable(&status.message, 1024),
                }
            }
            error => Error::Gone {
                request,
                reason: printable(&error.to_string(), 256),
            },
        })
    }
}

/// A guest's words for a person's eyes: at most `most` characters of one line, without control characters.
#[must_use]
pub fn printable(text: &str, most: usize) -> String {
    text.trim_end()
        .chars()
        .take(most)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn hello(bytes: Vec<u8>) -> Result<GuestTimes, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut guest, mut host) = UnixStream::pair().unwrap();
            guest.write_all(&bytes).await.unwrap();
            drop(guest);
            read_hello(&mut host).await
        })
    }

    fn frame(body: &str) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.extend_from_slice(body.as_bytes());
        frame
    }

    #[test]
    fn a_hello_tells_when_the_guest_began() {
        let times = hello(frame(r#"{"version":1,"init_ns":600,"hello_ns":1000}"#)).unwrap();
        assert_eq!(times.hello - times.kernel_entered, 1000);
        assert_eq!(times.hello - times.agent_init, 400);
    }

    #[test]
    fn numbers_of_a_lying_guest_only_spoil_its_timeline() {
        let body = format!(r#"{{"version":1,"init_ns":{0},"hello_ns":{0}}}"#, u64::MAX);
        let times = hello(frame(&body)).unwrap();
        assert_eq!(times.kernel_entered, 0);
        assert!(times.agent_init <= times.hello);
    }

    #[test]
    fn what_is_not_a_hello_is_refused() {
        assert!(matches!(hello(vec![]), Err(Error::Broken(_))));
        assert!(matches!(hello(vec![1, 0, 0]), Err(Error::Broken(_))));
        assert!(matches!(hello(vec![10, 0, 0, 0, b'{']), Err(Error::Broken(_))));
        assert!(matches!(
            hello(u32::MAX.to_le_bytes().to_vec()),
            Err(Error::TooLong(u32::MAX))
        ));
        assert!(matches!(
            hello(4097_u32.to_le_bytes().to_vec()),
            Err(Error::TooLong(4097))
        ));
        assert!(matches!(hello(frame("hello")), Err(Error::Malformed(_))));
        assert!(matches!(
            hello(frame(r#"{"version":1,"init_ns":1,"hello_ns":1,"more":1}"#)),
            Err(Error::Malformed(_))
        ));
        assert!(matches!(
            hello(frame(r#"{"version":2,"init_ns":1,"hello_ns":1}"#)),
            Err(Error::Version(2))
        ));
    }

    #[test]
    fn a_guests_words_are_made_fit_to_print() {
        assert_eq!(printable("a\x1b[31mb\nc\0\n", 100), "a [31mb c ");
        assert_eq!(printable(&"x".repeat(50), 10), "xxxxxxxxxx");
    }
}
