//! What happens in a container's own process, between its creation by init and the execution of its program.
//!
//! [`setup::run`] is the order of it. Everything that touches the container's files goes through [`rootfs::RootFs`],
//! which resolves paths inside the container's root whatever its files are.

pub mod channel;
mod devices;
mod executable;
mod failure;
mod mounts;
mod namespaces;
mod privileges;
mod rootfs;
mod setup;

pub use setup::{Descriptors, run};
