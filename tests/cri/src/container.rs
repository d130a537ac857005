//! Containers.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use k8s_cri::v1::{
    self, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ImageSpec, Int64Value,
    KeyValue, LinuxContainerResources, LinuxContainerSecurityContext, Mount, MountPropagation,
    NamespaceOption,
};
use tonic::Status;

use crate::{api::Cri, log, pod::Pod};

/// The image of containers that ask for no other.
const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// The longest wait for something that a container does.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process wrote, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Its exit code.
    pub code: i32,
}

impl Output {
    /// Standard output without its last newline, of a process that ended well.
    ///
    /// # Panics
    /// It did not.
    #[must_use]
    pub fn text(&self) -> &str {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout.strip_suffix('\n').unwrap_or(&self.stdout)
    }
}

/// What the kubelet has masked, and made read-only, in containers that aren't privileged and don't ask for it (`procMount: Default`).
const MASKED: [&str; 8] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/sys/firmware",
];
/// As [`MASKED`].
const READ_ONLY: [&str; 6] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/scsi",
];

/// Words as the interface takes them.
#[must_use]
pub fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// A container to be created.
#[must_use]
pub struct ContainerRequest<'p> {
    pod: &'p Pod,
    config: ContainerConfig,
}

impl<'p> ContainerRequest<'p> {
    pub(crate) fn new(pod: &'p Pod, name: String, command: &[&str]) -> Self {
        // A container of the kubelet's has its pod's namespaces.
        let namespaces = pod
            .config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref())
            .and_then(|security| security.namespace_options.clone());
        let mut request = Self {
            pod,
            config: ContainerConfig {
                log_path: format!("{name}.log"),
                metadata: Some(ContainerMetadata { name, attempt: 0 }),
                image: Some(ImageSpec {
                    image: BUSYBOX.to_owned(),
                    ..ImageSpec::default()
                }),
                command: words(command),
                ..ContainerConfig::default()
            },
        };
        let security = request.security_mut();
        security.namespace_options = namespaces;
        security.masked_paths = words(&MASKED);
        security.readonly_paths = words(&READ_ONLY);
        request
    }

    /// Changes what is asked for.
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes the security context.
    pub fn security(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        change(self.security_mut());
        self
    }

    /// Changes the namespaces.
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.security(|security| change(security.namespace_options.get_or_insert_default()))
    }

    /// Changes the limits.
    pub fn limits(mut self, change: impl FnOnce(&mut LinuxContainerResources)) -> Self {
        change(
            self.config
                .linux
                .get_or_insert_default()
                .resources
                .get_or_insert_default(),
        );
        self
    }

    fn security_mut(&mut self) -> &mut LinuxContainerSecurityContext {
        self.config
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
    }

    /// Of another image.
    pub fn image(mut self, name: &str) -> Self {
        self.config.image.get_or_insert_default().image = name.to_owned();
        self
    }

    /// As this user.
    pub fn user(self, uid: i64) -> Self {
        self.security(|security| security.run_as_user = Some(Int64Value { value: uid }))
    }

    /// With this environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue {
            key: key.to_owned(),
            value: value.to_owned(),
        });
        self
    }

    /// With this path of the host mounted, to be written.
    pub fn mount(self, host: &str, path: &str) -> Self {
        self.mount_with(host, path, |_| ())
    }

    /// The same with changes.
    pub fn mount_with(mut self, host: &str, path: &str, change: impl FnOnce(&mut Mount)) -> Self {
        let mut mount = Mount {
            host_path: host.to_owned(),
            container_path: path.to_owned(),
            propagation: MountPropagation::PropagationPrivate as i32,
            ..Mount::default()
        };
        change(&mut mount);
        self.config.mounts.push(mount);
        self
    }

    /// Creates it, for what may be refused.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn try_create(self) -> Result<Container<'p>, Box<Status>> {
        let answer = Cri::get().create_container(v1::CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        });
        Ok(Container {
            id: answer?.container_id,
            pod: self.pod,
            config: self.config,
        })
    }

    /// Creates it.
    ///
    /// # Panics
    /// containerd refuses.
    #[must_use]
    pub fn create(self) -> Container<'p> {
        match self.try_create() {
            Ok(container) => container,
            Err(status) => panic!("the container is not created: {}", status.message()),
        }
    }

    /// Creates and starts it, for what may be refused.
    ///
    /// # Errors
    /// What containerd answered to either.
    pub fn try_start(self) -> Result<Container<'p>, Box<Status>> {
        let container = self.try_create()?;
        container.start()?;
        Ok(container)
    }

    /// Creates and starts it.
    ///
    /// # Panics
    /// containerd refuses.
    #[must_use]
    pub fn start(self) -> Container<'p> {
        match self.try_start() {
            Ok(container) => container,
            Err(status) => panic!("the container does not start: {}", status.message()),
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// containerd refuses, or it does not end.
    #[must_use]
    pub fn output(self) -> Output {
        let container = self.start();
        let code = container.wait().exit_code;
        let lines = container.lines();
        Output {
            stdout: log::text_of(&lines, "stdout"),
            stderr: log::text_of(&lines, "stderr"),
            code,
        }
    }
}

