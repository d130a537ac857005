//! A container's process and the server: one seqpacket socket pair per process.
//!
//! A process with a terminal sends the terminal's master. A container's first process then reports that it is ready, and each
//! waits for the word to start. It then executes its program, which closes the channel; a failure, whenever it comes, is
//! reported first and is the last message.

use std::io;

use nix::unistd::write;
use sealock_protocol::seqpacket::{Error, SeqPacket};

/// The largest message, in bytes.
pub const MAX_MESSAGE: usize = 4096;

/// The server's word to start.
pub const START: &[u8] = b"S";

const TERMINAL: u8 = b'T';
/// The server's first answer to [`Report::Unprivileged`]: what could be done for the process without it has been.
pub const HELPED: &[u8] = b"M";
/// Comes from the server with a descriptor, after [`HELPED`].
pub const HELP: &[u8] = b"H";

const UNPRIVILEGED: u8 = b'U';
const READY: u8 = b'R';
const REFUSED: u8 = b'N';
const FAILED: u8 = b'E';

/// From the process to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Comes with the master of the process's terminal.
    Terminal,
    /// The process is in a user namespace and waits for what it can't do itself.
    Unprivileged,
    /// Everything is set up.
    Ready,
    /// The specification asks for what can't be, as a program that is not there. The text is for a user.
    Refused(String),
    /// Something failed. The text is for a user.
    Failed(String),
}

impl Report {
    /// As bytes of at most [`MAX_MESSAGE`]; a longer text is cut.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, text) = match self {
            Self::Terminal => (TERMINAL, ""),
            Self::Unprivileged => (UNPRIVILEGED, ""),
            Self::Ready => (READY, ""),
            Self::Refused(text) => (REFUSED, text.as_str()),
            Self::Failed(text) => (FAILED, text.as_str()),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&text.as_bytes()[..text.len().min(MAX_MESSAGE - 1)]);
        bytes
    }

    /// From bytes; `None` when they are no report.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, text) = bytes.split_first()?;
        let text = String::from_utf8_lossy(text).into_owned();
        match kind {
            TERMINAL => Some(Self::Terminal),
            UNPRIVILEGED => Some(Self::Unprivileged),
            READY => Some(Self::Ready),
            REFUSED => Some(Self::Refused(text)),
            FAILED => Some(Self::Failed(text)),
            _ => None,
        }
    }
}

/// Sends the last message. By write(2), which a program's filter as good as always allows: it may be loaded by then, and who can't be told
/// that there is no program takes it for running.
///
/// # Errors
/// The socket's own.
pub fn send_last(channel: &SeqPacket, report: &Report) -> io::Result<()> {
    write(channel, &report.encode())?;
    Ok(())
}

/// Waits for the word to start; false when there is no server any more to give it.
///
/// # Errors
/// The socket's own.
pub fn wait_for_start(channel: &SeqPacket) -> Result<bool, Error> {
    let mut buffer = [0; 8];
    match channel.receive(&mut buffer) {
        Ok((message, _)) => Ok(message == START),
        Err(Error::Closed) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_and_long_texts_are_cut() {
        for report in [
            Report::Terminal,
            Report::Unprivileged,
            Report::Ready,
            Report::Refused("a".into()),
            Report::Failed("b".into()),
        ] {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
        assert_eq!(
            Report::Failed("ü".repeat(MAX_MESSAGE)).encode().len(),
            MAX_MESSAGE
        );
        assert_eq!(Report::decode(b""), None);
        assert_eq!(Report::decode(b"?"), None);
    }

    #[test]
    fn the_last_message_is_one_message() {
        let (server, process) = SeqPacket::pair().unwrap();
        let report = Report::Failed("ü".repeat(MAX_MESSAGE));
        send_last(&process, &report).unwrap();
        let mut buffer = [0; MAX_MESSAGE];
        assert_eq!(server.receive(&mut buffer).unwrap().0, report.encode());
    }
}
