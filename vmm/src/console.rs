//! The end of what the guest wrote to its serial console.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use sealock_protocol::control::CONSOLE_TAIL;

/// Keeps the last [`CONSOLE_TAIL`] bytes; what is older is dropped. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    /// What is there, made fit for a message and a terminal: invalid UTF-8 and control characters other than newline
    /// and tabulator become replacement characters, carriage returns disappear. No byte becomes more than three.
    #[must_use]
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = {
            let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            ring.iter().copied().collect()
        };
        String::from_utf8_lossy(&bytes)
            .chars()
            .filter(|character| *character != '\r')
            .map(|character| match character {
                '\n' | '\t' => character,
                _ if character.is_control() => char::REPLACEMENT_CHARACTER,
                _ => character,
            })
            .collect()
    }
}

impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            if ring.len() == CONSOLE_TAIL {
                ring.pop_front();
            }
            ring.push_back(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_tail_is_kept() {
        let mut console = Console::default();
        for _ in 0..CONSOLE_TAIL {
            console.write_all(b"old").unwrap();
        }
        console.write_all(b"the end").unwrap();
        let tail = console.tail();
        assert_eq!(tail.len(), CONSOLE_TAIL);
        assert!(tail.ends_with("oldthe end"));
    }

    #[test]
    fn the_worst_tail_fits_a_message() {
        let mut console = Console::default();
        console.write_all(&[0x1b; CONSOLE_TAIL]).unwrap();
        let event = sealock_protocol::control::Event::Console { tail: console.tail() };
        let message = serde_json::to_vec(&event).unwrap();
        assert!(
            message.len() <= sealock_protocol::control::MAX_MESSAGE,
            "{}",
            message.len()
        );
    }

    #[test]
    fn a_terminal_is_not_commanded() {
        let mut console = Console::default();
        console.write_all(b"a\x1b[2J\xff\r\n\tb").unwrap();
        assert_eq!(console.tail(), "a\u{fffd}[2J\u{fffd}\n\tb");
    }
}
