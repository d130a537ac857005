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

    /// Reads `process.capabilities`; without it the process has none.
    ///
    /// # Errors
    /// An unknown name, or sets that the kernel would refuse.
    pub fn parse(process: &mut Object) -> Result<Self, SpecError> {
        let Some(mut object) = process.object("capabilities")? else {
            return Ok(Self::default());
        };
        let capabilities = Self {
            bounding: set(&mut object, "bounding")?,
            effective: set(&mut object, "effective")?,
            inheritable: set(&mut object, "inheritable")?,
            permitted: set(&mut object, "permitted")?,
            ambient: set(&mut object, "ambient")?,
        };
        if capabilities.effective & !capabilities.permitted != 0 {
            return Err(SpecError::invalid(
                object.field("effective"),
                "holds a capability that is not permitted",
            ));
        }
        if capabilities.ambient & !(capabilities.permitted & capabilities.inheritable) != 0 {
            return Err(SpecError::invalid(
                object.field("ambient"),
                "holds a capability that is not both permitted and inheritable",
            ));
        }
        object.finish()?;
        Ok(capabilities)
    }
}

fn set(object: &mut Object, name: &str) -> Result<u64, SpecError> {
    let mut bits = 0;
    for (index, capability) in object.take_texts(name)?.iter().enumerate() {
        let number = NAMES
            .iter()
            .position(|known| known == capability)
            .ok_or_else(|| {
                SpecError::invalid(
                    format!("{}[{index}]", object.field(name)),
                    format!("no such capability: {capability:?}"),
                )
            })?;
        bits |= 1 << number;
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sets: &str) -> Result<Capabilities, SpecError> {
        let mut spec =
            Object::parse(format!(r#"{{"process":{{"capabilities":{sets}}}}}"#).as_bytes()).unwrap();
        Capabilities::parse(&mut spec.object("process").unwrap().unwrap())
    }

    #[test]
    fn names_are_the_kernels_numbers() {
        let sets = parse(r#"{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE"]}"#).unwrap();
        assert_eq!(sets.bounding, 1 | 1 << 21 | 1 << 40);
        assert_eq!(sets.permitted, 0);
    }

    #[test]
    fn unknown_names_and_impossible_sets_are_refused() {
        for (sets, message) in [
            (
                r#"{"bounding":["CAP_CHOWN","CAP_FLY"]}"#,
                r#"process.capabilities.bounding[1]: no such capability: "CAP_FLY""#,
            ),
            (
                r#"{"effective":["CAP_KILL"]}"#,
                "process.capabilities.effective: holds a capability that is not permitted",
            ),
            (
                r#"{"permitted":["CAP_KILL"],"ambient":["CAP_KILL"]}"#,
                "process.capabilities.ambient: holds a capability that is not both permitted and inheritable",
            ),
        ] {
            assert_eq!(parse(sets).unwrap_err().to_string(), message);
        }
    }
}
