//! Templates: machines booted once, saved with their agent waiting, and restored copy-on-write for each pod.
//!
//! | module | what |
//! |---|---|
//! | [`key`] | what a template is for: kernel, initramfs, monitor, processor, machine, tenant |
//! | [`store`] | the directory they are kept in, where only whole ones can be found |
//! | [`make`] | how one is made |
//! | [`working_set`] | what restored machines touch first |
//!
//! A pod whose template isn't there boots, and orders it ([`Order`]): whoever started the pod has it made by a process of its own,
//! for the pod may end before.

pub mod key;
pub mod make;
pub mod store;
pub mod working_set;

use std::fs::File;

use sealock_protocol::control::{MachineConfig, WorkingSet};
use serde::{Deserialize, Serialize};

pub use self::{key::Key, make::make, store::Store};
use crate::{
    check::HostFiles,
    config::Config,
    error::{Error, line},
    size::Size,
};

/// Who shares a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All pods of the host.
    Node,
    /// Those of one namespace: Kubernetes', or else containerd's.
    Namespace,
    /// None: there are no templates.
    Off,
}

/// A machine that a template is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Memory at boot, in MiB.
    pub memory_mib: u32,
    /// What it can grow to, in MiB.
    pub max_memory_mib: u32,
    /// Virtual CPUs that there can be. One is there from the start, the others are added to a restored machine.
    pub max_vcpus: u8,
}

impl From<Size> for Shape {
    fn from(size: Size) -> Self {
        Self {
            memory_mib: size.memory_mib,
            max_memory_mib: size.max_memory_mib,
            max_vcpus: size.max_vcpus,
        }
    }
}

impl Shape {
    /// The machine to be booted for the template.
    fn machine(self, console: bool, uid: u32) -> MachineConfig {
        MachineConfig {
            vcpus: 1,
            max_vcpus: self.max_vcpus,
            memory_mib: self.memory_mib,
            max_memory_mib: self.max_memory_mib,
            console,
            uid,
            gid: uid,
            template: false,
            working_set: WorkingSet::default(),
            nets: Vec::new(),
        }
    }
}

/// A template that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its machine.
    pub shape: Shape,
    /// The namespace whose pods it is for; none for all.
    pub namespace: Option<String>,
}

/// What a pod's machine is to be made from.
#[derive(Debug, Default)]
pub struct Found {
    /// The template.
    pub opened: Option<Opened>,
    /// What is to be made for the next pods, because there is no such template.
    pub order: Option<Order>,
}

/// The template that a pod's machine is restored from.
#[derive(Clone, Debug)]
pub(crate) struct InUse {
    pub(crate) key: Key,
    pub(crate) order: Order,
    /// It was known what restored machines touch first.
    pub(crate) has_working_set: bool,
}

/// Keeps what the machine of the monitor `pid` has touched by now. Without that, the next ones are a little slower.
pub(crate) fn learn(config: &Config, used: &InUse, pid: u32) {
    let store = Store::below(config.state_dir());
    let kept = store.memory(&used.key).map_err(Error::from).and_then(|memory| {
        let set = working_set::of(pid, &memory, used.order.shape).map_err(Error::Cleanup)?;
        Ok(store.keep_working_set(&used.key, &set)?)
    });
    if let Err(error) = kept {
        tracing::debug!(error = line(&error), "what the machine has touched is not known");
    }
}

/// Looks for the template of a machine of `size` for a pod of `namespace`. One that can't be used is removed, and the log says why.
pub fn find(config: &Config, files: &HostFiles, size: Size, namespace: &str) -> Found {
    let order = match config.templates() {
        Scope::Off => return Found::default(),
        Scope::Node => Order {
            shape: size.into(),
            namespace: None,
        },
        Scope::Namespace => Order {
            shape: size.into(),
            namespace: Some(namespace.to_owned()),
        },
    };
    let store = Store::below(config.state_dir());
    let key = match Key::of(config, files, &order) {
        Ok(key) => key,
        Err(error) => {
            tracing::warn!(%error, "the pod boots: its template has no name");
            return Found::default();
        }
    };
    match store.open(&key) {
        Ok(Some(opened)) => Found {
            opened: Some(opened),
            order: None,
        },
        Ok(None) => Found {
            opened: None,
            order: Some(order),
        },
        Err(error @ store::Error::Failed(_)) => {
            tracing::warn!(error = line(&error), "the pod boots");
            Found::default()
        }
        Err(error) => {
            tracing::warn!(error = line(&error), "the pod boots");
            discard(config, &key);
            Found {
                opened: None,
                order: Some(order),
            }
        }
    }
}

/// Removes a template that turned out to be of no use.
pub(crate) fn discard(config: &Config, key: &Key) {
    if let Err(error) = Store::below(config.state_dir()).remove(key) {
        tracing::warn!(error = line(&error), "cannot remove a template");
    }
}

/// A template's files, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its name.
    pub key: Key,
    /// What it was made for.
    pub order: Order,
    /// The state.
    pub state: File,
    /// The memory.
    pub memory: File,
    /// What restored machines touch first, once that is known.
    pub working_set: Option<WorkingSet>,
}
