//! Pausing a container: its processes are frozen (cgroups(7), `cgroup.freeze`).

use std::time::Duration;

use tokio::time::timeout;

use super::{container::Container, error::Error};
use crate::init::log;

/// How long processes may take to be frozen: one that waits for a file of the host's isn't before it has it.
const DEADLINE: Duration = Duration::from_secs(10);

impl Container {
    /// Freezes every process of the container; returns when they are.
    ///
    /// # Errors
    /// It has stopped or is paused already, or a process can't be frozen: then none is.
    pub async fn pause(&self) -> Result<(), Error> {
        let mut paused = self.paused.write().await;
        if self.first.has_ended() {
            return Err(Error::State("cannot pause a container that has stopped"));
        }
        if *paused {
            return Err(Error::State("the container is already paused"));
        }
        let frozen = match timeout(DEADLINE, self.cgroup.freeze(true)).await {
            Ok(frozen) => frozen.map_err(Error::from),
            Err(_) => Err(Error::Deadline("freezing the container's processes")),
        };
        *paused = frozen.is_ok();
        if frozen.is_err()
            && let Ok(Err(error)) = timeout(DEADLINE, self.cgroup.freeze(false)).await
        {
            log(&error.to_string());
        }
        frozen
    }

    /// Lets the processes of a paused container go on; returns when they do.
    ///
    /// # Errors
    /// It is not paused.
    pub async fn resume(&self) -> Result<(), Error> {
        let mut paused = self.paused.write().await;
        if !*paused {
            return Err(Error::State("the container is not paused"));
        }
        timeout(DEADLINE, self.cgroup.freeze(false))
            .await
            .map_err(|_| Error::Deadline("thawing the container's processes"))??;
        *paused = false;
        Ok(())
    }
}
