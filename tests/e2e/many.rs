//! Many containers, at once and one after another.

use std::thread;

use sealock_tests::{
    ctr::{Run, Runtime},
    memory,
};

use crate::{Host, story, text};

#[test]
fn ten_containers_started_at_once_all_finish_right() {
    let host = Host::take();
    let all: Vec<_> = (0..10)
        .map(|number| {
            thread::spawn(move || {
                let script = format!("echo container {number}; exit {number}");
                let output = Run::busybox(Runtime::Sealock, &["sh", "-c", &script]).output();
                (number, output)
            })
        })
        .collect();
    for one in all {
        let (number, output) = one.join().unwrap();
        assert_eq!(output.status.code(), Some(number), "{}", story(&output));
        assert_eq!(text(&output.stdout), format!("container {number}\n"));
    }
    host.assert_clean();
}

#[test]
fn twenty_containers_in_a_row_leave_the_hosts_memory_as_it_was() {
    /// What a host's own caches and counters may differ by, in KiB: less than one pod's share of memory.
    const TOLERANCE: u64 = 24 * 1024;
    let host = Host::take();
    let run = || {
        let output = Run::busybox(Runtime::Sealock, &["true"]).output();
        assert!(output.status.success(), "{}", story(&output));
    };
    // What containerd and the kernel keep from their first containers is theirs, not ours.
    run();
    run();
    host.before.assert_gone();
    let before = memory::available_without_caches().unwrap();
    for _ in 0..20 {
        run();
    }
    host.before.assert_gone();
    let after = memory::available_without_caches().unwrap();
    assert!(
        after + TOLERANCE > before,
        "{before} KiB were free before, {after} KiB after"
    );
    host.assert_clean();
}
