//! The pod: what its containers have in common, and which there are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sys::stat::Mode,
    unistd::sethostname,
};
use sealock_protocol::{
    agent::{CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest, UpdateNetworkRequest},
    guest::SHARE_TAG,
};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    container::{Container, SharedNamespaces},
    error::Error,
    init_link::InitLink,
    network::Network,
    restore,
    surroundings::Surroundings,
};
use crate::{
    init::{SHARE, log},
    linux::random::{MAX_ENTROPY, add_entropy},
    oci::MAX_HOSTNAME,
};

/// The longest container id, in bytes.
const MAX_ID: usize = 76;

/// How long the pod's end may wait for its processes, and then for its files.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How long the pod's end may wait for those who read its output: as long as runc's shim gives them.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(2);

/// How long the host may keep the stream open after it has been told that the pod is over.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Slot {
    /// Being created or removed: the name is taken, and nobody else may touch it.
    Busy,
    There(Arc<Container>),
}

/// What later containers join. Held by descriptors: it outlives the container that it began with, but for the process ids.
#[derive(Debug)]
struct Shared {
    /// The container's id.
    of: String,
    namespaces: SharedNamespaces,
}

#[derive(Debug, Default)]
struct State {
    ready: bool,
    stopping: bool,
    shared: Option<Arc<Shared>>,
    containers: BTreeMap<String, Slot>,
}

/// The pod.
#[derive(Debug)]
pub struct Pod {
    /// What the containers have around them.
    pub around: Arc<Surroundings>,
    state: Mutex<State>,
    network: Network,
    stopped: Notify,
}

