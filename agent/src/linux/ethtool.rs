//! Settings of network devices (netdevice(7), `SIOCETHTOOL`; `linux/ethtool.h`).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::check;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx_count: u32,
    tx_count: u32,
    other_count: u32,
    combined_count: u32,
}

/// Has an interface use a pair of queues for each of `processors`, as far as its device has them.
///
/// # Errors
/// There is no such interface, or its driver refuses.
pub fn use_queues(interface: &str, processors: u32) -> io::Result<()> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut channels = Channels {
        cmd: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    request(&socket, interface, &mut channels)?;
    let wanted = processors.clamp(1, channels.max_combined.max(1));
    if channels.combined_count != wanted {
        channels.cmd = ETHTOOL_SCHANNELS;
        channels.combined_count = wanted;
        request(&socket, interface, &mut channels)?;
    }
    Ok(())
}

fn request(socket: &OwnedFd, interface: &str, channels: &mut Channels) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut ifreq = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut *channels).cast(),
        },
    };
    // SAFETY: the name ends with a zero byte, and the data is what both commands read and write; both outlive the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) }.into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_such_settings_says_so() {
        let errno = |name| use_queues(name, 2).unwrap_err().raw_os_error();
        assert_eq!(errno("lo"), Some(libc::EOPNOTSUPP));
        assert_eq!(errno("no-such-one"), Some(libc::ENODEV));
        assert_eq!(errno("a-name-that-is-too-long"), Some(libc::ENODEV));
    }
}
