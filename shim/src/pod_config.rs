//! A pod as Kubernetes describes it, turned into the specification that its own container would have.
//!
//! So everything that is made from a specification (the machine, its network, its cgroup on the host) is made the same way
//! whether containerd runs a "pause" container or asks for a sandbox.

use std::{fs, path::Path};

use containerd_shim_protos::protobuf::{self, Message, well_known_types::any::Any};
use sealock_sandbox::pod_files::PodFile;
use serde_json::{Map, Value, json};

#[allow(warnings, clippy::all, reason = "it is generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/pod_sandbox.rs"));
}

use generated::{IDMapping, LinuxContainerResources, PodSandboxConfig};

/// What CRI calls its description of a pod.
const TYPE: &str = "runtime.v1.PodSandboxConfig";

/// Kubernetes' [namespace modes](generated::NamespaceOption): the node's.
const NODE: i32 = 2;

/// The one that says "the pod's".
const POD: i32 = 0;

/// Why a pod can't be made as described.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A description of another kind.
    #[error("options: a pod is described by {TYPE}, not by {0:?}")]
    Type(String),
    /// It can't be read.
    #[error("options: not a {TYPE}")]
    Malformed(#[source] protobuf::Error),
    /// It asks for what a microVM doesn't have.
    #[error("{field}: the node's own {what} is not given to a microVM")]
    Node {
        /// The field.
        field: &'static str,
        /// Whose.
        what: &'static str,
    },
}

/// The specification for the pod `id` in the network namespace at `netns`, as described by `options`; without a description
/// it has a name and nothing else. `annotations` come on top of the description's.
///
/// # Errors
/// The description isn't one, or asks for what can't be had.
pub fn specification(
    id: &str,
    netns: &str,
    options: &Any,
    annotations: impl IntoIterator<Item = (String, String)>,
) -> Result<Value, Error> {
    let config = parse(options)?;
    let linux = &config.linux;
    let modes = &linux.security_context.namespace_options;
    for (mode, field, what) in [
        (
            modes.network,
            "linux.security_context.namespace_options.network",
            "network",
        ),
        (
            modes.pid,
            "linux.security_context.namespace_options.pid",
            "process table",
        ),
        (
            modes.ipc,
            "linux.security_context.namespace_options.ipc",
            "IPC namespace",
        ),
    ] {
        if mode == NODE {
            return Err(Error::Node { field, what });
        }
    }
    let mut network = json!({"type": "network"});
    if !netns.is_empty() {
        network["path"] = netns.into();
    }
    // As containerd sets them for its own "pause" containers, unless the pod says otherwise.
    let mut sysctl: Map<String, Value> = [
        ("net.ipv4.ip_unprivileged_port_start", "0"),
        ("net.ipv4.ping_group_range", "0 2147483647"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.into()))
    .collect();
    sysctl.extend(
        linux
            .sysctls
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into())),
    );

    let mut all: Map<String, Value> = config
        .annotations
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    all.extend(annotations.into_iter().map(|(name, value)| (name, value.into())));
    all.insert("io.kubernetes.cri.container-type".to_owned(), "sandbox".into());
    all.insert("io.kubernetes.cri.sandbox-id".to_owned(), id.into());
    let (resources, overhead) = (&linux.resources, &linux.overhead);
    for (name, value) in [
        ("memory", sum(resources, overhead, |of| of.memory_limit_in_bytes)),
        ("cpu-quota", sum(resources, overhead, |of| of.cpu_quota)),
        ("cpu-period", resources.cpu_period.max(overhead.cpu_period)),
    ] {
        if value > 0 {
            all.insert(
                format!("io.kubernetes.cri.sandbox-{name}"),
                value.to_string().into(),
            );
        }
    }
    let mut spec = json!({
        "ociVersion": "1.2.0",
        "hostname": config.hostname,
        // As Kubernetes sets it for what holds a pod together.
        "process": {"oomScoreAdj": -998},
        "annotations": all,
        "linux": {
            "namespaces": [network, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}],
            "sysctl": sysctl,
        },
    });
    let users = &modes.userns_options;
    if users.is_some() && users.mode == POD {
        let list = |ranges: &[IDMapping]| -> Vec<Value> {
            let range = |range: &IDMapping| json!({"containerID": range.container_id, "hostID": range.host_id, "size": range.length});
            ranges.iter().map(range).collect()
        };
        spec["linux"]["uidMappings"] = list(&users.uids).into();
        spec["linux"]["gidMappings"] = list(&users.gids).into();
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({"type": "user"}));
        }
    }
    if !linux.cgroup_parent.is_empty() {
        spec["linux"]["cgroupsPath"] = cgroups_path(&linux.cgroup_parent, id).into();
    }
    Ok(spec)
}

