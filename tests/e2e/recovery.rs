//! containerd goes away, and comes back.

use std::{fs, process::Stdio, thread, time::Duration};

use sealock_tests::{
    containerd,
    ctr::{Run, Runtime, ctr, delete, remove_fifos},
};

use crate::{Host, exec::Idle, story, text};

fn line_of(id: &str) -> String {
    let listed = text(&ctr(&["task", "ls"]).stdout);
    listed
        .lines()
        .find(|line| line.starts_with(id))
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn containers_and_their_processes_outlive_containerd() {
    let host = Host::take();
    let logs = tempfile::tempdir_in("/run").unwrap();
    let log = logs.path().join("log");
    let idle = Idle::run(
        Run::busybox(
            Runtime::Sealock,
            &["sh", "-c", "while :; do echo tick; sleep 0.2; done"],
        )
        .flag(&["--log-uri", &format!("file://{}", log.display())]),
    );
    let name = sealock_tests::ctr::fresh_id();
    let mut command = std::process::Command::new("ctr");
    let added = command
        .args(["task", "exec", "--detach", "--exec-id", &name, idle.id()])
        .args(["sh", "-c", "sleep 1000"])
        .output()
        .unwrap();
    assert!(added.status.success(), "{}", story(&added));

    containerd::kill();
    let written = || fs::read_to_string(&log).unwrap().lines().count();
    let before = written();
    while written() < before + 5 {
        thread::sleep(Duration::from_millis(50));
    }
    containerd::start();

    assert!(line_of(idle.id()).ends_with("RUNNING"), "{}", line_of(idle.id()));
    let listed = text(&ctr(&["task", "ps", idle.id()]).stdout);
    assert!(listed.contains(&name), "{listed}");
    assert_eq!(text(&idle.exec(&[], &["echo", "fine"]).stdout), "fine\n");
    let before = written();
    while written() < before + 5 {
        thread::sleep(Duration::from_millis(50));
    }
    drop(idle);
    remove_fifos();
    drop(logs);
    host.assert_clean();
}

#[test]
fn an_end_in_containerds_absence_is_there_when_it_is_back() {
    let host = Host::take();
    let idle = Idle::run(
        Run::busybox(
            Runtime::Sealock,
            &[
                "sh",
                "-c",
                "while ! test -e /go; do sleep 0.1; done; sleep 3; exit 7",
            ],
        )
        .flag(&["--null-io"]),
    );
    assert!(idle.exec(&[], &["touch", "/go"]).status.success());
    containerd::kill();
    thread::sleep(Duration::from_secs(8));
    containerd::start();
    assert!(line_of(idle.id()).ends_with("STOPPED"), "{}", line_of(idle.id()));
    let removed = ctr(&["task", "rm", idle.id()]);
    assert!(
        text(&removed.stderr).contains("exit code 7"),
        "{}",
        story(&removed)
    );
    drop(idle);
    remove_fifos();
    host.assert_clean();
}

#[test]
fn a_creation_that_containerd_does_not_live_to_see_leaves_nothing() {
    let host = Host::take();
    for wait in [200, 600, 1200] {
        let run = Run::busybox(Runtime::Sealock, &["sleep", "1000"]).flag(&["--detach", "--null-io"]);
        let mut client = run
            .to_command()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(wait));
        containerd::kill();
        let _ = client.wait();
        containerd::start();
        // Whatever became of it: it is known, or it is gone.
        delete(run.id());
        remove_fifos();
        host.before.assert_gone();
    }
    host.assert_clean();
}
