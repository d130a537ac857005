//! The specification of a pod's own container, as far as it counts: its namespaces, their names and parameters, and limits.

use sealock_protocol::guest::MAX_SPEC;
use serde::{Deserialize, Serialize};

use super::{
    container::{Limits, name},
    namespaces::Namespaces,
    object::{Object, SpecError},
    sysctl::Sysctl,
};

/// What the pod's own process carries out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// `hostname`, for a UTS namespace of its own.
    pub hostname: Option<String>,
    /// `domainname`, likewise.
    pub domainname: Option<String>,
    /// `linux.namespaces`.
    pub namespaces: Namespaces,
    /// `linux.sysctl`.
    pub sysctl: Vec<Sysctl>,
}

impl Pause {
    /// Reads `config.json`. What is about files or a program is for a container that has them.
    ///
    /// # Errors
    /// The first field that counts and can't be carried out.
    pub fn parse(spec: &[u8]) -> Result<(Self, Limits), SpecError> {
        if spec.len() > MAX_SPEC {
            return Err(SpecError::TooLarge(MAX_SPEC));
        }
        let mut spec = Object::parse(spec)?;
        let mut linux = spec
            .object("linux")?
            .ok_or_else(|| SpecError::invalid("linux", "is missing"))?;
        let namespaces = Namespaces::parse(&mut linux)?;
        if namespaces.time {
            return Err(SpecError::refused(
                linux.field("timeOffsets"),
                "a pod's containers can't share a time namespace",
            ));
        }
        let limits = Limits::parse(&mut linux)?;
        let pause = Self {
            hostname: name(&mut spec, "hostname", &namespaces)?,
            domainname: name(&mut spec, "domainname", &namespaces)?,
            sysctl: Sysctl::parse_all(&mut linux, &namespaces)?,
            namespaces,
        };
        Ok((pause, limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_pod_has_for_itself_counts() {
        let spec = br#"{
            "ociVersion": "1.2.0", "hostname": "pod", "root": {"path": "/nowhere"},
            "process": {"args": ["/pause"], "apparmorProfile": "x"},
            "mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/run/x"}],
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network", "path": "/run/netns/x"}],
                "resources": {"cpu": {"shares": 2}, "devices": [{"allow": false, "access": "rwm"}]},
                "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}
            }
        }"#;
        let (pause, limits) = Pause::parse(spec).unwrap();
        assert_eq!(pause.hostname.as_deref(), Some("pod"));
        assert_eq!(
            pause.sysctl[0].path.as_str(),
            "net/ipv4/ip_unprivileged_port_start"
        );
        assert_eq!(limits.settings[0].value, "1");
        Pause::parse(br#"{"hostname": "pod", "linux": {"namespaces": [{"type": "mount"}]}}"#).unwrap_err();
    }

    #[test]
    fn a_namespace_that_a_pods_containers_cant_share_is_refused() {
        let error = Pause::parse(
            br#"{"linux": {
                "namespaces": [{"type": "mount"}, {"type": "time"}]
            }}"#,
        )
        .unwrap_err();
        assert!(error.to_string().contains("time namespace"), "{error}");
    }
}
