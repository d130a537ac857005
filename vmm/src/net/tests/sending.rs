//! Packets from the guest.

use virtio_bindings::virtio_net::VIRTIO_NET_F_HOST_TSO4;

use super::guest::{Guest, MEMORY, buffer, config, frame, get};
use crate::{
    net::{features::offered, header::LENGTH},
    virtio::ring::{NEXT, WRITE},
};

const PLAIN: [u8; LENGTH] = [0; LENGTH];

#[test]
fn packets_leave_whole_and_in_order() {
    let (mut guest, wire) = Guest::new();
    for number in 0..100 {
        let head = guest.send(&PLAIN, &frame(number, 60 + 10 * usize::from(number)));
        assert_eq!(guest.tx.take_used(), Some((head, 0)));
        let (header, bytes) = get(&wire).unwrap();
        assert_eq!(header, PLAIN);
        assert_eq!(bytes, frame(number, 60 + 10 * usize::from(number)));
    }
}

#[test]
fn a_packet_may_be_in_any_number_of_pieces_the_header_too() {
    let (mut guest, wire) = Guest::new();
    let header = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let bytes = frame(3, 30000);
    let mut parts: Vec<&[u8]> = vec![&header[..1], &header[1..11]];
    let last = [&header[11..], &bytes[..100]].concat();
    parts.push(&last);
    parts.extend(bytes[100..].chunks(300));
    guest.send_parts(&parts);
    assert_eq!(get(&wire), Some((header, bytes)));
}

#[test]
fn the_longest_packet_leaves_and_a_longer_one_does_not() {
    let (mut guest, wire) = Guest::new();
    let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    guest.send(&header, &frame(1, 65535 + 14));
    assert_eq!(get(&wire), Some((header, frame(1, 65535 + 14))));
    let head = guest.send(&header, &frame(1, 70000));
    assert!(get(&wire).is_none());
    assert_eq!(guest.tx.take_used().map(|used| used.0), Some(0));
    assert_eq!(guest.tx.take_used(), Some((head, 0)));
}

#[test]
fn what_is_no_packet_is_dropped_and_the_next_one_is_not() {
    let (mut guest, wire) = Guest::new();
    let bad = [
        // Nothing; less than a header; a header only; for the device to write; not in memory.
        (buffer(1), 0, 0),
        (buffer(1), 11, 0),
        (buffer(1), 12, 0),
        (buffer(1), 200, WRITE),
        (MEMORY as u64 - 100, 200, 0),
        (u64::MAX - 5, 200, 0),
        (buffer(1), u32::MAX, 0),
        // A ring: the same descriptor over and over, too long together.
        (buffer(1), 2000, NEXT),
        // To a descriptor that doesn't exist.
        (buffer(1), 5, NEXT),
    ];
    for (index, (address, length, flags)) in (200..).zip(bad) {
        let next = if length == 5 { 0xffff } else { index };
        guest.tx.describe(index, address, length, flags, next);
        guest.publish(index);
        assert_eq!(guest.tx.take_used(), Some((index, 0)));
        assert!(get(&wire).is_none());
    }
    guest.publish(u16::MAX);
    assert_eq!(guest.tx.take_used(), Some((u16::MAX, 0)));
    guest.send(&PLAIN, &frame(1, 60));
    assert_eq!(get(&wire).unwrap().1, frame(1, 60));
}

#[test]
fn headers_that_ask_for_what_was_not_negotiated_or_lie_are_dropped() {
    let features = offered(1, true) & !(1 << VIRTIO_NET_F_HOST_TSO4);
    let (mut guest, wire) = Guest::with(&config(1), features);
    for bad in [
        [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0],
        [1, 3, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 0, 0],
        [0, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        guest.send(&bad, &frame(1, 2000));
        assert!(get(&wire).is_none());
    }
}

#[test]
fn a_wire_that_takes_nothing_makes_packets_wait() {
    let (mut guest, wire) = Guest::new();
    let mut sent = 0_u8;
    // Until one is not used.
    loop {
        guest.send(&PLAIN, &frame(sent, 60000));
        sent += 1;
        if guest.tx.take_used().is_none() {
            break;
        }
        assert!(sent < 200, "the wire never fills");
    }
    guest.send(&PLAIN, &frame(sent, 60000));
    sent += 1;
    for number in 0..sent {
        guest.run_until(|guest| {
            guest.settle();
            true
        });
        assert_eq!(get(&wire).unwrap().1, frame(number, 60000));
        guest.settle();
    }
    assert_eq!(guest.tx.outstanding(), 0);
}
