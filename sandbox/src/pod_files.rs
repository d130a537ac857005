//! The files that container engines make for a pod beside its own container, and mount in all the others: its names and name
//! servers. Where an engine leaves the pod to its runtime (containerd's sandbox API), it leaves these, too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// The size of the pod's `/dev/shm`, as engines make it.
const SHM_SIZE: &str = "size=65536k";

/// A file to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFile {
    /// Its name in the pod's directory.
    pub name: &'static str,
    /// Its contents.
    pub contents: Vec<u8>,
}

/// The files that a pod has; containers find them in `/etc`.
#[derive(Debug)]
pub struct PodFiles(Vec<(PathBuf, String)>);

impl PodFiles {
    /// Makes `files` in the pod's `directory`, with which they go away.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(directory: &Path, files: &[PodFile]) -> io::Result<Self> {
        let make = |file: &PodFile| {
            let path = directory.join(file.name);
            fs::write(&path, &file.contents)?;
            Ok((path, format!("/etc/{}", file.name)))
        };
        files.iter().map(make).collect::<io::Result<_>>().map(Self)
    }

    /// Adds their mounts to a container's specification, unless it has something else there already, and has the pod's shared
    /// memory be the machine's.
    pub fn add_to(&self, spec: &mut Value) {
        let read_only = spec.pointer("/root/readonly").and_then(Value::as_bool) == Some(true);
        let Some(spec) = spec.as_object_mut() else {
            return;
        };
        let mounts = spec.entry("mounts").or_insert(Value::Null);
        if mounts.is_null() {
            *mounts = json!([]);
        }
        // Whatever else it is, others refuse it.
        let Some(mounts) = mounts.as_array_mut() else {
            return;
        };
        for (source, destination) in &self.0 {
            if mounts.iter().any(|mount| is_at(mount, destination)) {
                continue;
            }
            mounts.push(json!({
                "destination": destination,
                "type": "bind",
                "source": source.to_string_lossy(),
                "options": ["rbind", "rprivate", if read_only { "ro" } else { "rw" }],
            }));
        }
        for mount in mounts.iter_mut().filter(|mount| is_at(mount, "/dev/shm")) {
            let options = match mount.get("type").and_then(Value::as_str) {
                Some("tmpfs") => mount.get("options").cloned(),
                Some("bind") if is_empty_shm(mount) => {
                    Some(json!(["nosuid", "nodev", "noexec", "mode=1777", SHM_SIZE]))
                }
                _ => continue,
            };
            *mount = json!({
                "destination": "/dev/shm",
                "type": "sealock-tmpfs",
                "source": "shm",
                "options": options.unwrap_or_else(|| json!([])),
            });
        }
    }
}

fn is_at(mount: &Value, destination: &str) -> bool {
    mount
        .get("destination")
        .and_then(Value::as_str)
        .is_some_and(|path| path.trim_end_matches('/') == destination)
}

/// Whether it is the place in which an engine would have mounted the pod's shared memory, and has not.
fn is_empty_shm(mount: &Value) -> bool {
    let source = mount.get("source").and_then(Value::as_str).unwrap_or_default();
    Path::new(source).ends_with("shm")
        && source != "/dev/shm"
        && fs::read_dir(source).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_the_pods_and_not_each_containers() {
        let files = PodFiles(Vec::new());
        let options = json!(["nosuid", "mode=1777", "size=65536k"]);
        let mut spec = json!({
            "mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": options}],
        });
        files.add_to(&mut spec);
        assert_eq!(
            spec["mounts"][0],
            json!({"destination": "/dev/shm", "type": "sealock-tmpfs", "source": "shm", "options": options})
        );
        let elsewhere = json!({"mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/data"}]});
        let mut spec = elsewhere.clone();
        files.add_to(&mut spec);
        assert_eq!(spec, elsewhere);
    }

    #[test]
    fn containers_get_what_they_do_not_have() {
        let top = tempfile::tempdir().unwrap();
        let shm = top.path().join("shm");
        fs::create_dir(&shm).unwrap();
        let file = |name, contents: &str| PodFile {
            name,
            contents: contents.as_bytes().to_vec(),
        };
        let files = PodFiles::create(
            top.path(),
            &[file("hosts", "::1 localhost"), file("hostname", "web")],
        )
        .unwrap();
        let own = json!({"destination": "/etc/hosts", "type": "bind", "source": "/x"});
        let mut spec = json!({
            "root": {"readonly": true},
            "mounts": [own, {"destination": "/dev/shm", "type": "bind", "source": shm}],
        });
        files.add_to(&mut spec);
        let source = top.path().join("hostname");
        assert_eq!(fs::read_to_string(&source).unwrap(), "web");
        assert_eq!(
            spec["mounts"],
            json!([
                own,
                {
                    "destination": "/dev/shm",
                    "type": "sealock-tmpfs",
                    "source": "shm",
                    "options": ["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"],
                },
                {
                    "destination": "/etc/hostname",
                    "type": "bind",
                    "source": source,
                    "options": ["rbind", "rprivate", "ro"],
                },
            ])
        );
    }
}
