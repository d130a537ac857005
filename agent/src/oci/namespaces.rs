//! `linux.namespaces`: what a container shares with others.

use sealock_protocol::guest::NAMESPACE_OF;
use serde::{Deserialize, Serialize};

use super::{
    id_mappings::IdMappings,
    object::{Object, SpecError},
    time_offsets::TimeOffsets,
};

/// Where a namespace comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceSource {
    /// The guest's own, shared with every container that says the same: the specification does not list it.
    #[default]
    Guest,
    /// A new one for this container: listed without a path.
    New,
    /// The one of the pod's first container: listed with a path. The host's path means nothing here, and in a pod there
    /// is nobody else to share with.
    Sandbox,
}

/// The namespaces of a container. The mount namespace is always new; the network is the guest's, which is the pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Process ids.
    pub pid: NamespaceSource,
    /// The container whose process ids they are, when they are neither its own nor the pod's; else empty.
    pub pid_of: String,
    /// System V IPC and POSIX message queues.
    pub ipc: NamespaceSource,
    /// Host and domain name.
    pub uts: NamespaceSource,
    /// Whether the container sees its own cgroup as the root.
    pub cgroup: bool,
    /// Users and groups.
    pub user: NamespaceSource,
    /// `linux.uidMappings` and `gidMappings`, when the user namespace is not the guest's. None for the pod's are that one's.
    pub id_mappings: IdMappings,
    /// Whether it has clocks of its own.
    pub time: bool,
    /// How far they are from the guest's.
    pub time_offsets: TimeOffsets,
}

