//! `process.scheduler` and `process.ioPriority`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// How the kernel schedules the process (sched_setattr(2), `struct sched_attr`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19, for the policies that know it.
    pub nice: i32,
    /// For the real-time policies.
    pub priority: u32,
    /// Nanoseconds, for the deadline policy.
    pub runtime: u64,
    /// As `runtime`.
    pub deadline: u64,
    /// As `runtime`.
    pub period: u64,
}

const POLICIES: [(&str, i32); 6] = [
    ("SCHED_OTHER", libc::SCHED_OTHER),
    ("SCHED_FIFO", libc::SCHED_FIFO),
    ("SCHED_RR", libc::SCHED_RR),
    ("SCHED_BATCH", libc::SCHED_BATCH),
    ("SCHED_IDLE", libc::SCHED_IDLE),
    ("SCHED_DEADLINE", libc::SCHED_DEADLINE),
];

const FLAGS: [(&str, i32); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", libc::SCHED_FLAG_RESET_ON_FORK),
    ("SCHED_FLAG_RECLAIM", libc::SCHED_FLAG_RECLAIM),
    ("SCHED_FLAG_DL_OVERRUN", libc::SCHED_FLAG_DL_OVERRUN),
    ("SCHED_FLAG_KEEP_POLICY", libc::SCHED_FLAG_KEEP_POLICY),
    ("SCHED_FLAG_KEEP_PARAMS", libc::SCHED_FLAG_KEEP_PARAMS),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", libc::SCHED_FLAG_UTIL_CLAMP_MIN),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", libc::SCHED_FLAG_UTIL_CLAMP_MAX),
];

/// The number of a name in such a table.
fn look_up(table: &[(&str, i32)], name: &str) -> Option<u32> {
    let (_, number) = table.iter().find(|(known, _)| *known == name)?;
    u32::try_from(*number).ok()
}

impl Scheduler {
    /// Reads `process.scheduler`.
    ///
    /// # Errors
    /// An unknown policy or flag, or a value that the policy does not have.
    pub fn parse(process: &mut Object) -> Result<Option<Self>, SpecError> {
        let Some(mut object) = process.object("scheduler")? else {
            return Ok(None);
        };
        let name = object.take_text("policy")?.unwrap_or_default();
        let policy = look_up(&POLICIES, &name)
            .ok_or_else(|| SpecError::invalid(object.field("policy"), format!("no such policy: {name:?}")))?;
        let mut flags = 0;
        for (index, flag) in object.take_texts("flags")?.iter().enumerate() {
            flags |= u64::from(look_up(&FLAGS, flag).ok_or_else(|| {
                SpecError::invalid(
                    format!("{}[{index}]", object.field("flags")),
                    format!("no such flag: {flag:?}"),
                )
            })?);
        }
        let parsed = Self {
            policy,
            flags,
            nice: object.take_or_default("nice")?,
            priority: object.take_or_default("priority")?,
            runtime: object.take_or_default("runtime")?,
            deadline: object.take_or_default("deadline")?,
            period: object.take_or_default("period")?,
        };
        if !(-20..=19).contains(&parsed.nice) {
            return Err(SpecError::invalid(
                object.field("nice"),
                "is not between -20 and 19",
            ));
        }
        let real_time = matches!(name.as_str(), "SCHED_FIFO" | "SCHED_RR");
        let deadline = name == "SCHED_DEADLINE";
        for (field, value, known) in [
            ("priority", u64::from(parsed.priority), real_time),
            ("runtime", parsed.runtime, deadline),
            ("deadline", parsed.deadline, deadline),
            ("period", parsed.period, deadline),
        ] {
            if value != 0 && !known {
                return Err(SpecError::invalid(
                    object.field(field),
                    format!("{name} has no such value"),
                ));
            }
        }
        object.finish()?;
        Ok(Some(parsed))
    }
}

/// The process's place among those that wait for block devices (ioprio_set(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_*`.
    pub class: u8,
    /// 0, the highest, to 7.
    pub priority: u8,
}

impl IoPriority {
    /// Reads `process.ioPriority`.
    ///
    /// # Errors
    /// An unknown class or a priority that is none.
    pub fn parse(process: &mut Object) -> Result<Option<Self>, SpecError> {
        let Some(mut object) = process.object("ioPriority")? else {
            return Ok(None);
        };
        let name = object.take_text("class")?.unwrap_or_default();
        let class = match name.as_str() {
            "IOPRIO_CLASS_RT" => 1,
            "IOPRIO_CLASS_BE" => 2,
            "IOPRIO_CLASS_IDLE" => 3,
            _ => {
                return Err(SpecError::invalid(
                    object.field("class"),
                    format!("no such class: {name:?}"),
                ));
            }
        };
        let priority: i64 = object.take_or_default("priority")?;
        let priority = u8::try_from(priority)
            .ok()
            .filter(|priority| *priority <= 7)
            .ok_or_else(|| SpecError::invalid(object.field("priority"), "is not between 0 and 7"))?;
        object.finish()?;
        Ok(Some(Self { class, priority }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(text: &str) -> Result<Option<Scheduler>, SpecError> {
        Scheduler::parse(&mut Object::parse(format!(r#"{{"scheduler":{text}}}"#).as_bytes()).unwrap())
    }

    #[test]
    fn a_policy_with_its_values_is_read() {
        let read = scheduler(r#"{"policy":"SCHED_BATCH","nice":5,"flags":["SCHED_FLAG_RESET_ON_FORK"]}"#)
            .unwrap()
            .unwrap();
        assert_eq!((read.policy, read.nice, read.flags), (3, 5, 1));
        scheduler(r#"{"policy":"SCHED_FIFO","priority":99}"#).unwrap();
        scheduler(r#"{"policy":"SCHED_DEADLINE","runtime":1,"deadline":2,"period":2}"#).unwrap();
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (text, message) in [
            ("{}", r#"scheduler.policy: no such policy: """#),
            (
                r#"{"policy":"SCHED_ISO"}"#,
                r#"scheduler.policy: no such policy: "SCHED_ISO""#,
            ),
            (
                r#"{"policy":"SCHED_OTHER","nice":20}"#,
                "scheduler.nice: is not between -20 and 19",
            ),
            (
                r#"{"policy":"SCHED_OTHER","priority":1}"#,
                "scheduler.priority: SCHED_OTHER has no such value",
            ),
            (
                r#"{"policy":"SCHED_RR","runtime":1}"#,
                "scheduler.runtime: SCHED_RR has no such value",
            ),
            (
                r#"{"policy":"SCHED_OTHER","flags":["X"]}"#,
                r#"scheduler.flags[0]: no such flag: "X""#,
            ),
        ] {
            assert_eq!(scheduler(text).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn io_priorities_are_a_class_and_a_number() {
        let parse = |text: &str| {
            IoPriority::parse(&mut Object::parse(format!(r#"{{"ioPriority":{text}}}"#).as_bytes()).unwrap())
        };
        let read = parse(r#"{"class":"IOPRIO_CLASS_BE","priority":3}"#).unwrap();
        assert_eq!(
            read,
            Some(IoPriority {
                class: 2,
                priority: 3
            })
        );
        parse(r#"{"class":"IOPRIO_CLASS_BE","priority":8}"#).unwrap_err();
        parse(r#"{"class":"IOPRIO_CLASS_NONE"}"#).unwrap_err();
    }
}
