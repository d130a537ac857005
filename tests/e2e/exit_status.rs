//! How a container ends is told as runc tells it.

use sealock_tests::ctr::{Run, Runtime};

use crate::{Host, story, text};

fn status_of(runtime: Runtime, script: &str) -> Option<i32> {
    let output = Run::busybox(runtime, &["sh", "-c", script]).output();
    output.status.code()
}

fn same_as_runc(script: &str, expected: i32) {
    let host = Host::take();
    assert_eq!(status_of(Runtime::Runc, script), Some(expected), "runc");
    assert_eq!(status_of(Runtime::Sealock, script), Some(expected), "sealock");
    host.assert_clean();
}

#[test]
fn success_is_0() {
    same_as_runc("true", 0);
}

#[test]
fn an_exit_code_arrives() {
    same_as_runc("exit 7", 7);
}

#[test]
fn death_of_a_child_by_sigkill_is_137_and_by_sigterm_143() {
    same_as_runc("sh -c 'kill -9 $$'; exit $?", 137);
    same_as_runc("sh -c 'kill -15 $$'; exit $?", 143);
}

#[test]
fn a_container_killed_by_its_client_ends_with_the_signal() {
    let host = Host::take();
    for (signal, script, expected) in [
        ("SIGKILL", "echo up; exec sleep 600", 137),
        (
            "SIGTERM",
            "trap 'exit 143' TERM; echo up; while :; do sleep 0.1; done",
            143,
        ),
    ] {
        let run = Run::busybox(Runtime::Sealock, &["sh", "-c", script]);
        let mut child = run.spawn();
        wait_for_line(&mut child, "up");
        let kill = sealock_tests::ctr::ctr(&["task", "kill", "--signal", signal, run.id()]);
        assert!(kill.status.success(), "{}", story(&kill));
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(expected), "{signal}");
    }
    host.assert_clean();
}

#[test]
fn a_command_that_does_not_exist_fails_with_runcs_kind_of_message() {
    let host = Host::take();
    for (command, expected) in [
        (
            "nonesuch",
            r#"exec: "nonesuch": executable file not found in $PATH"#,
        ),
        (
            "/bin/nonesuch",
            r#"exec: "/bin/nonesuch": stat /bin/nonesuch: no such file or directory"#,
        ),
        ("/etc", r#"exec: "/etc": is a directory"#),
    ] {
        let runc = Run::busybox(Runtime::Runc, &[command]).output();
        assert!(!runc.status.success());
        let sealock = Run::busybox(Runtime::Sealock, &[command]).output();
        assert!(!sealock.status.success(), "{}", story(&sealock));
        assert!(
            text(&sealock.stderr).contains(expected),
            "{}\nrunc says: {}",
            story(&sealock),
            text(&runc.stderr)
        );
    }
    host.assert_clean();
}

/// Kills the one process of this name while a container runs, and tells how the container's client ends.
fn client_status_when_killed(runtime: Runtime, program: &str) -> Option<i32> {
    let run = Run::busybox(runtime, &["sh", "-c", "echo up; exec sleep 600"]);
    let mut child = run.spawn();
    wait_for_line(&mut child, "up");
    let pid = sealock_tests::host::only_pid_of(program);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let status = child.wait().unwrap().code();
    // A client that lost its shim removes neither its container nor its FIFOs.
    let _ = sealock_tests::ctr::ctr(&["container", "rm", run.id()]);
    sealock_tests::ctr::remove_fifos();
    status
}

#[test]
fn a_vmm_that_is_killed_is_137_at_once() {
    let host = Host::take();
    let status = client_status_when_killed(Runtime::Sealock, "sealock-vmm");
    assert_eq!(status, Some(137));
    host.assert_clean();
}

#[test]
fn a_file_server_that_is_killed_is_137_at_once() {
    let host = Host::take();
    let status = client_status_when_killed(Runtime::Sealock, "sealock-fsd");
    assert_eq!(status, Some(137));
    host.assert_clean();
}

#[test]
fn a_shim_that_is_killed_takes_its_pod_along_and_containerd_cleans_up() {
    let host = Host::take();
    let sealock = client_status_when_killed(Runtime::Sealock, "containerd-shim-sealock-v2");
    host.before.assert_gone();
    // runc's shim leaves its socket behind.
    let runc = client_status_when_killed(Runtime::Runc, "containerd-shim-runc-v2");
    assert_eq!(sealock, runc);
}

/// Reads the child's standard output up to and including this line.
pub fn wait_for_line(child: &mut std::process::Child, line: &str) {
    use std::io::Read;
    let stdout = child.stdout.as_mut().expect("its output is piped");
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(format!("{line}\n").as_bytes()) {
        let count = stdout.read(&mut byte).unwrap();
        if count == 0 {
            let mut errors = String::new();
            let _ = child
                .stderr
                .as_mut()
                .map(|stream| stream.read_to_string(&mut errors));
            panic!("ended before {line:?}: {:?} {errors}", text(&seen));
        }
        seen.push(byte[0]);
    }
}
