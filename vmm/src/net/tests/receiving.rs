//! Packets to the guest.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use vm_memory::{Bytes, GuestAddress};

use super::guest::{Guest, MEMORY, buffer, config, frame, put};
use crate::{
    net::features::offered,
    virtio::ring::{NEXT, WRITE},
};

#[test]
fn packets_arrive_whole_and_in_order_with_one_interrupt() {
    let (mut guest, wire) = Guest::new();
    guest.give_buffers(200, 2048);
    for number in 0..10 {
        put(&wire, &frame(number, 60 + usize::from(number)));
    }
    let before = guest.interrupts.get();
    guest.settle();
    for number in 0..10 {
        let (header, bytes) = guest.received().unwrap();
        assert_eq!(bytes, frame(number, 60 + usize::from(number)));
        assert_eq!(header[10..], [1, 0]);
    }
    assert!(guest.received().is_none());
    assert_eq!(guest.interrupts.get() - before, 1);
}

#[test]
fn a_large_packet_is_spread_over_buffers_and_seen_at_once() {
    let (mut guest, wire) = Guest::new();
    guest.give_buffers(200, 1536);
    put(&wire, &frame(1, 65000));
    put(&wire, &frame(2, 100));
    guest.settle();
    let (header, bytes) = guest.received().unwrap();
    assert_eq!(
        u16::from_le_bytes([header[10], header[11]]),
        65012_u16.div_ceil(1536)
    );
    assert_eq!(bytes, frame(1, 65000));
    assert_eq!(guest.received().unwrap().1, frame(2, 100));
}

#[test]
fn packets_wait_for_buffers() {
    let (mut guest, wire) = Guest::new();
    for number in 0..5 {
        put(&wire, &frame(number, 1000));
    }
    guest.settle();
    guest.give_buffers(200, 2048);
    for number in 0..5 {
        assert_eq!(guest.received().unwrap().1, frame(number, 1000));
    }
}

#[test]
fn packets_wait_until_there_is_room_for_the_longest() {
    let (mut guest, wire) = Guest::new();
    guest.give_buffers(80, 2048);
    put(&wire, &frame(1, 65000));
    put(&wire, &frame(2, 65000));
    put(&wire, &frame(3, 65000));
    guest.settle();
    for number in 1..=2 {
        assert_eq!(guest.received().unwrap().1, frame(number, 65000));
    }
    assert!(
        guest.received().is_none(),
        "there are buffers for less than a packet left"
    );
    for index in 0..40 {
        guest.give_back(index);
    }
    assert_eq!(guest.received().unwrap().1, frame(3, 65000));
}

#[test]
fn a_ring_that_never_holds_the_longest_packet_gets_the_others() {
    let (mut guest, wire) = Guest::new();
    guest.give_buffers(4, 1600);
    put(&wire, &frame(1, 1500));
    put(&wire, &frame(2, 60000));
    put(&wire, &frame(3, 1500));
    guest.settle();
    assert_eq!(guest.received().unwrap().1, frame(1, 1500));
    assert_eq!(
        guest.received().unwrap().1,
        frame(3, 1500),
        "the one in between was dropped"
    );
    put(&wire, &frame(4, 1500));
    guest.settle();
    guest.give_back(0);
    guest.give_back(1);
    assert_eq!(guest.received().unwrap().1, frame(4, 1500));
}

#[test]
fn without_mergeable_buffers_a_packet_takes_one_chain() {
    let features = offered(1, true) & !(1 << VIRTIO_NET_F_MRG_RXBUF);
    let (mut guest, wire) = Guest::with(&config(1), features);
    guest.give_buffers(3, 2000);
    put(&wire, &frame(1, 3000));
    put(&wire, &frame(2, 1500));
    guest.settle();
    let (header, bytes) = guest.received().unwrap();
    assert_eq!((&header[10..], bytes), (&[1, 0][..], frame(2, 1500)));
    assert!(guest.received().is_none());
}

#[test]
fn a_driver_that_knows_nothing_of_checksums_is_told_nothing() {
    let features = offered(1, true) & !(1 << VIRTIO_NET_F_GUEST_CSUM);
    let (mut guest, wire) = Guest::with(&config(1), features);
    guest.give_buffers(8, 2048);
    let mut packet = [0_u8; 72];
    packet[0] = 2;
    nix::unistd::write(&wire, &packet).unwrap();
    guest.settle();
    assert_eq!(guest.received().unwrap().0[0], 0);
}

#[test]
fn a_header_may_be_spread_over_descriptors() {
    let (mut guest, wire) = Guest::new();
    // 11 bytes, nothing, 1 byte, the rest.
    for (index, (offset, length)) in (0..).zip([(0, 11), (0, 0), (11, 1), (12, 2000)]) {
        let flags = if index < 3 { WRITE | NEXT } else { WRITE };
        guest
            .rx
            .describe(index, buffer(9) + offset, length, flags, index + 1);
    }
    guest.rx.publish(0);
    guest.kick(0);
    put(&wire, &frame(1, 200));
    guest.settle();
    assert_eq!(guest.rx.take_used(), Some((0, 212)));
    let mut bytes = [0; 212];
    guest
        .memory
        .read_slice(&mut bytes, GuestAddress(buffer(9)))
        .unwrap();
    assert_eq!(bytes[10..12], [1, 0]);
    assert_eq!(bytes[12..], frame(1, 200));
}

#[test]
fn buffers_that_no_packet_can_go_to_come_back_empty() {
    let (mut guest, wire) = Guest::new();
    let bad = [
        (buffer(1), 2048, 0),
        (buffer(1), 11, WRITE),
        (MEMORY as u64 - 100, 2048, WRITE),
        (u64::MAX - 4, 2048, WRITE),
        (1 << 40, 2048, WRITE),
    ];
    for (index, (address, length, flags)) in (100..).zip(bad) {
        guest.rx.describe(index, address, length, flags, 0);
        guest.rx.publish(index);
    }
    // A head that doesn't exist, and a chain that is a ring: as long as the queue, and of use.
    guest.rx.publish(u16::MAX);
    guest.rx.describe(110, buffer(10), 1, WRITE | NEXT, 110);
    guest.rx.publish(110);
    guest.kick(0);
    put(&wire, &frame(1, 100));
    guest.settle();
    for index in 100..105 {
        assert_eq!(guest.rx.take_used(), Some((index, 0)));
    }
    assert_eq!(guest.rx.take_used(), Some((u16::MAX, 0)));
    assert_eq!(guest.rx.take_used(), Some((110, 112)));
    guest.give_buffers(8, 2048);
    put(&wire, &frame(2, 100));
    guest.settle();
    assert_eq!(guest.received().unwrap().1, frame(2, 100));
}
