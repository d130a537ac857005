//! The whole specification.

use std::collections::BTreeMap;

use sealock_protocol::guest::MAX_SPEC;
use serde::{Deserialize, Serialize};

use super::{
    device_cgroup::DeviceRule,
    devices::Device,
    hooks::Hooks,
    masked_paths::RootedPath,
    mounts::{Mount, MountKind},
    namespaces::{NamespaceSource, Namespaces},
    object::{Object, SpecError},
    personality::Personality,
    process::Process,
    resources::Setting,
    root::Root,
    seccomp::Seccomp,
    sysctl::Sysctl,
};
use crate::init::SHARE;

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
    /// Device nodes to create.
    pub devices: Vec<Device>,
    /// Whether `/dev` is the container's own: a bind mount there brings its own links and default devices.
    pub own_dev: bool,
    /// `linux.maskedPaths`.
    pub masked_paths: Vec<RootedPath>,
    /// `linux.readonlyPaths`.
    pub readonly_paths: Vec<RootedPath>,
    /// `linux.sysctl`.
    pub sysctl: Vec<Sysctl>,
    /// `linux.personality`.
    pub personality: Option<Personality>,
    /// `linux.seccomp`.
    pub seccomp: Option<Seccomp>,
    /// `hooks`.
    pub hooks: Hooks,
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
    /// Whether they name processors, which then have to be there.
    #[must_use]
    pub fn name_processors(&self) -> bool {
        self.settings.iter().any(|setting| setting.file == "cpuset.cpus")
    }

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
        let version = version(&mut spec)?;
        let annotations: BTreeMap<String, String> = spec.take_or_default("annotations")?;
        let mut linux = spec
            .object("linux")?
            .ok_or_else(|| SpecError::invalid("linux", "is missing"))?;
        let namespaces = Namespaces::parse(&mut linux)?;
        let mounts = Mount::parse_all(&mut spec)?;
        check_id_maps(&mounts, &namespaces)?;
        let own_dev = own_dev(&mounts);
        let devices = Device::parse_all(&mut linux, own_dev)?;
        let limits = Limits::parse(&mut linux)?;
        let root = Root::parse(&mut spec, &mut linux)?;
        let bundle = format!("{SHARE}/{}", root.path.parent());
        let container = Self {
            hostname: name(&mut spec, "hostname", &namespaces)?,
            domainname: name(&mut spec, "domainname", &namespaces)?,
            root,
            devices,
            own_dev,
            mounts,
            masked_paths: RootedPath::parse_all(&mut linux, "maskedPaths")?,
            readonly_paths: RootedPath::parse_all(&mut linux, "readonlyPaths")?,
            sysctl: Sysctl::parse_all(&mut linux, &namespaces)?,
            personality: Personality::parse(&mut linux)?,
            seccomp: Seccomp::parse(&mut linux)?,
            hooks: Hooks::parse(&mut spec, &version, &bundle, annotations)?,
            process: Process::parse(&mut spec)?,
            namespaces,
        };
        // The host's place for the pod in its own hierarchy; the guest's cgroups are named by container.
        linux.take_text("cgroupsPath")?;
        linux.refuse("mountLabel", "the guest has no SELinux")?;
        linux.refuse("intelRdt", "the guest has no control over the host's caches")?;
        linux.refuse(
            "netDevices",
            "the host's network devices can't be moved into a microVM",
        )?;
        linux.finish()?;
        for name in ["solaris", "windows", "vm", "zos", "freebsd"] {
            spec.refuse(
                name,
                "the container is one of Linux, in a microVM of Sealock's own",
            )?;
        }
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

/// Whether nothing of somebody else's is mounted at `/dev`.
fn own_dev(mounts: &[Mount]) -> bool {
    let dev = mounts
        .iter()
        .rev()
        .find(|mount| mount.destination.trim_end_matches('/') == "/dev" && mount.kind != MountKind::Present);
    !dev.is_some_and(|mount| matches!(mount.kind, MountKind::Bind { .. } | MountKind::Volume(_)))
}

/// The specification's version. All of the 1.x series are read alike: what is unknown is refused by its field.
fn version(spec: &mut Object) -> Result<String, SpecError> {
    let version = spec
        .take_text("ociVersion")?
        .ok_or_else(|| SpecError::invalid("ociVersion", "is missing"))?;
    if version.starts_with("1.") {
        Ok(version)
    } else {
        Err(SpecError::invalid(
            "ociVersion",
            format!("{version:?} is not of the series 1.x"),
        ))
    }
}

