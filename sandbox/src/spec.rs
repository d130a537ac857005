//! A container's OCI specification (`config.json`): read, and prepared for the guest.
//!
//! Only what is about the host is changed: the root file system's path, the sources of bind mounts, the network
//! namespace's path. Everything else reaches the agent as it was written, and the agent applies or refuses it.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sealock_protocol::guest::{MAX_SPEC, NAMESPACE_OF};
use serde_json::Value;

use crate::{
    cgroup,
    error::Kind,
    share::ContainerShare,
    volume::{self, bind},
};

/// The annotation with the pod's UID in Kubernetes.
const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";

/// Why a specification can't be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It's too large.
    #[error("{} is larger than {MAX_SPEC} bytes", .0.display())]
    TooLarge(PathBuf),
    /// It isn't JSON.
    #[error("{} is not a valid OCI specification", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field has a value that makes no sense.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A field asks for what isn't supported.
    #[error("{field}: {problem}")]
    Unsupported {
        /// The field.
        field: String,
        /// What isn't.
        problem: &'static str,
    },
    /// A bind mount's source can't be shared.
    #[error("{field}")]
    Volume {
        /// The field.
        field: String,
        /// The reason.
        source: volume::Error,
    },
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unsupported { .. } => Kind::Unimplemented,
            Self::Volume { source, .. } => source.kind(),
            _ => Kind::InvalidArgument,
        }
    }
}

pub(crate) fn invalid(field: impl Into<String>, problem: &'static str) -> Error {
    Error::Invalid {
        field: field.into(),
        problem,
    }
}

pub(crate) fn unsupported(field: impl Into<String>, problem: &'static str) -> Error {
    Error::Unsupported {
        field: field.into(),
        problem,
    }
}

/// Reads a bundle's specification.
///
/// # Errors
/// It is missing, too large or broken; the position is told.
pub fn read(bundle: &Path) -> Result<Value, Error> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_SPEC as u64 + 1).read_to_end(&mut text))
        .map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
    if text.len() > MAX_SPEC {
        return Err(Error::TooLarge(path));
    }
    let spec: Value = serde_json::from_slice(&text).map_err(|source| Error::Broken {
        path: path.clone(),
        source,
    })?;
    if spec.is_object() {
        Ok(spec)
    } else {
        Err(invalid(path.display().to_string(), "not a JSON object"))
    }
}

/// An annotation's value.
#[must_use]
pub fn annotation<'a>(spec: &'a Value, name: &str) -> Option<&'a str> {
    spec.get("annotations")?.get(name)?.as_str()
}

/// The hostname asked for; empty when none is.
#[must_use]
pub fn hostname(spec: &Value) -> &str {
    spec.get("hostname").and_then(Value::as_str).unwrap_or_default()
}

/// The Kubernetes namespace of the container's pod, as containerd or CRI-O names it.
#[must_use]
pub fn namespace(spec: &Value) -> Option<&str> {
    let annotations = spec.get("annotations")?;
    [
        "io.kubernetes.cri.sandbox-namespace",
        "io.kubernetes.pod.namespace",
    ]
    .into_iter()
    .find_map(|name| annotations.get(name)?.as_str())
}

/// How readily the kernel is to kill the container when memory is short (proc(5), `oom_score_adj`).
#[must_use]
pub fn oom_score(spec: &Value) -> i16 {
    let score = spec
        .pointer("/process/oomScoreAdj")
        .and_then(Value::as_i64)
        .unwrap_or(0);
    i16::try_from(score.clamp(-1000, 1000)).unwrap_or(0)
}

/// Where the root file system is on the host, when no snapshotter mounts one.
///
/// # Errors
/// The specification names none.
pub fn root(spec: &Value, bundle: &Path) -> Result<PathBuf, Error> {
    match spec.pointer("/root/path").and_then(Value::as_str) {
        Some("") | None => Err(invalid("root.path", "missing")),
        Some(path) => Ok(bundle.join(path)),
    }
}

/// Who is who on the host: the numbers that stand for a pod's containers there.
#[derive(Clone, Copy, Debug)]
pub struct Numbers<'a> {
    /// Stands for the pod: a namespace of that process is the pod's.
    pub pod: u32,
    /// Stand for containers, whose identifiers come with them.
    pub containers: &'a [(u32, String)],
}

