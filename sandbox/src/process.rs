//! A pod's processes: started, watched and killed through pidfds, so that a number used again is never mistaken.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::Path,
    process::{ChildStderr, ExitStatus},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use sealock_jail::spawn::{self, Spawned};
use serde::{Deserialize, Serialize};

/// Names a process for good: its number may be given to another once it is gone, but not with the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// The number.
    pub pid: u32,
    /// Field 22 of proc(5)'s `stat`: clock ticks from the host's boot to the process's start.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has the number now.
    ///
    /// # Errors
    /// None has.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        // The second field is the program's name in parentheses and may contain anything.
        let start_time = stat
            .iter()
            .rposition(|&byte| byte == b')')
            .and_then(|end| std::str::from_utf8(&stat[end + 1..]).ok())
            .and_then(|rest| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("/proc/{pid}/stat is malformed"),
                )
            })?;
        Ok(Self { pid, start_time })
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// Kills it, and waits until it is gone. It's no error when it is gone already.
    ///
    /// # Errors
    /// It is still there at `deadline`.
    pub fn kill(&self, deadline: Instant) -> io::Result<()> {
        if self.end(libc::SIGKILL, deadline)? {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("process {} is still there after it was killed", self.pid),
            ))
        }
    }

    /// Asks it to end, and tells whether it is gone at `deadline`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn terminate(&self, deadline: Instant) -> io::Result<bool> {
        self.end(libc::SIGTERM, deadline)
    }

    fn end(&self, signal: i32, deadline: Instant) -> io::Result<bool> {
        let pidfd = match open_pidfd(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(true),
            Err(error) => return Err(error),
        };
        // Only now that the number can't change its owner behind our back.
        if !self.is_alive() {
            return Ok(true);
        }
        send_signal(pidfd.as_fd(), signal)?;
        wait_until(pidfd.as_fd(), PollFlags::POLLIN, deadline)
    }
}

/// The moment `wait` from now.
#[must_use]
pub fn monotonic_deadline(wait: Duration) -> Instant {
    Instant::now() + wait
}

/// Opens a pidfd (pidfd_open(2)).
///
/// # Errors
/// There is no such process.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and returns a new descriptor, close-on-exec, or -1.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(raw) {
        // SAFETY: the kernel has just made the descriptor for us alone.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal takes a valid pidfd, a number, no information and no flags.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    let error = io::Error::last_os_error();
    if sent == 0 || error.raw_os_error() == Some(libc::ESRCH) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Waits for one of `events`, which of a pidfd is the process's end (`POLLIN`); false when the deadline comes first.
pub(crate) fn wait_until(fd: BorrowedFd<'_>, events: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, events)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A child of this process. Killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    id: ProcessId,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` with an empty environment, in the root directory, as the first of a process id namespace of its own
    /// ([`sealock_jail::spawn`]). Its standard input is `stdin`, its output goes nowhere, what it writes to standard error can be read
    /// from the result.
    ///
    /// To be called from the thread that lives as long as this process: it is killed when the *thread* that started it ends.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(program: &Path, arguments: &[&Path], stdin: OwnedFd) -> io::Result<(Self, ChildStderr)> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes());
        let path = text(program)?;
        let arguments = std::iter::once(&program)
            .chain(arguments)
            .map(|argument| text(argument))
            .collect::<Result<Vec<_>, _>>()?;
        let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
        let (stderr, writer) = io::pipe()?;
        let streams = [stdin.as_fd(), null.as_fd(), writer.as_fd()];
        let Spawned { pid, pidfd } = spawn::spawn(&path, &arguments, streams)?;
        let mut process = Self {
            pidfd,
            id: ProcessId { pid, start_time: 0 },
            ended: None,
        };
        // It is not reaped before us, so that the number is its own. If this fails, the process is killed.
        process.id = ProcessId::of(pid)?;
        Ok((process, OwnedFd::from(stderr).into()))
    }

    /// Its name for good.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Sets how readily the kernel kills it when memory is short: it has inherited this process's reluctance.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_oom_score(&self, score: i16) -> io::Result<()> {
        fs::write(format!("/proc/{}/oom_score_adj", self.id.pid), score.to_string())
    }

    /// A copy of the pidfd, readable once the process has ended.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Kills it.
    pub fn kill(&self) {
        if let Err(error) = send_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            tracing::error!(pid = self.id.pid, error = %error, "cannot kill a process");
        }
    }

    /// Its exit status, once it has ended.
    pub fn reap(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.wait(WaitPidFlag::WNOHANG);
        }
        self.ended
    }

    fn wait(&self, flags: WaitPidFlag) -> Option<ExitStatus> {
        loop {
            // As wait(2) encodes it.
            return match waitid(Id::PIDFd(self.pidfd.as_fd()), flags | WaitPidFlag::WEXITED) {
                Ok(WaitStatus::Exited(_, status)) => Some(ExitStatus::from_raw((status & 0xff) << 8)),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
                Err(nix::Error::EINTR) => continue,
                _ => None,
            };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.reap().is_none() {
            self.kill();
            self.wait(WaitPidFlag::empty());
        }
    }
}

/// How a process ended, in words.
#[must_use]
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(libc::SIGSYS)) => format!(
            "signal {} (it made a system call that its filter does not list: `dmesg` says which, type=1326)",
            libc::SIGSYS
        ),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "an unknown status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_start_time_tells_processes_apart() {
        let this = ProcessId::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        let other = ProcessId {
            start_time: this.start_time + 1,
            ..this
        };
        assert!(!other.is_alive());
        // Nothing happens to the process that has the number now: this one.
        other.kill(monotonic_deadline(Duration::from_secs(5))).unwrap();
    }

    #[test]
    fn a_child_is_reaped_when_dropped_and_speaks_through_its_pipe() {
        let (stdin, _writer) = std::io::pipe().unwrap();
        let script = [Path::new("-c"), Path::new("echo \"$PWD $HOME\" >&2; exec cat")];
        let (process, mut stderr) = Process::start(Path::new("/bin/sh"), &script, stdin.into()).unwrap();
        let id = process.id();
        assert!(id.is_alive());
        drop(process);
        assert!(!id.is_alive());
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        assert!(said.is_empty() || said == "/ \n", "{said:?}");
    }

    #[test]
    fn a_missing_program_is_told() {
        let (stdin, _writer) = std::io::pipe().unwrap();
        let error = Process::start(Path::new("/nonexistent/vmm"), &[], stdin.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