impl Pod {
    /// An empty pod, not yet set up.
    pub fn new(init: Arc<InitLink>) -> Self {
        Self {
            around: Arc::new(Surroundings::new(init)),
            state: Mutex::default(),
            network: Network::default(),
            stopped: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and a panic ends the program.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets up what the containers have in common. Without waiting in between, so that a container asked for right behind it
    /// finds it done.
    ///
    /// # Errors
    /// It has been called before, or a value or the share can't be used.
    pub fn set_up(&self, request: &CreateSandboxRequest) -> Result<(), Error> {
        let (hostname, entropy) = (&request.hostname, &request.entropy);
        if self.state().ready {
            return Err(Error::State("the sandbox exists already"));
        }
        if hostname.len() > MAX_HOSTNAME || hostname.contains('\0') {
            return Err(Error::Argument(format!(
                "hostname: not a name of at most {MAX_HOSTNAME} bytes"
            )));
        }
        if entropy.len() > MAX_ENTROPY {
            return Err(Error::Argument(format!("entropy: more than {MAX_ENTROPY} bytes")));
        }
        // First: whatever is random from here on depends on it.
        if !entropy.is_empty() {
            add_entropy(entropy).map_err(Error::system("adding entropy"))?;
        }
        if let Some(clock) = request.clock.as_ref() {
            restore::forget_entropy()?;
            restore::set_clock(clock)?;
        }
        if !hostname.is_empty() {
            sethostname(hostname.as_str()).map_err(Error::system("setting the hostname"))?;
        }
        self.network.set_up(&request.network)?;
        mount(
            Some(SHARE_TAG),
            SHARE,
            Some("virtiofs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(Error::system("mounting the file share"))?;
        self.state().ready = true;
        Ok(())
    }

    /// Changes the pod's network. To be called where it may block: devices come and go.
    ///
    /// # Errors
    /// There is no pod yet, or the kernel refuses something.
    pub fn update_network(&self, request: &UpdateNetworkRequest) -> Result<(), Error> {
        if !self.state().ready {
            return Err(Error::State("there is no sandbox to change the network of"));
        }
        self.network.update(request)
    }

    /// Creates a container; gives the guest's id of its process.
    ///
    /// # Errors
    /// The name is taken or none, or the container can't be created.
    pub async fn create(&self, request: &CreateContainerRequest) -> Result<i32, Error> {
        let id = &request.id;
        check_id("id", id)?;
        let shared = {
            let mut state = self.state();
            if !state.ready || state.stopping {
                return Err(Error::State("there is no sandbox for the container"));
            }
            if state.containers.contains_key(id) {
                return Err(Error::Exists(format!("container {id:?}")));
            }
            state.containers.insert(id.to_owned(), Slot::Busy);
            state.shared.clone()
        };
        let created = if request.pause {
            Container::create_pause(&self.around, id, &request.spec).await
        } else {
            let ports = request.stdio.clone().unwrap_or_default();
            let shared = shared.as_ref().map(|shared| &shared.namespaces);
            let known = |id: &str| self.container(id);
            Container::create(&self.around, id, &request.spec, &ports, shared, known).await
        };
        let mut state = self.state();
        match created {
            Ok(container) => {
                let pid = container.first.pid();
                // The pod's own container's, or else the first one's, and the same one's when it comes again.
                let offers = state
                    .shared
                    .as_ref()
                    .is_none_or(|shared| request.pause || shared.of == *id);
                // A process that is not there any more has no namespaces to offer, and its container will tell.
                if offers && let Ok(namespaces) = SharedNamespaces::of(&container) {
                    state.shared = Some(Arc::new(Shared {
                        of: id.to_owned(),
                        namespaces,
                    }));
                }
                if state.stopping
                    && let Err(error) = container.kill()
                {
                    log(&error.to_string());
                }
                state.containers.insert(id.to_owned(), Slot::There(container));
                Ok(pid)
            }
            Err(error) => {
                state.containers.remove(id);
                Err(error)
            }
        }
    }

    /// Runs a program in a container; gives the guest's id of its process.
    ///
    /// # Errors
    /// There is no such container, the name is taken or none, or the program can't be run.
    pub async fn exec(&self, request: &ExecProcessRequest) -> Result<i32, Error> {
        check_id("exec_id", &request.exec_id)?;
        let container = self.container(&request.id)?;
        let ports = request.stdio.clone().unwrap_or_default();
        container.exec(&request.exec_id, &request.process, &ports).await
    }

    /// The container of that name.
    ///
    /// # Errors
    /// There is none, or it is being created or removed.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.state().containers.get(id) {
            Some(Slot::There(container)) => Ok(Arc::clone(container)),
            Some(Slot::Busy) => Err(Error::State("the container is being created or removed")),
            None => Err(Error::NoContainer),
        }
    }

    /// Removes a container; with `force` one that has not stopped, too.
    ///
    /// # Errors
    /// It has not stopped, or what is left of it can't be removed.
    pub async fn remove(&self, id: &str, force: bool) -> Result<(), Error> {
        let container = self.container(id)?;
        self.state().containers.insert(id.to_owned(), Slot::Busy);
        let removed = container.remove(force).await;
        let mut state = self.state();
        match &removed {
            Ok(()) => state.containers.remove(id),
            Err(_) => state.containers.insert(id.to_owned(), Slot::There(container)),
        };
        removed
    }

    /// Ends the pod: every process is killed, and what the share has to write is written. The guest is powered off when the host
    /// closes the stream, or soon.
    ///
    /// # Errors
    /// None that keeps the pod from ending.
    pub async fn stop(&self) -> Result<(), Error> {
        let containers: Vec<_> = {
            let mut state = self.state();
            state.stopping = true;
            let slots = state.containers.values();
            slots
                .filter_map(|slot| match slot {
                    Slot::There(container) => Some(Arc::clone(container)),
                    Slot::Busy => None,
                })
                .collect()
        };
        for container in &containers {
            if let Err(error) = container.kill() {
                log(&error.to_string());
            }
        }
        let ends = async {
            for container in &containers {
                container.first.wait().await;
            }
        };
        if timeout(STOP_DEADLINE, ends).await.is_err() {
            log("ending the pod's processes took too long");
        }
        if timeout(DELIVERY_DEADLINE, self.around.undelivered.none())
            .await
            .is_err()
        {
            log("output is left that nobody reads");
        }
        if self.state().ready {
            match timeout(STOP_DEADLINE, spawn_blocking(write_back)).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => log(&format!("writing the file share back: {error}")),
                Ok(Err(_)) | Err(_) => log("writing the file share back took too long"),
            }
        }
        self.stopped.notify_one();
        Ok(())
    }

    /// Returns when the pod has been stopped and the host has had the time to close the stream by itself.
    pub async fn over(&self) {
        self.stopped.notified().await;
        sleep(FAREWELL).await;
    }
}

fn write_back() -> nix::Result<()> {
    let share = open(
        SHARE,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    nix::unistd::syncfs(share)
}

/// A container's id becomes the name of its cgroup; the name of a process in it follows the same rule.
fn check_id(field: &str, id: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(plain) {
        return Err(Error::Argument(format!(
            "{field}: {id:?} is not 1 to {MAX_ID} characters of [a-zA-Z0-9._-] without a leading dot"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_plain_name() {
        for id in ["c1", "a.b_c-D", &"x".repeat(MAX_ID)] {
            check_id("id", id).unwrap();
        }
        for id in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(MAX_ID + 1),
        ] {
            check_id("id", id).expect_err(id);
        }
    }
}
