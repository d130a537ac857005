//! A connection goes on in another process, with another shim.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

use sealock_protocol::{
    broker::{Answer, Request},
    seqpacket::SeqPacket,
};

use super::guest::{Guest, packet, pattern};
use crate::{
    virtio::device::VirtioDevice,
    vsock::{device::Vsock, packet::Op},
};

#[test]
fn a_quiet_connection_goes_on_and_the_guest_does_not_notice() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    guest.send(packet(Op::ReadWrite, ports), &pattern(1000));
    host.read_exact(&mut [0; 1000]).unwrap();
    host.write_all(b"before").unwrap();
    guest.wait_for_packet();
    assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"before");

    guest.restore();
    let Request::Connect { id, port: 1024 } = guest.asked() else {
        panic!("the shim is asked for what is behind the port");
    };
    let (mut host, theirs) = UnixStream::pair().unwrap();
    host.write_all(b"at once").unwrap();
    guest.answer(&Answer::Accept { id }, Some(theirs.into()));
    let first = guest.expect(Op::ReadWrite, ports);
    assert_eq!(first.data, b"at once");
    assert_eq!(first.header.fwd_cnt, 1000, "it counts on from where it was");
    guest.send(packet(Op::ReadWrite, ports), b"after");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"after");
    guest.expect_nothing();
}

#[test]
fn what_the_guest_sent_while_nobody_looked_is_not_lost() {
    let mut guest = Guest::new();
    let (_host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    guest.post(packet(Op::CreditRequest, ports), &[]);
    guest.restore();
    let Request::Connect { id, .. } = guest.asked() else {
        panic!("the shim is asked");
    };
    let (_host, theirs) = UnixStream::pair().unwrap();
    guest.answer(&Answer::Accept { id }, Some(theirs.into()));
    guest.expect(Op::CreditUpdate, ports);
}

#[test]
fn a_connection_that_the_shim_refuses_is_reset() {
    let mut guest = Guest::new();
    let (_host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    guest.restore();
    let Request::Connect { id, .. } = guest.asked() else {
        panic!("the shim is asked");
    };
    guest.answer(&Answer::Refuse { id }, None);
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_connection_with_something_under_way_is_not_saved() {
    let mut guest = Guest::new();
    let ports = guest.ports(7);
    guest.send(packet(Op::Request, ports), &[]);
    assert!(guest.save().is_err(), "the shim has not answered");
    let mut guest = Guest::new();
    let (host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(1024, theirs);
    assert!(guest.save().is_ok());
    // More than the socket takes, which nobody reads.
    for _ in 0..60 {
        guest.send(packet(Op::ReadWrite, ports), &pattern(4000));
    }
    drop(host);
    assert!(guest.save().is_err());
}

#[test]
fn nonsense_is_no_connection() {
    for bytes in [&[][..], &[0xff; 40], &[1, 2]] {
        let (_shim, broker) = SeqPacket::pair().unwrap();
        let mut device = Vsock::new(broker, 3).unwrap();
        assert!(device.restore(bytes).is_err(), "{bytes:?}");
    }
}
