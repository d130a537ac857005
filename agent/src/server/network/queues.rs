//! Queues of the interfaces: a driver takes as many as there were processors when it found its device, which is one.

use std::{fs, io, thread};

use crate::linux::ethtool;

/// The driver's devices, each with a directory of its interfaces.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";

/// Has every interface use a pair of queues for each processor that is online.
///
/// # Errors
/// The driver refuses.
pub fn spread() -> io::Result<()> {
    let processors = u32::try_from(thread::available_parallelism()?.get()).unwrap_or(u32::MAX);
    for device in fs::read_dir(DRIVER)? {
        let Ok(interfaces) = fs::read_dir(device?.path().join("net")) else {
            // A file of the driver's.
            continue;
        };
        for interface in interfaces {
            if let Some(name) = interface?.file_name().to_str() {
                ethtool::use_queues(name, processors)?;
            }
        }
    }
    Ok(())
}
