//! What a guest can do that no driver does.

use std::{io::Read, os::unix::net::UnixStream, time::Duration};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{CID, Guest, packet};
use crate::virtio::ring::{NEXT, WRITE};
use crate::vsock::{
    connection::Ports,
    packet::{HOST_CID, Header, Op, TYPE_STREAM},
};

/// The connection still works.
fn assert_alive(guest: &mut Guest, host: &mut UnixStream, ports: Ports) {
    guest.inbox.clear();
    guest.send(packet(Op::ReadWrite, ports), b"alive");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"alive");
    guest.expect_nothing();
}

fn guest_with_connection() -> (Guest, UnixStream, Ports) {
    let mut guest = Guest::new();
    let (host, theirs) = UnixStream::pair().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let ports = guest.connect(7, theirs);
    (guest, host, ports)
}

#[test]
fn a_length_beyond_the_descriptors_is_dropped() {
    let (mut guest, mut host, ports) = guest_with_connection();
    for (len, room) in [
        (1, 0),
        (101, 100),
        (65_536, 65_535),
        (u32::MAX, 100),
        (u32::MAX - 43, 0),
    ] {
        for _ in 0..2 {
            let header = Header {
                len,
                ..packet(Op::ReadWrite, ports)
            };
            guest.post_raw(header, b"", room);
        }
        guest.run();
        guest.expect_nothing();
    }
    assert_alive(&mut guest, &mut host, ports);
}

#[test]
fn what_follows_the_payload_in_its_buffer_is_not_sent() {
    let (mut guest, mut host, ports) = guest_with_connection();
    let header = Header {
        len: 4,
        ..packet(Op::ReadWrite, ports)
    };
    guest.post_raw(header, b"datajunk", 8);
    guest.run();
    let mut bytes = [0; 4];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"data");
    assert_alive(&mut guest, &mut host, ports);
}

#[test]
fn descriptors_outside_memory_or_of_the_wrong_direction_are_dropped() {
    let (mut guest, mut host, ports) = guest_with_connection();
    let at = 0x80_0000 + 100 * 80 * 1024;
    let wire = {
        // The header of a packet of 64 bytes, written where the chains below begin.
        let mut bytes = vec![0; 44];
        bytes[0..8].copy_from_slice(&CID.to_le_bytes());
        bytes[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
        bytes[16..20].copy_from_slice(&ports.guest.to_le_bytes());
        bytes[20..24].copy_from_slice(&ports.host.to_le_bytes());
        bytes[24..28].copy_from_slice(&64_u32.to_le_bytes());
        bytes[28..30].copy_from_slice(&TYPE_STREAM.to_le_bytes());
        bytes[30..32].copy_from_slice(&Op::ReadWrite.to_wire().to_le_bytes());
        bytes
    };
    guest.memory.write_slice(&wire, GuestAddress(at)).unwrap();
    let before = guest.tx_slots();
    for (address, len, flags) in [
        (u64::MAX - 10, 64, 0),
        (32 << 20, 64, 0),
        ((32 << 20) - 63, 64, 0),
        (at, 64, WRITE),
        (0, u32::MAX, 0),
    ] {
        guest.tx.describe(126, at, 44, NEXT, 127);
        guest.tx.describe(127, address, len, flags, 0);
        guest.publish(126);
        guest.run();
        guest.expect_nothing();
    }
    // No header at all, a part of one, and a chain that runs in a circle.
    for (len, flags, next) in [(0, 0, 0), (43, 0, 0), (1, NEXT, 126)] {
        guest.tx.describe(126, at, len, flags, next);
        guest.publish(126);
        guest.run();
        guest.expect_nothing();
    }
    assert_eq!(guest.tx_slots(), before + 8, "dropped packets are given back");
    assert_alive(&mut guest, &mut host, ports);
}

#[test]
fn a_packet_in_many_pieces_is_taken_whole() {
    let (mut guest, mut host, ports) = guest_with_connection();
    let data = super::guest::pattern(20 * 100);
    let at = 0x100_0000;
    let header = Header {
        len: 2000,
        ..packet(Op::ReadWrite, ports)
    };
    // Written by the driver's own means, then read back for a chain of another layout.
    guest.post_raw(header, &data, 2000);
    let mut bytes = vec![0; 2044];
    let slot = 63;
    let from = GuestAddress((8 << 20) + slot * 80 * 1024);
    guest.memory.read_slice(&mut bytes, from).unwrap();
    guest.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    // The header in two pieces, the second of which begins the payload; then pieces of 100.
    let mut lens = vec![20, 124];
    lens.extend([100; 19]);
    let (mut address, mut index) = (at, 100);
    for (n, len) in lens.iter().enumerate() {
        let last = n + 1 == lens.len();
        guest
            .tx
            .describe(index, address, *len, if last { 0 } else { NEXT }, index + 1);
        address += u64::from(*len);
        index += 1;
    }
    guest.publish(100);
    guest.run();
    let mut read = vec![0; 4000];
    host.read_exact(&mut read).unwrap();
    assert!(read == [&data[..], &data[..]].concat());
}

#[test]
fn foreign_addresses_are_dropped_and_unknown_kinds_reset() {
    let (mut guest, mut host, ports) = guest_with_connection();
    let data = packet(Op::ReadWrite, ports);
    for header in [
        Header { src_cid: 2, ..data },
        Header {
            src_cid: u64::MAX,
            ..data
        },
        Header { dst_cid: 4, ..data },
    ] {
        guest.send(header, b"x");
        guest.expect_nothing();
    }
    for kind in [0, 2, u16::MAX] {
        guest.send(Header { kind, ..data }, b"x");
        assert_eq!(guest.expect(Op::Reset, ports).header.kind, kind);
    }
    guest.send(
        Header {
            kind: 2,
            ..packet(Op::Reset, ports)
        },
        &[],
    );
    guest.expect_nothing();
    assert_alive(&mut guest, &mut host, ports);
}

#[test]
fn packets_for_no_connection_are_reset_except_resets() {
    let mut guest = Guest::new();
    let ports = guest.ports(7);
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::ReadWrite,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        guest.send(packet(op, ports), &[]);
        guest.expect(Op::Reset, ports);
    }
    guest.send(
        Header {
            op: 99,
            ..packet(Op::Reset, ports)
        },
        &[],
    );
    guest.expect(Op::Reset, ports);
    guest.send(packet(Op::Reset, ports), &[]);
    guest.expect_nothing();
}

