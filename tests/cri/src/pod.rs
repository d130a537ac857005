//! Pods.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use k8s_cri::v1::{
    self, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatus,
};
use tonic::Status;

use crate::{
    api::{Cri, handler},
    container::ContainerRequest,
};

/// A mode as messages carry it.
#[must_use]
pub fn mode(mode: NamespaceMode) -> i32 {
    mode as i32
}

/// A pod of the runtime under test. It is stopped and removed, with all its containers, when this value goes.
pub struct Pod {
    /// containerd's id for it.
    pub id: String,
    /// What it was asked for with.
    pub config: PodSandboxConfig,
    next: AtomicU32,
}

impl Pod {
    /// Runs a pod as the kubelet does for one that asks for nothing special.
    ///
    /// # Panics
    /// containerd refuses.
    #[must_use]
    pub fn run() -> Self {
        Self::with(|_| ())
    }

    /// Runs a pod with changes to that.
    ///
    /// # Panics
    /// containerd refuses.
    #[must_use]
    pub fn with(change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        match Self::try_with(change) {
            Ok(pod) => pod,
            Err(status) => panic!("the pod does not run: {}", status.message()),
        }
    }

    /// The same, for what may be refused.
    ///
    /// # Errors
    /// What containerd answered.
    ///
    /// # Panics
    /// The directory of its logs can't be made.
    pub fn try_with(change: impl FnOnce(&mut PodSandboxConfig)) -> Result<Self, Box<Status>> {
        let mut config = Self::config();
        change(&mut config);
        fs::create_dir_all(&config.log_directory).expect("a directory for logs can be made");
        let answer = Cri::get().run_pod_sandbox(v1::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler().to_owned(),
        });
        Ok(Self {
            id: answer?.pod_sandbox_id,
            config,
            next: AtomicU32::new(0),
        })
    }

    /// A configuration of a new pod.
    #[must_use]
    pub fn config() -> PodSandboxConfig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pod{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let uid = format!("{name}-uid");
        PodSandboxConfig {
            hostname: name.clone(),
            log_directory: format!("/var/log/pods/{name}"),
            labels: HashMap::from([("app".to_owned(), name.clone())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/kubepods/{uid}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network: mode(NamespaceMode::Pod),
                        pid: mode(NamespaceMode::Container),
                        ipc: mode(NamespaceMode::Pod),
                        ..NamespaceOption::default()
                    }),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            metadata: Some(PodSandboxMetadata {
                name,
                uid,
                namespace: "cri-tests".to_owned(),
                attempt: 0,
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// The security context of a configuration.
    pub fn security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
        config
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
    }

    /// The namespaces of a configuration.
    pub fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
        Self::security(config).namespace_options.get_or_insert_default()
    }

    /// A container in this pod that executes `command`, of the busybox image.
    pub fn container(&self, command: &[&str]) -> ContainerRequest<'_> {
        let name = format!("c{}", self.next.fetch_add(1, Ordering::Relaxed));
        ContainerRequest::new(self, name, command)
    }

    /// The same with a script of the shell.
    pub fn sh(&self, script: &str) -> ContainerRequest<'_> {
        self.container(&["sh", "-c", script])
    }

    /// What containerd says of it.
    ///
    /// # Panics
    /// It does not know the pod.
    #[must_use]
    pub fn status(&self) -> PodSandboxStatus {
        self.try_status()
            .expect("the pod is known")
            .status
            .expect("it has a status")
    }

    /// The same, for a pod that may be gone.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn try_status(&self) -> Result<v1::PodSandboxStatusResponse, Box<Status>> {
        Cri::get().pod_sandbox_status(v1::PodSandboxStatusRequest {
            pod_sandbox_id: self.id.clone(),
            verbose: false,
        })
    }

    /// Whether it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status().state() == PodSandboxState::SandboxReady
    }

    /// Its address.
    ///
    /// # Panics
    /// It has none.
    #[must_use]
    pub fn ip(&self) -> String {
        self.status().network.expect("the pod has a network").ip
    }

    /// Stops it.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn stop(&self) -> Result<(), Box<Status>> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        Cri::get().stop_pod_sandbox(request).map(|_| ())
    }

    /// Removes it, with its containers.
    ///
    /// # Errors
    /// What containerd answered.
    pub fn remove(&self) -> Result<(), Box<Status>> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: self.id.clone(),
        };
        Cri::get().remove_pod_sandbox(request).map(|_| ())
    }

    /// Where the log of a container with this path is.
    #[must_use]
    pub fn log(&self, path: &str) -> PathBuf {
        PathBuf::from(&self.config.log_directory).join(path)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Nothing of a test that failed shall be in the next one's way; a pod that is gone already is no error.
        let _ = self.stop();
        let _ = self.remove();
        let _ = fs::remove_dir_all(&self.config.log_directory);
    }
}
