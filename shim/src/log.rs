//! The log: lines of `key=value` into the FIFO that containerd reads and copies into its own log.

use std::{
    fmt::{self, Write as _},
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use sealock_sandbox::config::LogLevel;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};

/// The longest line, in bytes.
const MAX_LINE: usize = 16 * 1024;

/// Writes events to a bundle's log.
struct Log {
    file: Mutex<File>,
    level: Level,
}

/// Logs into the FIFO `log` of `bundle` from now on. Without one nothing is logged.
pub fn start(bundle: &Path, level: LogLevel) {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    // For reading too: lines written while containerd restarts wait for it. They never make us wait.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(bundle.join("log"));
    if let Ok(file) = file {
        let log = Log {
            file: Mutex::new(file),
            level,
        };
        // It's the only place that sets one.
        let _ = tracing::subscriber::set_global_default(log);
    }
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= &self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::from_level(self.level))
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = format_line(SystemTime::now(), *event.metadata().level(), &fields);
        // A full log loses lines.
        let _ = self
            .file
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(line.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.others.push(' ');
            self.others.push_str(field.name());
            self.others.push('=');
            push_value(&mut self.others, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn format_line(now: SystemTime, level: Level, fields: &Fields) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        _ => "debug",
    };
    let mut line = format!("time=\"{}\" level={level} msg=", timestamp(now));
    push_value(&mut line, &fields.message);
    line.push_str(" runtime=io.containerd.sealock.v2");
    line.push_str(&fields.others);
    if line.len() >= MAX_LINE {
        let end = (0..MAX_LINE)
            .rev()
            .find(|&at| line.is_char_boundary(at))
            .unwrap_or(0);
        line.truncate(end);
    }
    line.push('\n');
    line
}

/// A value as it is, or quoted where it would be ambiguous.
fn push_value(line: &mut String, value: &str) {
    let plain = !value.is_empty()
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._/@^+:".contains(&byte));
    if plain {
        return line.push_str(value);
    }
    line.push('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => {
                line.push('\\');
                line.push(character);
            }
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            // Escape sequences and the like: whatever a guest says must not act on a terminal.
            control if control.is_control() => line.push('\u{fffd}'),
            other => line.push(other),
        }
    }
    line.push('"');
}

/// A moment in UTC, RFC 3339.
fn timestamp(now: SystemTime) -> String {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let seconds = libc::time_t::try_from(since.as_secs()).unwrap_or(0);
    // SAFETY: tm is a plain structure of numbers and a pointer, for which zero is a value.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call; gmtime_r looks at nothing else.
    unsafe { libc::gmtime_r(&seconds, &mut parts) };
    let mut text = String::new();
    // Writing to a string doesn't fail.
    let _ = write!(
        text,
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        parts.tm_year + 1900,
        parts.tm_mon + 1,
        parts.tm_mday,
        parts.tm_hour,
        parts.tm_min,
        parts.tm_sec,
        since.subsec_nanos()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str, others: &str) -> String {
        let fields = Fields {
            message: message.to_owned(),
            others: others.to_owned(),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::new(1_795_000_000, 5);
        format_line(now, Level::WARN, &fields)
    }

    #[test]
    fn a_line_is_what_containerds_log_is_made_of() {
        assert_eq!(
            line("it works", " sandbox=t1"),
            "time=\"2026-11-18T11:06:40.000000005Z\" level=warning msg=\"it works\" \
             runtime=io.containerd.sealock.v2 sandbox=t1\n"
        );
    }

    #[test]
    fn hostile_words_stay_within_their_line() {
        let line = line("a\nb\x1b[2J\"\\", "");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains("msg=\"a\\nb\u{fffd}[2J\\\"\\\\\""), "{line}");
    }

    #[test]
    fn lines_are_bounded() {
        let line = line(&"é".repeat(MAX_LINE), "");
        assert!(line.len() <= MAX_LINE + 1 && line.ends_with('\n'));
    }

    #[test]
    fn the_timeline_is_read_back() {
        let mut others = String::from(" sandbox=t1 steps=");
        push_value(&mut others, r#"[{"step":"shim_start","ms":0.0}]"#);
        let (sandbox, steps) = sealock_sandbox::timeline::parse(&line("timeline", &others)).unwrap();
        assert_eq!((sandbox.as_str(), steps[0].step.as_str()), ("t1", "shim_start"));
    }
}
