//! What a pod's processes write to standard error goes into the log, within bounds.

use std::{os::fd::OwnedFd, process::ChildStderr};

use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::agent::printable;

/// The longest line that is logged, in bytes.
const MAX_LINE: usize = 1024;

/// The most lines that are logged of one process.
const MAX_LINES: usize = 256;

/// Logs the lines that the process `name` writes, until it closes its end. Beyond the bound they are read and dropped, so
/// that the process is never held up.
pub(crate) async fn run(name: &'static str, sandbox: &str, stderr: ChildStderr) {
    let mut from = match pipe::Receiver::from_owned_fd(OwnedFd::from(stderr)) {
        Ok(from) => from,
        Err(error) => {
            return tracing::warn!(process = name, sandbox, %error, "cannot read a process's messages");
        }
    };
    let mut lines = Lines::default();
    let mut buffer = [0; 512];
    while let Ok(filled @ 1..) = from.read(&mut buffer).await {
        lines.feed(&buffer[..filled], |line| {
            tracing::warn!(process = name, sandbox, "{line}")
        });
    }
    lines.feed(b"\n", |line| tracing::warn!(process = name, sandbox, "{line}"));
}

#[derive(Default)]
struct Lines {
    current: Vec<u8>,
    count: usize,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut log: impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.current.len() < MAX_LINE {
                    self.current.push(byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.current);
            if line.is_empty() || self.count > MAX_LINES {
                continue;
            }
            if self.count == MAX_LINES {
                log("further messages are dropped");
            } else {
                log(&printable(&String::from_utf8_lossy(&line), MAX_LINE));
            }
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_talkative_process_is_cut_short() {
        let mut lines = Lines::default();
        let mut logged = Vec::new();
        for _ in 0..1000 {
            lines.feed(&[b'x'; 2000], |line| logged.push(line.to_owned()));
            lines.feed(b"\x1b\n\n", |line| logged.push(line.to_owned()));
        }
        assert_eq!(logged.len(), MAX_LINES + 1);
        assert_eq!(logged[0].len(), MAX_LINE);
        assert_eq!(logged[MAX_LINES], "further messages are dropped");
    }
}
