//! A container's cgroup (cgroups(7), version 2).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    device_program,
    init::{CGROUP_ROOT, CGROUPS},
    linux::scheduling::online_cpus,
    oci::{CpuList, Limits, Setting, Update},
};

/// What could not be done with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Making it.
    #[error("creating the container's cgroup: {0}")]
    Create(#[source] io::Error),
    /// A limit that the kernel refuses.
    #[error("{field}: writing {value:?} to {file}: {error}")]
    Limit {
        /// The specification's field.
        field: String,
        /// The cgroup's file.
        file: String,
        /// The value.
        value: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// A limit that the guest's kernel does not know.
    #[error("{field}: the guest's cgroups have no file {file}")]
    NoSuchFile {
        /// The specification's field.
        field: String,
        /// The cgroup's file.
        file: String,
    },
    /// A limit below what is used, when that was to be checked.
    #[error("{field}: {limit} is less than the {usage} bytes in use")]
    InUse {
        /// The specification's field.
        field: String,
        /// The limit.
        limit: u64,
        /// What is used.
        usage: String,
    },
    /// The device controller.
    #[error("linux.resources.devices: {0}")]
    Devices(#[source] io::Error),
    /// Killing its processes.
    #[error("killing the container's processes: {0}")]
    Kill(#[source] io::Error),
    /// Stopping its processes, or letting them go on.
    #[error("freezing the container's processes: {0}")]
    Freeze(#[source] io::Error),
    /// Listing its processes.
    #[error("listing the container's processes: {0}")]
    List(#[source] io::Error),
    /// Removing it.
    #[error("removing the container's cgroup: {0}")]
    Remove(#[source] io::Error),
}

/// How deep a container may nest cgroups and still have all of its processes listed.
const MAX_DEPTH: u32 = 32;

/// A container's cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the cgroup of the container `id`, a plain name, with its limits.
    ///
    /// # Errors
    /// It exists, or a limit can't be set; nothing is left then.
    pub fn create(id: &str, limits: &Limits) -> Result<Self, CgroupError> {
        let path = Path::new(CGROUPS).join(id);
        fs::create_dir(&path).map_err(CgroupError::Create)?;
        let limited = open_directory(&path)
            .map_err(CgroupError::Create)
            .map(|directory| Self {
                path: path.clone(),
                directory,
            })
            .and_then(|cgroup| cgroup.limit(limits).map(|()| cgroup));
        if limited.is_err() {
            // The first error is the one to report, and an empty cgroup can always be removed.
            let _ = fs::remove_dir(&path);
        }
        limited
    }

    fn limit(&self, limits: &Limits) -> Result<(), CgroupError> {
        for setting in &limits.settings {
            self.set(setting)?;
        }
        device_program::attach(&limits.devices, self.as_fd()).map_err(CgroupError::Devices)
    }

    /// What one of its files says.
    ///
    /// # Errors
    /// There is no such file, or the cgroup is gone.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }

    /// The cgroup of one of its processes, which may be one below.
    ///
    /// # Errors
    /// It is none of its processes.
    pub fn of_process(&self, pid: i32) -> Result<OwnedFd, CgroupError> {
        let found = || {
            // One line in a system with version 2 only: "0::" and the path below the root.
            let line = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            let path = line.trim_end().strip_prefix("0::/").unwrap_or_default();
            let path = Path::new(CGROUP_ROOT).join(path);
            if !path.starts_with(&self.path) {
                return Err(io::ErrorKind::NotFound.into());
            }
            open_directory(&path)
        };
        found().map_err(CgroupError::List)
    }

    /// Changes its limits: all, or after an error none.
    ///
    /// # Errors
    /// A limit can't be set.
    pub fn update(&self, update: &Update) -> Result<(), CgroupError> {
        let mut before: Vec<(&str, String)> = Vec::new();
        let mut changed = Ok(());
        for setting in &update.settings {
            let value = self.read(&setting.file);
            changed = self.set(setting);
            if changed.is_err() {
                break;
            }
            before.extend(value.ok().map(|value| (setting.file.as_str(), value)));
        }
        // Last, for what the rules were can't be asked.
        if let (Ok(()), Some(devices)) = (&changed, &update.devices) {
            changed = device_program::attach(devices, self.as_fd()).map_err(CgroupError::Devices);
        }
        if changed.is_err() {
            for (file, value) in before.iter().rev() {
                // A file of several lines takes them one by one, an empty one is emptied by an end of line.
                let lines = value.lines().chain(value.is_empty().then_some(""));
                for line in lines {
                    // It had that value a moment ago; the first error is the one to report.
                    let _ = write(&self.path.join(file), &format!("{line}\n"));
                }
            }
        }
        changed
    }

    fn set(&self, setting: &Setting) -> Result<(), CgroupError> {
        let file = self.path.join(&setting.file);
        let value = match CpuList::parse(&setting.value) {
            Some(cpus) if setting.file == "cpuset.cpus" => cpus.in_guest(online_cpus()).to_string(),
            _ => setting.value.clone(),
        };
        if setting.check_usage
            && let Ok(limit) = value.parse::<u64>()
            && let Ok(usage) = fs::read_to_string(self.path.join("memory.current"))
            && usage.trim().parse::<u64>().is_ok_and(|usage| usage > limit)
        {
            return Err(CgroupError::InUse {
                field: setting.field.clone(),
                limit,
                usage: usage.trim().to_owned(),
            });
        }
        match write(&file, &value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if setting.optional {
                    return Ok(());
                }
                Err(CgroupError::NoSuchFile {
                    field: setting.field.clone(),
                    file: setting.file.clone(),
                })
            }
            result => result.map_err(|error| CgroupError::Limit {
                field: setting.field.clone(),
                file: setting.file.clone(),
                value,
                error,
            }),
        }
    }

    /// Kills every process in it, also those in cgroups below. There are none once it was removed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match write(&self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(CgroupError::Kill),
        }
    }

    /// The guest's ids of every process in it, also of those in cgroups below, in ascending order.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        list(&self.path, MAX_DEPTH, &mut pids).map_err(CgroupError::List)?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// Waits until there is no process in it.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        self.wait_for("populated 0").await.map_err(CgroupError::Remove)
    }

    /// Stops every process in it, or lets them go on; returns when they have. Who gives up waiting may ask for the contrary.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub async fn freeze(&self, freeze: bool) -> Result<(), CgroupError> {
        let (value, state) = if freeze {
            ("1", "frozen 1")
        } else {
            ("0", "frozen 0")
        };
        write(&self.path.join("cgroup.freeze"), value).map_err(CgroupError::Freeze)?;
        self.wait_for(state).await.map_err(CgroupError::Freeze)
    }

    /// Waits until `cgroup.events` has a line.
    async fn wait_for(&self, line: &str) -> io::Result<()> {
        let mut events = self.watch("cgroup.events")?;
        while !events.read()?.lines().any(|present| present == line) {
            events.changed().await?;
        }
        Ok(())
    }

    /// Watches one of its files that say when they change (cgroups(7), "cgroup.events" and "memory.events").
    ///
    /// # Errors
    /// There is no such file.
    pub fn watch(&self, file: &str) -> io::Result<Watched> {
        let file = File::open(self.path.join(file))?;
        // The kernel raises an exceptional condition on the file when its content changes.
        // SAFETY: the file is the `AsyncFd`'s own, and stays open and the same for as long as it is watched.
        let watched = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        Ok(Watched(watched?))
    }

    /// Removes it, with the cgroups that the container made below. It must be empty.
    ///
    /// # Errors
    /// There are processes in it.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove(&self.path, MAX_DEPTH).map_err(CgroupError::Remove)
    }
}

/// A file of a cgroup that says when it changes.
#[derive(Debug)]
pub struct Watched(AsyncFd<File>);

/// The longest of such files, in bytes, several times.
const MAX_EVENTS: usize = 4096;

impl Watched {
    /// What it says now. From then on a change is one to wait for.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn read(&mut self) -> io::Result<String> {
        let mut buffer = [0; MAX_EVENTS];
        let length = self.0.get_ref().read_at(&mut buffer, 0)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Waits for a change since it was last read.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn changed(&mut self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let directory = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(path)?;
    Ok(directory.into())
}

/// Writes to a file that is there; std's own function would try to create it.
fn write(path: &Path, value: &str) -> io::Result<()> {
    use std::io::Write;
    File::options()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}

fn list(directory: &Path, depth: u32, pids: &mut Vec<u32>) -> io::Result<()> {
    match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        // A threaded cgroup: its processes are listed where its domain begins.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    if depth > 0 {
        for child in children(directory)? {
            match list(&child, depth - 1, pids) {
                // The container may remove its cgroups at any time.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn remove(directory: &Path, depth: u32) -> io::Result<()> {
    if depth > 0 {
        for child in children(directory)? {
            remove(&child, depth - 1)?;
        }
    }
    fs::remove_dir(directory)
}
