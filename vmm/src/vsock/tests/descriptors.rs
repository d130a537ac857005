//! Every kind of descriptor that can be behind a port.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    path::PathBuf,
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use tempfile::TempDir;

use super::guest::{Guest, packet, pattern, shutdown};
use crate::vsock::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_SEND};

fn fifo() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    (directory, path)
}

fn reader(path: &PathBuf) -> File {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty())
        .unwrap()
        .into()
}

#[test]
fn an_input_fifo_has_not_ended_before_anybody_wrote() {
    let (_directory, path) = fifo();
    let mut guest = Guest::new();
    let ports = guest.connect(7, reader(&path));
    guest.expect_nothing();
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    guest.run();
    guest.expect_nothing();
    for line in ["one\n", "two\n"] {
        writer.write_all(line.as_bytes()).unwrap();
        guest.wait_for_packet();
        assert_eq!(guest.expect(Op::ReadWrite, ports).data, line.as_bytes());
    }
    drop(writer);
    guest.wait_for_packet();
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
}

#[test]
fn an_output_fifo_is_written_and_ends_with_the_guest() {
    let (_directory, path) = fifo();
    let mut guest = Guest::new();
    let mut reader = reader(&path);
    let ports = guest.connect(7, OpenOptions::new().write(true).open(&path).unwrap());
    guest.send(packet(Op::ReadWrite, ports), b"output");
    guest.send(shutdown(SHUTDOWN_SEND, ports), &[]);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "output");
}

#[test]
fn a_fifo_opened_for_both_is_never_read() {
    let (_directory, path) = fifo();
    let mut guest = Guest::new();
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let ports = guest.connect(7, both);
    guest.send(packet(Op::ReadWrite, ports), b"output");
    guest.expect_nothing();
    // A reader that comes and goes does not end it.
    let mut first = reader(&path);
    let mut bytes = [0; 6];
    first.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"output");
    drop(first);
    guest.run();
    guest.send(packet(Op::ReadWrite, ports), b"more");
    let mut second = reader(&path);
    guest.send(shutdown(SHUTDOWN_BOTH, ports), &[]);
    guest.expect(Op::Reset, ports);
    let mut text = String::new();
    second.read_to_string(&mut text).unwrap();
    assert_eq!(text, "more");
}

#[test]
fn a_log_file_is_appended_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let mut guest = Guest::new();
    let ports = guest.connect(7, OpenOptions::new().append(true).open(&path).unwrap());
    let data = pattern(600 * 1024);
    for part in data.chunks(60 * 1024) {
        guest.send(packet(Op::ReadWrite, ports), part);
    }
    guest.send(shutdown(SHUTDOWN_BOTH, ports), &[]);
    guest.inbox.retain(|packet| packet.op() != Op::CreditUpdate);
    guest.expect(Op::Reset, ports);
    let written = std::fs::read(&path).unwrap();
    assert!(written.strip_prefix(b"before\n").unwrap() == data);
}

#[test]
fn a_file_is_read_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("input");
    let data = pattern(30_000);
    std::fs::write(&path, &data).unwrap();
    let mut guest = Guest::new();
    let ports = guest.connect(7, File::open(&path).unwrap());
    let mut read = Vec::new();
    while let Some(part) = guest.inbox.pop_front_if(|packet| packet.op() == Op::ReadWrite) {
        read.extend(part.data);
    }
    assert!(read == data);
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
}

#[test]
fn null_devices_swallow_and_end() {
    let mut guest = Guest::new();
    let ports = guest.connect(7, OpenOptions::new().write(true).open("/dev/null").unwrap());
    guest.send(packet(Op::ReadWrite, ports), &pattern(60_000));
    guest.expect_nothing();
    let ports = guest.connect(8, File::open("/dev/null").unwrap());
    guest.expect_shutdown(SHUTDOWN_BOTH, ports);
}

#[test]
fn what_is_read_only_resets_a_guest_that_writes() {
    let mut guest = Guest::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let ports = guest.connect(7, reader);
    guest.send(packet(Op::ReadWrite, ports), b"x");
    guest.expect(Op::Reset, ports);
    assert!(writer.write_all(b"x").is_err(), "the descriptor is closed");
}

#[test]
fn a_full_disk_resets_the_connection() {
    let mut guest = Guest::new();
    let ports = guest.connect(7, OpenOptions::new().write(true).open("/dev/full").unwrap());
    guest.send(packet(Op::ReadWrite, ports), b"x");
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn a_descriptor_that_streams_nothing_harms_nothing() {
    let mut guest = Guest::new();
    let ports = guest.connect(7, File::open("/").unwrap());
    guest.run();
    guest.expect(Op::Reset, ports);
    assert_eq!(guest.connections(), 0);
}
