//! How the kernel says that something has changed.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::figures::figure;
use crate::init::CGROUPS;

/// Tells when tasks have waited for memory for 100 ms of one second (Linux' `Documentation/accounting/psi.rst`).
const STALLS: &[u8] = b"some 100000 1000000\0";

/// Tells when for half of a second all that the containers did was to wait for memory.
const STANDSTILLS: &[u8] = b"full 500000 1000000\0";

/// The kernel's own events, not those that udev passes on.
const KERNEL_EVENTS: u32 = 1;

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Containers have crossed their mark.
    High,
    /// They wait for memory for a good part of their time.
    Stall,
    /// For half of the last second they did nothing else.
    Standstill,
    /// Memory has come online, perhaps.
    Memory,
    /// The host has offered memory.
    Offer,
    /// What it has offered did not come for long.
    Overdue,
}

/// All that is watched.
#[derive(Debug)]
pub struct Watch {
    /// The `memory.events` of the containers' common cgroup.
    events: AsyncFd<File>,
    high: u64,
    stalls: AsyncFd<File>,
    standstills: AsyncFd<File>,
    kernel: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Begins to watch.
    pub fn new() -> io::Result<Self> {
        let events = File::open(format!("{CGROUPS}/memory.events"))?;
        let high = crossings(&events)?;
        let stalls = pressure("/proc/pressure/memory", STALLS)?;
        let standstills = pressure(&format!("{CGROUPS}/memory.pressure"), STANDSTILLS)?;
        let kernel = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(kernel.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
        // SAFETY: each is the `AsyncFd`'s own, and stays open and the same for as long as it is watched.
        let (events, stalls, standstills, kernel) = unsafe {
            (
                AsyncFd::register_with_interest(events, Interest::PRIORITY)?,
                AsyncFd::register_with_interest(stalls, Interest::PRIORITY)?,
                AsyncFd::register_with_interest(standstills, Interest::PRIORITY)?,
                AsyncFd::register_with_interest(kernel, Interest::READABLE)?,
            )
        };
        Ok(Self {
            events,
            high,
            stalls,
            standstills,
            kernel,
        })
    }

    /// The next change.
    pub async fn next(&mut self) -> io::Result<Event> {
        loop {
            tokio::select! {
                ready = self.events.ready(Interest::PRIORITY) => {
                    ready?.clear_ready();
                    // Reading it is also what makes the kernel tell of the next change.
                    let high = crossings(self.events.get_ref())?;
                    if std::mem::replace(&mut self.high, high) != high {
                        return Ok(Event::High);
                    }
                }
                ready = self.stalls.ready(Interest::PRIORITY) => {
                    ready?.clear_ready();
                    return Ok(Event::Stall);
                }
                ready = self.standstills.ready(Interest::PRIORITY) => {
                    ready?.clear_ready();
                    return Ok(Event::Standstill);
                }
                ready = self.kernel.ready(Interest::READABLE) => {
                    let mut ready = ready?;
                    let mut buffer = [0; 4096];
                    match recv(self.kernel.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                        Ok(length) if is_memory(&buffer[..length]) => return Ok(Event::Memory),
                        Ok(_) | Err(nix::Error::EINTR) => {}
                        Err(nix::Error::EAGAIN) => ready.clear_ready(),
                        // Some were too many to be kept.
                        Err(nix::Error::ENOBUFS) => return Ok(Event::Memory),
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
    }
}

/// A file of pressure stall information that tells what `trigger` names.
fn pressure(path: &str, trigger: &[u8]) -> io::Result<File> {
    let mut file = File::options().read(true).write(true).open(path)?;
    file.write_all(trigger)?;
    Ok(file)
}

/// How often the containers have crossed their mark.
fn crossings(events: &File) -> io::Result<u64> {
    let mut buffer = [0; 512];
    let length = events.read_at(&mut buffer, 0)?;
    Ok(figure(&String::from_utf8_lossy(&buffer[..length]), "high"))
}

/// Whether an event is of a block of memory: `online@/devices/system/memory/memory32`, then its properties.
fn is_memory(event: &[u8]) -> bool {
    event
        .split(|&byte| byte == 0)
        .any(|property| property == b"SUBSYSTEM=memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_memory_are_told_from_others() {
        assert!(is_memory(
            b"online@/devices/system/memory/memory32\0ACTION=online\0SUBSYSTEM=memory\0SEQNUM=5\0"
        ));
        assert!(!is_memory(
            b"online@/devices/system/cpu/cpu1\0ACTION=online\0SUBSYSTEM=cpu\0"
        ));
        assert!(!is_memory(b""));
    }
}
