//! The order in which a container's process becomes ready, waits, and executes its program.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    process::exit,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, umount2},
    sys::{
        signal::{SigHandler, SigSet, Signal, signal},
        stat::{Mode, SFlag, umask},
    },
    unistd::{
        Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchdir, fchown, getcwd, pivot_root, setsid,
    },
};
use sealock_protocol::{guest::MAX_SPEC, seqpacket::SeqPacket};

use super::{
    channel::{self, Report},
    devices,
    executable::{self, ExecutableError},
    failure::{Doing, Failure, c_string},
    mounts::{self, Share},
    namespaces::{self, GuestProc},
    privileges,
    rootfs::kind,
};
use crate::{
    link::Join,
    linux::{mount, process::close_all_but},
    oci::{Container, Process},
};

/// What the process is given.
#[derive(Debug)]
pub struct Descriptors {
    /// A file with the plan: [`Container`] in JSON.
    pub plan: OwnedFd,
    /// Its end of the channel to the server.
    pub channel: OwnedFd,
    /// Standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Namespaces of the pod's first container.
    pub join: Vec<(Join, OwnedFd)>,
}

/// The status of a process that could not become the container's program. Nobody sees it: the server has been told why.
const NOT_STARTED: i32 = 127;

/// The largest password file looked at for a user's home, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// Becomes the container's process. Called in a new process, in the cgroup and the new namespaces of the container.
pub fn run(descriptors: Descriptors) -> ! {
    let mut keep: Vec<RawFd> = vec![
        0,
        1,
        2,
        descriptors.plan.as_raw_fd(),
        descriptors.channel.as_raw_fd(),
    ];
    keep.extend(descriptors.stdio.iter().map(AsRawFd::as_raw_fd));
    keep.extend(
        descriptors
            .join
            .iter()
            .map(|(_, namespace)| namespace.as_raw_fd()),
    );
    let closed = close_all_but(&keep).doing(|| "closing init's descriptors");

    let Descriptors {
        plan,
        channel,
        stdio,
        join,
    } = descriptors;
    let channel = SeqPacket::from(channel);
    let prepared = closed.and_then(|()| prepare(plan, stdio, join, channel.as_raw_fd()));
    let report = match &prepared {
        Ok(_) => Report::Ready,
        Err(failure) => report(failure),
    };
    // Without a server to hear the report there is none to wait for either, and the process ends below.
    let _ = channel.send(&report.encode(), &[]);
    let Ok(program) = prepared else {
        exit(NOT_STARTED);
    };
    if let Ok(true) = channel::wait_for_start(&channel) {
        let Err(failure) = program.execute();
        let _ = channel.send(&Report::Refused(failure.to_string()).encode(), &[]);
    }
    exit(NOT_STARTED)
}

fn report(failure: &Failure) -> Report {
    match failure {
        Failure::Executable(_) | Failure::Refused(_) => Report::Refused(failure.to_string()),
        Failure::System { .. } => Report::Failed(failure.to_string()),
    }
}

/// Ready to be executed.
#[derive(Debug)]
struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn execute(&self) -> Result<Infallible, ExecutableError> {
        execve(&self.path, &self.args, &self.env).map_err(|error| ExecutableError::Execute {
            path: self.path.to_string_lossy().into_owned(),
            error,
        })
    }
}

fn prepare(
    plan: OwnedFd,
    stdio: [OwnedFd; 3],
    join: Vec<(Join, OwnedFd)>,
    channel: RawFd,
) -> Result<Program, Failure> {
    reset_signals()?;
    // A session of its own: signals of the guest's terminal, if it has one, are not for containers.
    setsid().doing(|| "beginning a session")?;
    // Modes are given exactly until the container's own mask is set.
    umask(Mode::empty());
    let container = read_plan(plan)?;
    namespaces::enter(&container, &join)?;
    drop(join);
    let proc = GuestProc::open()?;
    namespaces::configure(&container, &proc)?;
    enter_root(&container)?;

    let process = &container.process;
    connect_stdio(stdio, process)?;
    privileges::adjust_oom_score(process, &proc)?;
    drop(proc);
    // A directory left open would be a way around the root, starting with `process.cwd` (/proc/self/fd/N).
    close_all_but(&[0, 1, 2, channel]).doing(|| "closing descriptors")?;
    enter_directory(&process.cwd)?;
    let env = environment(process);
    privileges::limit(process)?;
    privileges::give_up(process)?;
    let path = executable::find(&process.args[0], &env)?;
    Ok(Program {
        path,
        args: process
            .args
            .iter()
            .map(|text| c_string(text))
            .collect::<Result<_, _>>()?,
        env: env.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?,
    })
}

