//! The device on real tap interfaces, as root: each test in a network namespace of its own.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    poll::{PollFd, PollFlags, poll},
    sched::{CloneFlags, unshare},
};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MQ, VIRTIO_NET_OK};

use super::guest::{Guest, config, frame};
use crate::{
    net::{Error, Net, features::has, header::LENGTH, tap},
    virtio::device::VirtioDevice,
};

const NAME: &[u8] = b"tap0";
const USUAL: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// `struct ifreq` for the interface, with these flags.
fn request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all zeroes is a value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

fn ioctl<T>(fd: &impl AsRawFd, number: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: the callers' arguments are what their requests take.
    match unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut *argument) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A tap interface with as many queues, up, in a new network namespace that this thread enters.
fn interface(queues: usize, flags: libc::c_int) -> Vec<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET).expect("the test needs root's rights");
    let fds = (0..queues)
        .map(|_| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .unwrap();
            ioctl(&file, libc::TUNSETIFF, &mut request(flags)).unwrap();
            file.into()
        })
        .collect();
    set_up(true);
    fds
}

fn set_up(up: bool) {
    let flags = if up { libc::IFF_UP } else { 0 };
    ioctl(&socket(libc::AF_INET, 0), libc::SIOCSIFFLAGS, &mut request(flags)).unwrap();
}

fn socket(family: libc::c_int, protocol: libc::c_int) -> OwnedFd {
    let kind = if family == libc::AF_INET {
        libc::SOCK_DGRAM
    } else {
        libc::SOCK_RAW | libc::SOCK_NONBLOCK
    };
    // SAFETY: integers only.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a new descriptor.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// The host's side of the interface: sees what the guest sends, and sends to it.
struct Host(File);

/// Of the frames of these tests: one that no protocol knows.
const PROTOCOL: [u8; 2] = [0x88, 0xb5];

impl Host {
    fn new() -> Self {
        let protocol = u16::from_ne_bytes(PROTOCOL);
        let socket = socket(libc::AF_PACKET, protocol.into());
        let mut index = request(0);
        ioctl(&socket, libc::SIOCGIFINDEX, &mut index).unwrap();
        // SAFETY: all zeroes is a value of this structure; the call before has filled in the member of the union; the address
        // outlives the call.
        unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as libc::c_ushort;
            address.sll_protocol = protocol;
            address.sll_ifindex = index.ifr_ifru.ifru_ifindex;
            let length = size_of_val(&address) as libc::socklen_t;
            let bound = libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length);
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        }
        Self(socket.into())
    }

    fn send(&self, frame: &[u8]) {
        io::Write::write_all(&mut &self.0, frame).unwrap();
    }

    /// The next frame of these tests.
    fn get(&self) -> Option<Vec<u8>> {
        let mut watched = [PollFd::new(std::os::fd::AsFd::as_fd(&self.0), PollFlags::POLLIN)];
        poll(&mut watched, 100_u16).unwrap();
        let mut bytes = vec![0; 0x1_0000];
        let length = io::Read::read(&mut &self.0, &mut bytes).ok()?;
        bytes.truncate(length);
        Some(bytes)
    }
}

/// A frame between the two.
fn ethernet(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = frame(number, length);
    bytes[..6].copy_from_slice(&[0xff; 6]);
    bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    bytes[12..14].copy_from_slice(&PROTOCOL);
    bytes
}

fn received(guest: &mut Guest, number: u8) {
    // The kernel has packets of its own for a new interface.
    guest.run_until(|guest| match guest.received() {
        Some((_, bytes)) => bytes == ethernet(number, 200),
        None => false,
    });
}

fn delete() {
    // Netlink's header and a link message: the interface of that name.
    let mut message = Vec::new();
    let name = [NAME, b"\0"].concat();
    let attribute = 4 + name.len();
    let length = 16 + 16 + attribute.next_multiple_of(4);
    message.extend((length as u32).to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8 + 16]);
    message.extend((attribute as u16).to_ne_bytes());
    message.extend(libc::IFLA_IFNAME.to_ne_bytes());
    message.extend(name);
    message.resize(length, 0);
    let socket: File = socket(libc::AF_NETLINK, libc::NETLINK_ROUTE).into();
    io::Write::write_all(&mut &socket, &message).unwrap();
    let mut answer = [0; 1024];
    let read = io::Read::read(&mut &socket, &mut answer).unwrap();
    assert!(read >= 20 && answer[16..20] == [0; 4], "{:?}", &answer[..read]);
}

#[test]
fn packets_pass_both_ways_through_an_interface() {
    let device = Net::new(&config(1), interface(1, USUAL)).unwrap();
    let features = device.features();
    let mut guest = Guest::of(device, features);
    guest.give_buffers(200, 2048);
    let host = Host::new();
    host.send(&ethernet(1, 200));
    received(&mut guest, 1);
    guest.send(&[0; LENGTH], &ethernet(2, 300));
    assert_eq!(host.get(), Some(ethernet(2, 300)));
    // Bad for the interface, as it finds out by itself.
    guest.send(&[0; LENGTH], &[1, 2, 3]);
    guest.send(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0, 0], &ethernet(3, 300));
    guest.send(&[1, 1, 54, 0, 1, 0, 34, 0, 16, 0, 0, 0], &ethernet(3, 300));
    guest.send(&[0; LENGTH], &ethernet(4, 300));
    let mut last = host.get().unwrap();
    while last[14..] != ethernet(4, 300)[14..] {
        last = host.get().unwrap();
    }
}

