//! From `process` to an executed program: what a container's first process has in common with those that join it later.

use std::{
    convert::Infallible,
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::exit,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        signal::{SigHandler, SigSet, Signal, signal},
        stat::{Mode, SFlag, umask},
    },
    unistd::{Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, getcwd, setsid},
};
use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::{self, Report},
    executable::{self, ExecutableError},
    failure::{Doing, Failure, c_string},
    hooks,
    privileges::{self, Confinement},
    rootfs::kind,
    terminal::Slave,
};
use crate::{
    linux::process::close_all_but,
    oci::{Container, Hooks, Process},
};

/// The status of a process that could not become its program. Nobody sees it: the server has been told why.
const NOT_STARTED: i32 = 127;

/// The largest password file looked at for a user's home, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// Where a program's standard streams lead.
#[derive(Debug)]
pub enum Stdio {
    /// Standard input, output and error.
    Streams([OwnedFd; 3]),
    /// All three are this terminal, the controlling one of the process's session.
    Terminal(Slave),
}

impl Stdio {
    /// The streams that were given, or the terminal that was opened: one of both.
    ///
    /// # Errors
    /// There are both, or neither.
    pub fn new(streams: Option<[OwnedFd; 3]>, terminal: Option<Slave>) -> Result<Self, Failure> {
        match (streams, terminal) {
            (Some(streams), None) => Ok(Self::Streams(streams)),
            (None, Some(slave)) => Ok(Self::Terminal(slave)),
            _ => Err(Failure::Refused(
                "process.terminal: not what the streams are made for".to_owned(),
            )),
        }
    }
}

/// Ready to be executed.
#[derive(Debug)]
pub struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    confinement: Confinement,
    hooks: Hooks,
}

impl Program {
    /// The same, before which the hooks for a container's first process are run.
    pub fn with_hooks(self, hooks: Hooks) -> Self {
        Self { hooks, ..self }
    }

    /// Becomes the program.
    ///
    /// # Errors
    /// Its filter can't be loaded, a hook fails, or execve(2)'s.
    pub fn execute(&self) -> Result<Infallible, Failure> {
        self.confinement.apply()?;
        hooks::start_container(&self.hooks)?;
        execve(&self.path, &self.args, &self.env).map_err(|error| {
            Failure::Executable(ExecutableError::Execute {
                path: self.path.to_string_lossy().into_owned(),
                error,
            })
        })
    }
}

/// Leaves what the process has from init behind: to be called first.
///
/// # Errors
/// The kernel refuses.
pub fn begin() -> Result<(), Failure> {
    reset_signals()?;
    // A session of its own: signals of the guest's terminal, if it has one, are not for containers.
    setsid().doing(|| "beginning a session")?;
    // Modes are given exactly until the container's own mask is set.
    umask(Mode::empty());
    Ok(())
}

/// Makes the process, which is in its namespaces and its root, what `process` says. Only `channel` stays open beside the
/// standard streams.
///
/// # Errors
/// What can't be done, or the program can't be found.
pub fn prepare(container: &Container, stdio: Stdio, channel: &SeqPacket) -> Result<Program, Failure> {
    let process = &container.process;
    connect_stdio(stdio, process)?;
    // A directory left open would be a way around the root, starting with `process.cwd` (/proc/self/fd/N).
    close_all_but(&[0, 1, 2, channel.as_fd().as_raw_fd()]).doing(|| "closing descriptors")?;
    enter_directory(&process.cwd)?;
    let env = environment(process);
    privileges::limit(process)?;
    let confinement = privileges::give_up(container)?;
    let path = executable::find(&process.args[0], &env)?;
    Ok(Program {
        path,
        args: process
            .args
            .iter()
            .map(|text| c_string(text))
            .collect::<Result<_, _>>()?,
        env: env.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?,
        confinement,
        hooks: Hooks::default(),
    })
}

/// Waits for the word to start and becomes the program, or says why not; ends the process if it doesn't become it.
pub fn finish(channel: &SeqPacket, prepared: Result<Program, Failure>) -> ! {
    let report = match prepared {
        Ok(program) => match channel::wait_for_start(channel) {
            Ok(true) => {
                let Err(failure) = program.execute();
                Some(report(&failure))
            }
            // There is no server any more.
            _ => None,
        },
        Err(failure) => Some(report(&failure)),
    };
    if let Some(report) = report {
        // Nobody is left to hear that this was not heard.
        let _ = channel::send_last(channel, &report);
    }
    exit(NOT_STARTED)
}

/// Says why the process can't be made ready, and ends it.
pub fn fail(channel: &SeqPacket, failure: &Failure) -> ! {
    // Nobody is left to hear that this was not heard.
    let _ = channel::send_last(channel, &report(failure));
    exit(NOT_STARTED)
}

fn report(failure: &Failure) -> Report {
    match failure {
        Failure::Executable(_) | Failure::Refused(_) => Report::Refused(failure.to_string()),
        Failure::System { .. } => Report::Failed(failure.to_string()),
    }
}

/// Init blocks and ignores signals that a program expects to have their usual effect.
fn reset_signals() -> Result<(), Failure> {
    // SAFETY: no handler is installed, the default action is.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.doing(|| "resetting signals")?;
    SigSet::empty().thread_set_mask().doing(|| "resetting signals")
}

/// Connects the standard streams. They become the user's, so that it may open /dev/stdout anew.
fn connect_stdio(stdio: Stdio, process: &Process) -> Result<(), Failure> {
    let doing = || "connecting the standard streams";
    let [stdin, stdout, stderr] = match stdio {
        Stdio::Streams(streams) => streams,
        Stdio::Terminal(slave) => slave.into_stdio()?,
    };
    for stream in [&stdin, &stdout, &stderr] {
        if kind(stream).doing(doing)? == SFlag::S_IFIFO {
            match fchown(stream, Some(Uid::from_raw(process.user.uid)), None) {
                // In a user namespace: they were given to the user from outside.
                Ok(()) | Err(Errno::EPERM) => {}
                Err(error) => return Err(error).doing(doing),
            }
        }
    }
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
