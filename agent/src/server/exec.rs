//! Processes that join a running container.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, MutexGuard, PoisonError},
};

use sealock_protocol::agent::Stdio;

use super::{
    container::Container,
    error::Error,
    launch::{Launch, Launched, NotLaunched},
    process::{Ended, Process},
};
use crate::{
    link::{Join, NewNamespaces, Refusal, Role},
    oci,
};

/// The processes that joined a container, by name.
pub type Execs = BTreeMap<String, Slot>;

/// A name in use.
#[derive(Debug)]
pub enum Slot {
    /// Its process is being created.
    Busy,
    /// Its process is there, or has ended.
    There(Arc<Process>),
}

const STOPPED: Error = Error::State("cannot exec in a stopped container");

impl Container {
    fn execs(&self) -> MutexGuard<'_, Execs> {
        // Nothing panics while it is held, and a panic ends the program.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a program beside the container's own; gives the guest's id of its process. After an error nothing of it is left.
    ///
    /// # Errors
    /// The name is taken, the container does not run, or the program can't be executed: the message names the field, or says
    /// why.
    pub async fn exec(self: &Arc<Self>, exec_id: &str, process: &[u8], ports: &Stdio) -> Result<i32, Error> {
        let process = oci::Process::parse_alone(process)?;
        if self.execs().contains_key(exec_id) {
            return Err(Error::Exists(format!("process {exec_id:?}")));
        }
        self.execs().insert(exec_id.to_owned(), Slot::Busy);
        let created = self.join(process, ports).await;
        let mut execs = self.execs();
        match created {
            Ok(process) => {
                let pid = process.pid();
                execs.insert(exec_id.to_owned(), Slot::There(process));
                Ok(pid)
            }
            Err(error) => {
                execs.remove(exec_id);
                Err(error)
            }
        }
    }

    async fn join(self: &Arc<Self>, process: oci::Process, ports: &Stdio) -> Result<Arc<Process>, Error> {
        // It isn't paused while a process is about to join it: that one would never get ready.
        let paused = self.paused.read().await;
        if self.first.has_ended() {
            return Err(STOPPED);
        }
        if *paused {
            return Err(Error::State("cannot exec in a paused container"));
        }
        let plan = self.plan_for(process, ports)?;
        let Launched {
            created,
            mut conversation,
            host,
            guest,
        } = self.launch_beside(&plan, ports).await?;
        let executed = conversation.execute().await;
        // What failed may have failed for that reason; and what didn't is not to outlive the container.
        let executed = if self.first.has_ended() {
            Err(STOPPED)
        } else {
            executed
        };
        if let Err(error) = executed {
            created.kill().await;
            return Err(error);
        }
        let (process, attendance) = Process::attend(
            created,
            guest,
            conversation.terminal,
            host,
            &self.around.undelivered,
        )?;
        let container = Arc::clone(self);
        tokio::spawn(async move {
            let exit = attendance.exited().await;
            let oom_kills = container.oom_kills();
            attendance
                .conclude(exit.map(|exit| Ended { exit, oom_kills }))
                .await;
        });
        Ok(process)
    }

    async fn launch_beside(&self, plan: &oci::Container, ports: &Stdio) -> Result<Launched, Error> {
        let launch = || Launch {
            role: Role::Exec,
            namespaces: NewNamespaces::NONE,
            join: vec![(Join::Pid, self.first.pidfd().as_fd())],
            ports,
            container: Some(plan),
        };
        let mut launched = launch().go(&self.around.init, self.cgroup.as_fd(), plan).await;
        if let Err(NotLaunched::Refused(Refusal::Clone(libc::EBUSY))) = launched {
            // The container has made cgroups of its own and controls them: processes are only in the leaves then
            // (cgroups(7), "no internal processes").
            let cgroup: OwnedFd = self.cgroup.of_process(self.first.pid())?;
            launched = launch().go(&self.around.init, cgroup.as_fd(), plan).await;
        }
        launched.map_err(|error| match error {
            NotLaunched::Failed(error) => error,
            // The first process, or its namespace with it, has ended just now.
            NotLaunched::Refused(Refusal::Join(libc::ESRCH) | Refusal::Clone(libc::ENOMEM))
                if self.first.has_ended() =>
            {
                STOPPED
            }
            NotLaunched::Refused(Refusal::Join(libc::ESRCH)) => STOPPED,
            NotLaunched::Refused(refusal) => Error::not_created(refusal),
        })
    }

    /// The process of that name that joined the container; the container's first one without a name.
    ///
    /// # Errors
    /// There is none, or not yet.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.first));
        }
        match self.execs().get(exec_id) {
            Some(Slot::There(process)) => Ok(Arc::clone(process)),
            Some(Slot::Busy) => Err(Error::State("the process is being created")),
            None => Err(Error::NoProcess),
        }
    }

    /// Forgets a process that joined the container and has ended.
    ///
    /// # Errors
    /// There is none, or it has not ended.
    pub fn remove_process(&self, exec_id: &str) -> Result<(), Error> {
        if exec_id.is_empty() {
            return Err(Error::Argument("exec_id: is empty".to_owned()));
        }
        let process = self.process(exec_id)?;
        if !process.has_ended() {
            return Err(Error::State("cannot delete a running process"));
        }
        process.forget();
        self.execs().remove(exec_id);
        Ok(())
    }

    /// The processes that joined the container and run, by the guest's ids.
    pub fn running_execs(&self) -> Vec<(i32, String)> {
        self.execs()
            .iter()
            .filter_map(|(name, slot)| match slot {
                Slot::There(process) if !process.has_ended() => Some((process.pid(), name.clone())),
                _ => None,
            })
            .collect()
    }

    /// All of those that joined it and have been there.
    pub fn all_execs(&self) -> Vec<Arc<Process>> {
        self.execs()
            .values()
            .filter_map(|slot| match slot {
                Slot::There(process) => Some(Arc::clone(process)),
                Slot::Busy => None,
            })
            .collect()
    }
}
