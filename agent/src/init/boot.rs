//! The guest's own file systems and cgroups.

use std::{fs, io};

use nix::{
    mount::{MsFlags, mount},
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
    unistd::{chdir, chroot},
};

use super::{CGROUPS, ROOTFS, SHARE, VOLUMES};

/// What could not be prepared.
#[derive(Debug, thiserror::Error)]
#[error("preparing the guest: {doing}: {error}")]
pub struct BootError {
    doing: &'static str,
    #[source]
    error: io::Error,
}

type Step = fn() -> Result<(), BootError>;

/// In this order; each is short, so that between them the hello can leave.
///
/// The guest itself has no /dev/pts, /dev/shm or /dev/mqueue: containers have their own, and the agent needs none.
pub const STEPS: [Step; 7] = [limits, root, proc, dev, run, sys, cgroups];

fn doing<T, E: Into<io::Error>>(doing: &'static str, result: Result<T, E>) -> Result<T, BootError> {
    result.map_err(|error| BootError {
        doing,
        error: error.into(),
    })
}

const PSEUDO: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

fn file_system(name: &str, place: &'static str, flags: MsFlags, data: Option<&str>) -> Result<(), BootError> {
    doing(place, mount(Some(name), place, Some(name), flags, data))
}

/// The kernel's first limits for processes and pending signals follow the memory at boot, which may grow. Containers' own are
/// those of their specification and cgroup.
fn limits() -> Result<(), BootError> {
    for limit in [Resource::RLIMIT_NPROC, Resource::RLIMIT_SIGPENDING] {
        doing(
            "the resource limits",
            setrlimit(limit, RLIM_INFINITY, RLIM_INFINITY),
        )?;
    }
    Ok(())
}

/// The initramfs is the kernel's first mount, which has no parent and which pivot_root(2) cannot replace: a second mount of it
/// on top of the first can be. It is read-only for good, so that no container can change the agent's binary through
/// /proc/PID/exe.
fn root() -> Result<(), BootError> {
    const DOING: &str = "the root";
    let none = None::<&str>;
    doing(DOING, mount(Some("/"), "/run", none, MsFlags::MS_BIND, none))?;
    doing(DOING, chdir("/run"))?;
    doing(DOING, mount(Some("."), "/", none, MsFlags::MS_MOVE, none))?;
    doing(DOING, chroot("."))?;
    doing(DOING, chdir("/"))?;
    doing(
        DOING,
        mount(none, "/", none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none),
    )
}

fn proc() -> Result<(), BootError> {
    file_system("proc", "/proc", PSEUDO, None)
}

fn dev() -> Result<(), BootError> {
    file_system("devtmpfs", "/dev", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, None)
}

fn run() -> Result<(), BootError> {
    file_system("tmpfs", "/run", PSEUDO, Some("mode=0755"))?;
    doing(SHARE, fs::create_dir_all(SHARE))?;
    doing(ROOTFS, fs::create_dir_all(ROOTFS))?;
    doing(VOLUMES, fs::create_dir_all(VOLUMES))
}

fn sys() -> Result<(), BootError> {
    file_system("sysfs", "/sys", PSEUDO, None)
}

/// Every controller that the kernel has is on for every container.
fn cgroups() -> Result<(), BootError> {
    file_system("cgroup2", "/sys/fs/cgroup", PSEUDO, None)?;
    let controllers = doing(
        "the cgroup controllers",
        fs::read_to_string("/sys/fs/cgroup/cgroup.controllers"),
    )?;
    let all: String = controllers
        .split_ascii_whitespace()
        .flat_map(|name| ["+", name, " "])
        .collect();
    doing(CGROUPS, fs::create_dir(CGROUPS))?;
    for directory in ["/sys/fs/cgroup", CGROUPS] {
        doing(
            "the cgroup controllers",
            fs::write(format!("{directory}/cgroup.subtree_control"), &all),
        )?;
    }
    Ok(())
}
