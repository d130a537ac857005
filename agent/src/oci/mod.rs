//! The OCI runtime specification, read into a plan that the guest can carry out.
//!
//! One file for each of the specification's subjects. Whatever is set in the specification and not read here is refused
//! by its name: [`object::Object`] sees to that.

mod capabilities;
mod container;
pub mod device_cgroup;
mod devices;
mod masked_paths;
mod mount_options;
mod mounts;
mod namespaces;
pub mod object;
mod pause;
mod process;
mod resources;
mod rlimits;
mod root;
mod share_path;
mod sysctl;
mod terminal;
mod user;
mod volume;

pub use capabilities::Capabilities;
pub use container::{Container, Limits, MAX_HOSTNAME};
pub use devices::{Device, DeviceKind};
pub use masked_paths::RootedPath;
pub use mount_options::{AttributeChange, Bind, Propagation};
pub use mounts::{Mount, MountKind};
pub use namespaces::{NamespaceSource, Namespaces};
pub use object::SpecError;
pub use pause::Pause;
pub use process::Process;
pub use rlimits::Rlimit;
pub use share_path::SharePath;
pub use terminal::TerminalSize;
pub use volume::{Content as VolumeContent, Volume};
