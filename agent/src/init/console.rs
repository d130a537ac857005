//! The agent's own messages: to the kernel's log, and so to the console if there is one.

use std::{fs::File, io::Write};

/// Says something worth knowing when a guest is looked into. Failing to say it changes nothing.
pub fn log(message: &str) {
    if let Ok(mut log) = File::options().write(true).open("/dev/kmsg") {
        // Level 2, "critical": shown on the console even when the kernel is to be quiet but for emergencies and the like.
        let _ = log.write_all(format!("<2>sealock-agent: {message}\n").as_bytes());
    }
}
