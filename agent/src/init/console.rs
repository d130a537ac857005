//! The agent's own messages: to the kernel's log, and so to the console if there is one.

use std::{fs::File, io::Write};

/// Says something worth knowing when a guest is looked into. Failing to say it changes nothing.
pub fn log(message: &str) {
    // Level 2, "critical".
    write(2, message);
}

/// Says why the guest ends: on the console, too, where the host finds it, even when the kernel is to be quiet but for emergencies.
pub fn last_words(message: &str) {
    write(0, message);
}

fn write(level: u8, message: &str) {
    if let Ok(mut log) = File::options().write(true).open("/dev/kmsg") {
        let _ = log.write_all(format!("<{level}>sealock-agent: {message}\n").as_bytes());
    }
}