/// Prepares the specification of `container` for the guest, sharing what its bind mounts need, and returns it encoded.
/// Namespaces are recognized as the pod's, or as a container's, by `numbers`.
///
/// # Errors
/// Something in it is not carried out; the field is named.
pub fn prepare(
    mut spec: Value,
    container: &str,
    bundle: &Path,
    numbers: Numbers<'_>,
    share: &mut ContainerShare,
) -> Result<Vec<u8>, Error> {
    let root = spec
        .get_mut("root")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| invalid("root", "missing"))?;
    root.insert("path".to_owned(), format!("{container}/rootfs").into());
    prepare_namespaces(&mut spec, numbers)?;
    prepare_cgroup(&mut spec)?;
    refuse_block_devices(&spec)?;
    let pod = annotation(&spec, POD_UID).map(str::to_owned);
    bind::prepare(&mut spec, bundle, pod.as_deref(), share)?;
    let encoded = serde_json::to_vec(&spec).map_err(|source| Error::Broken {
        path: bundle.join("config.json"),
        source,
    })?;
    if encoded.len() > MAX_SPEC {
        return Err(Error::TooLarge(bundle.join("config.json")));
    }
    Ok(encoded)
}

/// Prepares the specification of the pod's own container for the guest: what the others share, and nothing else, for it has
/// no files and no program.
///
/// # Errors
/// Something in it is not carried out; the field is named.
pub fn prepare_pause(mut spec: Value, pod_pid: u32) -> Result<Vec<u8>, Error> {
    let nobody = Numbers {
        pod: pod_pid,
        containers: &[],
    };
    // The host's side of a namespace that the guest makes anew, by the same mappings: containerd has one for the pod's network.
    if let Some(namespaces) = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut)
    {
        for user in namespaces
            .iter_mut()
            .filter(|namespace| namespace["type"] == "user")
        {
            user.as_object_mut().and_then(|user| user.remove("path"));
        }
    }
    prepare_namespaces(&mut spec, nobody)?;
    let mut kept = serde_json::Map::new();
    for name in ["ociVersion", "hostname", "domainname"] {
        if let Some(value) = spec.get_mut(name) {
            kept.insert(name.to_owned(), value.take());
        }
    }
    let mut linux = serde_json::Map::new();
    for name in ["namespaces", "uidMappings", "gidMappings", "sysctl", "resources"] {
        if let Some(value) = spec.pointer_mut(&format!("/linux/{name}")) {
            linux.insert(name.to_owned(), value.take());
        }
    }
    kept.insert("linux".to_owned(), linux.into());
    serde_json::to_vec(&kept).map_err(|source| Error::Broken {
        path: PathBuf::from("config.json"),
        source,
    })
}

/// Namespaces that a microVM doesn't have in common with its host, and what would be asked for by leaving them out.
const NOT_OF_THE_HOST: [(&str, &str); 3] = [
    (
        "network",
        "no \"network\" entry: the host's own network is not given to a microVM (hostNetwork)",
    ),
    (
        "pid",
        "no \"pid\" entry: the host's processes can't be seen from a microVM (hostPID)",
    ),
    (
        "ipc",
        "no \"ipc\" entry: the host's shared memory can't be seen from a microVM (hostIPC)",
    ),
];

fn prepare_namespaces(spec: &mut Value, numbers: Numbers<'_>) -> Result<(), Error> {
    const FIELD: &str = "linux.namespaces";
    let namespaces = spec
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut)
        .ok_or_else(|| invalid(FIELD, "missing"))?;
    let mut listed = Vec::new();
    for (index, namespace) in namespaces.iter_mut().enumerate() {
        let entry = namespace
            .as_object_mut()
            .ok_or_else(|| invalid(format!("{FIELD}[{index}]"), "not an object"))?;
        let kind = entry
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        listed.push(kind.clone());
        if kind == "network" {
            // The guest has one network namespace, the pod's; the path is the host's side of it.
            entry.remove("path");
            continue;
        }
        let Some(path) = entry
            .get("path")
            .and_then(Value::as_str)
            .filter(|path| !path.is_empty())
        else {
            continue;
        };
        let belongs_to = |pid: u32| path == format!("/proc/{pid}/ns/{}", namespace_file(&kind));
        if belongs_to(numbers.pod) {
            continue;
        }
        match numbers.containers.iter().find(|(pid, _)| belongs_to(*pid)) {
            Some((_, container)) if kind == "pid" => {
                let path = format!("{NAMESPACE_OF}{container}");
                entry.insert("path".to_owned(), path.into());
            }
            // Whatever is not of processes, containers of a pod share with it.
            Some(_) if ["ipc", "uts"].contains(&kind.as_str()) => {}
            _ => {
                return Err(unsupported(
                    format!("{FIELD}[{index}].path ({kind})"),
                    "not a namespace of the pod: others are the host's and out of a microVM's reach",
                ));
            }
        }
    }
    match NOT_OF_THE_HOST
        .iter()
        .find(|(kind, _)| !listed.iter().any(|listed| listed == kind))
    {
        None => Ok(()),
        Some((_, problem)) => Err(unsupported(FIELD, problem)),
    }
}

