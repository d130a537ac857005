//! Containers' logs on the host.

use std::fs;

use sealock_cri_tests::{Cri, Pod, read_log, v1::ReopenContainerLogRequest};

#[test]
fn each_line_is_logged_with_its_stream() {
    let pod = Pod::run();
    let container = pod.sh("echo one; echo two >&2; sleep 0.5; echo three").start();
    container.wait();
    let lines = container.lines();
    assert!(lines.iter().all(|line| line.full), "{lines:?}");
    let of = |stream: &str| -> Vec<&str> {
        let of_it = lines.iter().filter(|line| line.stream == stream);
        of_it.map(|line| line.text.as_str()).collect()
    };
    assert_eq!(of("stdout"), ["one", "three"]);
    assert_eq!(of("stderr"), ["two"]);
}

#[test]
fn a_line_without_an_end_and_a_long_one_are_logged_in_parts() {
    let pod = Pod::run();
    let container = pod
        .sh("head -c 40000 /dev/zero | tr '\\0' x; echo; printf end")
        .start();
    container.wait();
    let lines = container.lines();
    assert!(lines.len() >= 3, "{}", lines.len());
    assert!(!lines[0].full);
    assert!(!lines.last().unwrap().full);
    assert_eq!(container.log(), format!("{}\nend", "x".repeat(40000)));
}

#[test]
fn much_output_is_logged_whole() {
    let pod = Pod::run();
    let container = pod.sh("seq 1 100000; seq 1 1000 >&2").start();
    container.wait();
    let lines = container.lines();
    assert_eq!(lines.len(), 101_000);
    let numbers: Vec<u32> = lines
        .iter()
        .filter(|line| line.stream == "stdout")
        .map(|line| line.text.parse().unwrap())
        .collect();
    assert!(numbers.into_iter().eq(1..=100_000));
}

#[test]
fn a_log_is_reopened_after_it_was_moved_away() {
    let pod = Pod::run();
    let container = pod
        .sh("echo before; until test -e /go; do sleep 0.1; done; echo after; exec sleep 600")
        .start();
    container.until_logged("before");
    let path = container.log_path();
    let rotated = path.with_extension("rotated");
    fs::rename(&path, &rotated).unwrap();
    Cri::get()
        .reopen_container_log(ReopenContainerLogRequest {
            container_id: container.id.clone(),
        })
        .unwrap();
    assert!(path.exists());
    assert_eq!(container.exec(&["touch", "/go"]).code, 0);
    container.until_logged("after");
    assert_eq!(container.log(), "after\n");
    assert_eq!(read_log(&rotated)[0].text, "before");
}

#[test]
fn the_log_of_a_container_that_ended_is_not_reopened() {
    let pod = Pod::run();
    let container = pod.sh("true").start();
    container.wait();
    let answer = Cri::get().reopen_container_log(ReopenContainerLogRequest {
        container_id: container.id.clone(),
    });
    assert!(answer.is_err());
}

#[test]
fn a_container_with_a_terminal_logs_what_the_terminal_shows() {
    let pod = Pod::run();
    let container = pod
        .sh("test -t 1 && test -t 0 && echo on a terminal; echo errors too >&2; tty")
        .with(|config| {
            config.tty = true;
            config.stdin = true;
        })
        .start();
    container.wait();
    assert_eq!(
        container.log().replace('\r', ""),
        "on a terminal\nerrors too\n/dev/pts/0\n"
    );
}

#[test]
fn containers_of_a_pod_log_apart() {
    let pod = Pod::run();
    let first = pod.sh("for i in $(seq 50); do echo first; done").start();
    let second = pod.sh("for i in $(seq 50); do echo second; done").start();
    first.wait();
    second.wait();
    assert_eq!(first.log(), "first\n".repeat(50));
    assert_eq!(second.log(), "second\n".repeat(50));
}
