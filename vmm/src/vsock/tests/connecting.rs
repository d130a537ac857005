//! How connections come about, and how not.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use sealock_protocol::broker::{Answer, Request};

use super::guest::{Guest, packet};
use crate::{
    virtio::device::VirtioDevice,
    vsock::{
        connection::Ports,
        device::Vsock,
        muxer::MAX_CONNECTIONS,
        packet::{Op, SHUTDOWN_BOTH},
    },
};

#[test]
fn the_device_offers_streams_to_one_context_id() {
    let (_shim, broker) = sealock_protocol::seqpacket::SeqPacket::pair().unwrap();
    let device = Vsock::new(broker, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(
        (
            device.device_type(),
            device.features(),
            device.queue_max_sizes().len()
        ),
        (19, 1, 3)
    );
    let mut config = [0xff; 10];
    device.read_config(0, &mut config);
    assert_eq!(config, [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0]);
    let mut high = [0; 4];
    device.read_config(4, &mut high);
    assert_eq!(high, [0x44, 0x33, 0x22, 0x11]);
    device.read_config(u64::MAX, &mut high);
    assert_eq!(high, [0; 4]);
}

#[test]
fn a_connection_the_shim_accepts_carries_data_both_ways() {
    for event_index in [false, true] {
        let mut guest = Guest::with(event_index, true, Duration::from_secs(10));
        let (mut host, theirs) = UnixStream::pair().unwrap();
        let ports = guest.connect(1024, theirs);
        guest.send(packet(Op::ReadWrite, ports), b"from the guest");
        let mut bytes = [0; 14];
        host.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"from the guest");
        host.write_all(b"from the host").unwrap();
        guest.wait_for_packet();
        assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"from the host");
        guest.expect_nothing();
        assert!(guest.interrupts() > 0);
    }
}

#[test]
fn a_connection_the_shim_refuses_is_reset() {
    let mut guest = Guest::new();
    let ports = guest.ports(7);
    guest.send(packet(Op::Request, ports), &[]);
    guest.expect_nothing();
    let Request::Connect { id, port: 7 } = guest.asked() else {
        panic!();
    };
    guest.answer(&Answer::Refuse { id }, None);
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn an_acceptance_without_a_descriptor_is_a_refusal() {
    let mut guest = Guest::new();
    let ports = guest.ports(7);
    guest.send(packet(Op::Request, ports), &[]);
    let Request::Connect { id, .. } = guest.asked() else {
        panic!();
    };
    guest.answer(&Answer::Accept { id }, None);
    guest.expect(Op::Reset, ports);
}

#[test]
fn answers_nobody_waits_for_are_ignored_and_their_descriptors_closed() {
    let mut guest = Guest::new();
    let ports = guest.ports(7);
    guest.send(packet(Op::Request, ports), &[]);
    let Request::Connect { id, .. } = guest.asked() else {
        panic!();
    };
    guest.send(packet(Op::Reset, ports), &[]);
    for answer in [
        Answer::Accept { id },
        Answer::Accept { id },
        Answer::Accept { id: 99 },
    ] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        guest.answer(&answer, Some(writer.into()));
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_shim_that_does_not_answer_is_a_refusal_in_time() {
    let mut guest = Guest::with(true, true, Duration::from_millis(20));
    let ports = guest.ports(7);
    guest.send(packet(Op::Request, ports), &[]);
    guest.wait_for_packet();
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn without_a_shim_connections_are_refused_and_existing_ones_stay() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    let asking = guest.ports(7);
    guest.send(packet(Op::Request, asking), &[]);
    guest.shim = None;
    guest.run();
    guest.expect(Op::Reset, asking);
    let late = guest.ports(7);
    guest.send(packet(Op::Request, late), &[]);
    guest.expect(Op::Reset, late);
    guest.send(packet(Op::ReadWrite, ports), b"still here");
    let mut bytes = [0; 10];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}

#[test]
fn the_shim_reaches_a_port_of_the_guest() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    guest.answer(&Answer::Dial { id: 5, port: 99 }, Some(theirs.into()));
    let request = guest.take();
    assert_eq!((request.op(), request.header.dst_port), (Op::Request, 99));
    let ports = Ports {
        host: request.header.src_port,
        guest: 99,
    };
    guest.send(packet(Op::Response, ports), &[]);
    assert_eq!(
        guest.asked(),
        Request::Dialed {
            id: 5,
            connected: true
        }
    );
    host.write_all(b"hello").unwrap();
    guest.wait_for_packet();
    assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"hello");
    guest.send(packet(Op::ReadWrite, ports), b"hi");
    let mut bytes = [0; 2];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hi");
}

