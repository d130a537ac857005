//! The streams of a process of the guest, attached to its client's.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sealock_protocol::agent::Stdio;
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    error::Error,
    launch,
    logger::Logger,
    sandbox::Sandbox,
    stdio::{Input, Streams},
};

/// How long what a process has written may take to get into its file after it has ended.
const COPY_DEADLINE: Duration = Duration::from_secs(10);

/// A process's standard input.
#[derive(Debug)]
enum Stdin {
    /// The process isn't started yet.
    Waiting { input: Input, complete: bool },
    /// The client's input goes to the process.
    Open {
        writer: Option<OwnedFd>,
        feed: JoinHandle<()>,
    },
    /// There is none, or no more of it.
    Closed,
}

/// A process's streams: the ports behind which they are for the guest, and what serves them here.
#[derive(Debug)]
pub struct Attachment {
    sandbox: Arc<Sandbox>,
    /// Whose they are, for the log.
    owner: String,
    terminal: bool,
    ports: [u32; 3],
    stdin: Mutex<Stdin>,
    copies: Mutex<Vec<JoinHandle<io::Result<()>>>>,
    logger: Mutex<Option<Logger>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attachment {
    /// Offers `streams` to the guest. To be called within a runtime.
    ///
    /// # Errors
    /// There are too many streams already.
    pub fn new(
        sandbox: &Arc<Sandbox>,
        owner: &str,
        terminal: bool,
        mut streams: Streams,
    ) -> Result<Self, Error> {
        let mut attachment = Self {
            sandbox: Arc::clone(sandbox),
            owner: owner.to_owned(),
            terminal,
            ports: [0; 3],
            stdin: Mutex::new(streams.input.map_or(Stdin::Closed, |input| Stdin::Waiting {
                input,
                complete: false,
            })),
            copies: Mutex::new(
                streams
                    .copies
                    .into_iter()
                    .map(|copy| tokio::spawn(copy.run()))
                    .collect(),
            ),
            logger: Mutex::new(streams.logger),
        };
        let offered = [streams.stdin.take(), streams.stdout.take(), streams.stderr.take()];
        for (port, fd) in attachment.ports.iter_mut().zip(offered) {
            if let Some(fd) = fd {
                *port = sandbox.ports().offer(fd).map_err(launch::Error::Socket)?;
            }
        }
        Ok(attachment)
    }

    /// Where the guest finds them.
    #[must_use]
    pub fn stdio(&self) -> Stdio {
        let mut stdio = Stdio::new();
        [stdio.stdin_port, stdio.stdout_port, stdio.stderr_port] = self.ports;
        stdio.terminal = self.terminal;
        stdio
    }

    /// Lets the client's input in.
    pub fn open_stdin(&self) {
        let mut stdin = lock(&self.stdin);
        let (input, complete) = match std::mem::replace(&mut *stdin, Stdin::Closed) {
            Stdin::Waiting { input, complete } => (input, complete),
            other => {
                *stdin = other;
                return;
            }
        };
        match input.open() {
            Ok((feed, writer)) => {
                *stdin = Stdin::Open {
                    writer: (!complete).then_some(writer),
                    feed: tokio::spawn(feed.run()),
                };
            }
            Err(error) => {
                tracing::warn!(process = self.owner, %error, "cannot open a process's input: it is empty")
            }
        }
    }

    /// Says that standard input is complete: it ends for the process as soon as its other writers have closed it too.
    pub fn close_stdin(&self) {
        match &mut *lock(&self.stdin) {
            Stdin::Waiting { complete, .. } => *complete = true,
            Stdin::Open { writer, .. } => *writer = None,
            Stdin::Closed => {}
        }
    }

    /// Ends what serves the streams, now that the process has ended and the guest has handed its output over.
    pub async fn finish(&self) {
        self.withdraw();
        if let Stdin::Open { feed, .. } = std::mem::replace(&mut *lock(&self.stdin), Stdin::Closed) {
            feed.abort();
        }
        let copies = std::mem::take(&mut *lock(&self.copies));
        for mut copy in copies {
            match timeout(COPY_DEADLINE, &mut copy).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => {
                    tracing::error!(process = self.owner, %error, "cannot write a process's output")
                }
                Ok(Err(_)) => {}
                Err(_) => copy.abort(),
            }
        }
        let logger = lock(&self.logger).take();
        if let Some(logger) = logger {
            logger.finish().await;
        }
    }

    fn withdraw(&self) {
        for port in self.ports {
            self.sandbox.ports().withdraw(port);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.withdraw();
        if let Stdin::Open { feed, .. } = &*lock(&self.stdin) {
            feed.abort();
        }
    }
}
