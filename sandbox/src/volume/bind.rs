//! The bind mounts among `mounts` (config.md, "Mounts"), made fit for the guest.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{kind, kind::Kind, source::Source};
use crate::{
    mount::Allow,
    share::ContainerShare,
    spec::{Error, invalid, unsupported},
};

/// What a mount entry asks for, as far as it concerns the host.
struct Bind {
    destination: String,
    source: PathBuf,
    allow: Allow,
    /// The options that are the guest's, without those that say that it is a bind mount.
    options: Vec<String>,
}

/// Prepares `mounts` of the specification, sharing what they need. `pod` is the pod's UID, where it is known. Devices
/// that become the guest's own are added to `linux.devices`.
///
/// # Errors
/// A mount that isn't carried out; its field is named.
pub fn prepare(
    spec: &mut Value,
    bundle: &Path,
    pod: Option<&str>,
    share: &mut ContainerShare,
) -> Result<(), Error> {
    let mounts = match spec.get_mut("mounts") {
        None | Some(Value::Null) => return Ok(()),
        Some(mounts) => mounts
            .as_array_mut()
            .ok_or_else(|| invalid("mounts", "not a list"))?,
    };
    let mut devices = Vec::new();
    let mut index = 0;
    let mut failed = None;
    mounts.retain_mut(|mount| {
        let field = format!("mounts[{index}]");
        index += 1;
        if failed.is_some() {
            return true;
        }
        match prepare_one(mount, &field, bundle, pod, share) {
            Ok(None) => true,
            Ok(Some(device)) => {
                devices.push(device);
                false
            }
            Err(error) => {
                failed = Some(error);
                true
            }
        }
    });
    match failed {
        Some(error) => Err(error),
        None => add_devices(spec, devices),
    }
}

/// Changes one entry; or returns the device that takes its place.
fn prepare_one(
    mount: &mut Value,
    field: &str,
    bundle: &Path,
    pod: Option<&str>,
    share: &mut ContainerShare,
) -> Result<Option<Value>, Error> {
    let mount = mount
        .as_object_mut()
        .ok_or_else(|| invalid(field, "not an object"))?;
    let Some(bind) = Bind::parse(mount, field, bundle)? else {
        return Ok(None);
    };
    let refused = |source| Error::Volume {
        field: format!("{field}.source"),
        source,
    };
    let source = Source::open(&bind.source).map_err(refused)?;
    let mut kind = kind::of(&source, &bind.destination, bind.allow.read_only, pod).map_err(refused)?;
    if kind == Kind::Copied {
        if let Some(path) = share.copy_volume(&source).map_err(refused)? {
            become_type(mount, "sealock-copy", path, bind.options);
            return Ok(None);
        }
        kind = Kind::Shared;
    }
    match kind {
        Kind::Shared | Kind::Copied => {
            let path = share.add_volume(&source, bind.allow).map_err(refused)?;
            mount.insert("source".to_owned(), path.into());
        }
        Kind::Memory(memory) => {
            let mut options = memory.options;
            if !memory.subpath.is_empty() {
                options.push(format!("subpath={}", memory.subpath));
            }
            options.extend(bind.options);
            become_type(mount, "sealock-tmpfs", memory.name, options);
        }
        Kind::FileSystem(name) => become_type(mount, name, name.to_owned(), bind.options),
        Kind::Device { major, minor } => {
            let (user, group) = source.owner();
            return Ok(Some(json!({
                "path": bind.destination,
                "type": "c",
                "major": major,
                "minor": minor,
                "fileMode": source.mode(),
                "uid": user,
                "gid": group,
            })));
        }
    }
    Ok(None)
}

fn become_type(mount: &mut Map<String, Value>, name: &str, source: String, options: Vec<String>) {
    mount.insert("type".to_owned(), name.into());
    mount.insert("source".to_owned(), source.into());
    mount.insert("options".to_owned(), options.into());
}

fn add_devices(spec: &mut Value, devices: Vec<Value>) -> Result<(), Error> {
    if devices.is_empty() {
        return Ok(());
    }
    let linux = spec
        .get_mut("linux")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| invalid("linux", "missing"))?;
    let list = linux.entry("devices").or_insert(Value::Null);
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut()
        .ok_or_else(|| invalid("linux.devices", "not a list"))?
        .extend(devices);
    Ok(())
}

impl Bind {
    /// Reads an entry; none if it isn't a bind mount.
    fn parse(mount: &Map<String, Value>, field: &str, bundle: &Path) -> Result<Option<Self>, Error> {
        let options: Vec<&str> = match mount.get("options") {
            None | Some(Value::Null) => Vec::new(),
            Some(options) => options
                .as_array()
                .and_then(|options| options.iter().map(Value::as_str).collect())
                .ok_or_else(|| invalid(format!("{field}.options"), "not a list of strings"))?,
        };
        let has = |names: &[&str]| options.iter().any(|option| names.contains(option));
        if mount.get("type").and_then(Value::as_str) != Some("bind") && !has(&["bind", "rbind"]) {
            return Ok(None);
        }
        if has(&["idmap", "ridmap"]) || mount.contains_key("uidMappings") || mount.contains_key("gidMappings")
        {
            return Err(unsupported(field, "id-mapped bind mounts are not supported"));
        }
        if has(&["shared", "rshared"]) {
            return Err(unsupported(
                format!("{field}.options"),
                "\"rshared\": what is mounted inside a microVM can't appear on the host \
                 (Kubernetes: mountPropagation: Bidirectional)",
            ));
        }
        let source = match mount.get("source").and_then(Value::as_str) {
            Some("") | None => return Err(invalid(format!("{field}.source"), "missing")),
            Some(source) => bundle.join(source),
        };
        let destination = match mount.get("destination").and_then(Value::as_str) {
            Some("") | None => return Err(invalid(format!("{field}.destination"), "missing")),
            Some(destination) => destination.to_owned(),
        };
        Ok(Some(Self {
            destination,
            source,
            allow: Allow {
                read_only: options
                    .iter()
                    .rev()
                    .find(|option| ["ro", "rw", "rro"].contains(option))
                    .is_some_and(|option| *option != "rw"),
                recursive: has(&["rbind"]),
                slave: has(&["slave", "rslave"]),
            },
            options: options
                .iter()
                .filter(|option| !["bind", "rbind"].contains(option))
                .map(|&option| option.to_owned())
                .collect(),
        }))
    }
}
