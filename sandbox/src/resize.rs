//! The machine's size while it runs. It only grows: the memory that the guest has free goes back to the host by itself.
//!
//! - Limits are room that containers were promised: [`Sandbox::resize`] before a container is created or updated.
//! - Pods use more than they were promised, or were promised nothing: the agent says when the guest is about to run out, and
//!   the machine grows up to its bound.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    agent::{Agent, printable},
    error::{Error, line},
    sandbox::Sandbox,
    size::{self, Limits, Size},
};

/// The most times that an agent may ask for memory and not need it.
const MAX_FALSE_ALARMS: u32 = 16;

/// A pod's size.
#[derive(Debug)]
pub(crate) struct Sizing {
    start: Size,
    /// What the machine offers. Held while it changes.
    now: tokio::sync::Mutex<Size>,
    promised: Mutex<BTreeMap<String, Limits>>,
}

impl Sizing {
    pub(crate) fn new(start: Size) -> Self {
        Self {
            start,
            now: tokio::sync::Mutex::new(start),
            promised: Mutex::default(),
        }
    }

    pub(crate) fn at_start(&self) -> Size {
        self.start
    }

    fn promised(&self) -> MutexGuard<'_, BTreeMap<String, Limits>> {
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    /// Remembers the limits of container `id`; those that are not given stay as they were.
    pub(crate) fn promise(&self, id: &str, limits: Limits) {
        let mut promised = self.sizing.promised();
        let entry = promised.entry(id.to_owned()).or_default();
        entry.memory = limits.memory.or(entry.memory);
        entry.cpus = limits.cpus.or(entry.cpus);
    }

    /// Sees to it that the machine is large enough for every container's limits. Limits beyond what it can become get that.
    ///
    /// # Errors
    /// The machine doesn't grow.
    pub(crate) async fn make_room(&self) -> Result<(), Error> {
        let (memory, cpus) = size::needed(self.sizing.promised().values());
        let most = self.sizing.at_start();
        if memory > most.max_memory_mib.into() || cpus > most.max_vcpus.into() {
            tracing::warn!(
                sandbox = self.id(),
                memory_mib = memory,
                vcpus = cpus,
                max_memory_mib = most.max_memory_mib,
                max_vcpus = most.max_vcpus,
                "the containers' limits are more than the machine can have: it gets as much as it can"
            );
        }
        let vcpus = u8::try_from(cpus).map_or(most.max_vcpus, |cpus| cpus.min(most.max_vcpus));
        let memory = u32::try_from(memory).map_or(most.max_memory_mib, |mib| mib.min(most.max_memory_mib));
        self.resize(vcpus, memory).await
    }

    /// Takes back what a container was promised, when it is removed. The machine keeps its size.
    pub(crate) fn release_room(&self, id: &str) {
        self.sizing.promised().remove(id);
    }

    /// Lets the machine have at least `vcpus` virtual CPUs and `memory_mib` MiB of memory, and waits until the guest uses them.
    ///
    /// # Errors
    /// It can't have that much, the pod has ended, or the guest doesn't use it in time.
    pub async fn resize(&self, vcpus: u8, memory_mib: u32) -> Result<(), Error> {
        let agent = self.ready().await?;
        let before = *self.sizing.now.lock().await;
        if vcpus <= before.vcpus && memory_mib <= before.memory_mib {
            return Ok(());
        }
        let now = self.offer(vcpus, memory_mib).await?;
        tokio::select! {
            biased;
            used = agent.resize_sandbox(now.vcpus, now.memory_mib) => Ok(used?),
            reason = self.wait_ended() => Err(Error::Ended(reason)),
        }
    }

    /// Has the monitor offer the guest at least so much. Returns what it offers.
    async fn offer(&self, vcpus: u8, memory_mib: u32) -> Result<Size, Error> {
        let mut now = self.sizing.now.lock().await;
        let vcpus = vcpus.max(now.vcpus);
        let memory_mib = memory_mib.max(now.memory_mib);
        let Some(resized) = self.control().resize(vcpus, memory_mib).await else {
            return Err(Error::Resize(
                "the virtual machine monitor does not answer".to_owned(),
            ));
        };
        // A monitor's own numbers don't get the pod more than it may have, nor make it forget what it has.
        now.vcpus = resized.vcpus.clamp(now.vcpus, now.max_vcpus);
        now.memory_mib = resized.memory_mib.clamp(now.memory_mib, now.max_memory_mib);
        tracing::info!(
            sandbox = self.id(),
            vcpus = now.vcpus,
            memory_mib = now.memory_mib,
            "the machine has grown"
        );
        if !resized.error.is_empty() {
            return Err(Error::Resize(printable(&resized.error, 512)));
        }
        Ok(*now)
    }

    /// Gives the guest memory when it runs out, as long as there is more to be had.
    pub(crate) async fn relieve(self: Arc<Self>, agent: Agent) {
        let relief = async {
            let mut false_alarms = 0;
            loop {
                let now = *self.sizing.now.lock().await;
                if now.memory_mib >= now.max_memory_mib || false_alarms > MAX_FALSE_ALARMS {
                    return Ok(());
                }
                let wanted = agent.await_memory_pressure(now.memory_mib).await?;
                let wanted = wanted.min(now.max_memory_mib);
                let granted = self.offer(now.vcpus, wanted).await?.memory_mib;
                if granted <= now.memory_mib {
                    false_alarms += 1;
                }
            }
        };
        let result: Result<(), Error> = tokio::select! {
            biased;
            _ = self.wait_ended() => return,
            result = relief => result,
        };
        if let Err(error) = result
            && self.ended().is_none()
            && !self.is_stopping()
        {
            tracing::warn!(
                sandbox = self.id(),
                error = line(&error),
                "the machine no longer grows by itself"
            );
        }
    }
}
