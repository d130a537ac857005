//! A pod whose life is governed by containerd's sandbox API: it begins and ends by request, with or without tasks.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use containerd_shim_protos::{
    protobuf::well_known_types::any::Any,
    ttrpc::{self, Code},
};
use sealock_sandbox::{
    Config, Container, Error, Exit, PodRequest, Sandbox, Timeline,
    error::line,
    launch::{Launched, launch},
};
use serde_json::Value;
use tokio::sync::watch;

use crate::{metrics, pod::Pod, pod_config, status};

/// What containerd gives to make a pod from.
#[derive(Debug)]
pub struct Description {
    /// Its network namespace; empty for one of its own, without interfaces.
    pub netns: String,
    /// Kubernetes' description.
    pub options: Any,
    /// More annotations.
    pub annotations: Vec<(String, String)>,
}

/// How a pod is doing.
#[derive(Clone, Debug)]
pub struct State {
    /// The specification that it was made from.
    spec: Option<Value>,
    /// When it was started.
    started: Option<SystemTime>,
    /// How it ended.
    exit: Option<Exit>,
}

/// A pod under the sandbox API.
#[derive(Debug)]
pub struct PodSandbox {
    pod: Arc<Pod>,
    id: String,
    timeline: Timeline,
    state: watch::Sender<State>,
    /// What the pod's containers share is held by this one, of which containerd knows nothing.
    pause: Mutex<Option<Arc<Container>>>,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl PodSandbox {
    /// The pod `id`, not yet created; `timeline` is its start so far.
    #[must_use]
    pub fn new(pod: Arc<Pod>, id: &str, timeline: Timeline) -> Self {
        Self {
            pod,
            id: id.to_owned(),
            timeline,
            state: watch::Sender::new(State {
                spec: None,
                started: None,
                exit: None,
            }),
            pause: Mutex::default(),
            one_at_a_time: tokio::sync::Mutex::new(()),
        }
    }

    fn pause(&self) -> MutexGuard<'_, Option<Arc<Container>>> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails unless `id` is this pod's.
    ///
    /// # Errors
    /// It isn't.
    pub fn check(&self, id: &str) -> ttrpc::Result<()> {
        if id == self.id {
            Ok(())
        } else {
            Err(status::not_found(&format!("sandbox {id:?} is not served here")))
        }
    }

    /// The pod's number on the host; 0 when it has no machine.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pod.machine().map_or(0, |machine| machine.vmm_pid())
    }

    /// When it was started, and how it ended.
    #[must_use]
    pub fn times(&self) -> (Option<SystemTime>, Option<Exit>) {
        let state = self.state.borrow();
        (state.started, state.exit)
    }

    /// Starts its machine.
    ///
    /// # Errors
    /// It has been created before, or can't be as described.
    pub async fn create(&self, description: Description) -> ttrpc::Result<()> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        if self.pod.has_machine() {
            return Err(status::refusal(
                Code::ALREADY_EXISTS,
                format!("sandbox {} exists already", self.id),
            ));
        }
        let spec = pod_config::specification(
            &self.id,
            &description.netns,
            &description.options,
            description.annotations,
        )
        .map_err(|error| status::refusal(Code::INVALID_ARGUMENT, line(&error)))?;
        self.pod.govern();
        let files = pod_config::files(&description.options, Path::new("/etc"))
            .map_err(|error| status::refusal(Code::INVALID_ARGUMENT, line(&error)))?;
        let launched = self.launch(&spec).and_then(|machine| {
            machine.provide(&files)?;
            Ok(machine)
        });
        let machine = launched.map_err(|error| {
            tracing::error!(sandbox = self.id, error = line(&error), "the pod did not start");
            status::of(&error)
        })?;
        self.pod.run_on(Ok(machine));
        self.state.send_modify(|state| state.spec = Some(spec));
        Ok(())
    }

    fn launch(&self, spec: &Value) -> Result<Arc<Sandbox>, Error> {
        let request = PodRequest {
            namespace: self.pod.namespace(),
            id: &self.id,
            spec,
        };
        launch(&Config::load()?, request, self.timeline.clone()).and_then(Launched::supervise)
    }

    /// Waits for its machine to be ready, and sets up what its containers are to share.
    ///
    /// # Errors
    /// It hasn't been created, has been started before, or can't be.
    pub async fn start(self: &Arc<Self>) -> ttrpc::Result<SystemTime> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        if self.pause().is_some() {
            return Err(status::failed_precondition(
                "the sandbox has been started already",
            ));
        }
        let machine = self.pod.machine()?;
        let spec = self.state.borrow().spec.clone();
        let spec = spec.ok_or_else(|| status::failed_precondition("the sandbox has not been created"))?;
        let started = async {
            let pause = machine.create_pause(&self.id, spec).await?;
            pause.start().await?;
            Ok::<_, Error>(Arc::new(pause))
        };
        let pause = started.await.map_err(|error| status::of(&error))?;
        *self.pause() = Some(Arc::clone(&pause));
        let now = SystemTime::now();
        self.state.send_modify(|state| state.started = Some(now));
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let exit = pause.wait().await;
            this.state.send_modify(|state| state.exit = Some(exit));
        });
        Ok(now)
    }

    /// Ends its machine, and with it every container.
    pub async fn stop(&self) {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        self.pod.stop().await;
        // One that was never started doesn't end by itself either.
        self.state.send_modify(|state| {
            state.exit.get_or_insert_with(Exit::killed);
        });
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// None that is expected.
    pub async fn wait(&self) -> ttrpc::Result<Exit> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| state.exit.is_some()).await;
        ended
            .ok()
            .and_then(|state| state.exit)
            .ok_or_else(|| status::not_found("the sandbox is not served any longer"))
    }

    /// Whether it could run containers now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let (started, exit) = self.times();
        started.is_some() && exit.is_none()
    }

    /// What its containers use together.
    ///
    /// # Errors
    /// They can't be asked.
    pub async fn metrics(&self) -> ttrpc::Result<Any> {
        let mut all = Vec::new();
        for task in self.pod.all_tasks() {
            // One that is just being deleted uses nothing.
            if let Ok(stats) = task.container().stats().await {
                all.push(stats);
            }
        }
        metrics::any(metrics::sum(all))
    }

    /// Ends the pod, and then the shim.
    pub async fn shut_down(&self) {
        self.stop().await;
        self.pod.end();
    }
}
