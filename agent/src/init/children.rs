//! Init's loop: processes are created when the server asks, and reaped when they end, whoever's they are.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_dumpable,
        signal::SigSet,
        signalfd::{SfdFlags, SignalFd},
        stat::Mode,
        wait::waitpid,
    },
    unistd::Pid,
};
use sealock_protocol::seqpacket::{self, SeqPacket};

use crate::{
    container::{self, Descriptors},
    link::{CREATE_FDS, Create, Event, Join, MAX_MESSAGE, Refusal, Role},
    linux::process::{Cloned, Ended, clone_beside, clone_into, fork, reap},
};

/// Why init stops.
#[derive(Debug, thiserror::Error)]
pub enum ChildrenError {
    /// The server has ended, which it never does by itself.
    #[error("the server has ended with status {0}")]
    ServerEnded(u8),
    /// Words with the server.
    #[error("speaking with the server: {0}")]
    Link(#[from] seqpacket::Error),
    /// Waiting for either.
    #[error("waiting for processes: {0}")]
    Wait(#[from] io::Error),
    /// Further processes would begin in the wrong namespace.
    #[error("returning to the guest's process id namespace: {0}")]
    Namespace(#[source] io::Error),
}

/// Everything that init watches.
#[derive(Debug)]
pub struct Children {
    link: SeqPacket,
    server: i32,
    containers: Vec<i32>,
    signals: SignalFd,
    pid_namespace: OwnedFd,
}

impl Children {
    /// Watches the server, and whatever it will ask for. `signals` holds SIGCHLD and is blocked.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(link: SeqPacket, server: i32, signals: &SigSet) -> Result<Self, ChildrenError> {
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let pid_namespace = open(
            "/proc/self/ns/pid",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        Ok(Self {
            link,
            server,
            containers: Vec::new(),
            signals: SignalFd::with_flags(signals, flags).map_err(io::Error::from)?,
            pid_namespace: pid_namespace.map_err(io::Error::from)?,
        })
    }

    /// Serves until the server is gone.
    ///
    /// # Errors
    /// Always one: the server's end is the guest's.
    pub fn serve(mut self) -> Result<(), ChildrenError> {
        loop {
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.link.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let [ended, asked] = fds.map(|fd| fd.any().unwrap_or(true));
            if ended {
                // Several ends may have become one signal: it only says that there is something to reap.
                while let Ok(Some(_)) = self.signals.read_signal() {}
                while let Some(ended) = reap() {
                    self.ended(ended)?;
                }
            }
            if asked {
                let (request, descriptors) = self.link.receive_json::<Create>(MAX_MESSAGE)?;
                self.create(&request, descriptors)?;
            }
        }
    }

    fn ended(&mut self, Ended { pid, status }: Ended) -> Result<(), ChildrenError> {
        if pid == self.server {
            return Err(ChildrenError::ServerEnded(status));
        }
        // Others are processes that lost their parent.
        if let Some(index) = self.containers.iter().position(|&known| known == pid) {
            self.containers.swap_remove(index);
            let at_ns = now_ns();
            self.link.send_json(&Event::Exited { pid, status, at_ns }, &[])?;
        }
        Ok(())
    }

    fn create(&mut self, request: &Create, descriptors: Vec<OwnedFd>) -> Result<(), ChildrenError> {
        let token = request.token;
        match self.clone(request, descriptors)? {
            Ok((pid, pidfd)) => {
                self.containers.push(pid);
                self.link
                    .send_json(&Event::Created { token, pid }, &[pidfd.as_fd()])?;
            }
            Err(refusal) => self.link.send_json(&Event::Refused { token, refusal }, &[])?,
        }
        Ok(())
    }

    /// The inner error is the request's, the outer one init's.
    fn clone(
        &self,
        request: &Create,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Result<(i32, OwnedFd), Refusal>, ChildrenError> {
        let Some((cgroup, descriptors)) = sort(request, descriptors) else {
            return Ok(Err(Refusal::Malformed));
        };
        let flags = request.namespaces.flags();
        let user_namespace = descriptors.join.iter().any(|(kind, _)| *kind == Join::User);
        if user_namespace {
            return Ok(match clone_by_another(flags, cgroup.as_fd(), &descriptors.join) {
                Ok(Cloned::Parent { pid, pidfd }) => Ok((pid, pidfd)),
                Ok(Cloned::Child) => become_role(request.role, descriptors),
                Err(refusal) => Err(refusal),
            });
        }
        let pid_namespace = descriptors
            .join
            .iter()
            .find(|(kind, _)| *kind == Join::Pid)
            .map(|(_, namespace)| namespace);
        if let Some(namespace) = pid_namespace
            && let Err(error) = setns(namespace, CloneFlags::CLONE_NEWPID)
        {
            return Ok(Err(Refusal::Join(error as i32)));
        }
        let cloned = clone_into(flags, cgroup.as_fd());
        if let Ok(Cloned::Child) = cloned {
            become_role(request.role, descriptors);
        }
        if pid_namespace.is_some() {
            setns(&self.pid_namespace, CloneFlags::CLONE_NEWPID)
                .map_err(|error| ChildrenError::Namespace(error.into()))?;
        }
        match cloned {
            Ok(Cloned::Parent { pid, pidfd }) => Ok(Ok((pid, pidfd))),
            Ok(Cloned::Child) => unreachable!("a container's process never returns"),
            Err(error) => Ok(Err(not_cloned(error))),
        }
    }
}

fn become_role(role: Role, descriptors: Descriptors) -> ! {
    match role {
        Role::Container => container::setup::run(descriptors),
        Role::Pause => container::pause::run(descriptors),
        Role::Exec => container::exec::run(descriptors),
    }
}

fn not_cloned(error: impl Into<io::Error>) -> Refusal {
    Refusal::Clone(error.into().raw_os_error().unwrap_or(libc::EIO))
}

/// [`clone_into`] in a user namespace that is there: whoever enters one doesn't come back, so a process in between does, and its
/// child is init's.
fn clone_by_another(flags: u64, cgroup: BorrowedFd<'_>, join: &[(Join, OwnedFd)]) -> Result<Cloned, Refusal> {
    let (ours, theirs) = SeqPacket::pair().map_err(not_cloned)?;
    let Some(between) = fork().map_err(not_cloned)? else {
        drop(ours);
        let said = match enter_and_clone(flags, cgroup, join) {
            Ok(Cloned::Child) => return Ok(Cloned::Child),
            Ok(Cloned::Parent { pid, pidfd }) => theirs.send_json(&Ok::<_, Refusal>(pid), &[pidfd.as_fd()]),
            Err(refusal) => theirs.send_json(&Err::<i32, _>(refusal), &[]),
        };
        // SAFETY: ends the process at once, in which nothing is init's but a copy.
        unsafe { libc::_exit(i32::from(said.is_err())) }
    };
    drop(theirs);
    let heard = ours.receive_json::<Result<i32, Refusal>>(MAX_MESSAGE);
    waitpid(Pid::from_raw(between), None).map_err(not_cloned)?;
    match heard {
        Ok((Ok(pid), mut fds)) if fds.len() == 1 => Ok(Cloned::Parent {
            pid,
            pidfd: fds.remove(0),
        }),
        Ok((Err(refusal), _)) => Err(refusal),
        _ => Err(Refusal::Malformed),
    }
}

fn enter_and_clone(flags: u64, cgroup: BorrowedFd<'_>, join: &[(Join, OwnedFd)]) -> Result<Cloned, Refusal> {
    // The pod's processes see this one and its child, which have init's descriptors: they are not to look into them.
    set_dumpable(false).map_err(not_cloned)?;
    // The user namespace last: it takes the rights to enter what is not its own.
    for wanted in [Join::Pid, Join::User] {
        for (kind, namespace) in join.iter().filter(|(kind, _)| *kind == wanted) {
            setns(namespace, kind.flag()).map_err(|error| Refusal::Join(error as i32))?;
        }
    }
    clone_beside(flags, cgroup).map_err(not_cloned)
}

/// The cgroup, and what is the new process's; `None` when they are not as many as the request says.
fn sort(request: &Create, mut descriptors: Vec<OwnedFd>) -> Option<(OwnedFd, Descriptors)> {
    let stdio = if request.stdio { 3 } else { 0 };
    if descriptors.len() != CREATE_FDS + stdio + request.join.len() {
        return None;
    }
    let namespaces = descriptors.split_off(CREATE_FDS + stdio);
    let stdio = match descriptors.split_off(CREATE_FDS) {
        none if none.is_empty() => None,
        streams => Some(streams.try_into().ok()?),
    };
    let [plan, cgroup, channel] = descriptors.try_into().ok()?;
    let join = request.join.iter().copied().zip(namespaces).collect();
    let given = Descriptors {
        plan,
        channel,
        stdio,
        join,
    };
    Some((cgroup, given))
}

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}
