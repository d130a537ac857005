//! The end of a pod's two processes, and the reason that is given for it.

use std::{
    os::fd::OwnedFd,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sealock_protocol::control::ExitReason;
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, watch},
    time::timeout,
};

use super::control::{MONITOR_DEADLINE, Said};
use crate::{
    agent::printable,
    launch::{self, console_clause},
    process::{self, Process},
};

/// How a pod ends whose file server does.
const FILE_SERVER: &str = "the file server ended";

/// Lines of the console that are logged when a machine fails.
const CONSOLE_LINES: usize = 40;

/// A pod's two processes, neither of which lives without the other.
pub(super) struct Processes {
    pub(super) vmm: Process,
    pub(super) fsd: Process,
    pub(super) vmm_end: AsyncFd<OwnedFd>,
    pub(super) fsd_end: AsyncFd<OwnedFd>,
}

impl Processes {
    /// Waits for whichever ends first, ends the other, and tells why the pod has ended.
    pub(super) async fn run(
        mut self,
        id: String,
        kill: Arc<Notify>,
        stopping: Arc<AtomicBool>,
        mut said: watch::Receiver<Said>,
        ended: watch::Sender<Option<String>>,
    ) {
        let first = tokio::select! {
            _ = self.vmm_end.readable() => None,
            _ = self.fsd_end.readable() => Some(FILE_SERVER),
            () = kill.notified() => Some("it was stopped"),
        };
        let stopped = stopping.load(Ordering::Relaxed);
        let fsd_ended = first
            .filter(|&first| first == FILE_SERVER)
            .and_then(|_| self.fsd.reap());
        // A monitor that dies closes its sockets before it has ended: whoever saw that asked for the end, or, as the file server
        // does, ended well.
        let monitor_first = first.is_some_and(|first| first != FILE_SERVER)
            || fsd_ended.is_some_and(|status| status.success());
        let first = if monitor_first && !stopped {
            match timeout(MONITOR_DEADLINE, self.vmm_end.readable()).await {
                Ok(_) => None,
                Err(_) => Some("the virtual machine monitor broke off"),
            }
        } else {
            first
        };
        self.vmm.kill();
        self.fsd.kill();
        // Errors of the runtime's own: then there is nothing to wait with, and dropping the processes waits.
        let _ = self.vmm_end.readable().await;
        let _ = self.fsd_end.readable().await;
        let (vmm, fsd) = (self.vmm.reap(), self.fsd.reap());
        drop(self);
        // What it said last is in the socket already.
        let _ = timeout(MONITOR_DEADLINE, said.wait_for(|said| said.closed)).await;
        let reason = {
            let said = said.borrow();
            match (&said.exited, first) {
                (_, Some(FILE_SERVER)) => format!("{FILE_SERVER} ({})", status(fsd)),
                (Some((reason, detail, console)), _) => describe_exit(&id, *reason, detail, console, stopped),
                (None, Some(first)) => first.to_owned(),
                (None, None) => format!("the virtual machine monitor ended ({})", status(vmm)),
            }
        };
        if stopped {
            tracing::debug!(sandbox = id, reason, "the pod has ended");
        } else {
            tracing::error!(sandbox = id, reason, "the pod has ended by itself");
        }
        ended.send_replace(Some(reason));
    }
}

fn status(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "unknown".to_owned(), process::describe)
}

/// A machine's end in one line; its console goes into the log, unless it was to end.
fn describe_exit(id: &str, reason: ExitReason, detail: &str, console: &str, wanted: bool) -> String {
    let mut text = launch::describe(reason).to_owned();
    if !detail.is_empty() {
        text.push_str(": ");
        text.push_str(&printable(detail, 512));
    }
    let failed = match reason {
        ExitReason::Panic | ExitReason::TripleFault | ExitReason::Reboot => true,
        // An agent that panics says so on the console, and then the guest is powered off.
        ExitReason::Poweroff => !wanted && !console.trim().is_empty(),
        _ => false,
    };
    if failed {
        log_console(id, console);
        text.push_str(&console_clause(&last_lines(console)));
    }
    text
}

/// The console of a machine that failed, into the log.
pub(super) fn log_console(id: &str, console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
        tracing::error!(sandbox = id, "console: {}", printable(line, 256));
    }
}

/// The last lines of a console for an error.
pub(super) fn last_lines(console: &str) -> String {
    let lines: Vec<String> = console
        .lines()
        .rev()
        .filter(|line| !line.trim().is_empty())
        .take(3)
        .map(|line| printable(line.trim(), 160))
        .collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