/// A container. It goes with its pod.
pub struct Container<'p> {
    /// containerd's id for it.
    pub id: String,
    /// What it was asked for with.
    pub config: ContainerConfig,
    pod: &'p Pod,
}

impl Container<'_> {
    /// Starts it.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn start(&self) -> Result<(), Box<Status>> {
        let request = v1::StartContainerRequest {
            container_id: self.id.clone(),
        };
        Cri::get().start_container(request).map(|_| ())
    }

    /// Stops it: by its stop signal, and after so many seconds by SIGKILL.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn stop(&self, timeout: i64) -> Result<(), Box<Status>> {
        let request = v1::StopContainerRequest {
            container_id: self.id.clone(),
            timeout,
        };
        Cri::get().stop_container(request).map(|_| ())
    }

    /// Removes it.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn remove(&self) -> Result<(), Box<Status>> {
        let request = v1::RemoveContainerRequest {
            container_id: self.id.clone(),
        };
        Cri::get().remove_container(request).map(|_| ())
    }

    /// What containerd says of it.
    ///
    /// # Panics
    /// It does not know the container.
    #[must_use]
    pub fn status(&self) -> ContainerStatus {
        self.try_status().expect("the container is known")
    }

    /// The same, for a container that may be gone.
    ///
    /// # Errors
    /// What containerd answered.
    ///
    /// # Panics
    /// The answer is empty.
    pub fn try_status(&self) -> Result<ContainerStatus, Box<Status>> {
        let answer = Cri::get().container_status(v1::ContainerStatusRequest {
            container_id: self.id.clone(),
            verbose: false,
        });
        Ok(answer?.status.expect("an answer has a status"))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// It does not come within a minute.
    #[allow(
        clippy::must_use_candidate,
        reason = "often only the end itself is waited for"
    )]
    pub fn wait(&self) -> ContainerStatus {
        let mut last = None;
        self.until("its end", || {
            let status = self.status();
            let ended = status.state() == ContainerState::ContainerExited;
            last = Some(status);
            ended
        });
        last.expect("it has been looked at")
    }

    /// Waits for something about it to become true.
    ///
    /// # Panics
    /// It does not within a minute: `what` names it.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "waited in vain for {what}; {:?}; log: {:?}",
                self.try_status(),
                self.log()
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for its log to have a line with this text.
    ///
    /// # Panics
    /// It does not within a minute.
    pub fn until_logged(&self, text: &str) {
        self.until(text, || self.log().contains(text));
    }

    /// Executes a command in it.
    ///
    /// # Panics
    /// containerd refuses.
    #[must_use]
    pub fn exec(&self, command: &[&str]) -> Output {
        match self.try_exec(command, 60) {
            Ok(output) => output,
            Err(status) => panic!(
                "{command:?} is not executed: {}; log: {:?}",
                status.message(),
                self.log()
            ),
        }
    }

    /// Executes a script of the shell in it.
    ///
    /// # Panics
    /// containerd refuses.
    #[must_use]
    pub fn sh(&self, script: &str) -> Output {
        self.exec(&["sh", "-c", script])
    }

    /// Executes a command in it, with a timeout in seconds.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn try_exec(&self, command: &[&str], timeout: i64) -> Result<Output, Box<Status>> {
        let answer = Cri::get().exec_sync(v1::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout,
        })?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            code: answer.exit_code,
        })
    }

    /// Where its log is.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.pod.log(&self.config.log_path)
    }

    /// What it has logged until now.
    #[must_use]
    pub fn lines(&self) -> Vec<log::Line> {
        log::read_log(&self.log_path())
    }

    /// What it has logged on standard output until now.
    #[must_use]
    pub fn log(&self) -> String {
        log::text_of(&self.lines(), "stdout")
    }
}
