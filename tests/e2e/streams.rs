//! Standard input, output and error.

use std::{
    io::{Read, Write},
    process::Stdio,
    thread,
};

use sealock_tests::ctr::{Run, Runtime};
use sha2::{Digest, Sha256};

use crate::{Host, story, text};

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_hundred_mebibytes_of_output_arrive_intact() {
    const SIZE: usize = 100 << 20;
    let host = Host::take();
    // Random, so that a lost, doubled or swapped piece shows; the container tells its hash by standard error.
    let script = format!("mkfifo /copy; sha256sum /copy >&2 & head -c {SIZE} /dev/urandom | tee /copy; wait");
    let mut child = Run::busybox(Runtime::Sealock, &["sh", "-c", &script]).spawn();
    drop(child.stdin.take());
    let mut stdout = child.stdout.take().unwrap();
    let mut got = Sha256::new();
    let mut total = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = stdout.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        total += count;
        got.update(&buffer[..count]);
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", story(&output));
    assert_eq!(total, SIZE);
    assert!(
        text(&output.stderr).starts_with(&hex(got.finalize())),
        "{}",
        story(&output)
    );
    host.assert_clean();
}

#[test]
fn ten_mebibytes_of_input_arrive_intact() {
    let host = Host::take();
    let mut data = vec![0; 10 << 20];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut data)
        .unwrap();
    let mut child = Run::busybox(Runtime::Sealock, &["sha256sum"]).spawn();
    let mut stdin = child.stdin.take().unwrap();
    let expected = hex(Sha256::digest(&data));
    let writer = thread::spawn(move || stdin.write_all(&data));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(text(&output.stdout).starts_with(&expected), "{}", story(&output));
    host.assert_clean();
}

#[test]
fn errors_come_apart_from_output() {
    let host = Host::take();
    let output = Run::busybox(
        Runtime::Sealock,
        &["sh", "-c", "echo to output; echo to error >&2"],
    )
    .output();
    assert_eq!(text(&output.stdout), "to output\n", "{}", story(&output));
    assert_eq!(text(&output.stderr), "to error\n", "{}", story(&output));
    host.assert_clean();
}

#[test]
fn a_closed_input_ends_cat() {
    let host = Host::take();
    let mut child = Run::busybox(Runtime::Sealock, &["cat"]).spawn();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"through and through\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", story(&output));
    assert_eq!(text(&output.stdout), "through and through\n");
    host.assert_clean();
}

#[test]
fn output_can_be_opened_again_by_its_name() {
    let host = Host::take();
    let output = Run::busybox(
        Runtime::Sealock,
        &[
            "sh",
            "-c",
            "echo one > /dev/stdout; echo two > /dev/stderr; echo three > /proc/self/fd/1",
        ],
    )
    .output();
    assert_eq!(text(&output.stdout), "one\nthree\n", "{}", story(&output));
    assert_eq!(text(&output.stderr), "two\n", "{}", story(&output));
    host.assert_clean();
}

#[test]
fn a_container_without_streams_runs() {
    let host = Host::take();
    let output = Run::busybox(Runtime::Sealock, &["sh", "-c", "echo into nothing; exit 3"])
        .flag(&["--null-io", "--rm"])
        .to_command()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", story(&output));
    host.assert_clean();
}

#[test]
fn a_reader_that_goes_away_does_not_hold_the_container_up() {
    let host = Host::take();
    let run = Run::busybox(Runtime::Sealock, &["sh", "-c", "echo up; sleep 600"]);
    let mut child = run.spawn();
    crate::exit_status::wait_for_line(&mut child, "up");
    // The client dies, as a crashed `ctr` would; its container lives on.
    child.kill().unwrap();
    child.wait().unwrap();
    let kill = sealock_tests::ctr::ctr(&["task", "kill", "--signal", "SIGKILL", run.id()]);
    assert!(kill.status.success(), "{}", story(&kill));
    let removed = sealock_tests::ctr::ctr(&["task", "rm", "--force", run.id()]);
    assert!(
        removed.status.success() || removed.status.code() == Some(137),
        "{}",
        story(&removed)
    );
    let removed = sealock_tests::ctr::ctr(&["container", "rm", run.id()]);
    assert!(removed.status.success(), "{}", story(&removed));
    sealock_tests::ctr::remove_fifos();
    host.assert_clean();
}
