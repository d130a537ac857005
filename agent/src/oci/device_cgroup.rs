//! `linux.resources.devices`: which devices may be opened and created.

use super::{
    devices::{DEFAULT, MAX_MAJOR, MAX_MINOR},
    object::{Object, SpecError},
};

/// A rule of the device cgroup. Of all rules that match a device, the last that speaks of an access decides on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether the access is allowed.
    pub allow: bool,
    /// Of which devices; `None` stands for both kinds.
    pub kind: Option<RuleKind>,
    /// With this major number; `None` for any.
    pub major: Option<u32>,
    /// With this minor number; `None` for any.
    pub minor: Option<u32>,
    /// [`MKNOD`], [`READ`], [`WRITE`].
    pub access: u32,
}

/// The kind of device a rule is about; the numbers are those of `BPF_DEVCG_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// A block device.
    Block = 1,
    /// A character device.
    Character = 2,
}

/// `BPF_DEVCG_ACC_MKNOD`
pub const MKNOD: u32 = 1;
/// `BPF_DEVCG_ACC_READ`
pub const READ: u32 = 2;
/// `BPF_DEVCG_ACC_WRITE`
pub const WRITE: u32 = 4;

/// The most rules: a bound for the size of the program that they become.
const MAX_RULES: usize = 1024;

impl DeviceRule {
    /// Reads `linux.resources.devices` and adds what every container may do. What no rule speaks of is denied.
    ///
    /// # Errors
    /// The rule and field that can't be applied.
    pub fn parse_all(resources: Option<&mut Object>) -> Result<Vec<Self>, SpecError> {
        let mut rules = Vec::new();
        if let Some(resources) = resources {
            let items = resources.objects("devices")?;
            if items.len() > MAX_RULES {
                return Err(SpecError::invalid(
                    resources.field("devices"),
                    format!("more than {MAX_RULES} rules"),
                ));
            }
            for item in items {
                rules.push(Self::parse(item)?);
            }
        }
        rules.extend(Self::defaults());
        Ok(rules)
    }

    /// What the default devices need; also creating any node, for a node that may not be opened is only a name.
    fn defaults() -> impl Iterator<Item = Self> {
        let character = |major, minor, access| Self {
            allow: true,
            kind: Some(RuleKind::Character),
            major,
            minor,
            access,
        };
        let all = READ | WRITE | MKNOD;
        let any_node = Self {
            allow: true,
            kind: None,
            major: None,
            minor: None,
            access: MKNOD,
        };
        // /dev/ptmx, and the terminals of /dev/pts.
        let terminals = [character(Some(5), Some(2), all), character(Some(136), None, all)];
        let devices = DEFAULT.map(|(_, major, minor)| character(Some(major), Some(minor), all));
        [any_node].into_iter().chain(terminals).chain(devices)
    }

    fn parse(mut rule: Object) -> Result<Self, SpecError> {
        let allow = rule.take_or_default("allow")?;
        let kind: String = rule.take_or_default("type")?;
        let kind = match kind.as_str() {
            "" | "a" => None,
            "c" | "u" => Some(RuleKind::Character),
            "b" => Some(RuleKind::Block),
            _ => {
                return Err(SpecError::invalid(
                    rule.field("type"),
                    format!("no such type: {kind:?}"),
                ));
            }
        };
        let access: String = rule.take_or_default("access")?;
        let mut bits = 0;
        for letter in access.chars() {
            bits |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    return Err(SpecError::invalid(
                        rule.field("access"),
                        format!("no such access: {letter:?}"),
                    ));
                }
            };
        }
        let parsed = Self {
            allow,
            kind,
            major: number(&mut rule, "major", MAX_MAJOR)?,
            minor: number(&mut rule, "minor", MAX_MINOR)?,
            access: if bits == 0 { READ | WRITE | MKNOD } else { bits },
        };
        rule.finish()?;
        Ok(parsed)
    }
}

/// A device number; absent or -1 stands for any.
fn number(rule: &mut Object, name: &str, most: u32) -> Result<Option<u32>, SpecError> {
    match rule.take::<i64>(name)? {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .ok()
            .filter(|&number| number <= most)
            .map(Some)
            .ok_or_else(|| {
                SpecError::invalid(rule.field(name), format!("{value} is not between -1 and {most}"))
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<DeviceRule, SpecError> {
        let mut resources = Object::parse(format!(r#"{{"devices":{list}}}"#).as_bytes()).unwrap();
        DeviceRule::parse_all(Some(&mut resources)).map(|rules| rules[0])
    }

    #[test]
    fn absent_parts_of_a_rule_mean_all() {
        assert_eq!(
            parse(r#"[{"allow":false,"access":"rwm"}]"#).unwrap(),
            DeviceRule {
                allow: false,
                kind: None,
                major: None,
                minor: None,
                access: READ | WRITE | MKNOD,
            }
        );
        assert_eq!(
            parse(r#"[{"allow":true,"type":"c","major":10,"minor":-1,"access":"r"}]"#).unwrap(),
            DeviceRule {
                allow: true,
                kind: Some(RuleKind::Character),
                major: Some(10),
                minor: None,
                access: READ,
            }
        );
    }

    #[test]
    fn rules_that_cannot_be_are_named() {
        for (list, message) in [
            (r#"[{"type":"x"}]"#, r#"devices[0].type: no such type: "x""#),
            (r#"[{"access":"rx"}]"#, "devices[0].access: no such access: 'x'"),
            (
                r#"[{"type":"c","major":4096}]"#,
                "devices[0].major: 4096 is not between -1 and 4095",
            ),
        ] {
            assert_eq!(parse(list).unwrap_err().to_string(), message);
        }
    }
}
