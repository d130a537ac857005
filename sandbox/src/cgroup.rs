//! The pod's cgroup on the host (cgroup v2), in which its processes run, so that the host accounts and limits them
//! together.
//!
//! Its place is what the specification of the pod's first container asks for (`linux.cgroupsPath`), where a container of a
//! runtime without machines would be: below the pod's cgroup of Kubernetes, whose limits then hold for the machine as a
//! whole. The limits of containers are set in the guest; here none is.

use std::{
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    poll::PollFlags,
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};
use serde_json::Value;

use crate::{
    process::{monotonic_deadline, wait_until},
    spec,
};

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

/// A pod's cgroup. Removed when this is dropped; what still runs in it goes back to where its processes came from.
#[derive(Debug)]
pub struct PodCgroup {
    path: PathBuf,
    /// Where this process was before.
    origin: PathBuf,
    present: bool,
}

impl PodCgroup {
    /// Where the cgroup is that the specification asks for, if it asks for one.
    ///
    /// # Errors
    /// The path is none, or the host has no cgroup v2.
    pub fn place(spec: &Value) -> Result<Option<PathBuf>, Error> {
        let Some(path) = path_of(spec)? else {
            return Ok(None);
        };
        match statfs(HIERARCHY) {
            Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => {
                Ok(Some(Path::new(HIERARCHY).join(path.trim_start_matches('/'))))
            }
            _ => Err(Error::NoHierarchy),
        }
    }

    /// Makes the cgroup at `path`, which [`PodCgroup::place`] has given, and moves this process into it.
    ///
    /// # Errors
    /// Others are in it, or the kernel refuses.
    pub fn enter(path: PathBuf) -> Result<Self, Error> {
        Self::enter_below(Path::new(HIERARCHY), path)
    }

    fn enter_below(hierarchy: &Path, path: PathBuf) -> Result<Self, Error> {
        let failed = |verb, path: &Path, source| Error::File {
            verb,
            path: path.to_owned(),
            source,
        };
        let origin = own(hierarchy).map_err(|error| failed("find this process in", hierarchy, error))?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| failed("create", parent, error))?;
            enable_controllers(hierarchy, parent);
        }
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let left = fs::read_to_string(path.join("cgroup.procs"))
                    .map_err(|error| failed("read", &path, error))?;
                if !left.is_empty() {
                    let error = io::Error::other("it is in use by other processes");
                    return Err(failed("take", &path, error));
                }
            }
            made => made.map_err(|error| failed("create", &path, error))?,
        }
        let made = Self {
            path,
            origin,
            present: true,
        };
        // 0 stands for whoever writes it.
        fs::write(made.path.join("cgroup.procs"), "0")
            .map_err(|error| failed("move into", &made.path, error))?;
        Ok(made)
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup that this process was in before.
    #[must_use]
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Leaves it and removes it.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&mut self) -> io::Result<()> {
        if self.present {
            remove(&self.path, &self.origin)?;
            self.present = false;
        }
        Ok(())
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(%error, "cannot clean up");
        }
    }
}

/// Removes the cgroup that a crashed supervisor has left at `path`. It's no error when there is none.
///
/// # Errors
/// It is still there.
pub fn remove_left(path: &Path) -> io::Result<()> {
    // A record of ours, but nothing else may come of it.
    let inside = path.starts_with(HIERARCHY)
        && path != Path::new(HIERARCHY)
        && path
            .components()
            .all(|component| matches!(component, Component::RootDir | Component::Normal(_)));
    if !inside {
        return Err(io::Error::other(format!("{} is no cgroup", path.display())));
    }
    remove(path, &own(Path::new(HIERARCHY))?)
}

/// How long those that are ending in a cgroup may take.
const REMOVAL: Duration = Duration::from_secs(10);

/// Removes a cgroup. The pod's processes are gone; who else is in it, a hook's daemon or this process, goes to `origin`. Who is about
/// to end can't go anywhere, and is waited for.
fn remove(path: &Path, origin: &Path) -> io::Result<()> {
    let at = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("cannot remove cgroup {}: {error}", path.display()),
        )
    };
    let deadline = monotonic_deadline(REMOVAL);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline => {
                return Err(at(error));
            }
            Err(_) => {}
        }
        // Read before anybody is moved, so that the kernel tells of every change from then on.
        let events = File::open(path.join("cgroup.events")).map_err(at)?;
        if io::read_to_string(&events).map_err(at)?.contains("populated 0") {
            // Unless it has become so just now, there are cgroups in it.
            return fs::remove_dir(path).map_err(at);
        }
        for pid in fs::read_to_string(path.join("cgroup.procs")).map_err(at)?.lines() {
            match fs::write(origin.join("cgroup.procs"), pid) {
                // It has just ended.
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(at(error)),
                _ => {}
            }
        }
        // At the deadline there is a last attempt.
        let _ = wait_until(events.as_fd(), PollFlags::POLLPRI, deadline).map_err(at)?;
    }
}

