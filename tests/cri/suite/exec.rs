//! Commands executed in a running container, with their output as the answer.

use std::{
    thread,
    time::{Duration, Instant},
};

use sealock_cri_tests::Pod;
use tonic::Code;

#[test]
fn output_errors_and_exit_code_are_told_apart() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let output = container.sh("echo out; echo err >&2; exit 5");
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str(), output.code),
        ("out\n", "err\n", 5)
    );
    assert_eq!(container.sh("kill -KILL $$").code, 137);
}

#[test]
fn a_command_has_the_containers_user_environment_and_directory() {
    let pod = Pod::run();
    let container = pod
        .sh("exec sleep 600")
        .user(1234)
        .env("COLOUR", "blue green")
        .with(|config| config.working_dir = "/var/spool".to_owned())
        .start();
    let output = container.sh("id -u; echo $COLOUR; pwd; grep CapEff /proc/self/status | tr -d '\\t'");
    assert_eq!(
        output.text(),
        "1234\nblue green\n/var/spool\nCapEff:0000000000000000"
    );
}

#[test]
fn a_command_that_takes_too_long_is_killed() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let begin = Instant::now();
    let error = container.try_exec(&["sleep", "321"], 2).unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(begin.elapsed() < Duration::from_secs(60));
    container.until("the command to be gone", || {
        container.sh("ps | grep -c 'sleep 32[1]'").stdout == "0\n"
    });
}

#[test]
fn a_command_that_does_not_exist_is_an_error() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let error = container.try_exec(&["/no/such/command"], 30).unwrap_err();
    assert!(error.message().contains("/no/such/command"), "{error}");
    assert_eq!(container.sh("echo fine").text(), "fine");
}

#[test]
fn nothing_is_executed_in_a_container_that_does_not_run() {
    let pod = Pod::run();
    let container = pod.sh("exit 0").create();
    assert!(container.try_exec(&["true"], 30).is_err());
    container.start().unwrap();
    container.wait();
    assert!(container.try_exec(&["true"], 30).is_err());
}

#[test]
fn much_output_arrives_whole() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let output = container.sh("seq 1 200000");
    let mut expected = String::new();
    for number in 1..=200_000 {
        expected.push_str(&number.to_string());
        expected.push('\n');
    }
    assert_eq!(output.stdout.len(), expected.len());
    assert!(output.stdout == expected);
}

#[test]
fn commands_run_at_the_same_time() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    // Each waits for all the others.
    thread::scope(|scope| {
        let all: Vec<_> = (0..5)
            .map(|number| {
                let container = &container;
                scope.spawn(move || {
                    let script = format!(
                        "touch /there-{number}; until [ $(ls / | grep -c there) = 5 ]; do sleep 0.1; done; echo {number}"
                    );
                    assert_eq!(container.sh(&script).text(), number.to_string());
                })
            })
            .collect();
        for one in all {
            one.join().unwrap();
        }
    });
}

#[test]
fn a_command_ends_with_its_container() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    thread::scope(|scope| {
        let exec = scope.spawn(|| container.try_exec(&["sh", "-c", "touch /up; exec sleep 500"], 60));
        container.until("the command to run", || container.sh("test -e /up").code == 0);
        container.stop(0).unwrap();
        // Killed with all of its namespace, or told to be.
        if let Ok(output) = exec.join().unwrap() {
            assert_eq!(output.code, 137);
        }
    });
}

#[test]
fn fifty_commands_leave_nothing_in_the_container() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    for _ in 0..50 {
        assert_eq!(container.exec(&["true"]).code, 0);
    }
    // The container's own process, the shell, ps and its filter.
    let count: usize = container
        .sh("ls /proc | grep -c '^[0-9]'")
        .text()
        .parse()
        .unwrap();
    assert!(count <= 5, "{count} processes");
}