fn parse(options: &Any) -> Result<PodSandboxConfig, Error> {
    match options.type_url.rsplit('/').next().unwrap_or_default() {
        "" => Ok(PodSandboxConfig::new()),
        TYPE => PodSandboxConfig::parse_from_bytes(&options.value).map_err(Error::Malformed),
        other => Err(Error::Type(other.chars().take(128).collect())),
    }
}

/// The files that the pod's containers are to have in `/etc`. What the description doesn't say is as on this host, whose `/etc`
/// is at `host`.
///
/// # Errors
/// The description isn't one.
pub fn files(options: &Any, host: &Path) -> Result<Vec<PodFile>, Error> {
    let config = parse(options)?;
    let hosts = |name: &str| fs::read(host.join(name)).unwrap_or_default();
    let hostname = match config.hostname.as_str() {
        "" => hosts("hostname"),
        name => format!("{name}\n").into_bytes(),
    };
    let resolver = match config.dns_config.as_ref() {
        None => hosts("resolv.conf"),
        Some(dns) => {
            let mut lines = Vec::new();
            if !dns.searches.is_empty() {
                lines.push(format!("search {}\n", dns.searches.join(" ")));
            }
            lines.extend(dns.servers.iter().map(|server| format!("nameserver {server}\n")));
            if !dns.options.is_empty() {
                lines.push(format!("options {}\n", dns.options.join(" ")));
            }
            lines.concat().into_bytes()
        }
    };
    Ok([
        ("hostname", hostname),
        ("hosts", hosts("hosts")),
        ("resolv.conf", resolver),
    ]
    .map(|(name, contents)| PodFile { name, contents })
    .to_vec())
}

/// A limit with the pod's overhead; 0 when there is no limit.
fn sum(
    resources: &LinuxContainerResources,
    overhead: &LinuxContainerResources,
    of: impl Fn(&LinuxContainerResources) -> i64,
) -> i64 {
    match of(resources) {
        limit @ 1.. => limit.saturating_add(of(overhead).max(0)),
        _ => 0,
    }
}

