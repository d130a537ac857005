//! Init and server: requests for processes, over a seqpacket socket pair.

use std::io;

use nix::sched::CloneFlags;
use sealock_protocol::seqpacket::SeqPacket;
use serde::{Deserialize, Serialize};

use crate::oci::{NamespaceSource, Namespaces};

/// The largest message, in bytes.
pub const MAX_MESSAGE: usize = 1024;

/// From the server to init: create a process. Descriptors: a file with the process's plan, the container's cgroup, the
/// process's end of its channel, with `stdio` its standard input, output and error, then one for each of `join`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    /// The server's name for the request.
    pub token: u64,
    /// What it is to become.
    pub role: Role,
    /// Whether it is given standard streams.
    pub stdio: bool,
    /// Namespaces to create.
    pub namespaces: NewNamespaces,
    /// Namespaces to join, in the order of their descriptors.
    pub join: Vec<Join>,
}

/// The number of descriptors that every request begins with.
pub const CREATE_FDS: usize = 3;

/// What a created process becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A container's first process.
    Container,
    /// The pod's own process.
    Pause,
    /// A further process of a container. It joins [`Join::Pid`] alone, whose descriptor is a pidfd of the container's first
    /// process: by way of that it enters the others by itself.
    Exec,
}

/// Namespaces that begin with a process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct NewNamespaces {
    /// Mounts.
    pub mount: bool,
    /// Process ids.
    pub pid: bool,
    /// IPC.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Users and groups.
    pub user: bool,
}

impl NewNamespaces {
    /// None: the process joins those of a container.
    pub const NONE: Self = Self {
        mount: false,
        pid: false,
        ipc: false,
        uts: false,
        user: false,
    };

    /// Those that a container has for itself.
    pub fn of(namespaces: &Namespaces) -> Self {
        let new = |source| source == NamespaceSource::New;
        Self {
            mount: true,
            pid: new(namespaces.pid),
            ipc: new(namespaces.ipc),
            uts: new(namespaces.uts),
            user: new(namespaces.user),
        }
    }

    /// As flags of clone3(2).
    pub fn flags(self) -> u64 {
        let mut flags = CloneFlags::empty();
        flags.set(CloneFlags::CLONE_NEWNS, self.mount);
        flags.set(CloneFlags::CLONE_NEWPID, self.pid);
        flags.set(CloneFlags::CLONE_NEWIPC, self.ipc);
        flags.set(CloneFlags::CLONE_NEWUTS, self.uts);
        flags.set(CloneFlags::CLONE_NEWUSER, self.user);
        // All of them are positive.
        u64::try_from(flags.bits()).unwrap_or(0)
    }
}

/// A kind of namespace that containers of a pod can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// Process ids: the process is created in it.
    Pid,
    /// IPC.
    Ipc,
    /// Host name.
    Uts,
    /// Users and groups: the process is created in it, so that the other new namespaces are its own.
    User,
}

impl Join {
    /// Those that a container shares with the pod's first one.
    pub fn of(namespaces: &Namespaces) -> Vec<Self> {
        [
            (Self::Pid, namespaces.pid),
            (Self::Ipc, namespaces.ipc),
            (Self::Uts, namespaces.uts),
            (Self::User, namespaces.user),
        ]
        .into_iter()
        .filter(|&(_, source)| source == NamespaceSource::Sandbox)
        .map(|(kind, _)| kind)
        .collect()
    }

    /// The flag of setns(2).
    pub fn flag(self) -> CloneFlags {
        match self {
            Self::Pid => CloneFlags::CLONE_NEWPID,
            Self::Ipc => CloneFlags::CLONE_NEWIPC,
            Self::Uts => CloneFlags::CLONE_NEWUTS,
            Self::User => CloneFlags::CLONE_NEWUSER,
        }
    }

    /// The name of the file in `/proc/PID/ns`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::User => "user",
        }
    }
}

/// Why a process was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The request is not understood.
    Malformed,
    /// A namespace in which the process is to be created can't be entered: setns(2)'s error number.
    Join(i32),
    /// The process can't be created: clone3(2)'s error number.
    Clone(i32),
}

/// From init to the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The process is there. Carries its pidfd.
    Created {
        /// From [`Create`].
        token: u64,
        /// The guest's process id.
        pid: i32,
    },
    /// It is not.
    Refused {
        /// From [`Create`].
        token: u64,
        /// Why.
        refusal: Refusal,
    },
    /// A created process has ended and was reaped.
    Exited {
        /// The process.
        pid: i32,
        /// As a shell reports it.
        status: u8,
        /// When: `CLOCK_REALTIME`, nanoseconds since the epoch.
        at_ns: i64,
    },
}

/// The two ends: init's and the server's.
///
/// # Errors
/// No descriptors left.
pub fn pair() -> io::Result<(SeqPacket, SeqPacket)> {
    SeqPacket::pair()
}
