//! A process of a container that the host asked for: the first one, or one that joined it.

use std::{os::fd::OwnedFd, sync::Arc};

use tokio::sync::{Notify, watch};

use super::{
    error::Error,
    init_link::{Created, Exit, exited},
    pumps::Pumps,
    stdio::{GuestEnds, HostEnds},
    undelivered::Undelivered,
};
use crate::linux::{process::signal, terminal::set_size};

/// How a process ended, and what had happened by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How and when.
    pub exit: Exit,
    /// How many of the container's processes had been killed for want of memory.
    pub oom_kills: u64,
}

/// A process, from when its program is about to be executed until it is forgotten.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    exit: watch::Receiver<Option<Exit>>,
    /// Like `exit`, but only when the output has been handed over.
    ended: watch::Receiver<Option<Ended>>,
    close_stdin: Arc<Notify>,
    /// The master.
    terminal: Option<OwnedFd>,
    forgotten: Arc<Notify>,
}

/// What is to be done until a process is forgotten.
#[derive(Debug)]
pub struct Attendance {
    exit: watch::Receiver<Option<Exit>>,
    pumps: Pumps,
    end: watch::Sender<Option<Ended>>,
    forgotten: Arc<Notify>,
}

impl Process {
    /// Connects the program's streams with the host's. A process without `guest` ends has a terminal.
    ///
    /// # Errors
    /// No descriptors left, or the process has not opened its terminal.
    pub fn attend(
        created: Created,
        guest: Option<GuestEnds>,
        terminal: Option<OwnedFd>,
        host: HostEnds,
        undelivered: &Undelivered,
    ) -> Result<(Arc<Self>, Attendance), Error> {
        let guest = match (guest, &terminal) {
            (Some(guest), None) => guest,
            (None, Some(master)) => GuestEnds::terminal(master)?,
            _ => {
                return Err(Error::Setup(
                    "process.terminal: not what the process has opened".to_owned(),
                ));
            }
        };
        let close_stdin = Arc::new(Notify::new());
        let forgotten = Arc::new(Notify::new());
        let (end, ended) = watch::channel(None);
        let attendance = Attendance {
            exit: created.exit.clone(),
            pumps: Pumps::start(guest, host, Arc::clone(&close_stdin), undelivered),
            end,
            forgotten: Arc::clone(&forgotten),
        };
        let process = Self {
            pid: created.pid,
            pidfd: created.pidfd,
            exit: created.exit,
            ended,
            close_stdin,
            terminal,
            forgotten,
        };
        Ok((Arc::new(process), attendance))
    }

    /// The guest's id of the process; after its end it may be another's.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Refers to it for ever.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Whether it has ended and was reaped.
    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Holds its end once it was reaped.
    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    /// Waits for its end alone; `None` when it can't be told any more.
    pub async fn exited(&self) -> Option<Exit> {
        exited(self.exit.clone()).await
    }

    /// Waits for its end, and until its output has been handed over.
    pub async fn wait(&self) -> Option<Ended> {
        let mut ended = self.ended.clone();
        ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|ended| *ended)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// [`Error::Finished`]
    pub fn signal(&self, number: i32) -> Result<(), Error> {
        if self.has_ended() {
            return Err(Error::Finished);
        }
        signal(&self.pidfd, number).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => Error::Finished,
            _ => Error::system("signalling the process")(error),
        })
    }

    /// Ends its standard input, after what is on its way. It may have ended already. A terminal has no end of input.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// Sets the size of its terminal, in characters.
    ///
    /// # Errors
    /// It has none.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or(Error::State("the process has no terminal"))?;
        set_size(terminal, rows, columns).map_err(Error::system("resizing the terminal"))
    }

    /// Lets go of its streams, once what is left in them is handed over.
    pub fn forget(&self) {
        self.forgotten.notify_one();
    }
}

impl Attendance {
    /// Waits for the process's end alone; `None` when it can't be told any more.
    pub async fn exited(&self) -> Option<Exit> {
        exited(self.exit.clone()).await
    }

    /// Hands the output over of the process that has ended, tells of its end, and goes on with what others write to its
    /// streams until it is forgotten.
    pub async fn conclude(mut self, ended: Option<Ended>) {
        self.pumps.hand_over().await;
        self.end.send_replace(ended);
        tokio::select! {
            () = self.pumps.run_dry() => {}
            () = self.forgotten.notified() => self.pumps.hand_over().await,
        }
    }
}
