//! `linux.namespaces`, `hostname`, `domainname` and `linux.sysctl`, carried out.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
    unistd::sethostname,
};

use super::failure::{Doing, Failure};
use crate::{link::Join, oci::Container};

/// The guest's own `/proc`: what is below it is the kernel's, which a container's `/proc` need not be.
#[derive(Debug)]
pub struct GuestProc(OwnedFd);

impl GuestProc {
    /// Before the container's root becomes the process's.
    ///
    /// # Errors
    /// It is not mounted.
    pub fn open() -> Result<Self, Failure> {
        let how = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open("/proc", how, Mode::empty())
            .doing(|| "opening /proc")
            .map(Self)
    }

    /// Opens anew what one of the process's descriptors refers to.
    ///
    /// # Errors
    /// As open(2).
    pub fn reopen(&self, fd: impl AsFd, how: OFlag) -> nix::Result<OwnedFd> {
        let path = format!("self/fd/{}", fd.as_fd().as_raw_fd());
        openat(&self.0, path.as_str(), how, Mode::empty())
    }

    /// Writes to the file at `path`.
    ///
    /// # Errors
    /// As openat2(2) and write(2).
    pub fn write(&self, path: &str, value: &str) -> std::io::Result<()> {
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut file = File::from(openat2(&self.0, path, how)?);
        // One write: the kernel takes what comes with it for the whole value.
        file.write_all(value.as_bytes())
    }
}

/// Enters the namespaces shared with the pod's first container, but for that of process ids, in which the process has been
/// created, and begins the cgroup namespace.
///
/// # Errors
/// The kernel refuses.
pub fn enter(container: &Container, join: &[(Join, OwnedFd)]) -> Result<(), Failure> {
    for (kind, namespace) in join.iter().filter(|(kind, _)| *kind != Join::Pid) {
        setns(namespace.as_fd(), kind.flag()).doing(|| {
            format!(
                "linux.namespaces: joining the {} namespace of the pod",
                kind.file()
            )
        })?;
    }
    if container.namespaces.cgroup {
        // Not when the process was created: its root would then be the cgroup of its creator.
        unshare(CloneFlags::CLONE_NEWCGROUP).doing(|| "linux.namespaces: creating a cgroup namespace")?;
    }
    Ok(())
}

/// Sets what belongs to the namespaces.
///
/// # Errors
/// The name or parameter that the kernel refuses.
pub fn configure(container: &Container, proc: &GuestProc) -> Result<(), Failure> {
    if let Some(hostname) = &container.hostname {
        sethostname(hostname).doing(|| "hostname")?;
    }
    if let Some(domainname) = &container.domainname {
        // SAFETY: the kernel reads as many bytes as the text has.
        let result = unsafe { libc::setdomainname(domainname.as_ptr().cast(), domainname.len()) };
        nix::errno::Errno::result(result).doing(|| "domainname")?;
    }
    for sysctl in &container.sysctl {
        proc.write(&format!("sys/{}", sysctl.path.as_str()), &sysctl.value)
            .doing(|| format!("linux.sysctl[{:?}]", sysctl.name))?;
    }
    Ok(())
}

/// Sets the names of the process's UTS namespace.
///
/// # Errors
/// The kernel refuses one.
pub fn set_names(hostname: Option<&str>, domainname: Option<&str>) -> Result<(), Failure> {
    if let Some(hostname) = hostname {
        sethostname(hostname).doing(|| "hostname")?;
    }
    if let Some(domainname) = domainname {
        // SAFETY: the kernel reads as many bytes as the text has.
        let result = unsafe { libc::setdomainname(domainname.as_ptr().cast(), domainname.len()) };
        nix::errno::Errno::result(result).doing(|| "domainname")?;
    }
    Ok(())
}
