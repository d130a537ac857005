//! What a host can lack, and what can stand still: there is an error that says so, what runs goes on, and nothing is left.

use std::{fs, path::Path, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sealock_tests::{
    ctr::{Run, Runtime, ctr},
    host::only_pid_of,
};

use crate::{
    Host,
    exec::Idle,
    failures, story, templates, text,
    volumes::{Mounted, bind, scratch},
};

#[test]
fn a_full_volume_is_full_in_the_container() {
    let host = Host::take();
    let directory = scratch();
    let small = Mounted::new(&["-t", "tmpfs", "-o", "size=1m", "small"], directory.path());
    let output = Run::busybox(
        Runtime::Sealock,
        &[
            "sh",
            "-c",
            "dd if=/dev/zero of=/data/file bs=64k count=100; echo $?; rm /data/file && echo again > /data/file && cat /data/file",
        ],
    )
    .flag(&["--mount", &bind(directory.path(), "/data", "rbind:rw")])
    .output();
    assert!(output.status.success(), "{}", story(&output));
    assert!(
        text(&output.stderr).contains("No space left on device"),
        "{}",
        story(&output)
    );
    assert_eq!(text(&output.stdout), "1\nagain\n");
    drop((small, directory));
    host.assert_clean();
}

#[test]
fn a_host_without_room_for_a_pods_state_says_so() {
    let host = Host::take();
    for options in ["size=4k", "nr_inodes=2"] {
        let small = Mounted::new(
            &["-t", "tmpfs", "-o", options, "small"],
            Path::new("/run/sealock"),
        );
        if options.starts_with("size") {
            fs::write("/run/sealock/all", [0; 4096]).unwrap();
        }
        let output = failures::any().output();
        assert!(!output.status.success(), "{options}: {}", story(&output));
        let said = text(&output.stderr);
        assert!(
            said.contains("No space left on device") && said.contains("/run/sealock"),
            "{options}: {said}"
        );
        drop(small);
        host.before.assert_gone();
    }
    failures::works_again(host);
}

#[test]
fn a_shim_without_descriptors_refuses_a_process_and_keeps_those_that_run() {
    let host = Host::take();
    let idle = Idle::start(Runtime::Sealock);
    let shim = only_pid_of("containerd-shim-sealock-v2");
    let limit = |limit: &str| {
        let limited = Command::new("prlimit")
            .args(["--pid", &shim.to_string(), &format!("--nofile={limit}:")])
            .status()
            .unwrap();
        assert!(limited.success());
    };
    let open = || fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let before = open();
    limit("3");
    let output = idle.exec(&[], &["true"]);
    assert!(!output.status.success(), "{}", story(&output));
    assert!(
        text(&output.stderr).contains("Too many open files"),
        "{}",
        story(&output)
    );
    limit("1024");
    let output = idle.exec(&[], &["echo", "there"]);
    assert_eq!(text(&output.stdout), "there\n", "{}", story(&output));
    assert_eq!(open(), before);
    drop(idle);
    host.assert_clean();
}

#[test]
fn a_monitor_that_stands_still_is_deleted_all_the_same() {
    let host = Host::take();
    let idle = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]).flag(&["--null-io"]));
    let monitor = only_pid_of("sealock-vmm");
    kill(Pid::from_raw(monitor.cast_signed()), Signal::SIGSTOP).unwrap();
    let deleted = ctr(&["task", "rm", "--force", idle.id()]);
    assert!(deleted.status.success(), "{}", story(&deleted));
    assert!(!Path::new(&format!("/proc/{monitor}")).exists());
    drop(idle);
    failures::works_again(host);
}

#[test]
fn a_guest_that_its_tenant_crashes_ends_with_its_pod() {
    let host = Host::take();
    let before = templates::log_length();
    let output = Run::busybox(
        Runtime::Sealock,
        &["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"],
    )
    .flag(&["--privileged"])
    .output();
    assert_eq!(output.status.code(), Some(137), "{}", story(&output));
    let log = templates::logged(before);
    assert!(log.contains("sysrq triggered crash"), "{log}");
    failures::works_again(host);
}
