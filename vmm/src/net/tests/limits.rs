//! Limits on rates.

use std::time::{Duration, Instant};

use sealock_protocol::control::RateLimit;

use super::guest::{Guest, config, frame, get, put};
use crate::net::{features::offered, header::LENGTH};

fn packets(rate: u64) -> Option<RateLimit> {
    Some(RateLimit {
        packets: rate,
        packets_burst: 5,
        ..RateLimit::default()
    })
}

#[test]
fn what_the_guest_sends_is_held_back_and_not_lost() {
    let mut limited = config(1);
    limited.send_limit = packets(100);
    let (mut guest, wire) = Guest::with(&limited, offered(1, true));
    let start = Instant::now();
    for number in 0..25 {
        guest.send(&[0; LENGTH], &frame(number, 100));
    }
    for number in 0..25 {
        let mut packet = None;
        guest.run_until(|_| {
            packet = get(&wire);
            packet.is_some()
        });
        assert_eq!(packet.unwrap().1, frame(number, 100));
    }
    // Twenty beyond the burst, and no less time than they need.
    assert!(start.elapsed() >= Duration::from_millis(180));
}

#[test]
fn what_the_guest_receives_is_held_back() {
    let mut limited = config(1);
    limited.receive_limit = packets(100);
    let (mut guest, wire) = Guest::with(&limited, offered(1, true));
    guest.give_buffers(100, 2048);
    let start = Instant::now();
    for number in 0..25 {
        put(&wire, &frame(number, 100));
    }
    for number in 0..25 {
        let mut packet = None;
        guest.run_until(|guest| {
            packet = guest.received();
            packet.is_some()
        });
        assert_eq!(packet.unwrap().1, frame(number, 100));
    }
    assert!(start.elapsed() >= Duration::from_millis(180));
}

#[test]
fn one_direction_does_not_wait_for_the_other() {
    let mut limited = config(1);
    limited.receive_limit = packets(1);
    let (mut guest, wire) = Guest::with(&limited, offered(1, true));
    guest.give_buffers(100, 2048);
    for number in 0..20 {
        put(&wire, &frame(number, 100));
    }
    guest.settle();
    for number in 0..100 {
        guest.send(&[0; LENGTH], &frame(number, 100));
        assert_eq!(get(&wire).unwrap().1, frame(number, 100));
    }
}
