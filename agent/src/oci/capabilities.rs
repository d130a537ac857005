//! `process.capabilities`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// The five sets, a bit for each capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What the process and its descendants may ever gain.
    pub bounding: u64,
    /// What counts.
    pub effective: u64,
    /// What may be kept over execve(2) of a file with capabilities.
    pub inheritable: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What is kept over execve(2) of any file.
    pub ambient: u64,
}

/// In the order of their numbers (capability.h).
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

impl Capabilities {
    /// The number of capabilities there are.
    pub const COUNT: u32 = NAMES.len() as u32;

    /// `CAP_SYS_ADMIN`, as in a set.
    pub const SYS_ADMIN: u64 = 1 << 21;

    /// Reads `process.capabilities`; without it the process has none. What can't be granted is left out, as the
    /// specification wants it, and told as `warnings`.
    ///
    /// # Errors
    /// A list that is none.
    pub fn parse(process: &mut Object, warnings: &mut Vec<String>) -> Result<Self, SpecError> {
        let Some(mut object) = process.object("capabilities")? else {
            return Ok(Self::default());
        };
        let bounding = set(&mut object, "bounding", warnings)?;
        let permitted = set(&mut object, "permitted", warnings)?;
        let mut grant = |name: &str, limit: u64, limit_name: &str| {
            let wanted = set(&mut object, name, warnings)?;
            if wanted & !limit != 0 {
                warnings.push(format!(
                    "{}: capabilities that are not {limit_name} are left out",
                    object.field(name)
                ));
            }
            Ok::<_, SpecError>(wanted & limit)
        };
        let effective = grant("effective", permitted, "permitted")?;
        let inheritable = grant("inheritable", bounding, "in the bounding set")?;
        let ambient = grant("ambient", permitted & inheritable, "permitted and inheritable")?;
        object.finish()?;
        Ok(Self {
            bounding,
            effective,
            inheritable,
            permitted,
            ambient,
        })
    }
}

fn set(object: &mut Object, name: &str, warnings: &mut Vec<String>) -> Result<u64, SpecError> {
    let mut bits = 0;
    for (index, capability) in object.take_texts(name)?.iter().enumerate() {
        match NAMES.iter().position(|known| known == capability) {
            Some(number) => bits |= 1 << number,
            None => warnings.push(format!(
                "{}[{index}]: the guest knows no capability {capability:?}",
                object.field(name)
            )),
        }
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sets: &str) -> (Capabilities, Vec<String>) {
        let mut spec =
            Object::parse(format!(r#"{{"process":{{"capabilities":{sets}}}}}"#).as_bytes()).unwrap();
        let mut warnings = Vec::new();
        let sets = Capabilities::parse(&mut spec.object("process").unwrap().unwrap(), &mut warnings).unwrap();
        (sets, warnings)
    }

    #[test]
    fn names_are_the_kernels_numbers() {
        let (sets, warnings) =
            parse(r#"{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE"]}"#);
        assert_eq!(sets.bounding, 1 | 1 << 21 | 1 << 40);
        assert_eq!(sets.permitted, 0);
        assert!(warnings.is_empty());
    }

    #[test]
    fn what_cannot_be_granted_is_left_out_and_told() {
        for (sets, warning) in [
            (
                r#"{"bounding":["CAP_CHOWN","CAP_FLY"]}"#,
                r#"process.capabilities.bounding[1]: the guest knows no capability "CAP_FLY""#,
            ),
            (
                r#"{"effective":["CAP_KILL"]}"#,
                "process.capabilities.effective: capabilities that are not permitted are left out",
            ),
            (
                r#"{"inheritable":["CAP_KILL"]}"#,
                "process.capabilities.inheritable: capabilities that are not in the bounding set are left out",
            ),
            (
                r#"{"permitted":["CAP_KILL"],"ambient":["CAP_KILL"]}"#,
                "process.capabilities.ambient: capabilities that are not permitted and inheritable are left out",
            ),
        ] {
            let (sets, warnings) = parse(sets);
            assert_eq!(warnings, [warning]);
            assert_eq!(sets.effective | sets.ambient | sets.inheritable, 0);
        }
    }
}