impl Namespaces {
    /// Reads `linux.namespaces`, `uidMappings`, `gidMappings` and `timeOffsets`.
    ///
    /// # Errors
    /// A namespace is listed twice, is unknown, or is one that Sealock does not create or join; values for a namespace that is
    /// not listed.
    pub fn parse(linux: &mut Object) -> Result<Self, SpecError> {
        let mut namespaces = Self::default();
        let mut seen = Vec::new();
        for mut item in linux.objects("namespaces")? {
            let kind: String = item.take_or_default("type")?;
            let path = item.take_text("path")?;
            let place = item.path().to_owned();
            item.finish()?;
            if seen.contains(&kind) {
                return Err(SpecError::invalid(place, format!("a second {kind} namespace")));
            }
            let source = if path.is_some() {
                NamespaceSource::Sandbox
            } else {
                NamespaceSource::New
            };
            let of = path.as_deref().and_then(|path| path.strip_prefix(NAMESPACE_OF));
            if let Some(container) = of {
                if kind != "pid" {
                    return Err(SpecError::unsupported(format!(
                        "{place}.path of another container's {kind} namespace"
                    )));
                }
                container.clone_into(&mut namespaces.pid_of);
            }
            match kind.as_str() {
                "pid" => namespaces.pid = source,
                "ipc" => namespaces.ipc = source,
                "uts" => namespaces.uts = source,
                "user" => namespaces.user = source,
                "cgroup" if path.is_none() => namespaces.cgroup = true,
                "time" if path.is_none() => namespaces.time = true,
                "mount" if path.is_none() => {}
                // The microVM is the network namespace, and the host has connected it.
                "network" => {}
                "cgroup" | "mount" | "time" => {
                    return Err(SpecError::unsupported(format!(
                        "{place}.path of the {kind} namespace"
                    )));
                }
                _ => {
                    return Err(SpecError::invalid(
                        format!("{place}.type"),
                        format!("no such namespace: {kind:?}"),
                    ));
                }
            }
            seen.push(kind);
        }
        if !seen.iter().any(|kind| kind == "mount") {
            return Err(SpecError::invalid(
                linux.field("namespaces"),
                "a container needs a mount namespace",
            ));
        }
        let mappings = IdMappings::parse(linux)?;
        match (namespaces.user, mappings) {
            (NamespaceSource::Guest, None) => {}
            (NamespaceSource::Guest, Some(_)) => {
                return Err(SpecError::invalid(
                    linux.field("uidMappings"),
                    "needs a user namespace in linux.namespaces",
                ));
            }
            (_, Some(mappings)) => namespaces.id_mappings = mappings,
            // They are those of the namespace.
            (NamespaceSource::Sandbox, None) => {}
            (NamespaceSource::New, None) => {
                return Err(SpecError::invalid(
                    linux.field("uidMappings"),
                    "is missing for a user namespace",
                ));
            }
        }
        namespaces.time_offsets = TimeOffsets::parse(linux)?;
        if !namespaces.time && !namespaces.time_offsets.is_empty() {
            return Err(SpecError::invalid(
                linux.field("timeOffsets"),
                "needs a time namespace in linux.namespaces",
            ));
        }
        Ok(namespaces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Namespaces, SpecError> {
        let text = format!(r#"{{"linux":{{"namespaces":{list}}}}}"#);
        let mut spec = Object::parse(text.as_bytes()).unwrap();
        Namespaces::parse(&mut spec.object("linux").unwrap().unwrap())
    }

    #[test]
    fn a_path_stands_for_the_pods_first_container() {
        let namespaces = parse(
            r#"[{"type":"mount"},{"type":"pid"},{"type":"ipc","path":"/proc/7/ns/ipc"},
                {"type":"network","path":"/run/netns/x"},{"type":"cgroup"}]"#,
        )
        .unwrap();
        assert_eq!(
            namespaces,
            Namespaces {
                pid: NamespaceSource::New,
                ipc: NamespaceSource::Sandbox,
                uts: NamespaceSource::Guest,
                cgroup: true,
                ..Namespaces::default()
            }
        );
    }

    #[test]
    fn process_ids_can_be_another_containers() {
        let namespaces = parse(r#"[{"type":"mount"},{"type":"pid","path":"container:c1"}]"#).unwrap();
        assert_eq!(
            (namespaces.pid, namespaces.pid_of.as_str()),
            (NamespaceSource::Sandbox, "c1")
        );
    }

    #[test]
    fn namespaces_that_are_not_done_are_refused_by_name() {
        for (list, message) in [
            (
                r#"[{"type":"mount"},{"type":"user"}]"#,
                "linux.uidMappings: is missing for a user namespace",
            ),
            (
                r#"[{"type":"time","path":"/proc/7/ns/time"}]"#,
                "linux.namespaces[0].path of the time namespace is not supported",
            ),
            (
                r#"[{"type":"ipc","path":"container:c1"}]"#,
                "linux.namespaces[0].path of another container's ipc namespace is not supported",
            ),
            (
                r#"[{"type":"mount","path":"/x"}]"#,
                "linux.namespaces[0].path of the mount namespace is not supported",
            ),
            (
                r#"[{"type":"pid"}]"#,
                "linux.namespaces: a container needs a mount namespace",
            ),
            (
                r#"[{"type":"mount"},{"type":"mount"}]"#,
                "linux.namespaces[1]: a second mount namespace",
            ),
            (
                r#"[{"type":"dream"}]"#,
                r#"linux.namespaces[0].type: no such namespace: "dream""#,
            ),
        ] {
            assert_eq!(parse(list).unwrap_err().to_string(), message);
        }
    }

    fn parse_linux(linux: &str) -> Result<Namespaces, SpecError> {
        Namespaces::parse(&mut Object::parse(linux.as_bytes()).unwrap())
    }

    const RANGE: &str = r#"[{"containerID":0,"hostID":1000,"size":10}]"#;

    #[test]
    fn mappings_and_offsets_need_their_namespaces() {
        let user = parse_linux(&format!(
            r#"{{"namespaces":[{{"type":"mount"}},{{"type":"user"}},{{"type":"time"}}],
                "uidMappings":{RANGE},"gidMappings":{RANGE},"timeOffsets":{{"boottime":{{"secs":5}}}}}}"#
        ))
        .unwrap();
        assert_eq!(user.user, NamespaceSource::New);
        assert_eq!(user.id_mappings.users[0].outside, 1000);
        for (fields, message) in [
            (
                format!(r#""uidMappings":{RANGE},"gidMappings":{RANGE}"#),
                "uidMappings: needs a user namespace in linux.namespaces",
            ),
            (
                r#""timeOffsets":{"boottime":{"secs":5}}"#.to_owned(),
                "timeOffsets: needs a time namespace in linux.namespaces",
            ),
        ] {
            let text = format!(r#"{{"namespaces":[{{"type":"mount"}}],{fields}}}"#);
            assert_eq!(parse_linux(&text).unwrap_err().to_string(), message);
        }
    }
}
