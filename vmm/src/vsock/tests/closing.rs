//! How connections end: nothing that was sent is lost.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    time::Duration,
};

use super::guest::{Guest, packet, pattern, shutdown};
use crate::vsock::{
    packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND},
    stream::LARGE_PIPE,
};

/// More than a pipe holds, by less than the credit.
const MUCH: usize = LARGE_PIPE as usize + 136 * 1024;

/// Sends [`MUCH`] into a pipe that nobody reads yet.
fn stuffed_pipe(guest: &mut Guest) -> (crate::vsock::connection::Ports, std::io::PipeReader, Vec<u8>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let ports = guest.connect(7, writer);
    let data = pattern(MUCH);
    for part in data.chunks(64 * 1024) {
        guest.send(packet(Op::ReadWrite, ports), part);
    }
    guest.inbox.retain(|packet| packet.op() != Op::CreditUpdate);
    (ports, reader, data)
}

/// Reads to the end while the device works.
fn read_to_end(guest: &mut Guest, mut reader: std::io::PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 4096];
    loop {
        guest.run();
        match reader.read(&mut part).unwrap() {
            0 => return bytes,
            len => bytes.extend_from_slice(&part[..len]),
        }
    }
}

#[test]
fn what_was_sent_before_the_end_is_written_before_the_end_is_confirmed() {
    let mut guest = Guest::new();
    let (ports, reader, data) = stuffed_pipe(&mut guest);
    guest.send(shutdown(SHUTDOWN_SEND, ports), &[]);
    guest.expect_nothing();
    assert!(read_to_end(&mut guest, reader) == data);
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
    guest.send(packet(Op::Reset, ports), &[]);
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_complete_shutdown_is_answered_when_all_is_written() {
    let mut guest = Guest::new();
    let (ports, reader, data) = stuffed_pipe(&mut guest);
    guest.send(shutdown(SHUTDOWN_BOTH, ports), &[]);
    guest.expect_nothing();
    assert!(read_to_end(&mut guest, reader) == data);
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_guest_that_waits_no_longer_loses_nothing() {
    let mut guest = Guest::new();
    let (ports, reader, data) = stuffed_pipe(&mut guest);
    guest.send(shutdown(SHUTDOWN_BOTH, ports), &[]);
    guest.send(packet(Op::Reset, ports), &[]);
    assert_eq!(guest.connections(), 1);
    // The same ports are free for another connection meanwhile.
    guest.send(packet(Op::ReadWrite, ports), b"stray");
    guest.expect(Op::Reset, ports);
    assert!(read_to_end(&mut guest, reader) == data);
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn what_drains_ends_with_its_reader_and_bothers_no_successor() {
    let mut guest = Guest::new();
    let (ports, reader, _) = stuffed_pipe(&mut guest);
    guest.send(packet(Op::Reset, ports), &[]);
    drop(reader);
    guest.run();
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn the_end_of_input_reaches_the_guest_behind_the_data() {
    let mut guest = Guest::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let ports = guest.connect(7, reader);
    writer.write_all(b"last words").unwrap();
    drop(writer);
    guest.wait_for_packet();
    assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"last words");
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
    guest.send(packet(Op::Reset, ports), &[]);
    guest.expect_nothing();
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_socket_is_closed_one_direction_at_a_time() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    host.shutdown(Shutdown::Write).unwrap();
    guest.wait_for_packet();
    guest.expect_shutdown(SHUTDOWN_SEND, ports);
    guest.send(packet(Op::ReadWrite, ports), b"answer");
    guest.send(shutdown(SHUTDOWN_SEND, ports), &[]);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
    guest.send(shutdown(SHUTDOWN_BOTH, ports), &[]);
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn after_the_guest_has_ended_its_side_the_host_still_speaks() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    guest.send(packet(Op::ReadWrite, ports), b"question");
    guest.send(shutdown(SHUTDOWN_SEND, ports), &[]);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    host.write_all(b"answer").unwrap();
    drop(host);
    guest.wait_for_packet();
    assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"answer");
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
}

#[test]
fn a_guest_that_receives_no_more_is_sent_no_more() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    guest.send(shutdown(SHUTDOWN_RECEIVE, ports), &[]);
    assert!(host.write_all(b"unheard").is_err());
    guest.send(packet(Op::ReadWrite, ports), b"heard");
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).unwrap();
    guest.expect_nothing();
}

#[test]
fn a_socket_closed_by_the_host_ends_both_directions() {
    let mut guest = Guest::new();
    let (mut host, theirs) = UnixStream::pair().unwrap();
    let ports = guest.connect(7, theirs);
    host.write_all(b"bye").unwrap();
    drop(host);
    guest.wait_for_packet();
    assert_eq!(guest.expect(Op::ReadWrite, ports).data, b"bye");
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
    // What was under way is not held against the guest.
    guest.send(packet(Op::ReadWrite, ports), b"too late");
    guest.expect_nothing();
    guest.send(shutdown(SHUTDOWN_BOTH, ports), &[]);
    guest.expect(Op::Reset, ports);
}

#[test]
fn a_guest_that_never_confirms_the_end_is_reset_in_time() {
    let mut guest = Guest::with(true, true, Duration::from_millis(300));
    let (reader, writer) = std::io::pipe().unwrap();
    let ports = guest.connect(7, reader);
    drop(writer);
    guest.wait_for_packet();
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
    guest.wait_for_packet();
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_reader_that_goes_away_resets_the_connection_at_once() {
    let mut guest = Guest::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let ports = guest.connect(7, writer);
    drop(reader);
    guest.wait_for_packet();
    guest.expect(Op::Reset, ports);

    let (ports, reader, _) = stuffed_pipe(&mut guest);
    drop(reader);
    guest.wait_for_packet();
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}