/// The pod's cgroup below its parent, as containerd names it: systemd's way where the parent is a slice.
fn cgroups_path(parent: &str, id: &str) -> String {
    match parent.rsplit('/').next() {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::{generated::*, *};

    fn any(config: &PodSandboxConfig) -> Any {
        let mut any = Any::new();
        TYPE.clone_into(&mut any.type_url);
        any.value = config.write_to_bytes().unwrap();
        any
    }

    #[test]
    fn a_pods_description_becomes_a_specification() {
        let mut config = PodSandboxConfig::new();
        config.hostname = "web".to_owned();
        config.annotations.insert("a".to_owned(), "b".to_owned());
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = "/kubepods/pod1".to_owned();
        linux
            .sysctls
            .insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned());
        linux.resources.mut_or_insert_default().memory_limit_in_bytes = 1 << 30;
        linux.resources.mut_or_insert_default().cpu_quota = -1;
        linux.overhead.mut_or_insert_default().memory_limit_in_bytes = 5;
        let options = &mut linux.security_context.mut_or_insert_default().namespace_options;
        let users = options
            .mut_or_insert_default()
            .userns_options
            .mut_or_insert_default();
        let mut range = IDMapping::new();
        (range.container_id, range.host_id, range.length) = (0, 1000, 65_536);
        (users.uids, users.gids) = (vec![range.clone()], vec![range]);
        let more = [("c".to_owned(), "d".to_owned())];
        let spec = specification("p1", "/run/netns/x", &any(&config), more).unwrap();
        assert_eq!(spec["hostname"], "web");
        assert_eq!(
            spec["annotations"],
            json!({
                "a": "b",
                "c": "d",
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": "p1",
                "io.kubernetes.cri.sandbox-memory": "1073741829",
            })
        );
        assert_eq!(
            spec["linux"]["namespaces"][0],
            json!({"type": "network", "path": "/run/netns/x"})
        );
        assert_eq!(
            spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"],
            "80"
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/p1");
        assert_eq!(spec["linux"]["namespaces"][5], json!({"type": "user"}));
        assert_eq!(
            spec["linux"]["uidMappings"],
            json!([{"containerID": 0, "hostID": 1000, "size": 65_536}])
        );
    }

    #[test]
    fn without_a_description_there_is_a_pod_all_the_same() {
        let spec = specification("p1", "", &Any::new(), []).unwrap();
        assert_eq!(spec["linux"]["namespaces"][0], json!({"type": "network"}));
        assert!(spec["linux"].get("cgroupsPath").is_none());
    }

    #[test]
    fn a_pods_names_and_name_servers_become_files() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        fs::write(host.path().join("resolv.conf"), "nameserver 192.0.2.1\n").unwrap();
        let texts = |config: &PodSandboxConfig| -> Vec<String> {
            let files = files(&any(config), host.path()).unwrap();
            files
                .into_iter()
                .map(|file| String::from_utf8(file.contents).unwrap())
                .collect()
        };
        let mut config = PodSandboxConfig::new();
        config.hostname = "web".to_owned();
        assert_eq!(
            texts(&config),
            ["web\n", "127.0.0.1 localhost\n", "nameserver 192.0.2.1\n"]
        );
        let dns = config.dns_config.mut_or_insert_default();
        dns.servers = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        dns.searches = vec!["a.example".to_owned(), "b.example".to_owned()];
        dns.options = vec!["ndots:5".to_owned()];
        assert_eq!(
            texts(&config)[2],
            "search a.example b.example\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:5\n"
        );
    }

    #[test]
    fn a_slice_is_named_as_systemd_does() {
        assert_eq!(
            cgroups_path("/kubepods.slice/kubepods-pod1.slice", "p1"),
            "kubepods-pod1.slice:cri-containerd:p1"
        );
    }

    #[test]
    fn what_is_the_nodes_is_refused_by_name() {
        for (set, field) in [
            (
                (|of: &mut NamespaceOption| of.network = NODE) as fn(&mut NamespaceOption),
                "network",
            ),
            (|of| of.pid = NODE, "pid"),
            (|of| of.ipc = NODE, "ipc"),
        ] {
            let mut config = PodSandboxConfig::new();
            let context = config
                .linux
                .mut_or_insert_default()
                .security_context
                .mut_or_insert_default();
            set(context.namespace_options.mut_or_insert_default());
            let error = specification("p1", "", &any(&config), [])
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("namespace_options.{field}: ")), "{error}");
        }
        let mut other = Any::new();
        other.type_url = "type.example/other.Config".to_owned();
        assert!(
            matches!(specification("p1", "", &other, []), Err(Error::Type(name)) if name == "other.Config")
        );
        other.type_url = TYPE.to_owned();
        other.value = vec![0xff];
        assert!(matches!(
            specification("p1", "", &other, []),
            Err(Error::Malformed(_))
        ));
    }
}
