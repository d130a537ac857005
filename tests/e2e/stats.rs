//! Figures and processes of a container are the true ones.

use sealock_tests::ctr::{Run, Runtime, ctr, remove_fifos};
use serde_json::Value;

use crate::{Host, exec::Idle, story, text};

fn metrics(id: &str) -> Value {
    let output = ctr(&["task", "metrics", "--format", "json", id]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", story(&output)))
}

fn figure(metrics: &Value, pointer: &str) -> u64 {
    let value = metrics.pointer(pointer).and_then(Value::as_u64);
    value.unwrap_or_else(|| panic!("{pointer} in {metrics}"))
}

#[test]
fn a_container_that_burns_cpu_shows_it() {
    let host = Host::take();
    let idle = Idle::run(Run::busybox(
        Runtime::Sealock,
        &["sh", "-c", "while :; do :; done"],
    ));
    let mut last = figure(&metrics(idle.id()), "/cpu/usage_usec");
    for _ in 0..3 {
        let began = std::time::Instant::now();
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = figure(&metrics(idle.id()), "/cpu/usage_usec");
        assert!(now > last + 100_000, "from {last} to {now}");
        // It has one thread, so not more than the time that went by, beginning with the figure before.
        let most = u64::try_from(began.elapsed().as_micros()).unwrap() + 10_000_000;
        assert!(now - last < most, "from {last} to {now} in {:?}", began.elapsed());
        last = now;
    }
    drop(idle);
    host.assert_clean();
}

#[test]
fn a_container_that_holds_50_mebibytes_shows_them() {
    let host = Host::take();
    let idle = Idle::start(Runtime::Sealock);
    let before = figure(&metrics(idle.id()), "/memory/usage");
    let filled = idle.exec(
        &[],
        &["dd", "if=/dev/zero", "of=/dev/shm/held", "bs=1M", "count=50"],
    );
    assert!(filled.status.success(), "{}", story(&filled));
    let full = metrics(idle.id());
    let held = figure(&full, "/memory/usage") - before;
    assert!((50 << 20..80 << 20).contains(&held), "{held}");
    assert!(figure(&full, "/memory/shmem") >= 50 << 20);
    assert!(idle.exec(&[], &["rm", "/dev/shm/held"]).status.success());
    let after = figure(&metrics(idle.id()), "/memory/usage");
    assert!(after < before + (20 << 20), "{before} before, {after} after");
    drop(idle);
    host.assert_clean();
}

#[test]
fn processes_are_counted_and_listed_with_the_names_of_those_that_were_added() {
    let host = Host::take();
    let idle = Idle::run(Run::busybox(
        Runtime::Sealock,
        &["sh", "-c", "for i in 1 2 3 4 5; do sleep 1000 & done; wait"],
    ));
    let mut command = std::process::Command::new("ctr");
    let added = command
        .args([
            "task",
            "exec",
            "--detach",
            "--exec-id",
            "added",
            idle.id(),
            "sleep",
            "1000",
        ])
        .output()
        .unwrap();
    assert!(added.status.success(), "{}", story(&added));
    // The shell may not have got as far.
    while figure(&metrics(idle.id()), "/pids/current") < 7 {}
    assert_eq!(figure(&metrics(idle.id()), "/pids/current"), 7);
    let listed = text(&ctr(&["task", "ps", idle.id()]).stdout);
    assert_eq!(listed.lines().count(), 1 + 7, "{listed}");
    assert_eq!(
        listed.lines().filter(|line| line.contains("added")).count(),
        1,
        "{listed}"
    );
    drop(idle);
    remove_fifos();
    host.assert_clean();
}
