//! Virtio 1.2: what every device shares. A device type adds only what is special to it.

pub mod device;
