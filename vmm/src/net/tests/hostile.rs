//! What a guest can do that no driver does.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::guest::{Guest, QUEUE, get, put};
use crate::virtio::ring::{NEXT, WRITE};

/// An address that is, nearly is, or isn't in memory.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..(64 << 20),
        1 => (64_u64 << 20) - 4096..(64 << 20) + 16,
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let length = prop_oneof![4 => 0_u32..70000, 1 => any::<u32>(), 2 => 0_u32..20];
    // Indirect tables too.
    let flags = prop_oneof![3 => Just(0), 3 => Just(WRITE), 3 => Just(NEXT), 3 => Just(NEXT | WRITE), 1 => Just(4), 1 => any::<u16>()];
    (address(), length, flags, 0..QUEUE + 2)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_descriptors_stall_or_crash_the_device(
        descriptors in prop::collection::vec(descriptor(), 64),
        heads in prop::collection::vec(0..QUEUE + 2, 1..200),
        jumps in prop::collection::vec(any::<u16>(), 0..3),
    ) {
        let (mut guest, wire) = Guest::new();
        for (index, (address, length, flags, next)) in (0..).zip(&descriptors) {
            // What it writes may be the rings themselves.
            guest.rx.describe(index, *address, *length, *flags, *next);
            guest.tx.describe(index, *address, *length, *flags, *next);
            guest.control.describe(index, *address, *length, *flags, *next);
        }
        for (number, head) in heads.iter().enumerate() {
            guest.rx.publish(*head);
            guest.tx.publish(*head);
            guest.control.publish(*head);
            if number % 8 == 0 {
                for queue in 0..3 {
                    guest.kick(queue);
                }
                put(&wire, &[7; 300]);
                guest.settle();
                while get(&wire).is_some() {}
            }
        }
        for index in jumps {
            guest.rx.set_available(index);
            guest.tx.set_available(index);
            guest.control.set_available(index);
            for queue in 0..3 {
                guest.kick(queue);
            }
            put(&wire, &[7; 300]);
            guest.settle();
        }
    }

    #[test]
    fn no_header_stalls_or_crashes_the_device(header in any::<[u8; 12]>(), length in 0_usize..3000) {
        let (mut guest, wire) = Guest::new();
        guest.send_parts(&[&header, &vec![0x55; length]]);
        prop_assert_eq!(guest.tx.outstanding(), 0);
        while get(&wire).is_some() {}
    }
}

#[test]
fn a_ring_that_contradicts_itself_is_left_alone_and_the_other_goes_on() {
    let (mut guest, wire) = Guest::new();
    guest.give_buffers(100, 2048);
    guest.tx.set_available(QUEUE + 1);
    guest.kick(1);
    guest.settle();
    assert_eq!(guest.tx.take_used(), None);
    put(&wire, &[7; 100]);
    guest.settle();
    assert_eq!(guest.received().unwrap().1, [7; 100]);
}

#[test]
fn an_indirect_table_of_the_greatest_size_is_no_packet() {
    let (mut guest, wire) = Guest::new();
    // 4096 descriptors of one byte each.
    let table = 16_u64 << 20;
    for index in 0..4096_u64 {
        let entry = table + 16 * index;
        guest
            .memory
            .write_obj(0x10_0000_u64, GuestAddress(entry))
            .unwrap();
        guest.memory.write_obj(1_u32, GuestAddress(entry + 8)).unwrap();
        guest.memory.write_obj(NEXT, GuestAddress(entry + 12)).unwrap();
        guest
            .memory
            .write_obj((index + 1) as u16, GuestAddress(entry + 14))
            .unwrap();
    }
    guest.tx.describe(9, table, 4096 * 16, 4, 0);
    guest.publish(9);
    assert_eq!(guest.tx.take_used(), Some((9, 0)));
    assert!(get(&wire).is_none());
}
