//! The bind mounts among `mounts` (config.md, "Mounts"), made fit for the guest.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{kind, kind::Kind, source::Source};
use crate::{
    id_map::IdMap,
    mount::Allow,
    share::ContainerShare,
    spec::{Error, invalid, unsupported},
};

/// The most mounts below a volume that are bound one by one.
const MAX_MOUNTS_BELOW: usize = 64;

/// The options of mounts whose ids are mapped; the second is for those below it, too.
const ID_MAP: [&str; 2] = ["idmap", "ridmap"];

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
    let own = match spec.get("linux").and_then(Value::as_object) {
        None => None,
        Some(linux) => IdMap::of_spec(linux)
            .map_err(|name| invalid(format!("linux.{name}"), "not a list of ranges of ids"))?,
    };
    let mounts = match spec.get_mut("mounts") {
        None | Some(Value::Null) => return Ok(()),
        Some(mounts) => mounts
            .as_array_mut()
            .ok_or_else(|| invalid("mounts", "not a list"))?,
    };
    let mut devices = Vec::new();
    for (index, mut mount) in std::mem::take(mounts).into_iter().enumerate() {
        match prepare_one(
            &mut mount,
            &format!("mounts[{index}]"),
            bundle,
            pod,
            own.as_ref(),
            share,
        )? {
            Prepared::Mount { below } => {
                mounts.push(mount);
                mounts.extend(below);
            }
            Prepared::Device(device) => devices.push(device),
        }
    }
    add_devices(spec, devices)
}

/// What becomes of an entry.
enum Prepared {
    /// It is mounted, and then what is `below` it.
    Mount { below: Vec<Value> },
    /// A device takes its place.
    Device(Value),
}

/// Changes one entry.
fn prepare_one(
    mount: &mut Value,
    field: &str,
    bundle: &Path,
    pod: Option<&str>,
    own: Option<&IdMap>,
    share: &mut ContainerShare,
) -> Result<Prepared, Error> {
    let mount = mount
        .as_object_mut()
        .ok_or_else(|| invalid(field, "not an object"))?;
    let alone = Ok(Prepared::Mount { below: Vec::new() });
    let Some(mut bind) = Bind::parse(mount, field, bundle, own)? else {
        return alone;
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
            return alone;
        }
        kind = Kind::Shared;
    }
    match kind {
        Kind::Shared | Kind::Copied => {
            let path = share.add_volume(&source, &bind.allow).map_err(refused)?;
            // The host has mapped the ids.
            for name in ["uidMappings", "gidMappings"] {
                mount.remove(name);
            }
            if let Some(Value::Array(options)) = mount.get_mut("options") {
                options.retain(|option| option.as_str().is_none_or(|option| !ID_MAP.contains(&option)));
            }
            bind.options.retain(|option| !ID_MAP.contains(&option.as_str()));
            let below = bind.mounts_below(&source, &path, field)?;
            mount.insert("source".to_owned(), path.into());
            return Ok(Prepared::Mount { below });
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
            return Ok(Prepared::Device(json!({
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
    alone
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
    /// The guest sees one file system: what is read-only there is so as far as it reaches. A mount below a volume of which only
    /// the top is to be read-only is bound once more for that reason.
    fn mounts_below(&self, source: &Source, path: &str, field: &str) -> Result<Vec<Value>, Error> {
        if !self.allow.read_only || self.allow.read_only_below || !self.allow.recursive {
            return Ok(Vec::new());
        }
        let below = source.writable_mounts_below().map_err(|error| Error::Volume {
            field: format!("{field}.source"),
            source: super::Error::Share {
                path: self.source.clone(),
                source: error,
            },
        })?;
        if below.len() > MAX_MOUNTS_BELOW {
            return Err(unsupported(
                format!("{field}.options"),
                "\"ro\" of a volume with more than 64 writable mounts below it: \"rro\" is possible",
            ));
        }
        let mut options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        options.retain(|option| *option != "ro");
        options.push("rbind");
        below
            .iter()
            .map(|relative| {
                let relative = relative.to_str().ok_or_else(|| {
                    unsupported(
                        format!("{field}.source"),
                        "a mount below it whose name is not UTF-8",
                    )
                })?;
                Ok(json!({
                    "destination": format!("{}/{relative}", self.destination.trim_end_matches('/')),
                    "type": "bind",
                    "source": format!("{path}/{relative}"),
                    "options": options,
                }))
            })
            .collect()
    }

    /// Reads an entry; none if it isn't a bind mount.
    fn parse(
        mount: &Map<String, Value>,
        field: &str,
        bundle: &Path,
        own: Option<&IdMap>,
    ) -> Result<Option<Self>, Error> {
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
        let given = IdMap::of_spec(mount)
            .map_err(|name| invalid(format!("{field}.{name}"), "not a list of ranges of ids"))?;
        let id_map = given.or_else(|| own.filter(|_| has(&ID_MAP)).cloned());
        if id_map.is_none() && has(&ID_MAP) {
            return Err(invalid(
                format!("{field}.uidMappings"),
                "missing, and the container has none to take",
            ));
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
                read_only_below: options
                    .iter()
                    .rev()
                    .find(|option| ["rro", "rrw"].contains(option))
                    .is_some_and(|option| *option == "rro"),
                recursive: has(&["rbind"]),
                slave: has(&["slave", "rslave"]),
                id_map,
                id_map_below: has(&["ridmap"]),
            },
            options: options
                .iter()
                .filter(|option| !["bind", "rbind"].contains(option))
                .map(|&option| option.to_owned())
                .collect(),
        }))
    }
}