#[test]
fn an_unknown_operation_resets_its_connection() {
    for op in [0, 8, u16::MAX] {
        let (mut guest, mut host, ports) = guest_with_connection();
        guest.send(
            Header {
                op,
                ..packet(Op::Reset, ports)
            },
            &[],
        );
        guest.expect(Op::Reset, ports);
        assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    }
}

#[test]
fn data_before_the_connection_or_after_its_end_resets_it() {
    let mut guest = Guest::new();
    let ports = guest.ports(7);
    guest.send(packet(Op::Request, ports), &[]);
    guest.send(packet(Op::ReadWrite, ports), b"early");
    guest.expect(Op::Reset, ports);

    let (mut guest, mut host, ports) = guest_with_connection();
    guest.send(super::guest::shutdown(2, ports), &[]);
    guest.send(packet(Op::ReadWrite, ports), b"late");
    guest.expect(Op::Reset, ports);
    assert_eq!(host.read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to_until_it_does() {
    for event_index in [false, true] {
        let mut guest = Guest::with(event_index, false, Duration::from_secs(10));
        let ports = guest.ports(7);
        let mut sent = 0;
        while guest.tx_slots() > 0 {
            guest.send(packet(Op::ReadWrite, ports), b"x");
            sent += 1;
            assert!(sent < 1000, "the device never stops");
        }
        assert_eq!(guest.muxer().lock().unwrap().resets(), 256);
        assert_eq!(guest.tx.outstanding(), 64);
        // A kick changes nothing about that.
        guest.kick_transmit();
        guest.run();
        assert_eq!(guest.tx.outstanding(), 64);
        guest.give_buffers();
        guest.run();
        assert_eq!(guest.tx.outstanding(), 0);
        assert_eq!(guest.inbox.len(), sent);
    }
}

#[test]
fn connections_that_come_and_go_unanswered_leave_nothing_behind() {
    let mut guest = Guest::with(true, false, Duration::from_secs(10));
    for _ in 0..2000 {
        let ports = guest.ports(7);
        guest.send(packet(Op::Request, ports), &[]);
        let sealock_protocol::broker::Request::Connect { id, .. } = guest.asked() else {
            panic!();
        };
        let (_reader, writer) = std::io::pipe().unwrap();
        guest.answer(
            &sealock_protocol::broker::Answer::Accept { id },
            Some(writer.into()),
        );
        guest.send(packet(Op::Reset, ports), &[]);
    }
    assert_eq!(guest.connections(), 0);
    assert!(!guest.muxer().lock().unwrap().wants_buffer());
}

#[test]
fn buffers_of_no_use_are_given_back_empty() {
    let mut guest = Guest::with(true, false, Duration::from_secs(10));
    let ports = guest.ports(7);
    guest.send(packet(Op::ReadWrite, ports), b"x");
    for (len, flags) in [(4096, 0), (43, WRITE), (44, WRITE)] {
        guest.rx.describe(100, 1 << 20, len, flags, 0);
        if guest.rx.publish(100) {
            guest.kick_receive();
        }
    }
    assert_eq!(guest.rx.outstanding(), 3);
    guest.drive();
    assert_eq!(guest.rx.outstanding(), 0);
    for _ in 0..3 {
        assert_eq!(guest.rx.take_used(), Some((100, 0)));
    }
    guest.give_buffers();
    guest.run();
    guest.expect(Op::Reset, ports);
}

#[test]
fn a_broken_queue_is_left_alone() {
    let (mut guest, _host, ports) = guest_with_connection();
    // More chains than the queue has.
    guest.tx.set_available(1000);
    guest.kick_transmit();
    guest.run();
    guest.kick_transmit();
    guest.run();
    guest.expect_nothing();
    assert_eq!(guest.connections(), 1);

    // A head that is no descriptor, in either queue.
    let (mut other, _host, _) = guest_with_connection();
    other.publish(60_000);
    other.run();
    other.expect_nothing();
    let mut other = Guest::with(true, false, Duration::from_secs(10));
    other.send(packet(Op::ReadWrite, ports), b"x");
    other.rx.publish(128);
    other.kick_receive();
    other.run();
    other.expect_nothing();
}

fn header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![8 => Just(CID), 1 => Just(HOST_CID), 1 => any::<u64>()];
    let host = prop_oneof![8 => Just(HOST_CID), 1 => any::<u64>()];
    let ports = (
        prop_oneof![4 => 0_u32..4, 1 => any::<u32>()],
        prop_oneof![4 => 0_u32..4, 1 => any::<u32>()],
    );
    let len = prop_oneof![4 => 0_u32..200, 1 => 60_000_u32..70_000, 1 => any::<u32>()];
    let kind = prop_oneof![8 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let op = prop_oneof![8 => 0_u16..9, 1 => any::<u16>()];
    let credit = (any::<u32>(), any::<u32>());
    (
        cid,
        host,
        ports,
        len,
        kind,
        op,
        prop_oneof![0_u32..4, any::<u32>()],
        credit,
    )
        .prop_map(
            |(src_cid, dst_cid, (src_port, dst_port), len, kind, op, flags, (buf_alloc, fwd_cnt))| Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_packets_harms_the_device(
        packets in prop::collection::vec((header(), 0_u32..70_000, any::<bool>()), 1..100),
    ) {
        let mut guest = Guest::new();
        let mut hosts = Vec::new();
        for (header, room, accept) in packets {
            guest.post_raw(header, b"", room);
            guest.run();
            while let Some(id) = guest.asked_now() {
                if accept {
                    let (host, theirs) = UnixStream::pair().unwrap();
                    hosts.push(host);
                    guest.answer(&sealock_protocol::broker::Answer::Accept { id }, Some(theirs.into()));
                } else {
                    guest.answer(&sealock_protocol::broker::Answer::Refuse { id }, None);
                }
            }
        }
        guest.inbox.clear();
        let (mut host, theirs) = UnixStream::pair().unwrap();
        let ports = guest.connect(77, theirs);
        assert_alive(&mut guest, &mut host, ports);
    }
}
