//! The OCI runtime specification, read into a plan that the guest can carry out.
//!
//! One file for each of the specification's subjects. Whatever is set in the specification and not read here is refused
//! by its name: [`object::Object`] sees to that.

mod block_io;
mod capabilities;
mod container;
mod cpu_list;
pub mod device_cgroup;
mod devices;
mod hooks;
mod id_mappings;
mod masked_paths;
mod mount_options;
mod mounts;
#[cfg(test)]
mod mutation;
mod namespaces;
pub mod object;
mod pause;
mod personality;
mod process;
mod resources;
mod rlimits;
mod root;
mod scheduler;
mod seccomp;
mod share_path;
mod sysctl;
mod terminal;
mod time_offsets;
mod update;
mod user;
mod volume;

pub use capabilities::Capabilities;
pub use container::{Container, Limits, MAX_HOSTNAME};
pub use cpu_list::CpuList;
pub use devices::{Device, DeviceKind};
pub use hooks::{Hook, Hooks, Status};
pub use id_mappings::{IdMapping, IdMappings, map_text, to_outside};
pub use masked_paths::RootedPath;
pub use mount_options::{AttributeChange, Bind, Propagation};
pub use mounts::{Mount, MountKind};
pub use namespaces::{NamespaceSource, Namespaces};
pub use object::SpecError;
pub use pause::Pause;
pub use process::Process;
pub use resources::Setting;
pub use rlimits::Rlimit;
pub use scheduler::{IoPriority, Scheduler};
pub use seccomp::Seccomp;
pub use share_path::SharePath;
pub use sysctl::Sysctl;
pub use terminal::TerminalSize;
pub use update::Update;
pub use volume::{Content as VolumeContent, Volume};
