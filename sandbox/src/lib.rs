//! The host's side of a pod: launch, share, supervise, clean up.
//!
//! A pod's life, and where it is described:
//!
//! 1. [`config`] is read, the host is looked over by [`check`], the machine measured by [`size`].
//! 2. [`launch`](launch::launch) makes the pod's directory ([`state`]) and starts the monitor and the file server
//!    ([`process`]), while its [`network`] is attached.
//! 3. [`Launched::supervise`](launch::Launched::supervise) turns it into a [`sandbox::Sandbox`]: it answers the vsock
//!    device ([`broker`]), waits for the [`agent`]'s hello and hears of the processes' end.
//! 4. [`Sandbox::create_container`](sandbox::Sandbox::create_container) mounts a root file system ([`mount`], [`share`]),
//!    prepares the specification ([`spec`]), attaches the streams ([`stdio`], [`attachment`]), and asks the agent for a
//!    [`container::Container`], in which [`Container::exec`](container::Container::exec) starts further processes.
//! 5. While it runs, [`resize`] lets its machine grow.
//! 6. [`Sandbox::stop`](sandbox::Sandbox::stop) ends the pod; after a crash, [`state::destroy`] does ([`cleanup`]).
//!
//! Everything here runs on one thread: a pod's processes ask to be killed when the thread that started them ends.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod agent;
pub mod attachment;
pub mod broker;
pub mod cgroup;
pub mod check;
mod child_log;
pub mod cleanup;
pub mod config;
pub mod container;
pub mod error;
pub mod exec;
pub mod guest_process;
pub mod hooks;
pub mod id_map;
pub mod launch;
pub mod logger;
pub mod membership;
pub mod mount;
pub mod network;
pub mod pod_files;
pub mod process;
pub mod resize;
pub mod sandbox;
pub mod share;
pub mod size;
mod socket;
pub mod spec;
pub mod stand_in;
pub mod state;
pub mod stdio;
pub mod template;
pub mod timeline;
pub mod volume;

pub use config::Config;
pub use container::{Container, ContainerRequest};
pub use error::{Error, Kind};
pub use exec::ExecRequest;
pub use guest_process::{Exit, GuestProcess};
pub use launch::{PodRequest, launch};
pub use sandbox::{GuestEvent, Sandbox};
pub use timeline::Timeline;
