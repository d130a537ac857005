//! The timeline of a pod's start: one line of the log, and a file of the pod's while that exists.
//!
//! The line is the event with the message `timeline`; its field `sandbox` is the pod's identifier, its field `steps` a
//! JSON list of `{"step": NAME, "ms": NUMBER}` in order, the milliseconds counted from the first step:
//!
//! ```text
//! time="…" level=info msg=timeline sandbox=t1 steps="[{\"step\":\"shim_start\",\"ms\":0.0},…]"
//! ```
//!
//! [`parse`] reads it back. The file, `timeline.json` in the pod's directory, holds the same list; [`Timeline::keep`] writes it,
//! [`kept`] reads it. [`steps`] knows what the steps mean.

pub mod steps;

use std::{fs::File, io, io::Read, path::Path, time::SystemTime};

use sealock_protocol::timeline::Mark;
use serde::{Deserialize, Serialize};

/// The most marks that are kept.
const MAX_MARKS: usize = 64;

/// The file in a pod's directory.
const FILE: &str = "timeline.json";

/// The largest file that is read: many times what [`MAX_MARKS`] take.
const MAX_FILE: u64 = 64 * 1024;

/// The message of the line.
pub const MESSAGE: &str = "timeline";

/// A step of a start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name, as in [`Mark::step`].
    pub step: String,
    /// Milliseconds since the first step.
    pub ms: f64,
}

/// The marks of a start, in any order.
#[derive(Clone, Debug, Default)]
pub struct Timeline(Vec<Mark>);

impl Timeline {
    /// Marks `step` as reached now, unless it has been reached before.
    pub fn mark(&mut self, step: &str) {
        self.insert(Mark::now(step));
    }

    /// Marks `step` as reached at `ns` of the host's `CLOCK_MONOTONIC`, unless it has been reached before.
    pub fn mark_at(&mut self, step: &str, ns: u64) {
        self.insert(Mark {
            step: step.to_owned(),
            ns,
        });
    }

    /// Adds another process's marks; those with odd names, and too many of them, are left out.
    pub fn extend(&mut self, marks: Vec<Mark>) {
        for mark in marks {
            let fit = (1..=32).contains(&mark.step.len())
                && mark
                    .step
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            if fit {
                self.insert(mark);
            }
        }
    }

    fn insert(&mut self, mark: Mark) {
        if self.0.len() < MAX_MARKS && self.0.iter().all(|other| other.step != mark.step) {
            self.0.push(mark);
        }
    }

    /// The steps in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Step> {
        let mut marks: Vec<&Mark> = self.0.iter().collect();
        marks.sort_by_key(|mark| mark.ns);
        let first = marks.first().map_or(0, |mark| mark.ns);
        marks
            .into_iter()
            .map(|mark| Step {
                step: mark.step.clone(),
                // Whole microseconds: what is left is noise.
                ms: ((mark.ns - first) / 1000) as f64 / 1000.0,
            })
            .collect()
    }

    /// Whether `step` has been reached.
    #[must_use]
    pub fn has(&self, step: &str) -> bool {
        self.0.iter().any(|mark| mark.step == step)
    }

    /// Writes the file in the pod's directory.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn keep(&self, directory: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(&self.steps())?;
        let new = directory.join("timeline.json.new");
        std::fs::write(&new, text)?;
        std::fs::rename(&new, directory.join(FILE))
    }

    /// Writes the line to the log.
    pub fn log(&self, sandbox: &str) {
        // A list of names and numbers.
        let steps = serde_json::to_string(&self.steps()).unwrap_or_default();
        tracing::info!(sandbox, steps, "timeline");
    }
}

/// The steps that a pod with this directory has kept.
///
/// # Errors
/// There are none ([`io::ErrorKind::NotFound`]), or they make no sense.
pub fn kept(directory: &Path) -> io::Result<Vec<Step>> {
    let mut text = Vec::new();
    File::open(directory.join(FILE))?
        .take(MAX_FILE)
        .read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::from)
}

/// When a pod with this directory has kept its steps, if it has.
#[must_use]
pub fn kept_since(directory: &Path) -> Option<SystemTime> {
    std::fs::metadata(directory.join(FILE)).ok()?.modified().ok()
}

/// Reads a line of a log: the pod's identifier and its steps, if the line is a timeline.
#[must_use]
pub fn parse(line: &str) -> Option<(String, Vec<Step>)> {
    let (mut message, mut sandbox, mut steps) = (None, None, None);
    let mut rest = line.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_start();
        let (value, left) = value(after)?;
        match key {
            "msg" => message = Some(value),
            "sandbox" => sandbox = Some(value),
            "steps" => steps = Some(value),
            _ => {}
        }
        rest = left;
    }
    (message? == MESSAGE).then_some(())?;
    Some((sandbox?, serde_json::from_str(&steps?).ok()?))
}

/// A value of logfmt, plain or quoted, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(' ').unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut plain = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((plain, &quoted[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => plain.push('\n'),
                't' => plain.push('\t'),
                other => plain.push(other),
            },
            other => plain.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_sorted_and_relative_to_the_first() {
        let mut timeline = Timeline::default();
        timeline.mark_at("vmm_spawned", 5_000_000);
        timeline.mark_at("shim_start", 2_000_000);
        timeline.mark_at("shim_start", 1);
        timeline.extend(vec![
            Mark {
                step: "vmm_exec".to_owned(),
                ns: 6_500_000,
            },
            Mark {
                step: "odd name\n".to_owned(),
                ns: 1,
            },
        ]);
        let steps: Vec<_> = timeline
            .steps()
            .into_iter()
            .map(|step| (step.step, step.ms))
            .collect();
        assert_eq!(
            steps,
            [
                ("shim_start".to_owned(), 0.0),
                ("vmm_spawned".to_owned(), 3.0),
                ("vmm_exec".to_owned(), 4.5)
            ]
        );
    }

    #[test]
    fn marks_are_bounded() {
        let mut timeline = Timeline::default();
        timeline.extend(
            (0..1000)
                .map(|number| Mark {
                    step: format!("step_{number}"),
                    ns: number,
                })
                .collect(),
        );
        assert_eq!(timeline.steps().len(), MAX_MARKS);
    }

    #[test]
    fn what_a_pod_keeps_is_read_back_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(
            kept(directory.path()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        let mut timeline = Timeline::default();
        timeline.mark_at("shim_start", 5_000);
        timeline.mark_at("agent_hello", 12_505_000);
        timeline.keep(directory.path()).unwrap();
        assert_eq!(kept(directory.path()).unwrap(), timeline.steps());
        assert!(timeline.has("agent_hello") && !timeline.has("agent_init"));
        std::fs::write(directory.path().join(FILE), "[{\"step\":1}]").unwrap();
        assert!(kept(directory.path()).is_err());
    }

    #[test]
    fn a_line_of_the_log_is_read_back() {
        let line = r#"time="2026-11-22T03:00:00Z" level=info msg=timeline runtime=io.containerd.sealock.v2 sandbox=t1 steps="[{\"step\":\"shim_start\",\"ms\":0.0},{\"step\":\"agent_hello\",\"ms\":12.5}]""#;
        let (sandbox, steps) = parse(line).unwrap();
        assert_eq!(sandbox, "t1");
        assert_eq!((steps[1].step.as_str(), steps[1].ms), ("agent_hello", 12.5));
        assert!(parse(&line.replace("msg=timeline", "msg=other")).is_none());
        assert!(parse("").is_none());
        assert!(parse(r#"msg="timeline"#).is_none());
    }
}
