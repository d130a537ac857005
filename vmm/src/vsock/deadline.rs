//! Deadlines of connections, kept by one timer.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

use vmm_sys_util::timerfd::TimerFd;

/// When which connection has waited long enough.
pub struct Deadlines {
    timer: TimerFd,
    armed: Option<Instant>,
    pending: BTreeSet<(Instant, u64)>,
}

impl Deadlines {
    /// None yet.
    ///
    /// # Errors
    /// The host has no timer left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            timer: TimerFd::new()?,
            armed: None,
            pending: BTreeSet::new(),
        })
    }

    /// The connection `serial` waits until `deadline`.
    pub fn insert(&mut self, deadline: Instant, serial: u64) {
        self.pending.insert((deadline, serial));
    }

    /// It waits no longer.
    pub fn remove(&mut self, deadline: Instant, serial: u64) {
        self.pending.remove(&(deadline, serial));
    }

    /// The next connection whose wait is over.
    pub fn expired(&mut self) -> Option<u64> {
        let first = self.pending.first().copied();
        let (deadline, serial) = first.filter(|(deadline, _)| *deadline <= Instant::now())?;
        self.pending.remove(&(deadline, serial));
        Some(serial)
    }

    /// The timer went off: it is set anew by [`Deadlines::arm`].
    pub fn rang(&mut self) {
        // Fails only for a descriptor that is no timer. Disarming makes it unreadable: it needn't be read.
        let _ = self.timer.clear();
        self.armed = None;
    }

    /// Sets the timer to the earliest deadline. One that is set too early rings in vain, once: most deadlines are
    /// met, and the timer stays untouched for them.
    pub fn arm(&mut self) {
        let Some((first, _)) = self.pending.first().copied() else {
            return;
        };
        if self.armed.is_none_or(|armed| first < armed) {
            let wait = first.saturating_duration_since(Instant::now());
            // Zero would disarm it.
            let _ = self.timer.reset(wait.max(Duration::from_nanos(1)), None);
            self.armed = Some(first);
        }
    }
}

impl AsRawFd for Deadlines {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}
