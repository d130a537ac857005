//! `linux.namespaces`, `hostname`, `domainname` and `linux.sysctl`, carried out.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::Mode,
    unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid},
};

use super::failure::{Doing, Failure};
use crate::{
    link::Join,
    oci::{Container, NamespaceSource, Sysctl},
};

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

    /// Opens a namespace of the process `pid`.
    ///
    /// # Errors
    /// There is no such process.
    pub fn open_namespace(&self, pid: i32, name: &str) -> nix::Result<OwnedFd> {
        let path = format!("{pid}/ns/{name}");
        let how = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        openat(&self.0, path.as_str(), how, Mode::empty())
    }
}

/// Enters the namespaces shared with the pod's first container, but for those of process ids and of users, in which the process
/// has been created, and begins the cgroup namespace.
///
/// # Errors
/// The kernel refuses.
pub fn enter(container: &Container, join: &[(Join, OwnedFd)]) -> Result<(), Failure> {
    let created_in = [Join::Pid, Join::User];
    for (kind, namespace) in join.iter().filter(|(kind, _)| !created_in.contains(kind)) {
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

/// Begins the time namespace; the process is in it from the execution of its program on.
///
/// # Errors
/// The kernel refuses the offsets: a clock can't be before its beginning.
pub fn set_clocks(container: &Container, proc: &GuestProc) -> Result<(), Failure> {
    if !container.namespaces.time {
        return Ok(());
    }
    // SAFETY: a number alone. The flag has no name in `CloneFlags`.
    Errno::result(unsafe { libc::unshare(libc::CLONE_NEWTIME) })
        .doing(|| "linux.namespaces: creating a time namespace")?;
    let offsets = &container.namespaces.time_offsets;
    if offsets.is_empty() {
        return Ok(());
    }
    proc.write("self/timens_offsets", &offsets.text())
        .doing(|| "linux.timeOffsets")
}

/// Becomes the administrator of the user namespace that the process is in, once that has its mappings.
///
/// # Errors
/// The mappings have no user or group 0.
pub fn become_administrator() -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[]).doing(|| "linux.gidMappings: leaving the guest's groups")?;
    setresgid(gid, gid, gid).doing(|| "linux.gidMappings: becoming group 0 of the container")?;
    setresuid(uid, uid, uid).doing(|| "linux.uidMappings: becoming user 0 of the container")
}

/// Sets the names of the UTS namespace, host and domain, and its parameters, whose files are user 0's of the guest in any user namespace.
///
/// # Errors
/// The name or parameter that the kernel refuses.
pub fn configure_names(
    names: [Option<&str>; 2],
    sysctls: &[Sysctl],
    proc: &GuestProc,
) -> Result<(), Failure> {
    set_names(names)?;
    set_parameters(sysctls, proc, is_name)
}

/// Sets the parameters of the other namespaces, as the administrator of the user namespace `user`.
///
/// # Errors
/// The parameter that the kernel refuses.
pub fn configure(user: NamespaceSource, sysctls: &[Sysctl], proc: &GuestProc) -> Result<(), Failure> {
    set_parameters(sysctls, proc, |sysctl| !is_name(sysctl) && !is_networks(sysctl))?;
    // The network is the guest's: the administrator of a user namespace may not.
    if user == NamespaceSource::Guest {
        set_network_parameters(sysctls, proc)?;
    }
    Ok(())
}

fn set_names([hostname, domainname]: [Option<&str>; 2]) -> Result<(), Failure> {
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

/// Sets the parameters of the network, in that of the caller.
///
/// # Errors
/// The parameter that the kernel refuses.
pub fn set_network_parameters(sysctls: &[Sysctl], proc: &GuestProc) -> Result<(), Failure> {
    set_parameters(sysctls, proc, is_networks)
}

fn set_parameters(
    sysctls: &[Sysctl],
    proc: &GuestProc,
    which: impl Fn(&Sysctl) -> bool,
) -> Result<(), Failure> {
    let mut chosen = sysctls.iter().filter(|sysctl| which(sysctl));
    chosen.try_for_each(|sysctl| set_parameter(sysctl, proc))
}

fn is_name(sysctl: &Sysctl) -> bool {
    matches!(sysctl.path.as_str(), "kernel/hostname" | "kernel/domainname")
}

fn is_networks(sysctl: &Sysctl) -> bool {
    sysctl.path.as_str().starts_with("net/")
}

fn set_parameter(sysctl: &Sysctl, proc: &GuestProc) -> Result<(), Failure> {
    proc.write(&format!("sys/{}", sysctl.path.as_str()), &sysctl.value)
        .doing(|| format!("linux.sysctl[{:?}]", sysctl.name))
}
