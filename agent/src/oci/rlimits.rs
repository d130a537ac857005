//! `process.rlimits`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// A resource limit of the container's process (getrlimit(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// The specification's name for it.
    pub name: String,
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The limit that counts.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

impl Rlimit {
    /// Reads `process.rlimits`.
    ///
    /// # Errors
    /// An unknown or repeated limit, or a soft one above its hard one.
    pub fn parse_all(process: &mut Object) -> Result<Vec<Self>, SpecError> {
        let mut limits: Vec<Self> = Vec::new();
        for mut item in process.objects("rlimits")? {
            let field = item.field("type");
            let name: String = item.take_or_default("type")?;
            let resource = resource(&name)
                .ok_or_else(|| SpecError::invalid(&field, format!("no such limit: {name:?}")))?;
            if limits.iter().any(|limit| limit.resource == resource) {
                return Err(SpecError::invalid(field, format!("a second {name}")));
            }
            let limit = Self {
                name,
                resource,
                soft: item.take_or_default("soft")?,
                hard: item.take_or_default("hard")?,
            };
            if limit.soft > limit.hard {
                return Err(SpecError::invalid(
                    item.path(),
                    "the soft limit is above the hard one",
                ));
            }
            item.finish()?;
            limits.push(limit);
        }
        Ok(limits)
    }
}

fn resource(name: &str) -> Option<u32> {
    Some(match name {
        "RLIMIT_AS" => libc::RLIMIT_AS,
        "RLIMIT_CORE" => libc::RLIMIT_CORE,
        "RLIMIT_CPU" => libc::RLIMIT_CPU,
        "RLIMIT_DATA" => libc::RLIMIT_DATA,
        "RLIMIT_FSIZE" => libc::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => libc::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => libc::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => libc::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => libc::RLIMIT_NICE,
        "RLIMIT_NOFILE" => libc::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => libc::RLIMIT_NPROC,
        "RLIMIT_RSS" => libc::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => libc::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => libc::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => libc::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => libc::RLIMIT_STACK,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Vec<Rlimit>, SpecError> {
        let text = format!(r#"{{"process":{{"rlimits":{list}}}}}"#);
        let mut spec = Object::parse(text.as_bytes()).unwrap();
        Rlimit::parse_all(&mut spec.object("process").unwrap().unwrap())
    }

    #[test]
    fn limits_are_numbered_by_name() {
        let limits = parse(r#"[{"type":"RLIMIT_NOFILE","soft":1024,"hard":18446744073709551615}]"#).unwrap();
        assert_eq!(limits[0].resource, libc::RLIMIT_NOFILE);
        assert_eq!((limits[0].soft, limits[0].hard), (1024, u64::MAX));
    }

    #[test]
    fn limits_that_cannot_be_set_are_named() {
        for (list, message) in [
            (
                r#"[{"type":"RLIMIT_FUN","soft":1,"hard":1}]"#,
                r#"process.rlimits[0].type: no such limit: "RLIMIT_FUN""#,
            ),
            (
                r#"[{"type":"RLIMIT_AS"},{"type":"RLIMIT_AS"}]"#,
                "process.rlimits[1].type: a second RLIMIT_AS",
            ),
            (
                r#"[{"type":"RLIMIT_AS","soft":2,"hard":1}]"#,
                "process.rlimits[0]: the soft limit is above the hard one",
            ),
        ] {
            assert_eq!(parse(list).unwrap_err().to_string(), message);
        }
    }
}
