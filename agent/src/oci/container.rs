//! The whole specification.

use sealock_protocol::guest::MAX_SPEC;
use serde::{Deserialize, Serialize};

use super::{
    device_cgroup::DeviceRule,
    devices::Device,
    masked_paths::RootedPath,
    mounts::{Mount, MountKind},
    namespaces::{NamespaceSource, Namespaces},
    object::{Object, SpecError},
    process::Process,
    resources::Setting,
    root::Root,
    sysctl::Sysctl,
};

/// What the container's own process carries out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `hostname`, for a UTS namespace of its own.
    pub hostname: Option<String>,
    /// `domainname`, likewise.
    pub domainname: Option<String>,
    /// `linux.namespaces`.
    pub namespaces: Namespaces,
    /// `root`.
    pub root: Root,
    /// `mounts`.
    pub mounts: Vec<Mount>,
    /// Device nodes to create; empty when `/dev` is a bind mount, which brings its own.
    pub devices: Vec<Device>,
    /// `linux.maskedPaths`.
    pub masked_paths: Vec<RootedPath>,
    /// `linux.readonlyPaths`.
    pub readonly_paths: Vec<RootedPath>,
    /// `linux.sysctl`.
    pub sysctl: Vec<Sysctl>,
    /// `process`.
    pub process: Process,
}

/// What is set on the container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Values for the cgroup's files.
    pub settings: Vec<Setting>,
    /// Which devices may be used.
    pub devices: Vec<DeviceRule>,
}

impl Limits {
    /// Reads `linux.resources`.
    ///
    /// # Errors
    /// The field that can't be applied.
    pub fn parse(linux: &mut Object) -> Result<Self, SpecError> {
        let mut resources = linux.object("resources")?;
        let limits = Self {
            devices: DeviceRule::parse_all(resources.as_mut())?,
            settings: match &mut resources {
                Some(resources) => Setting::parse_all(resources)?,
                None => Vec::new(),
            },
        };
        resources.map_or(Ok(()), Object::finish)?;
        Ok(limits)
    }
}

/// The longest host or domain name (`__NEW_UTS_LEN`).
pub const MAX_HOSTNAME: usize = 64;

impl Container {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// The first field that can't be carried out.
    pub fn parse(spec: &[u8]) -> Result<(Self, Limits), SpecError> {
        if spec.len() > MAX_SPEC {
            return Err(SpecError::TooLarge(MAX_SPEC));
        }
        let mut spec = Object::parse(spec)?;
        let mut linux = spec
            .object("linux")?
            .ok_or_else(|| SpecError::invalid("linux", "is missing"))?;
        let namespaces = Namespaces::parse(&mut linux)?;
        let mounts = Mount::parse_all(&mut spec)?;
        let devices = Device::parse_all(&mut linux)?;
        let mut resources = linux.object("resources")?;
        let limits = Limits {
            devices: DeviceRule::parse_all(resources.as_mut())?,
            settings: match &mut resources {
                Some(resources) => Setting::parse_all(resources)?,
                None => Vec::new(),
            },
        };
        if let Some(resources) = resources {
            resources.finish()?;
        }
        let container = Self {
            hostname: name(&mut spec, "hostname", &namespaces)?,
            domainname: name(&mut spec, "domainname", &namespaces)?,
            root: Root::parse(&mut spec, &mut linux)?,
            devices: match dev_mount(&mounts)? {
                MountKind::Bind { .. } | MountKind::Volume(_) => Vec::new(),
                MountKind::FileSystem { .. } => devices,
            },
            mounts,
            masked_paths: RootedPath::parse_all(&mut linux, "maskedPaths")?,
            readonly_paths: RootedPath::parse_all(&mut linux, "readonlyPaths")?,
            sysctl: Sysctl::parse_all(&mut linux, &namespaces)?,
            process: Process::parse(&mut spec)?,
            namespaces,
        };
        // The host's place for the pod in its own hierarchy; the guest's cgroups are named by container.
        linux.ignore("cgroupsPath");
        linux.finish()?;
        // Every version of the 1.x series is read alike: what is unknown is refused by its field.
        spec.ignore("ociVersion");
        // Meant for the runtime's own use, and the host has made its use of them.
        spec.ignore("annotations");
        spec.finish()?;
        Ok((container, limits))
    }
}

/// A host or domain name. To the kernel it belongs to a UTS namespace: without one it would be everybody's.
pub(super) fn name(
    spec: &mut Object,
    field: &str,
    namespaces: &Namespaces,
) -> Result<Option<String>, SpecError> {
    let Some(name) = spec.take_text(field)? else {
        return Ok(None);
    };
    if name.len() > MAX_HOSTNAME {
        return Err(SpecError::invalid(
            field,
            format!("longer than {MAX_HOSTNAME} bytes"),
        ));
    }
    if namespaces.uts == NamespaceSource::Guest {
        return Err(SpecError::invalid(
            field,
            "needs a UTS namespace in linux.namespaces",
        ));
    }
    Ok(Some(name))
}

