//! `linux.resources` on its own: what a running container's limits are changed to.

use sealock_protocol::guest::MAX_SPEC;

use super::{
    device_cgroup::DeviceRule,
    object::{Object, SpecError},
    resources::Setting,
};

/// New limits; what is not among them stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Values for the cgroup's files.
    pub settings: Vec<Setting>,
    /// Which devices may be used; `None` leaves the rules.
    pub devices: Option<Vec<DeviceRule>>,
}

impl Update {
    /// Reads a `resources` object.
    ///
    /// # Errors
    /// The field that can't be applied.
    pub fn parse(resources: &[u8]) -> Result<Self, SpecError> {
        if resources.len() > MAX_SPEC {
            return Err(SpecError::TooLarge(MAX_SPEC));
        }
        let mut resources = Object::parse_at("linux.resources", resources)?;
        let update = Self {
            devices: match resources.has("devices") {
                true => Some(DeviceRule::parse_all(Some(&mut resources))?),
                false => None,
            },
            settings: Setting::parse_all(&mut resources)?,
        };
        resources.finish()?;
        Ok(update)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays() {
        let update = Update::parse(br#"{"memory":{"limit":1048576},"cpu":{}}"#).unwrap();
        assert_eq!(update.settings.len(), 1);
        assert_eq!(update.settings[0].file, "memory.max");
        assert_eq!(update.settings[0].field, "linux.resources.memory.limit");
        assert!(update.devices.is_none());
        let update = Update::parse(br#"{"devices":[{"allow":true}]}"#).unwrap();
        assert!(update.devices.is_some());
        assert!(Update::parse(br#"{"devices":null}"#).unwrap().devices.is_none());
    }

    #[test]
    fn what_cannot_be_changed_is_named() {
        let error = Update::parse(br#"{"memory":{"limits":1}}"#)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("linux.resources.memory.limits"), "{error}");
        assert!(matches!(
            Update::parse(&vec![b' '; MAX_SPEC + 1]),
            Err(SpecError::TooLarge(MAX_SPEC))
        ));
    }
}