#[test]
fn an_interface_that_is_down_drops_packets_and_its_link_stays() {
    let device = Net::new(&config(1), interface(1, USUAL)).unwrap();
    let features = device.features();
    let mut guest = Guest::of(device, features);
    guest.give_buffers(200, 2048);
    set_up(false);
    let head = guest.send(&[0; LENGTH], &ethernet(1, 300));
    assert_eq!(guest.tx.take_used(), Some((head, 0)));
    assert!(guest.link.is_up());
    set_up(true);
    let host = Host::new();
    guest.send(&[0; LENGTH], &ethernet(2, 300));
    assert_eq!(host.get(), Some(ethernet(2, 300)));
    host.send(&ethernet(3, 200));
    received(&mut guest, 3);
}

#[test]
fn an_interface_that_is_deleted_takes_the_link_down_and_costs_nothing_more() {
    for sends in [false, true] {
        let device = Net::new(&config(1), interface(1, USUAL)).unwrap();
        let features = device.features();
        let mut guest = Guest::of(device, features);
        guest.give_buffers(200, 2048);
        delete();
        if sends {
            guest.send(&[0; LENGTH], &ethernet(1, 300));
        }
        guest.run_until(|guest| !guest.link.is_up());
        assert_eq!(guest.config_interrupts.get(), 1);
        let mut status = [0xff; 2];
        guest.device.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        guest.settle();
        while guest.tx.take_used().is_some() {}
        let head = guest.send(&[0; LENGTH], &ethernet(1, 300));
        assert_eq!(guest.tx.take_used(), Some((head, 0)), "packets end here");
        // Another driver can have the device, without a link.
        let Guest { device, .. } = guest;
        let guest = Guest::of(device, features);
        assert!(!guest.link.is_up());
    }
}

#[test]
fn the_driver_chooses_how_many_queues_the_interface_uses() {
    let device = Net::new(&config(4), interface(4, USUAL | libc::IFF_MULTI_QUEUE)).unwrap();
    let features = device.features();
    assert!(has(features, VIRTIO_NET_F_MQ));
    let mut guest = Guest::of(device, features);
    guest.give_buffers(200, 2048);
    let host = Host::new();
    // One queue: everything comes there.
    for number in 0..50 {
        let mut bytes = ethernet(number, 200);
        bytes[5] = number;
        host.send(&bytes);
        guest.run_until(|guest| guest.received().is_some_and(|(_, received)| received == bytes));
    }
    for (pairs, accepted) in [(0_u16, false), (5, false), (4, true), (2, true), (1, true)] {
        let answer = guest.command(&[&[4, 0], &pairs.to_le_bytes()]);
        assert_eq!(answer == Some(VIRTIO_NET_OK as u8), accepted, "{pairs}");
    }
    host.send(&ethernet(1, 200));
    received(&mut guest, 1);
    assert!(guest.link.is_up());
}

#[test]
fn a_descriptor_that_is_no_such_tap_is_refused() {
    let (_, end) = io::pipe().unwrap();
    let error = Net::new(&config(1), vec![end.into()]).err().unwrap();
    assert!(matches!(error, Error::Tap(tap::Error::NotTap(_))));
    for flags in [
        libc::IFF_TAP | libc::IFF_NO_PI,
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
        USUAL | libc::IFF_MULTI_QUEUE,
    ] {
        let error = Net::new(&config(1), interface(1, flags)).err();
        let error = error.unwrap_or_else(|| panic!("{flags:#x} was accepted"));
        assert!(matches!(error, Error::Tap(tap::Error::Flags { .. })));
    }
}

#[test]
fn a_configuration_that_makes_no_device_is_refused_by_what_is_wrong_with_it() {
    let refused = |change: fn(&mut sealock_protocol::control::NetConfig)| {
        let mut bad = config(1);
        change(&mut bad);
        let fds = (0..bad.descriptors())
            .map(|_| io::pipe().unwrap().0.into())
            .collect();
        Net::new(&bad, fds).err().unwrap().to_string()
    };
    assert!(refused(|config| config.queue_pairs = 0).contains("queue_pairs = 0"));
    assert!(refused(|config| config.queue_pairs = 5).contains("queue_pairs = 5"));
    assert!(refused(|config| config.mtu = 67).contains("mtu = 67"));
    assert!(refused(|config| config.mac = [1; 6]).contains("mac"));
    assert!(refused(|config| config.mac = [0; 6]).contains("mac"));
    assert!(matches!(
        Net::new(&config(1), Vec::new()),
        Err(Error::Descriptors { needed: 1, given: 0 })
    ));
}

#[test]
fn a_burst_of_thousands_of_packets_arrives_in_order() {
    let device = Net::new(&config(1), interface(1, USUAL)).unwrap();
    let features = device.features();
    let mut guest = Guest::of(device, features);
    guest.give_buffers(256, 2048);
    let host = Host::new();
    let mut expected = 0_u32;
    for round in 0..40_u32 {
        for number in 0..100 {
            let mut bytes = ethernet(0, 200);
            bytes[20..24].copy_from_slice(&(round * 100 + number).to_ne_bytes());
            host.send(&bytes);
        }
        let until = expected + 100;
        guest.run_until(|guest| {
            while let Some((index, length)) = guest.rx.take_used() {
                let mut bytes = vec![0; length as usize];
                let address = vm_memory::GuestAddress(super::guest::buffer(index));
                vm_memory::Bytes::read_slice(&*guest.memory, &mut bytes, address).unwrap();
                if bytes[LENGTH + 12..LENGTH + 14] == PROTOCOL {
                    assert_eq!(bytes[LENGTH + 20..LENGTH + 24], expected.to_ne_bytes());
                    expected += 1;
                }
                guest.give_back(index);
            }
            expected >= until
        });
    }
}
