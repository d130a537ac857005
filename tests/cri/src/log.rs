//! Logs in the form of the CRI: "TIME STREAM TAG TEXT", TAG being F for the end of a line and P for a part of one.

use std::{fs, path::Path};

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// "stdout" or "stderr".
    pub stream: String,
    /// Whether the text ends with a newline.
    pub full: bool,
    /// Without the newline.
    pub text: String,
}

/// A log's lines; none of one that is not there.
///
/// # Panics
/// It is in another form.
#[must_use]
pub fn read_log(path: &Path) -> Vec<Line> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    // A line that is still being written has no end.
    let Some((whole, _)) = text.rsplit_once('\n') else {
        return Vec::new();
    };
    let parse = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let (time, stream, tag) = (words.next()?, words.next()?, words.next()?);
        // RFC 3339: 2025-01-31T12:00:00.123456789Z
        time.contains('T').then_some(())?;
        ["stdout", "stderr"].contains(&stream).then_some(())?;
        Some(Line {
            stream: stream.to_owned(),
            full: match tag {
                "F" => true,
                "P" => false,
                _ => return None,
            },
            text: words.next().unwrap_or_default().to_owned(),
        })
    };
    whole
        .split('\n')
        .map(|line| parse(line).unwrap_or_else(|| panic!("not a line of a CRI log: {line:?}")))
        .collect()
}

/// What was written to a stream.
pub(crate) fn text_of(lines: &[Line], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if line.full {
            text.push('\n');
        }
    }
    text
}