/// Init blocks and ignores signals that a program expects to have their usual effect.
fn reset_signals() -> Result<(), Failure> {
    // SAFETY: no handler is installed, the default action is.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.doing(|| "resetting signals")?;
    SigSet::empty().thread_set_mask().doing(|| "resetting signals")
}

fn read_plan(plan: OwnedFd) -> Result<Container, Failure> {
    let mut file = File::from(plan);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).doing(|| "reading the plan")?;
    // The plan holds little more than the specification did; its names are longer at most by a known factor.
    file.take(4 * MAX_SPEC as u64)
        .read_to_end(&mut bytes)
        .doing(|| "reading the plan")?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::Refused(format!("reading the plan: {error}")))
}

/// Builds the container's root file system and makes it the process's.
fn enter_root(container: &Container) -> Result<(), Failure> {
    let share = Share::open()?;
    let rootfs = mounts::attach_root(&share, &container.root.path)?;
    let read_only_later = mounts::mount_all(&rootfs, &share, &container.mounts)?;
    devices::create(&rootfs, &container.devices)?;
    mounts::mask(&rootfs, &container.masked_paths)?;
    mounts::protect(&rootfs, &container.readonly_paths)?;
    for mount in read_only_later {
        mount::make_read_only(mount, false).doing(|| "mounts: making a file system read-only")?;
    }
    if container.root.read_only {
        mount::make_read_only(&rootfs, false).doing(|| "root.readonly")?;
    }
    // The old root ends up on top of the new one, where it is unmounted (pivot_root(2), "pivot_root(".", ".")").
    fchdir(&rootfs).doing(|| "root: entering")?;
    pivot_root(".", ".").doing(|| "root: exchanging the guest's for the container's")?;
    umount2(".", MntFlags::MNT_DETACH).doing(|| "root: leaving the guest's")?;
    chdir("/").doing(|| "root: entering")?;
    if let Some(propagation) = container.root.propagation {
        mount::set_propagation(&rootfs, propagation).doing(|| "linux.rootfsPropagation")?;
    }
    Ok(())
}

/// Makes the pipes the standard streams. They become the user's, so that it may open /dev/stdout anew.
fn connect_stdio(stdio: [OwnedFd; 3], process: &Process) -> Result<(), Failure> {
    let doing = || "connecting the standard streams";
    for stream in &stdio {
        if kind(stream).doing(doing)? == SFlag::S_IFIFO {
            fchown(stream, Some(Uid::from_raw(process.user.uid)), None).doing(doing)?;
        }
    }
    let [stdin, stdout, stderr] = stdio;
    dup2_stdin(stdin).doing(doing)?;
    dup2_stdout(stdout).doing(doing)?;
    dup2_stderr(stderr).doing(doing)
}

/// Changes into the working directory, which is created when missing.
fn enter_directory(cwd: &str) -> Result<(), Failure> {
    let doing = || format!("process.cwd: entering {cwd:?}");
    match chdir(cwd) {
        Err(Errno::ENOENT) => {
            std::fs::DirBuilder::new()
                .recursive(true)
                .create(cwd)
                .doing(|| format!("process.cwd: creating {cwd:?}"))?;
            chdir(cwd).doing(doing)?;
        }
        result => result.doing(doing)?,
    }
    // A directory outside of the root has no path to it.
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(Failure::Refused(format!(
            "process.cwd: {cwd:?} is outside of the container's root"
        ))),
    }
}

/// The specification's environment, with a `HOME` if it has none.
fn environment(process: &Process) -> Vec<String> {
    let mut env = process.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        let home = read_passwd()
            .ok()
            .and_then(|passwd| home_of(process.user.uid, &passwd))
            .unwrap_or_else(|| "/".to_owned());
        env.push(format!("HOME={home}"));
    }
    env
}

fn read_passwd() -> io::Result<Vec<u8>> {
    // The file is the image's: it may be a FIFO that nobody writes to.
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = open("/etc/passwd", how, Mode::empty())?;
    if kind(&file)? != SFlag::S_IFREG {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut passwd = Vec::new();
    File::from(file).take(MAX_PASSWD).read_to_end(&mut passwd)?;
    Ok(passwd)
}

fn home_of(uid: u32, passwd: &[u8]) -> Option<String> {
    String::from_utf8_lossy(passwd).lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let (id, home) = (fields.next()?, fields.nth(2)?);
        (id.parse() == Ok(uid) && !home.is_empty() && !home.contains('\0')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_the_users_of_the_image() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1000::/srv/app:/bin/sh\nnone:x:7:7:::\n";
        assert_eq!(home_of(0, passwd).as_deref(), Some("/root"));
        assert_eq!(home_of(1000, passwd).as_deref(), Some("/srv/app"));
        assert_eq!(home_of(7, passwd), None);
        assert_eq!(home_of(8, passwd), None);
    }
}
