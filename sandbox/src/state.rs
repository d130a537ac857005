//! A pod's directory below the state directory, and the record of its processes for when the shim has crashed.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup, cleanup,
    error::Kind,
    network,
    process::{ProcessId, monotonic_deadline},
};

/// Why a pod's state can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that is not fit to be a directory's.
    #[error(
        "{what} {name:?} is not 1 to 76 characters of a-z, A-Z, 0-9, '.', '_' and '-' without a leading dot"
    )]
    Name {
        /// Whose.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The pod is there already.
    #[error("pod {0} exists already")]
    Exists(String),
    /// A file operation failed.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// No user is free.
    #[error(
        "all {0} users for virtual machine monitors are in use: raise `uid_count` in Sealock's configuration"
    )]
    NoUser(u32),
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } => Kind::InvalidArgument,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::File { .. } | Self::NoUser(_) => Kind::Internal,
        }
    }
}

/// Checks that a name is fit to be a directory's: containerd's own rule for identifiers.
///
/// # Errors
/// [`Error::Name`].
pub fn check_name(what: &'static str, name: &str) -> Result<(), Error> {
    let fit = (1..=76).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fit {
        Ok(())
    } else {
        Err(Error::Name {
            what,
            name: name.chars().take(100).collect(),
        })
    }
}

/// The processes of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The shim, or whoever supervises the pod.
    pub supervisor: ProcessId,
    /// The virtual machine monitor.
    pub vmm: ProcessId,
    /// The file server.
    pub fsd: ProcessId,
    /// The user that the monitor runs as.
    pub uid: u32,
    /// The network namespace, if it has been attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<PathBuf>,
}

const RECORD: &str = "pod.json";

/// The file that names the pod's cgroup.
const CGROUP: &str = "cgroup";

/// A pod's directory: `<state>/<namespace>/<pod>`, removed with everything mounted below when this is dropped.
#[derive(Debug)]
pub struct PodDir {
    path: PathBuf,
    present: bool,
}

impl PodDir {
    /// Where a pod's directory is.
    ///
    /// # Errors
    /// One of the names isn't fit.
    pub fn place(state_dir: &Path, namespace: &str, pod: &str) -> Result<PathBuf, Error> {
        check_name("the namespace", namespace)?;
        check_name("the pod's identifier", pod)?;
        Ok(state_dir.join(namespace).join(pod))
    }

    /// Makes the directory, with `share` in it. What a crashed shim left of an earlier pod of this name is
    /// undone first.
    ///
    /// # Errors
    /// The pod exists and its supervisor lives, or the file system refuses.
    pub fn create(state_dir: &Path, namespace: &str, pod: &str) -> Result<Self, Error> {
        let path = Self::place(state_dir, namespace, pod)?;
        match make(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if read_record(&path).is_some_and(|record| record.supervisor.is_alive()) {
                    return Err(Error::Exists(pod.to_owned()));
                }
                destroy(&path).map_err(|source| Error::File {
                    verb: "undo what an earlier pod left in",
                    path: path.clone(),
                    source,
                })?;
                make(&path)
            }
            other => other,
        }
        .map_err(|source| Error::File {
            verb: "create",
            path: path.clone(),
            source,
        })?;
        let made = Self { path, present: true };
        let share = made.path.join("share");
        directory().create(&share).map_err(|source| Error::File {
            verb: "create",
            path: share,
            source,
        })?;
        Ok(made)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the record down for [`destroy`].
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        let path = self.path.join(RECORD);
        let new = self.path.join("pod.json.new");
        // A structure of numbers.
        let text = serde_json::to_vec(record).unwrap_or_default();
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&text)?;
            fs::rename(&new, &path)
        };
        write().map_err(|source| Error::File {
            verb: "write",
            path: path.clone(),
            source,
        })
    }

    /// Writes down where the pod's cgroup is going to be, for [`destroy`].
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write_cgroup(&self, cgroup: &Path) -> Result<(), Error> {
        let path = self.path.join(CGROUP);
        fs::write(&path, cgroup.as_os_str().as_bytes()).map_err(|source| Error::File {
            verb: "write",
            path,
            source,
        })
    }

    /// Unmounts and removes everything.
    ///
    /// # Errors
    /// Something is left.
    pub fn remove(&mut self) -> io::Result<()> {
        if self.present {
            undo(&self.path)?;
            self.present = false;
        }
        Ok(())
    }
}

impl Drop for PodDir {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(error = %error, "cannot clean up");
        }
    }
}

