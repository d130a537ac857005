//! `linux.devices`, and the device nodes that every container has.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// A device node to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Where, absolute.
    pub path: String,
    /// Of what kind.
    pub kind: DeviceKind,
    /// Major number; 0 for a FIFO.
    pub major: u32,
    /// Minor number; 0 for a FIFO.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What a device node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A FIFO.
    Fifo,
}

/// The most that a device number holds (`MINORBITS`, and `CHRDEV_MAJOR_MAX` rounded up to its field).
pub const MAX_MAJOR: u32 = 0xfff;
/// As [`MAX_MAJOR`].
pub const MAX_MINOR: u32 = 0xf_ffff;

/// The devices of config-linux.md, "Default Devices", besides the console and `/dev/ptmx`: all readable and writable by all.
pub const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

impl Device {
    /// Reads `linux.devices` and adds, if asked, the defaults that it does not name.
    ///
    /// # Errors
    /// A device of an unknown type, or outside of what a device number can hold.
    pub fn parse_all(linux: &mut Object, with_defaults: bool) -> Result<Vec<Self>, SpecError> {
        let mut devices = linux
            .objects("devices")?
            .into_iter()
            .map(Self::parse)
            .collect::<Result<Vec<_>, _>>()?;
        let defaults = if with_defaults { &DEFAULT[..] } else { &[] };
        for &(path, major, minor) in defaults {
            if !devices.iter().any(|device| device.path == path) {
                devices.push(Self {
                    path: path.to_owned(),
                    kind: DeviceKind::Character,
                    major,
                    minor,
                    mode: 0o666,
                    uid: 0,
                    gid: 0,
                });
            }
        }
        Ok(devices)
    }

    fn parse(mut device: Object) -> Result<Self, SpecError> {
        let path = device.take_text("path")?.unwrap_or_default();
        if !path.starts_with('/') {
            return Err(SpecError::invalid(
                device.field("path"),
                format!("{path:?} is not an absolute path"),
            ));
        }
        let kind: String = device.take_or_default("type")?;
        let kind = match kind.as_str() {
            "c" | "u" => DeviceKind::Character,
            "b" => DeviceKind::Block,
            "p" => DeviceKind::Fifo,
            _ => {
                return Err(SpecError::invalid(
                    device.field("type"),
                    format!("no such type: {kind:?}"),
                ));
            }
        };
        let major: i64 = device.take_or_default("major")?;
        let minor: i64 = device.take_or_default("minor")?;
        let (major, minor) = match kind {
            DeviceKind::Fifo => (0, 0),
            _ => (
                number(&device, "major", major, MAX_MAJOR)?,
                number(&device, "minor", minor, MAX_MINOR)?,
            ),
        };
        let mode: u32 = device.take("fileMode")?.unwrap_or(0o666);
        let parsed = Self {
            path,
            kind,
            major,
            minor,
            // Some writers put the file type into the mode too.
            mode: mode & 0o7777,
            uid: device.take_or_default("uid")?,
            gid: device.take_or_default("gid")?,
        };
        device.finish()?;
        Ok(parsed)
    }
}

fn number(device: &Object, name: &str, value: i64, most: u32) -> Result<u32, SpecError> {
    u32::try_from(value)
        .ok()
        .filter(|&number| number <= most)
        .ok_or_else(|| SpecError::invalid(device.field(name), format!("{value} is not between 0 and {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Vec<Device>, SpecError> {
        let text = format!(r#"{{"devices":{list}}}"#);
        Device::parse_all(&mut Object::parse(text.as_bytes()).unwrap(), true)
    }

    #[test]
    fn the_default_devices_are_there_unless_named() {
        let devices =
            parse(r#"[{"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":420,"uid":7}]"#).unwrap();
        let null: Vec<_> = devices
            .iter()
            .filter(|device| device.path == "/dev/null")
            .collect();
        assert_eq!(null.len(), 1);
        assert_eq!((null[0].mode, null[0].uid), (0o644, 7));
        assert_eq!(devices.len(), DEFAULT.len());
    }

    #[test]
    fn devices_that_cannot_be_are_named() {
        for (list, message) in [
            (
                r#"[{"path":"null","type":"c"}]"#,
                r#"devices[0].path: "null" is not an absolute path"#,
            ),
            (
                r#"[{"path":"/dev/x","type":"z"}]"#,
                r#"devices[0].type: no such type: "z""#,
            ),
            (
                r#"[{"path":"/dev/x","type":"b","major":-1}]"#,
                "devices[0].major: -1 is not between 0 and 4095",
            ),
            (
                r#"[{"path":"/dev/x","type":"b","minor":1048576}]"#,
                "devices[0].minor: 1048576 is not between 0 and 1048575",
            ),
        ] {
            assert_eq!(parse(list).unwrap_err().to_string(), message);
        }
    }
}
