//! `linux.timeOffsets`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// How far the clocks of a time namespace are from the guest's (time_namespaces(7)).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffsets(Vec<(String, i64, u32)>);

impl TimeOffsets {
    /// Reads `linux.timeOffsets`.
    ///
    /// # Errors
    /// An unknown clock, or an offset that is none.
    pub fn parse(linux: &mut Object) -> Result<Self, SpecError> {
        let Some(mut object) = linux.object("timeOffsets")? else {
            return Ok(Self::default());
        };
        let mut all = Vec::new();
        for clock in ["monotonic", "boottime"] {
            let Some(mut offset) = object.object(clock)? else {
                continue;
            };
            let seconds = offset.take_or_default("secs")?;
            let nanoseconds: u32 = offset.take_or_default("nanosecs")?;
            if nanoseconds >= 1_000_000_000 {
                return Err(SpecError::invalid(
                    offset.field("nanosecs"),
                    "is a second or more",
                ));
            }
            offset.finish()?;
            all.push((clock.to_owned(), seconds, nanoseconds));
        }
        object.finish()?;
        Ok(Self(all))
    }

    /// Whether the clocks are the guest's.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As `/proc/PID/timens_offsets` takes it.
    pub fn text(&self) -> String {
        self.0
            .iter()
            .map(|(clock, seconds, nanoseconds)| format!("{clock} {seconds} {nanoseconds}\n"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TimeOffsets, SpecError> {
        TimeOffsets::parse(&mut Object::parse(format!(r#"{{"timeOffsets":{text}}}"#).as_bytes()).unwrap())
    }

    #[test]
    fn offsets_are_what_the_kernel_reads() {
        let offsets = parse(r#"{"boottime":{"secs":-5},"monotonic":{"secs":7,"nanosecs":9}}"#).unwrap();
        assert_eq!(offsets.text(), "monotonic 7 9\nboottime -5 0\n");
        assert!(parse("{}").unwrap().is_empty());
    }

    #[test]
    fn other_clocks_and_whole_seconds_of_nanoseconds_are_named() {
        for (text, message) in [
            (
                r#"{"realtime":{"secs":1}}"#,
                "timeOffsets.realtime is not supported",
            ),
            (
                r#"{"boottime":{"nanosecs":1000000000}}"#,
                "timeOffsets.boottime.nanosecs: is a second or more",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }
}
