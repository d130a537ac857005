//! Where kubelet keeps a pod's volumes: `<kubelet's root>/pods/<uid>/volumes/kubernetes.io~<plug-in>/<name>`, and for a
//! `subPath` the mount point `<kubelet's root>/pods/<uid>/volume-subpaths/<name>/<container>/<number>`.

use std::path::{Component, Path, PathBuf};

/// A directory of kubelet's for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KubeletVolume<'a> {
    /// The pod's UID.
    pub pod: &'a str,
    /// The plug-in without its `kubernetes.io~`.
    pub plugin: &'a str,
    /// The volume's name in the pod.
    pub name: &'a str,
}

/// The plug-ins whose volumes kubelet writes itself and renews by renaming a link (its `AtomicWriter`).
const WRITTEN: [&str; 4] = ["configmap", "secret", "projected", "downward-api"];

impl<'a> KubeletVolume<'a> {
    /// The volume whose directory `path` is; none for any other path, those inside a volume included.
    #[must_use]
    pub fn of(path: &'a Path) -> Option<Self> {
        let [name, plugin, "volumes", pod, "pods"] = last(path)? else {
            return None;
        };
        Some(Self {
            pod,
            plugin: plugin.strip_prefix("kubernetes.io~")?,
            name,
        })
    }

    /// Whether it holds a ConfigMap, a Secret or the like.
    #[must_use]
    pub fn is_written_by_kubelet(&self) -> bool {
        WRITTEN.contains(&self.plugin)
    }

    /// Whether it is an emptyDir.
    #[must_use]
    pub fn is_empty_dir(&self) -> bool {
        self.plugin == "empty-dir"
    }
}

/// The emptyDir volume that `path` would be a `subPath` of, by its name.
#[must_use]
pub fn empty_dir_of_subpath(path: &Path) -> Option<PathBuf> {
    let [_number, _container, name, "volume-subpaths", uid, "pods"] = last(path)? else {
        return None;
    };
    if uid.is_empty() {
        return None;
    }
    let pod = path.ancestors().nth(4)?;
    Some(pod.join("volumes/kubernetes.io~empty-dir").join(name))
}

/// The last names of an absolute path, the very last first.
fn last<const N: usize>(path: &Path) -> Option<[&str; N]> {
    let mut names = path.components().rev();
    let mut last = [""; N];
    for name in &mut last {
        match names.next()? {
            Component::Normal(component) => *name = component.to_str()?,
            _ => return None,
        }
    }
    path.is_absolute().then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_known_by_its_directory_alone() {
        let path = Path::new("/var/lib/kubelet/pods/0a-1b/volumes/kubernetes.io~configmap/settings");
        let volume = KubeletVolume::of(path).unwrap();
        assert_eq!(
            (volume.pod, volume.plugin, volume.name),
            ("0a-1b", "configmap", "settings")
        );
        assert!(volume.is_written_by_kubelet() && !volume.is_empty_dir());
        for other in [
            "/var/lib/kubelet/pods/0a-1b/volumes/kubernetes.io~configmap/settings/key",
            "/var/lib/kubelet/pods/0a-1b/volumes/kubernetes.io~configmap",
            "/var/lib/kubelet/pods/0a-1b/volumes/example.com~configmap/settings",
            "/var/lib/kubelet/pods/0a-1b/../volumes/kubernetes.io~configmap/settings",
            "pods/0a-1b/volumes/kubernetes.io~configmap/settings",
            "/",
        ] {
            assert_eq!(KubeletVolume::of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_subpath_leads_to_its_empty_dir() {
        assert_eq!(
            empty_dir_of_subpath(Path::new("/k/pods/u/volume-subpaths/cache/main/0")).unwrap(),
            Path::new("/k/pods/u/volumes/kubernetes.io~empty-dir/cache")
        );
        assert_eq!(
            empty_dir_of_subpath(Path::new("/k/pods/u/volume-subpaths/cache/main")),
            None
        );
    }
}
