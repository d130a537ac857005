//! A terminal with a program on it, driven as a person would: types, looks, resizes.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{Winsize, openpty},
};

/// How long something awaited may take to appear: the lab is slow.
const DEADLINE: Duration = Duration::from_secs(120);

/// A program on a terminal.
#[derive(Debug)]
pub struct Pty {
    master: File,
    child: Child,
    /// What has appeared and not been awaited yet.
    unseen: String,
    /// All that has appeared, for a failed test.
    seen: String,
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

impl Pty {
    /// Starts `command` on a terminal of its own.
    ///
    /// # Panics
    /// It can't be started.
    #[must_use]
    pub fn spawn(mut command: Command, rows: u16, columns: u16) -> Self {
        let pair = openpty(Some(&size(rows, columns)), None).expect("there is a terminal");
        let slave = || Stdio::from(pair.slave.try_clone().expect("descriptors are left"));
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: between fork and exec there are two system calls, of numbers alone.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().expect("the program is installed in the lab");
        Self {
            master: pair.master.into(),
            child,
            unseen: String::new(),
            seen: String::new(),
        }
    }

    /// Types: a few keys, fewer than a terminal takes without a program that reads them.
    ///
    /// # Panics
    /// The terminal is gone, or takes no input for long.
    pub fn send(&mut self, keys: &str) {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLOUT)];
        let timeout = PollTimeout::try_from(DEADLINE).unwrap_or(PollTimeout::MAX);
        assert!(
            matches!(poll(&mut fds, timeout), Ok(1)),
            "no input is taken:\n{}",
            self.seen
        );
        self.master
            .write_all(keys.as_bytes())
            .expect("the terminal takes input");
    }

    /// Waits until `text` appears, and returns what came before it since the last time.
    ///
    /// # Panics
    /// It doesn't appear in time, or the program ends.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.unseen.find(text) {
                let before = self.unseen[..at].to_owned();
                self.unseen.drain(..at + text.len());
                return before;
            }
            assert!(self.read(deadline), "{text:?} does not appear:\n{}", self.seen);
        }
    }

    /// Types a command line for a shell, and returns what it prints until the next prompt.
    ///
    /// # Panics
    /// As [`Pty::wait_for`].
    pub fn run(&mut self, line: &str, prompt: &str) -> String {
        self.send(line);
        self.send("\r");
        // The terminal shows what is typed.
        self.wait_for("\n");
        self.wait_for(prompt).replace('\r', "")
    }

    /// Takes in some more; false at the end, or when nothing comes in time.
    fn read(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, timeout), Ok(1)) {
            return false;
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(count @ 1..) => {
                let text = String::from_utf8_lossy(&buffer[..count]);
                self.unseen.push_str(&text);
                self.seen.push_str(&text);
                true
            }
            // A terminal whose other side is closed gives EIO.
            _ => false,
        }
    }

    /// Gives the terminal another size.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = size(rows, columns);
        // SAFETY: the descriptor is open, and `size` is what the call reads.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// It doesn't end in time.
    pub fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        while self.read(deadline) {}
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.seen);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
