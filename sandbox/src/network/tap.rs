//! Taps: what the monitor reads the guest's packets from and writes them to (Linux, `Documentation/networking/tuntap`).

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use super::{Error, error::device};

const TUN: &str = "/dev/net/tun";
const VHOST: &str = "/dev/vhost-net";

/// The size of the header before each packet (virtio 1.2, 5.1.6): with `num_buffers`, which every modern device has.
static HEADER: libc::c_int = 12;

/// How the taps of pods are named: by the number of the interface that they are tied to.
pub const PREFIX: &str = "slk";

/// The name of the tap that belongs to an interface.
pub fn name(interface: u32) -> String {
    // At most 13 of 15 bytes.
    format!("{PREFIX}{interface}")
}

/// Makes a tap with `queues` queues in the calling thread's network namespace, gone with its last descriptor.
///
/// # Errors
/// There is one of that name, which is another pod's.
pub fn create(name: &str, queues: u8, interface: &str) -> Result<Vec<OwnedFd>, Error> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if queues > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    (0..queues)
        .map(|queue| {
            // The first must be the one that makes it.
            let exclusive = if queue == 0 { libc::IFF_TUN_EXCL } else { 0 };
            open(name, flags | exclusive).map_err(|source| {
                if queue == 0 && source.raw_os_error() == Some(libc::EBUSY) {
                    Error::InUse {
                        interface: interface.to_owned(),
                        tap: name.to_owned(),
                    }
                } else {
                    device(format!(
                        "make the tap {name} with {TUN} (is the module tun loaded?)"
                    ))(source)
                }
            })
        })
        .collect()
}

fn open(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)?;
    // SAFETY: all zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    // Sixteen flags, the highest of which is one.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the request is what this ioctl reads and writes, and outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    // SAFETY: this ioctl reads an int, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const HEADER) })?;
    Ok(file.into())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Opens the kernel's virtio-net back end `count` times; none when the host has none.
///
/// # Errors
/// It is there, but can't be opened.
pub fn vhost(count: u8) -> Result<Vec<OwnedFd>, Error> {
    let mut all = Vec::new();
    for _ in 0..count {
        match OpenOptions::new().read(true).write(true).open(VHOST) {
            Ok(file) => all.push(file.into()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)
                ) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(device(format!("open {VHOST} (see `vhost_net`)"))(error)),
        }
    }
    Ok(all)
}
