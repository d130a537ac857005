//! The pod's cgroup on the host (cgroup v2), in which its processes run, so that the host accounts and limits them
//! together.
//!
//! Its place is what the specification of the pod's first container asks for (`linux.cgroupsPath`), where a container of a
//! runtime without machines would be: below the pod's cgroup of Kubernetes, whose limits then hold for the machine as a
//! whole. The limits of containers are set in the guest; here none is.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

use crate::spec;

/// Where the hierarchy is mounted.
const HIERARCHY: &str = "/sys/fs/cgroup";

/// The field.
const FIELD: &str = "linux.cgroupsPath";

/// Why a pod has no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification asks for something impossible.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// The host has version 1, or none.
    #[error(
        "{FIELD}: the host has no cgroup v2 hierarchy at {HIERARCHY}: boot it with systemd.unified_cgroup_hierarchy=1"
    )]
    NoHierarchy,
    /// The kernel refuses.
    #[error("{FIELD}: cannot {verb} {}", path.display())]
    File {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// The path below the hierarchy that the specification asks for, with a leading slash; none if it asks for none. Systemd's
/// way of naming (`slice:prefix:name`) is translated into the path that systemd would give it.
///
/// # Errors
/// It leads elsewhere, or isn't one.
pub fn path_of(spec: &Value) -> Result<Option<String>, spec::Error> {
    let text = match spec.pointer("/linux/cgroupsPath") {
        None | Some(Value::Null) => return Ok(None),
        Some(text) => text
            .as_str()
            .ok_or_else(|| spec::invalid(FIELD, "not a string"))?,
    };
    let path = match text.split(':').collect::<Vec<_>>()[..] {
        [slice, prefix, name] if !text.contains('/') => systemd_path(slice, prefix, name)?,
        _ => text.to_owned(),
    };
    let mut plain = String::new();
    for component in Path::new(&path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) if !path.contains('\0') => {
                plain.push('/');
                plain.push_str(&name.to_string_lossy());
            }
            _ => return Err(spec::invalid(FIELD, "not a path below the hierarchy's root")),
        }
    }
    Ok((!plain.is_empty()).then_some(plain))
}

/// `a-b.slice` is below `a.slice` (systemd.slice(5)).
fn systemd_path(slice: &str, prefix: &str, name: &str) -> Result<String, spec::Error> {
    let invalid = || spec::invalid(FIELD, "not `slice:prefix:name` as systemd has it");
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    if name.is_empty() {
        return Err(invalid());
    }
    let mut path = String::new();
    // The root slice is called "-".
    if stem != "-" {
        let mut above = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return Err(invalid());
            }
            above.push_str(part);
            path.push('/');
            path.push_str(&above);
            path.push_str(".slice");
            above.push('-');
        }
    }
    path.push('/');
    // A name that is a slice stands for itself.
    if name.ends_with(".slice") {
        path.push_str(name);
    } else if prefix.is_empty() {
        path.push_str(&format!("{name}.scope"));
    } else {
        path.push_str(&format!("{prefix}-{name}.scope"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Result<Option<String>, String> {
        path_of(&json!({"linux": {"cgroupsPath": text}})).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_taken_as_it_is_and_systemds_name_translated() {
        for (text, expected) in [
            ("/default/c1", "/default/c1"),
            ("kubepods//burstable/./pod1/c1", "/kubepods/burstable/pod1/c1"),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:c1",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c1.scope",
            ),
            (":docker:c1", "/system.slice/docker-c1.scope"),
            ("-.slice::c1", "/c1.scope"),
        ] {
            assert_eq!(path(text).unwrap().unwrap(), expected);
        }
        assert_eq!(path("").unwrap(), None);
        assert_eq!(path("/").unwrap(), None);
        assert_eq!(path_of(&json!({})).unwrap(), None);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused_by_name() {
        for text in [
            "/a/../../b",
            "..",
            "a\0b",
            "a.service:b:c",
            "a--b.slice:c:d",
            "a.slice:b:",
        ] {
            let error = path(text).unwrap_err();
            assert!(error.starts_with("linux.cgroupsPath: "), "{text:?}: {error}");
        }
        assert!(path_of(&json!({"linux": {"cgroupsPath": 3}})).is_err());
    }
}
