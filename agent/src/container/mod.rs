//! What happens in a container's own processes, between their creation by init and the execution of their programs.
//!
//! [`setup::run`] is the order of it for the first process, [`exec::run`] for those that join it; [`program`] is what they
//! have in common. [`pause::run`] is the pod's own process. Everything that touches the container's files goes through [`rootfs::RootFs`], which resolves paths
//! inside the container's root whatever its files are.

pub mod channel;
mod copy_up;
mod descriptors;
mod devices;
pub mod exec;
mod executable;
mod failure;
mod hooks;
mod mounts;
mod namespaces;
pub mod outside;
pub mod pause;
mod privileges;
mod program;
mod root;
mod rootfs;
pub mod setup;
mod terminal;
mod volume;

pub use descriptors::Descriptors;
pub use failure::Failure;
pub use mounts::Share;