/// Makes a pod's directory and those above.
fn make(path: &Path) -> io::Result<()> {
    // The last pod of a namespace removes its directory, perhaps between our two steps.
    for _ in 0..16 {
        if let Some(parent) = path.parent() {
            directory().recursive(true).create(parent)?;
        }
        match directory().create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Err(io::Error::from(io::ErrorKind::NotFound))
}

fn directory() -> DirBuilder {
    let mut builder = DirBuilder::new();
    builder.mode(0o700);
    builder
}

/// The record of the pod at `path`, if it was written.
#[must_use]
pub fn read_record(path: &Path) -> Option<Record> {
    let text = fs::read(path.join(RECORD)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// A pod that has a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// Its namespace.
    pub namespace: String,
    /// Its identifier.
    pub id: String,
    /// The directory.
    pub path: PathBuf,
}

/// The pods below the state directory, in order; none if that doesn't exist.
///
/// # Errors
/// It can't be read.
pub fn pods(state_dir: &Path) -> io::Result<Vec<Found>> {
    let mut all = Vec::new();
    for (namespace, path) in named(state_dir)? {
        for (id, path) in named(&path)? {
            all.push(Found {
                namespace: namespace.clone(),
                id,
                path,
            });
        }
    }
    all.sort();
    Ok(all)
}

/// What a directory has with names that [`check_name`] allows; nothing if it is gone.
fn named(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && check_name("the name", &name).is_ok()
            && entry.file_type()?.is_dir()
        {
            all.push((name, entry.path()));
        }
    }
    Ok(all)
}

/// How long killed processes may take to go away.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Undoes a pod whose supervisor has crashed: kills exactly the recorded processes, unmounts, removes. It's no error when
/// there is nothing.
///
/// # Errors
/// Something is left.
pub fn destroy(path: &Path) -> io::Result<()> {
    if let Some(record) = read_record(path) {
        let deadline = monotonic_deadline(KILL_DEADLINE);
        for process in [record.vmm, record.fsd] {
            process.kill(deadline)?;
        }
        // The taps are gone with the monitor.
        if let Some(network) = &record.network {
            network::clean_up(network).map_err(io::Error::other)?;
        }
    }
    if let Some(state_dir) = path.parent().and_then(Path::parent) {
        Uid::release_all(state_dir);
    }
    match fs::read(path.join(CGROUP)) {
        Ok(cgroup) if !cgroup.is_empty() => cgroup::remove_left(Path::new(OsStr::from_bytes(&cgroup)))?,
        _ => {}
    }
    undo(path)
}

fn undo(path: &Path) -> io::Result<()> {
    cleanup::unmount_below(path)?;
    cleanup::remove_tree(path)?;
    // The namespace's directory goes with its last pod.
    if let Some(parent) = path.parent() {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// A user that no other pod's monitor runs as, for as long as this lives.
#[derive(Debug)]
pub struct Uid {
    uid: u32,
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl Uid {
    /// Takes a free user of `range`. A user is taken while its file is locked, so a crash frees it.
    ///
    /// # Errors
    /// None is free, or the file system refuses.
    pub fn take(state_dir: &Path, range: std::ops::Range<u32>) -> Result<Self, Error> {
        // No namespace has a name with a leading dot.
        let parent = state_dir.join(".uids");
        directory()
            .recursive(true)
            .create(&parent)
            .map_err(|source| Error::File {
                verb: "create",
                path: parent.clone(),
                source,
            })?;
        let count = range.end.saturating_sub(range.start).max(1);
        // Others began elsewhere, so that the first attempt mostly succeeds.
        let first = std::process::id() % count;
        for slot in 0..count {
            let uid = range.start + (first + slot) % count;
            let path = parent.join(uid.to_string());
            if let Some(lock) = lock(&path).map_err(|source| Error::File {
                verb: "lock",
                path: path.clone(),
                source,
            })? {
                return Ok(Self {
                    uid,
                    path,
                    _lock: lock,
                });
            }
        }
        Err(Error::NoUser(count))
    }

    /// Removes what marks users as taken that nobody has: a supervisor that crashed early has not written down which was its own.
    pub(crate) fn release_all(state_dir: &Path) {
        for entry in fs::read_dir(state_dir.join(".uids"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let uid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (Some(uid), Ok(Some(lock))) = (uid, lock(&entry.path())) {
                drop(Self {
                    uid,
                    path: entry.path(),
                    _lock: lock,
                });
            }
        }
    }

    /// The user, and the group of the same number.
    #[must_use]
    pub fn get(&self) -> u32 {
        self.uid
    }
}

fn lock(path: &Path) -> io::Result<Option<Flock<fs::File>>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            // Its last owner may have removed it between our opening and locking it: then the lock is worth nothing.
            let linked = nix::sys::stat::fstat(lock.as_fd())?.st_nlink > 0;
            Ok(linked.then_some(lock))
        }
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        // While it is still locked.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "é", &"x".repeat(77)] {
            assert!(check_name("the namespace", name).is_err(), "{name:?}");
            assert!(PodDir::place(Path::new("/run/sealock"), name, "pod").is_err());
            assert!(PodDir::place(Path::new("/run/sealock"), "ns", name).is_err());
        }
        for name in ["k8s.io", "a", "A_b-c.0", &"x".repeat(76)] {
            check_name("the namespace", name).unwrap();
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let state = tempfile::tempdir().unwrap();
        let pod = PodDir::create(state.path(), "ns", "p1").unwrap();
        assert_eq!(read_record(pod.path()), None);
        let this = ProcessId::of(std::process::id()).unwrap();
        let record = Record {
            supervisor: this,
            vmm: this,
            fsd: this,
            uid: 7,
            network: Some("/run/netns/x".into()),
        };
        pod.write_record(&record).unwrap();
        assert_eq!(read_record(pod.path()), Some(record));
    }

    #[test]
    fn pods_are_found_and_nothing_else_is() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(pods(&state.path().join("none")).unwrap(), []);
        fs::create_dir_all(state.path().join(".templates/one")).unwrap();
        fs::write(state.path().join("file"), "").unwrap();
        let made = [("b", "p1"), ("a", "p2"), ("a", "p1")]
            .map(|(namespace, id)| PodDir::create(state.path(), namespace, id).unwrap());
        let found: Vec<_> = pods(state.path()).unwrap();
        let names: Vec<_> = found
            .iter()
            .map(|pod| (pod.namespace.as_str(), pod.id.as_str()))
            .collect();
        assert_eq!(names, [("a", "p1"), ("a", "p2"), ("b", "p1")]);
        assert_eq!(found[2].path, made[0].path());
    }

    #[test]
    fn a_pod_is_there_once_and_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        let pod = PodDir::create(state.path(), "ns", "p1").unwrap();
        let this = ProcessId::of(std::process::id()).unwrap();
        pod.write_record(&Record {
            supervisor: this,
            vmm: this,
            fsd: this,
            uid: 7,
            network: None,
        })
        .unwrap();
        assert!(matches!(
            PodDir::create(state.path(), "ns", "p1"),
            Err(Error::Exists(_))
        ));
        drop(pod);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    fn sleep() -> std::process::Child {
        Command::new("sleep")
            .arg("100")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_crashed_pod_is_killed_and_removed_and_nobody_else_is() {
        let state = tempfile::tempdir().unwrap();
        let pod = PodDir::create(state.path(), "ns", "p1").unwrap();
        let mut vmm = sleep();
        let mut bystander = sleep();
        // A crash unlocks the user's file and leaves it.
        let uid = 5000;
        fs::create_dir(state.path().join(".uids")).unwrap();
        fs::write(state.path().join(".uids/5000"), "").unwrap();
        let mut reused = ProcessId::of(bystander.id()).unwrap();
        // The number is the bystander's, the start time another's.
        reused.start_time += 1;
        pod.write_record(&Record {
            supervisor: reused,
            vmm: ProcessId::of(vmm.id()).unwrap(),
            fsd: reused,
            uid,
            network: None,
        })
        .unwrap();
        let path = pod.path().to_owned();
        std::mem::forget(pod);

        let again = PodDir::create(state.path(), "ns", "p1").unwrap();
        assert!(!again.path().join(RECORD).exists());
        assert!(!vmm.wait().unwrap().success());
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        assert_eq!(fs::read_dir(state.path().join(".uids")).unwrap().count(), 0);
        drop(again);
        destroy(&path).unwrap();
    }

    #[test]
    fn users_are_unique_and_freed() {
        let state = tempfile::tempdir().unwrap();
        let one = Uid::take(state.path(), 5000..5002).unwrap();
        let other = Uid::take(state.path(), 5000..5002).unwrap();
        assert_ne!(one.get(), other.get());
        assert!(matches!(
            Uid::take(state.path(), 5000..5002),
            Err(Error::NoUser(2))
        ));
        let freed = one.get();
        drop(one);
        assert_eq!(Uid::take(state.path(), 5000..5002).unwrap().get(), freed);
        drop(other);
        assert_eq!(fs::read_dir(state.path().join(".uids")).unwrap().count(), 0);
    }
}
