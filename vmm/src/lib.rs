//! The virtual machine monitor: boots one microVM from descriptors it is given, and opens nothing by itself.

pub mod fs;
pub mod virtio;
pub mod vsock;
