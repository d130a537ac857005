//! containerd goes and comes back: its pods have not noticed.

use std::{
    fs::File,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sealock_cri_tests::{
    Cri, Pod,
    v1::{ContainerState, VersionRequest},
};

/// Kills containerd, does something, and starts it again.
fn without_containerd(meanwhile: impl FnOnce()) {
    let pid = Command::new("pidof").arg("containerd").output().unwrap().stdout;
    let pid = String::from_utf8(pid).unwrap();
    assert!(
        Command::new("kill")
            .arg("-9")
            .arg(pid.trim())
            .status()
            .unwrap()
            .success()
    );
    meanwhile();
    let log = File::options()
        .append(true)
        .open("/var/log/containerd.log")
        .unwrap();
    // It lives on when the test is over.
    Command::new("setsid")
        .args(["--fork", "prlimit", "--nofile=1048576", "containerd"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .status()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while Cri::get().version(VersionRequest::default()).is_err() {
        assert!(Instant::now() < deadline, "containerd does not answer");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn pods_live_on_when_containerd_is_killed() {
    let pod = Pod::run();
    let container = pod
        .sh("i=0; while :; do i=$((i + 1)); echo $i; sleep 0.2; done")
        .start();
    let ending = pod
        .sh("until test -e /go; do sleep 0.1; done; echo last words; sleep 1; exit 6")
        .start();
    container.until_logged("1");
    assert_eq!(ending.exec(&["touch", "/go"]).code, 0);
    without_containerd(|| thread::sleep(Duration::from_secs(4)));
    assert!(pod.is_ready());
    assert_eq!(container.status().state(), ContainerState::ContainerRunning);
    assert_eq!(container.exec(&["echo", "fine"]).text(), "fine");
    // What ended meanwhile has ended so.
    let status = ending.wait();
    assert_eq!(status.exit_code, 6);
    let before = container.log().lines().count();
    container.until("more output", || container.log().lines().count() > before + 3);
    assert_eq!(pod.sh("echo another").output().text(), "another");
    container.stop(0).unwrap();
    assert_eq!(container.status().exit_code, 137);
}

#[test]
fn a_pod_that_was_made_before_containerd_was_killed_is_removed() {
    let pod = Pod::run();
    let _container = pod.sh("exec sleep 600").start();
    let created = pod.sh("echo late").create();
    without_containerd(|| ());
    assert_eq!(created.status().state(), ContainerState::ContainerCreated);
    pod.stop().unwrap();
    pod.remove().unwrap();
    assert!(pod.try_status().is_err());
}