#[test]
fn the_shim_hears_when_the_guest_does_not_answer_or_refuses() {
    let mut guest = Guest::with(true, true, Duration::from_millis(20));
    let (_one, theirs) = UnixStream::pair().unwrap();
    guest.answer(&Answer::Dial { id: 1, port: 99 }, Some(theirs.into()));
    let request = guest.take();
    let ports = Ports {
        host: request.header.src_port,
        guest: 99,
    };
    guest.wait_for_packet();
    assert_eq!(
        guest.asked(),
        Request::Dialed {
            id: 1,
            connected: false
        }
    );
    guest.expect(Op::Reset, ports);

    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    guest.answer(&Answer::Dial { id: 2, port: 99 }, Some(theirs.into()));
    let request = guest.take();
    let ports = Ports {
        host: request.header.src_port,
        guest: 99,
    };
    guest.send(packet(Op::Reset, ports), &[]);
    assert_eq!(
        guest.asked(),
        Request::Dialed {
            id: 2,
            connected: false
        }
    );
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the descriptor is closed");
    guest.answer(&Answer::Dial { id: 3, port: 99 }, None);
    assert_eq!(
        guest.asked(),
        Request::Dialed {
            id: 3,
            connected: false
        }
    );
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_second_request_for_the_same_ports_ends_both() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    guest.send(packet(Op::Request, ports), &[]);
    guest.expect(Op::Reset, ports);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn connections_are_limited_and_their_end_makes_room() {
    let mut guest = Guest::new();
    let null = || std::fs::File::options().write(true).open("/dev/null").unwrap();
    let ports: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.connect(9, null())).collect();
    let refused = guest.ports(9);
    guest.send(packet(Op::Request, refused), &[]);
    guest.expect(Op::Reset, refused);
    guest.answer(&Answer::Dial { id: 1, port: 1 }, Some(OwnedFd::from(null())));
    assert_eq!(
        guest.asked(),
        Request::Dialed {
            id: 1,
            connected: false
        }
    );
    guest.send(super::guest::shutdown(SHUTDOWN_BOTH, ports[0]), &[]);
    guest.expect(Op::Reset, ports[0]);
    guest.connect(9, null());
    assert_eq!(guest.connections(), MAX_CONNECTIONS);
}

#[test]
fn requests_the_shim_has_not_answered_are_limited() {
    let mut guest = Guest::new();
    for _ in 0..300 {
        let ports = guest.ports(9);
        guest.send(packet(Op::Request, ports), &[]);
    }
    assert_eq!(guest.connections(), 256);
    assert_eq!(guest.inbox.len(), 44);
    assert!(guest.inbox.iter().all(|packet| packet.op() == Op::Reset));
    // Giving up does not make room: the shim still has as many to answer.
    for port in 5001..5100 {
        guest.send(packet(Op::Reset, Ports { host: 9, guest: port }), &[]);
    }
    guest.inbox.clear();
    let ports = guest.ports(9);
    guest.send(packet(Op::Request, ports), &[]);
    guest.expect(Op::Reset, ports);
}

#[test]
fn a_reset_of_the_device_ends_everything_and_it_can_be_used_again() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    guest.connect(1024, theirs);
    let (_other, theirs) = UnixStream::pair().unwrap();
    guest.answer(&Answer::Dial { id: 1, port: 99 }, Some(theirs.into()));
    guest.inbox.clear();
    guest.reset();
    assert_eq!(
        guest.asked(),
        Request::Dialed {
            id: 1,
            connected: false
        }
    );
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    guest.expect_nothing();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    host.write_all(b"again").unwrap();
    guest.wait_for_packet();
    assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"again");
}
