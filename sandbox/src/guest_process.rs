//! A process of the guest as the host sees it: a container's first one, or one that was started in it later.

use std::{sync::Arc, time::SystemTime};

use crate::{
    agent::{self, Agent, Of},
    attachment::Attachment,
    error::{Error, line},
    sandbox::Sandbox,
};

/// The exit status of a process whose machine is gone: as if killed.
pub const KILLED: u8 = 128 + 9;

/// The exit status of a process about which the agent says nothing.
const UNKNOWN: u8 = 255;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell reports it.
    pub status: u8,
    /// When the host heard of it: the guest's clock is the guest's.
    pub at: SystemTime,
    /// How many processes of the container have been killed for lack of memory so far.
    pub oom_kills: u64,
}

impl Exit {
    /// The end, now, of a process whose machine is gone.
    #[must_use]
    pub fn killed() -> Self {
        Self {
            status: KILLED,
            at: SystemTime::now(),
            oom_kills: 0,
        }
    }
}

/// A process of the guest.
#[derive(Debug)]
pub struct GuestProcess {
    sandbox: Arc<Sandbox>,
    agent: Agent,
    of: Of,
    guest_pid: u32,
    attachment: Attachment,
}

impl GuestProcess {
    pub(crate) fn new(
        sandbox: Arc<Sandbox>,
        agent: Agent,
        of: Of,
        guest_pid: u32,
        attachment: Attachment,
    ) -> Self {
        Self {
            sandbox,
            agent,
            of,
            guest_pid,
            attachment,
        }
    }

    /// The guest's number of it.
    #[must_use]
    pub fn guest_pid(&self) -> u32 {
        self.guest_pid
    }

    pub(crate) fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    pub(crate) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Sends a signal to it, or with `all` to every process of its container.
    ///
    /// # Errors
    /// It isn't running, or the pod has ended.
    pub async fn signal(&self, signal: u32, all: bool) -> Result<(), Error> {
        self.sandbox
            .answer(self.agent.signal(&self.of, signal, all))
            .await
    }

    /// Sets the size of its terminal, in characters.
    ///
    /// # Errors
    /// It has none, or the pod has ended.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        self.sandbox
            .answer(self.agent.resize_terminal(&self.of, rows, columns))
            .await
    }

    /// Says that its standard input is complete.
    pub fn close_stdin(&self) {
        self.attachment.close_stdin();
    }

    /// Waits for its end, or the pod's. When this returns its output has been handed over.
    pub async fn wait(&self) -> Exit {
        let answer = tokio::select! {
            biased;
            answer = self.agent.wait(&self.of) => Some(answer),
            _ = self.sandbox.wait_ended() => None,
        };
        let exit = match answer {
            None => Exit::killed(),
            Some(Ok(agent::Ended { status, oom_kills })) => Exit {
                status,
                at: SystemTime::now(),
                oom_kills,
            },
            Some(Err(error)) if error.is_gone() => {
                // Nobody can speak to this pod any longer.
                self.sandbox.kill();
                self.sandbox.wait_ended().await;
                Exit::killed()
            }
            Some(Err(error)) => {
                tracing::error!(
                    container = self.of.container,
                    exec = self.of.exec,
                    error = line(&error),
                    "cannot wait for a process"
                );
                Exit {
                    status: UNKNOWN,
                    ..Exit::killed()
                }
            }
        };
        self.attachment.finish().await;
        exit
    }

    /// Forgets it, a process started by exec that has ended.
    ///
    /// # Errors
    /// It hasn't ended.
    pub async fn forget(&self) -> Result<(), Error> {
        match self.sandbox.answer(self.agent.remove_process(&self.of)).await {
            Ok(()) | Err(Error::Ended(_)) => Ok(()),
            // It went with its container.
            Err(error) if error.kind() == crate::Kind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}