/// What is mounted at `/dev`: device nodes are made in memory, never among the files of the image.
fn dev_mount(mounts: &[Mount]) -> Result<&MountKind, SpecError> {
    mounts
        .iter()
        .rev()
        .find(|mount| mount.destination.trim_end_matches('/') == "/dev")
        .map(|mount| &mount.kind)
        .ok_or_else(|| SpecError::invalid("mounts", "nothing is mounted at /dev"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn usual() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
                "args": ["sh"], "env": ["PATH=/bin", "A=b=c"], "cwd": "/",
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
                "noNewPrivileges": true,
            },
            "root": {"path": "c1/rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            ],
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "cgroupsPath": "/default/c1",
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
                "maskedPaths": ["/proc/kcore"],
                "readonlyPaths": ["/proc/sys"],
            },
            "annotations": {"io.kubernetes.cri.container-type": "container"},
        })
    }

    fn parse(spec: &Value) -> Result<(Container, Limits), SpecError> {
        Container::parse(&serde_json::to_vec(spec).unwrap())
    }

    #[test]
    fn a_usual_specification_survives_the_way_to_the_containers_process() {
        let (container, limits) = parse(&usual()).unwrap();
        let bytes = serde_json::to_vec(&container).unwrap();
        assert_eq!(serde_json::from_slice::<Container>(&bytes).unwrap(), container);
        assert!(!limits.devices[0].allow);
        assert_eq!(container.devices.len(), 6);
    }

    #[test]
    fn each_field_that_is_not_carried_out_is_refused_by_name() {
        for (pointer, value) in [
            ("process.apparmorProfile", json!("cri-containerd.apparmor.d")),
            ("process.selinuxLabel", json!("system_u:system_r:container_t:s0")),
            ("process.ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"})),
            ("process.scheduler", json!({"policy": "SCHED_FIFO"})),
            ("process.execCPUAffinity", json!({"initial": "0"})),
            ("linux.seccomp", json!({"defaultAction": "SCMP_ACT_ERRNO"})),
            (
                "linux.uidMappings",
                json!([{"containerID": 0, "hostID": 1000, "size": 1}]),
            ),
            (
                "linux.gidMappings",
                json!([{"containerID": 0, "hostID": 1000, "size": 1}]),
            ),
            ("linux.timeOffsets", json!({"monotonic": {"secs": 1}})),
            ("linux.intelRdt", json!({"closID": "x"})),
            ("linux.personality", json!({"domain": "LINUX32"})),
            ("linux.mountLabel", json!("x")),
            ("linux.netDevices", json!({"eth0": {"name": "eth1"}})),
            ("linux.memoryPolicy", json!({"mode": "MPOL_BIND"})),
            ("linux.resources.rdma", json!({"mlx5_1": {"hcaHandles": 3}})),
            ("linux.resources.blockIO", json!({"weight": 100})),
            ("hooks", json!({"prestart": [{"path": "/bin/true"}]})),
            ("windows", json!({"layerFolders": ["x"]})),
        ] {
            let mut spec = usual();
            let mut place = &mut spec;
            for part in pointer.split('.') {
                place = &mut place[part];
            }
            *place = value;
            assert_eq!(
                parse(&spec).unwrap_err().to_string(),
                format!("{pointer} is not supported yet")
            );
        }
    }

    #[test]
    fn each_field_that_cannot_be_applied_is_named() {
        for (pointer, value, message) in [
            ("/process/args", json!([]), "process.args: names no program"),
            (
                "/process/cwd",
                json!("tmp"),
                r#"process.cwd: "tmp" is not an absolute path"#,
            ),
            (
                "/process/env",
                json!(["PATH"]),
                "process.env[0]: is not of the form NAME=value",
            ),
            (
                "/root/path",
                json!("/var/lib/rootfs"),
                r#"root.path: "/var/lib/rootfs" is not a relative path below the file share"#,
            ),
            ("/mounts", json!([]), "mounts: nothing is mounted at /dev"),
            (
                "/linux/maskedPaths",
                json!(["proc"]),
                r#"linux.maskedPaths[0]: "proc" is not an absolute path"#,
            ),
        ] {
            let mut spec = usual();
            *spec.pointer_mut(pointer).unwrap() = value;
            assert_eq!(parse(&spec).unwrap_err().to_string(), message);
        }
        let mut spec = usual();
        spec["process"]["oomScoreAdj"] = json!(1001);
        assert_eq!(
            parse(&spec).unwrap_err().to_string(),
            "process.oomScoreAdj: is not between -1000 and 1000"
        );
    }

    #[test]
    fn a_hostname_needs_a_namespace_to_be_set_in() {
        let mut spec = usual();
        spec["hostname"] = json!("pod");
        assert_eq!(parse(&spec).unwrap().0.hostname.as_deref(), Some("pod"));
        spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
        assert_eq!(
            parse(&spec).unwrap_err().to_string(),
            "hostname: needs a UTS namespace in linux.namespaces"
        );
    }

    #[test]
    fn a_specification_over_the_bound_is_not_read() {
        assert!(matches!(
            Container::parse(&vec![b' '; MAX_SPEC + 1]),
            Err(SpecError::TooLarge(MAX_SPEC))
        ));
    }
}
