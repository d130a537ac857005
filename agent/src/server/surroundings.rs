//! What all containers of the pod have around them.

use std::sync::Arc;

use super::{
    events::Events, init_link::InitLink, machine::Machine, undelivered::Undelivered, volumes::Volumes,
};

/// What all containers of the pod have around them.
#[derive(Debug)]
pub struct Surroundings {
    /// Creates their processes.
    pub init: Arc<InitLink>,
    /// What they run on.
    pub machine: Arc<Machine>,
    /// What they share in the guest.
    pub volumes: Volumes,
    /// What the host is to be told of them.
    pub events: Arc<Events>,
    /// Their output that has not reached its reader.
    pub undelivered: Undelivered,
}

impl Surroundings {
    /// Of a pod without containers.
    pub fn new(init: Arc<InitLink>) -> Self {
        Self {
            init,
            machine: Arc::new(Machine::new()),
            volumes: Volumes::default(),
            events: Arc::default(),
            undelivered: Undelivered::default(),
        }
    }
}