/// The cgroup of this process.
fn own(hierarchy: &Path) -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::/"))
        // It may have been removed behind our back (proc(5)).
        .map(|path| hierarchy.join(path.trim_end_matches(" (deleted)")))
        .ok_or_else(|| io::Error::other("/proc/self/cgroup names no cgroup v2"))
}

/// Has the controllers that there are count and limit what is below `directory`, as far as the kernel lets: a cgroup with
/// processes of its own can't pass its controllers on.
fn enable_controllers(hierarchy: &Path, directory: &Path) {
    let Ok(below) = directory.strip_prefix(hierarchy) else {
        return;
    };
    let mut level = hierarchy.to_owned();
    for name in std::iter::once(std::ffi::OsStr::new("")).chain(below.iter()) {
        level.push(name);
        let read = |name: &str| fs::read_to_string(level.join(name)).unwrap_or_default();
        let enabled = read("cgroup.subtree_control");
        for controller in read("cgroup.controllers").split_ascii_whitespace() {
            if !enabled
                .split_ascii_whitespace()
                .any(|enabled| enabled == controller)
            {
                // One by one: one that can't be had keeps no other from being enabled.
                let _ = fs::write(level.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, MutexGuard, PoisonError};

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

    /// A hierarchy mounted for one test: a test's process has one place in it, so one test at a time.
    struct Hierarchy(
        tempfile::TempDir,
        #[expect(dead_code, reason = "what matters is its end")] MutexGuard<'static, ()>,
    );

    impl Hierarchy {
        fn new() -> Self {
            static ALONE: Mutex<()> = Mutex::new(());
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let top = tempfile::tempdir().unwrap();
            nix::mount::mount(
                Some("none"),
                top.path(),
                Some("cgroup2"),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )
            .expect("these tests need root and cgroup v2");
            Self(top, alone)
        }
    }

    impl Drop for Hierarchy {
        fn drop(&mut self) {
            nix::mount::umount(self.0.path()).unwrap();
        }
    }

    #[test]
    fn a_pod_gets_a_cgroup_which_is_gone_with_it() {
        let hierarchy = Hierarchy::new();
        let top = hierarchy.0.path();
        let parent = top.join(format!("sealock-test-{}", std::process::id()));
        let path = parent.join("c1");
        let before = own(top).unwrap();

        let mut cgroup = PodCgroup::enter_below(top, path.clone()).unwrap();
        assert_eq!(own(top).unwrap(), path);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let inside = fs::read_to_string(path.join("cgroup.procs")).unwrap();
        assert!(inside.lines().any(|pid| pid == child.id().to_string()));
        let error = PodCgroup::enter_below(top, path.clone()).unwrap_err();
        assert!(
            crate::error::line(&error).ends_with("it is in use by other processes"),
            "{error}"
        );

        // A hook's daemon survives.
        cgroup.remove().unwrap();
        assert!(!path.exists());
        assert_eq!(own(top).unwrap(), before);
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        cgroup.remove().unwrap();

        // What a crash has left empty is taken over.
        fs::create_dir(&path).unwrap();
        drop(PodCgroup::enter_below(top, path.clone()).unwrap());
        assert!(!path.exists());
        fs::remove_dir(&parent).unwrap();
    }

    #[test]
    fn processes_that_come_and_go_keep_no_cgroup() {
        let hierarchy = Hierarchy::new();
        let top = hierarchy.0.path();
        let path = top.join(format!("sealock-come-and-go-{}", std::process::id()));
        let mut cgroup = PodCgroup::enter_below(top, path.clone()).unwrap();
        let mut parent = std::process::Command::new("sh")
            .args(["-c", "for i in $(seq 300); do true | true; done; sleep 1000"])
            .spawn()
            .unwrap();
        cgroup.remove().unwrap();
        assert!(!path.exists());
        parent.kill().unwrap();
        parent.wait().unwrap();

        // What is in the way for good is said.
        let mut cgroup = PodCgroup::enter_below(top, path.clone()).unwrap();
        fs::create_dir(path.join("inside")).unwrap();
        let error = cgroup.remove().unwrap_err();
        assert!(error.to_string().contains("busy"), "{error}");
        fs::remove_dir(path.join("inside")).unwrap();
        cgroup.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn only_a_cgroup_is_removed_after_a_crash() {
        let top = tempfile::tempdir().unwrap();
        for path in [
            top.path(),
            Path::new("/sys/fs/cgroup"),
            Path::new("/sys/fs/cgroup/../x"),
        ] {
            assert!(remove_left(path).is_err(), "{}", path.display());
        }
        assert!(top.path().exists());
    }
}