/// A mount whose ids are mapped without saying how is mapped as the container is.
fn check_id_maps(mounts: &[Mount], namespaces: &Namespaces) -> Result<(), SpecError> {
    for mount in mounts {
        let field = || format!("{}.uidMappings", mount.field);
        if mount.options.id_map.is_none() {
            continue;
        }
        match (&mount.id_mappings, namespaces.user) {
            (None, NamespaceSource::Guest) => {
                return Err(SpecError::invalid(
                    field(),
                    "is missing, and the container has no user namespace to take it from",
                ));
            }
            (Some(mappings), NamespaceSource::New | NamespaceSource::Sandbox)
                if *mappings != namespaces.id_mappings =>
            {
                return Err(SpecError::refused(
                    field(),
                    "can't differ from linux.uidMappings in a container with a user namespace",
                ));
            }
            _ => {}
        }
    }
    Ok(())
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
            ("process.commandLine", json!("cmd.exe")),
            ("process.selinuxLabel", json!("system_u:system_r:container_t:s0")),
            ("process.user.username", json!("app")),
            ("linux.intelRdt", json!({"closID": "x"})),
            ("linux.mountLabel", json!("x")),
            ("linux.netDevices", json!({"eth0": {"name": "eth1"}})),
            ("linux.memoryPolicy", json!({"mode": "MPOL_BIND"})),
            ("linux.resources.rdma", json!({"mlx5_1": {"hcaHandles": 3}})),
            ("linux.resources.network", json!({"classID": 1})),
            ("hooks.prestart", json!([{"path": "/bin/true"}])),
            ("windows", json!({"layerFolders": ["x"]})),
            ("solaris", json!({"milestone": "x"})),
            ("vm", json!({"kernel": {"path": "/x"}})),
            ("zos", json!({"namespaces": [{"type": "ipc"}]})),
            ("future", json!(1)),
        ] {
            let mut spec = usual();
            let mut place = &mut spec;
            for part in pointer.split('.') {
                place = &mut place[part];
            }
            *place = value;
            let error = parse(&spec).unwrap_err();
            assert!(matches!(error, SpecError::Unsupported(_)), "{error}");
            let error = error.to_string();
            assert!(
                error.starts_with(&format!("{pointer} is not supported")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_profile_that_somebody_chose_is_refused_and_an_engines_own_is_told_of() {
        let mut spec = usual();
        spec["process"]["apparmorProfile"] = json!("cri-containerd.apparmor.d");
        let warnings = parse(&spec).unwrap().0.process.warnings;
        assert_eq!(
            warnings,
            [
                r#"process.apparmorProfile: "cri-containerd.apparmor.d" is not applied: the microVM stands for it"#
            ]
        );
        spec["process"]["apparmorProfile"] = json!("mine");
        assert_eq!(
            parse(&spec).unwrap_err().to_string(),
            r#"process.apparmorProfile: "mine" can't be applied: the guest has no AppArmor"#
        );
    }

    #[test]
    fn a_bound_dev_brings_its_own_and_gets_only_what_is_asked_for() {
        let mut spec = usual();
        spec["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
        assert_eq!(parse(&spec).unwrap().0.devices.len(), 7);
        spec["mounts"][1] = json!({"destination": "/dev/", "type": "bind", "source": "c1/mounts/0"});
        let container = parse(&spec).unwrap().0;
        assert_eq!(container.devices.len(), 1);
        assert!(!container.own_dev);
        spec["mounts"] = json!([]);
        assert_eq!(parse(&spec).unwrap().0.devices.len(), 7);
    }

    #[test]
    fn ids_are_mapped_as_the_mount_or_the_container_says() {
        let ranges = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 10}]);
        let mut spec = usual();
        spec["mounts"] = json!([{"destination": "/x", "type": "bind", "source": "a", "options": ["idmap"]}]);
        assert_eq!(
            parse(&spec).unwrap_err().to_string(),
            "mounts[0].uidMappings: is missing, and the container has no user namespace to take it from"
        );
        spec["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        spec["linux"]["uidMappings"] = ranges(1000);
        spec["linux"]["gidMappings"] = ranges(1000);
        parse(&spec).unwrap();
        spec["mounts"][0]["uidMappings"] = ranges(2000);
        spec["mounts"][0]["gidMappings"] = ranges(2000);
        let error = parse(&spec).unwrap_err().to_string();
        assert!(
            error.starts_with("mounts[0].uidMappings: can't differ"),
            "{error}"
        );
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
            (
                "/ociVersion",
                json!("2.0.0"),
                r#"ociVersion: "2.0.0" is not of the series 1.x"#,
            ),
            ("/ociVersion", json!(null), "ociVersion: is missing"),
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
