//! Flow control: both sides send as fast as the other takes it, and no faster.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use super::guest::{GUEST_BUF_ALLOC, Guest, packet, pattern};
use crate::vsock::{
    connection::{BUF_ALLOC, Ports},
    packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND},
    stream::LARGE_PIPE,
};

/// Sends all of `data` as credit allows, waiting for more of it.
fn send_all(guest: &mut Guest, ports: Ports, data: &[u8], piece: usize) {
    let (mut sent, mut forwarded) = (0_usize, 0_u32);
    while sent < data.len() {
        let in_flight = u32::try_from(sent).unwrap().wrapping_sub(forwarded);
        let credit = usize::try_from(BUF_ALLOC - in_flight).unwrap();
        let len = piece.min(data.len() - sent).min(credit);
        if len > 0 && guest.tx_slots() > 0 {
            // Several packets with one kick, as a driver under load does.
            guest.post(packet(Op::ReadWrite, ports), &data[sent..sent + len]);
            sent += len;
        } else if len > 0 {
            guest.run();
        } else {
            guest.wait();
        }
        while let Some(packet) = guest.inbox.pop_front() {
            assert_eq!(
                (packet.op(), packet.header.dst_port),
                (Op::CreditUpdate, ports.guest)
            );
            forwarded = packet.header.fwd_cnt;
        }
    }
    guest.run();
}

#[test]
fn a_guest_that_heeds_its_credit_loses_nothing_to_a_slow_reader() {
    for event_index in [false, true] {
        let mut guest = Guest::with(event_index, true, Duration::from_secs(10));
        let (mut reader, writer) = std::io::pipe().unwrap();
        let ports = guest.connect(7, writer);
        let data = pattern(3_000_000);
        let reading = thread::spawn(move || {
            let (mut bytes, mut part) = (Vec::new(), vec![0; 3001]);
            loop {
                match reader.read(&mut part).unwrap() {
                    0 => return bytes,
                    len => bytes.extend_from_slice(&part[..len]),
                }
            }
        });
        send_all(&mut guest, ports, &data, 60_000);
        guest.send(super::guest::shutdown(SHUTDOWN_SEND, ports), &[]);
        while guest.inbox.iter().all(|packet| packet.op() != Op::Shutdown) {
            guest.wait();
        }
        assert!(reading.join().unwrap() == data);
    }
}

#[test]
fn many_small_packets_arrive_in_order() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    let data = pattern(100_000);
    let reading = thread::spawn(move || {
        let mut bytes = vec![0; 100_000];
        host.read_exact(&mut bytes).unwrap();
        bytes
    });
    send_all(&mut guest, ports, &data, 37);
    while !reading.is_finished() {
        guest.run();
    }
    assert!(reading.join().unwrap() == data);
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset_and_nothing_before_is_lost() {
    let mut guest = Guest::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let ports = guest.connect(7, writer);
    let room = pattern(usize::try_from(BUF_ALLOC).unwrap() + usize::try_from(LARGE_PIPE).unwrap());
    // The pipe takes so much of it, and so much more credit there is.
    for part in room.chunks(64 * 1024) {
        guest.send(packet(Op::ReadWrite, ports), part);
    }
    guest.inbox.retain(|packet| packet.op() != Op::CreditUpdate);
    guest.expect_nothing();
    guest.send(packet(Op::ReadWrite, ports), b"!");
    guest.expect(Op::Reset, ports);
    let (mut bytes, mut part) = (Vec::new(), vec![0; 8192]);
    loop {
        guest.run();
        match reader.read(&mut part).unwrap() {
            0 => break,
            len => bytes.extend_from_slice(&part[..len]),
        }
    }
    assert!(bytes == room);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn credit_is_told_when_asked_for() {
    let mut guest = Guest::new();
    let ports = guest.connect(7, std::fs::File::options().write(true).open("/dev/null").unwrap());
    guest.send(packet(Op::ReadWrite, ports), &[0; 1000]);
    guest.expect_nothing();
    guest.send(packet(Op::CreditRequest, ports), &[]);
    let header = guest.expect(Op::CreditUpdate, ports).header;
    assert_eq!((header.buf_alloc, header.fwd_cnt), (BUF_ALLOC, 1000));
}

#[test]
fn the_host_sends_no_more_than_the_guest_takes() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    let data = pattern(1_000_000);
    let copy = data.clone();
    let writing = thread::spawn(move || host.write_all(&copy).map(|()| host));
    let mut read = Vec::new();
    let mut forwarded = 0;
    let mut requests = 0;
    while read.len() < data.len() {
        guest.wait();
        let mut asked = false;
        while let Some(packet) = guest.inbox.pop_front() {
            match packet.op() {
                Op::ReadWrite => read.extend(packet.data),
                Op::CreditRequest => asked = true,
                other => panic!("{other:?}"),
            }
        }
        let in_flight = u32::try_from(read.len()).unwrap() - forwarded;
        assert!(in_flight <= GUEST_BUF_ALLOC);
        if asked {
            requests += 1;
            assert_eq!(in_flight, GUEST_BUF_ALLOC);
            // Asked once, and quiet until there is some.
            guest.run();
            guest.expect_nothing();
            forwarded = u32::try_from(read.len()).unwrap();
            let update = Header {
                fwd_cnt: forwarded,
                ..packet(Op::CreditUpdate, ports)
            };
            guest.post(update, &[]);
        }
    }
    assert!(read == data);
    assert_eq!(requests, 1_000_000 / GUEST_BUF_ALLOC);
    drop(writing.join().unwrap());
}

#[test]
fn a_guest_that_counts_wrong_gets_nothing() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    let update = Header {
        fwd_cnt: 12_345,
        ..packet(Op::CreditUpdate, ports)
    };
    guest.send(update, &[]);
    host.write_all(b"data").unwrap();
    guest.wait_for_packet();
    guest.expect(Op::CreditRequest, ports);
    guest.run();
    guest.expect_nothing();
}

#[test]
fn connections_take_turns_at_the_guests_buffers() {
    let mut guest = Guest::with(true, false, Duration::from_secs(10));
    guest.refill = false;
    let connect = |guest: &mut Guest| {
        let (mut host, theirs) = UnixStream::pair().unwrap();
        host.write_all(&pattern(20_000)).unwrap();
        let ports = guest.ports(7);
        guest.send(packet(Op::Request, ports), &[]);
        let sealock_protocol::broker::Request::Connect { id, .. } = guest.asked() else {
            panic!();
        };
        guest.answer(
            &sealock_protocol::broker::Answer::Accept { id },
            Some(theirs.into()),
        );
        (host, ports)
    };
    let one = connect(&mut guest);
    let other = connect(&mut guest);
    guest.expect_nothing();
    guest.give_buffers();
    guest.run();
    let order: Vec<_> = guest.inbox.iter().map(|packet| packet.header.dst_port).collect();
    assert_eq!(order[..6], [one.1.guest, other.1.guest].repeat(3));
    guest.refill = true;
    guest.inbox.clear();
    guest.send(super::guest::shutdown(SHUTDOWN_BOTH, one.1), &[]);
    guest.expect(Op::Reset, one.1);
    guest.expect_nothing();
}
