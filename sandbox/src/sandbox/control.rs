//! The monitor's control socket: what is asked, what it says by itself, and answers.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::Mutex,
    time::Duration,
};

use sealock_protocol::{
    control::{Event, ExitReason, MAX_MESSAGE, Request, Start},
    seqpacket,
};
use tokio::{sync::watch, time::timeout};

use super::lock;
use crate::{
    agent::printable,
    error::line,
    network::{Plug, watch::Machine},
    socket::AsyncSeqPacket,
    timeline::Timeline,
};

/// How long the monitor may take to tell its console, and to go away after it has broken off.
pub(super) const MONITOR_DEADLINE: Duration = Duration::from_secs(2);

/// How long the monitor may take to change the machine: it does at once, where the host has a processor for it.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// What the monitor has said so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// How the machine began, once it runs.
    start: Option<Start>,
    console: Option<String>,
    /// The answer to a [`Request::Resize`].
    resized: Option<Resized>,
    /// The network device that is being plugged in or out, and the answer.
    plugging: Option<[u8; 6]>,
    plugged: Option<String>,
    /// The reason of its end, what is known of it, and the console's tail.
    pub(super) exited: Option<(ExitReason, String, String)>,
    /// Whether it has closed its end: it says nothing more.
    pub(super) closed: bool,
}

/// What the machine offers after a [`Request::Resize`].
#[derive(Clone, Debug)]
pub(crate) struct Resized {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    /// Why it isn't what was asked for.
    pub(crate) error: String,
}

/// The monitor's control socket.
#[derive(Debug)]
pub(crate) struct Control {
    socket: AsyncSeqPacket,
    said: watch::Sender<Said>,
}

impl Control {
    pub(super) fn new(socket: AsyncSeqPacket) -> Self {
        Self {
            socket,
            said: watch::Sender::default(),
        }
    }

    /// What the monitor says from now on, and has said.
    pub(super) fn subscribe(&self) -> watch::Receiver<Said> {
        self.said.subscribe()
    }

    /// Takes in what the monitor says, until it closes its end.
    pub(super) async fn run(&self, timeline: &Mutex<Timeline>) {
        // A monitor says five things in its life at most that it isn't asked for.
        let mut unasked = 0;
        while unasked < 64 {
            unasked += 1;
            match self.socket.receive::<Event>(MAX_MESSAGE).await {
                Ok((Event::Running { marks, start }, _)) => {
                    lock(timeline).extend(marks);
                    self.said.send_modify(|said| said.start = Some(start));
                }
                Ok((
                    Event::Resized {
                        vcpus,
                        memory_mib,
                        error,
                    },
                    _,
                )) => {
                    let answer = Resized {
                        vcpus,
                        memory_mib,
                        error,
                    };
                    // Nobody waits for a second one.
                    self.said.send_if_modified(|said| {
                        let first = said.resized.is_none();
                        if first {
                            said.resized = Some(answer);
                            unasked -= 1;
                        }
                        first
                    });
                }
                // Nobody has asked.
                Ok((Event::Saved { .. }, _)) => {}
                Ok((Event::Console { tail }, _)) => {
                    self.said.send_modify(|said| said.console = Some(tail));
                }
                Ok((
                    Event::Exited {
                        reason,
                        detail,
                        console,
                    },
                    _,
                )) => {
                    self.said
                        .send_modify(|said| said.exited = Some((reason, detail, console)));
                }
                Ok((Event::NetAdded { mac, error } | Event::NetRemoved { mac, error }, _)) => {
                    // Nobody waits for a second one.
                    self.said.send_if_modified(|said| {
                        let first = said.plugging == Some(mac) && said.plugged.is_none();
                        if first {
                            said.plugged = Some(error);
                            unasked -= 1;
                        }
                        first
                    });
                }
                Err(seqpacket::Error::Closed) => break,
                Err(error) => {
                    tracing::warn!(error = line(&error), "the monitor said something odd");
                    if matches!(error, seqpacket::Error::Io(_)) {
                        break;
                    }
                }
            }
        }
        self.said.send_modify(|said| said.closed = true);
    }

    /// Asks for a size. One such question is under way at a time.
    pub(crate) async fn resize(&self, vcpus: u8, memory_mib: u32) -> Option<Resized> {
        let resize = async {
            let mut said = self.said.subscribe();
            self.said.send_modify(|said| said.resized = None);
            let request = Request::Resize { vcpus, memory_mib };
            self.socket.send(&request, &[]).await.ok()?;
            let said = said
                .wait_for(|said| said.resized.is_some() || said.closed)
                .await
                .ok()?;
            said.resized.clone()
        };
        timeout(CHANGE_DEADLINE, resize).await.ok().flatten()
    }

    /// Waits until every virtual CPU of the start exists, or the monitor has ended: how the machine began.
    pub(super) async fn running(&self) -> Option<Start> {
        let mut said = self.said.subscribe();
        let said = said.wait_for(|said| said.start.is_some() || said.closed).await;
        // The sender is ours.
        said.ok()?.start.clone()
    }

    /// Asks for a network device to be plugged in or out. One such question is under way at a time.
    async fn plug(&self, mac: [u8; 6], request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        let plug = async {
            let mut said = self.said.subscribe();
            self.said.send_modify(|said| {
                said.plugging = Some(mac);
                said.plugged = None;
            });
            self.socket
                .send(request, fds)
                .await
                .map_err(|error| error.to_string())?;
            // The sender is ours.
            let answer = said
                .wait_for(|said| said.plugged.is_some() || said.closed)
                .await
                .ok()
                .and_then(|said| said.plugged.clone());
            match answer {
                Some(error) if error.is_empty() => Ok(()),
                Some(error) => Err(printable(&error, 256)),
                None => Err("the virtual machine monitor has ended".to_owned()),
            }
        };
        timeout(CHANGE_DEADLINE, plug)
            .await
            .unwrap_or_else(|_| Err("the virtual machine monitor does not answer".to_owned()))
    }

    /// The console's tail, if the monitor tells it in time.
    pub(super) async fn read_console(&self) -> String {
        let read = async {
            self.socket.send(&Request::ReadConsole, &[]).await.ok()?;
            let mut said = self.said.subscribe();
            let said = said
                .wait_for(|said| said.console.is_some() || said.closed)
                .await
                .ok()?;
            said.console.clone()
        };
        timeout(MONITOR_DEADLINE, read)
            .await
            .ok()
            .flatten()
            .unwrap_or_default()
    }
}

impl Machine for Control {
    async fn add_net(&self, plug: Plug) -> Result<(), String> {
        let fds: Vec<_> = plug.descriptors.iter().map(AsFd::as_fd).collect();
        self.plug(plug.config.mac, &Request::AddNet(plug.config.clone()), &fds)
            .await
    }

    async fn remove_net(&self, mac: [u8; 6]) -> Result<(), String> {
        self.plug(mac, &Request::RemoveNet { mac }, &[]).await
    }
}