/// A block device that the container may use is the host's, and not there. Nodes that it may not use, or that a container gets with
/// everything else (a privileged one), are made in the guest, where they lead nowhere.
fn refuse_block_devices(spec: &Value) -> Result<(), Error> {
    let list = |pointer| {
        let list = spec.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten()
    };
    for (index, device) in list("/linux/devices").enumerate() {
        let is_of = |rule: &Value| {
            ["major", "minor"].iter().all(|name| {
                rule.get(name)
                    .is_none_or(|number| Some(number) == device.get(name))
            })
        };
        let used = list("/linux/resources/devices")
            .any(|rule| rule["allow"] == true && rule["type"] == "b" && is_of(rule));
        if device["type"] == "b" && used {
            let path = device["path"].as_str().unwrap_or_default();
            return Err(unsupported(
                format!("linux.devices[{index}] ({path})"),
                "a block device of the host, of which a microVM has none",
            ));
        }
    }
    Ok(())
}

/// What the kernel calls a namespace of the OCI type `kind` (namespaces(7)).
fn namespace_file(kind: &str) -> &str {
    match kind {
        "network" => "net",
        "mount" => "mnt",
        other => other,
    }
}

/// In the guest it is a path, however systemd would call it.
fn prepare_cgroup(spec: &mut Value) -> Result<(), Error> {
    if let Some(path) = cgroup::path_of(spec)?
        && let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut)
    {
        linux.insert("cgroupsPath".to_owned(), path.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{cleanup, share::Share};

    fn prepared(spec: Value) -> Result<Value, Error> {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("share");
        fs::create_dir(&path).unwrap();
        fs::write(top.path().join("hosts"), "").unwrap();
        let share = Share::create(path).expect("these tests need root");
        let mut container = share.add("c1").unwrap();
        let numbers = Numbers {
            pod: 17,
            containers: &[(18, "c0".to_owned())],
        };
        let result = prepare(spec, "c1", top.path(), numbers, &mut container);
        drop(container);
        cleanup::unmount_below(top.path()).unwrap();
        result.map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    fn plain() -> Value {
        json!({
            "ociVersion": "1.1.0",
            "root": {"path": "rootfs", "readonly": true},
            "process": {"args": ["true"], "future": {"kept": 1}},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"},
                {"type": "ipc", "path": "/proc/17/ns/ipc"}]},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        })
    }

    #[test]
    fn only_what_is_the_hosts_is_changed() {
        let mut expected = plain();
        expected["root"]["path"] = "c1/rootfs".into();
        expected["linux"]["namespaces"][1] = json!({"type": "network"});
        assert_eq!(prepared(plain()).unwrap(), expected);
    }

    #[test]
    fn a_containers_processes_are_found_by_what_stands_for_it() {
        let mut spec = plain();
        spec["linux"]["namespaces"][0] = json!({"type": "pid", "path": "/proc/18/ns/pid"});
        let prepared = prepared(spec).unwrap();
        assert_eq!(
            prepared["linux"]["namespaces"][0],
            json!({"type": "pid", "path": "container:c0"})
        );
    }

    #[test]
    fn bind_mounts_get_paths_of_the_share() {
        let mut spec = plain();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["rbind", "ro"]}));
        mounts.push(json!({"destination": "/data", "type": "none", "source": "/usr", "options": ["bind"]}));
        let spec = prepared(spec).unwrap();
        assert_eq!(spec["mounts"][1]["source"], ".volumes/0");
        assert_eq!(spec["mounts"][1]["options"], json!(["rbind", "ro"]));
        assert_eq!(spec["mounts"][2]["source"], ".volumes/1");
        assert_eq!(spec["mounts"][0]["source"], "proc");
    }

    #[test]
    fn a_block_device_is_refused_where_it_would_be_used() {
        let with = |rules: Value| {
            let mut spec = plain();
            spec["linux"]["devices"] = json!([{"path": "/dev/disk", "type": "b", "major": 8, "minor": 1}]);
            spec["linux"]["resources"] = json!({"devices": rules});
            prepared(spec)
        };
        let rule = |major: i64| json!({"allow": true, "type": "b", "major": major, "access": "rwm"});
        let refused = with(json!([{"allow": false, "access": "rwm"}, rule(8)])).unwrap_err();
        assert!(
            crate::error::line(&refused)
                .starts_with("linux.devices[0] (/dev/disk): a block device of the host")
        );
        for rules in [
            json!([]),
            json!([rule(9)]),
            // Of a privileged container.
            json!([{"allow": true, "access": "rwm"}]),
        ] {
            assert!(with(rules).is_ok());
        }
    }

    #[test]
    fn what_is_not_carried_out_is_refused_by_name() {
        let with = |pointer: &str, value: Value| {
            let mut spec = plain();
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[name] = value;
            crate::error::line(&prepared(spec).unwrap_err())
        };
        let bind = |source: &str| json!([{"destination": "/x", "type": "bind", "source": source}]);
        for (line, expected) in [
            (
                with(
                    "/linux/namespaces",
                    json!([{"type": "network"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]),
                ),
                "linux.namespaces[1].path (ipc): not a namespace of the pod",
            ),
            (
                with(
                    "/linux/namespaces",
                    json!([{"type": "network"}, {"type": "uts", "path": "/proc/17/ns/ipc"}]),
                ),
                "linux.namespaces[1].path (uts): not a namespace of the pod",
            ),
            (
                with("/linux/namespaces", json!([{"type": "pid"}])),
                "linux.namespaces: no \"network\" entry",
            ),
            (
                with("/mounts", bind("/dev")),
                "mounts[0].source: /dev is in the host's /dev",
            ),
            (
                with("/linux/namespaces", json!([{"type": "network"}, {"type": "ipc"}])),
                "linux.namespaces: no \"pid\" entry",
            ),
            (with("/linux/cgroupsPath", json!("a/../b")), "linux.cgroupsPath: "),
            (
                with(
                    "/mounts",
                    json!([{"destination": "/x", "source": "/usr", "options": ["rbind", "rshared"]}]),
                ),
                "mounts[0].options: \"rshared\": ",
            ),
            (with("/mounts", bind("")), "mounts[0].source: missing"),
            (
                with("/mounts", bind("/nonexistent")),
                "mounts[0].source: cannot open /nonexistent: No such file",
            ),
            (
                with(
                    "/mounts",
                    json!([{"destination": "/x", "type": "bind", "source": "/usr", "options": ["ridmap"]}]),
                ),
                "mounts[0].uidMappings: missing, and the container has none",
            ),
            (
                with(
                    "/mounts",
                    json!([{"destination": "/x", "type": "bind", "source": "/usr", "uidMappings": [{"size": 1}]}]),
                ),
                "mounts[0].gidMappings: not a list of ranges",
            ),
            (with("/mounts", json!([3])), "mounts[0]: not an object"),
            (with("/mounts", json!({})), "mounts: not a list"),
        ] {
            assert!(line.starts_with(expected), "{line}");
        }
    }

    #[test]
    fn of_the_pods_own_container_only_what_others_share_counts() {
        let mut spec = plain();
        spec["hostname"] = "pod".into();
        spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        spec["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
        let ranges = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
        spec["linux"]["uidMappings"] = ranges.clone();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user", "path": "/run/pods/userns"}));
        let prepared: Value = serde_json::from_slice(&prepare_pause(spec, 17).unwrap()).unwrap();
        let expected = json!({
            "ociVersion": "1.1.0",
            "hostname": "pod",
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"},
                    {"type": "ipc", "path": "/proc/17/ns/ipc"}, {"type": "user"}],
                "uidMappings": ranges,
                "sysctl": {"net.ipv4.ip_forward": "1"},
            },
        });
        assert_eq!(prepared, expected);
    }

    #[test]
    fn a_broken_specification_is_one_line_with_the_position() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(matches!(read(bundle.path()), Err(Error::Read { .. })));
        fs::write(bundle.path().join("config.json"), "{\n  \"root\": nonsense\n}").unwrap();
        let line = crate::error::line(&read(bundle.path()).unwrap_err());
        assert!(
            line.contains("config.json is not a valid OCI specification"),
            "{line}"
        );
        assert!(line.contains("line 2 column"), "{line}");
        fs::write(bundle.path().join("config.json"), "[]").unwrap();
        assert!(matches!(read(bundle.path()), Err(Error::Invalid { .. })));
        fs::write(bundle.path().join("config.json"), vec![b' '; MAX_SPEC + 1]).unwrap();
        assert!(matches!(read(bundle.path()), Err(Error::TooLarge(_))));
    }

    #[test]
    fn a_rootfs_is_found_relative_to_the_bundle() {
        let bundle = Path::new("/bundle");
        assert_eq!(root(&plain(), bundle).unwrap(), Path::new("/bundle/rootfs"));
        assert_eq!(
            root(&json!({"root": {"path": "/abs"}}), bundle).unwrap(),
            Path::new("/abs")
        );
        assert!(root(&json!({}), bundle).is_err());
    }
}
