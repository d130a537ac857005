//! What containerd is told of a container: each thing once, in order, as by runc's shim.

use sealock_tests::{
    containerd::Events,
    ctr::{Run, Runtime, ctr, remove_fifos},
};

use crate::{Host, exec::Idle, story};

/// The topics, and whether they are about a process beside the container's first.
fn topics(told: &[(String, String)], id: &str) -> Vec<(String, bool)> {
    told.iter()
        .map(|(topic, content)| {
            let other = content.contains("\"exec_id\":")
                || (topic == "/tasks/exit" && !content.contains(&format!("\"id\":\"{id}\"")));
            (topic.clone(), other)
        })
        .collect()
}

#[test]
fn a_container_is_told_of_as_by_runcs_shim() {
    let host = Host::take();
    let events = Events::listen();
    let told = [Runtime::Runc, Runtime::Sealock].map(|runtime| {
        let idle = Idle::start(runtime);
        let id = idle.id().to_owned();
        assert_eq!(idle.exec(&[], &["sh", "-c", "exit 3"]).status.code(), Some(3));
        for verb in ["pause", "resume"] {
            let done = ctr(&["task", verb, &id]);
            assert!(done.status.success(), "{}", story(&done));
        }
        drop(idle);
        topics(&events.of(&id, "/tasks/delete"), &id)
    });
    assert_eq!(told[0], told[1]);
    let expected = [
        ("/tasks/create", false),
        ("/tasks/start", false),
        ("/tasks/exec-added", true),
        ("/tasks/exec-started", true),
        ("/tasks/exit", true),
        ("/tasks/paused", false),
        ("/tasks/resumed", false),
        ("/tasks/exit", false),
        ("/tasks/delete", false),
    ];
    assert_eq!(told[1], expected.map(|(topic, other)| (topic.to_owned(), other)));
    drop(events);
    host.assert_clean();
}

#[test]
fn a_process_that_ends_at_once_has_started_first() {
    let host = Host::take();
    let events = Events::listen();
    for _ in 0..3 {
        let run = Run::busybox(Runtime::Sealock, &["true"]);
        assert!(run.output().status.success());
        let told: Vec<_> = events
            .of(run.id(), "/tasks/delete")
            .into_iter()
            .map(|(topic, _)| topic)
            .collect();
        assert_eq!(
            told,
            ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        );
    }
    drop(events);
    host.assert_clean();
}

#[test]
fn processes_end_before_the_container_they_die_with() {
    let host = Host::take();
    let events = Events::listen();
    let idle = Idle::start(Runtime::Sealock);
    let id = idle.id().to_owned();
    for _ in 0..3 {
        let started = idle.exec(&["--detach"], &["sleep", "1000"]);
        assert!(started.status.success(), "{}", story(&started));
    }
    let killed = ctr(&["task", "kill", "--signal", "SIGKILL", &id]);
    assert!(killed.status.success(), "{}", story(&killed));
    drop(idle);
    let exits: Vec<_> = topics(&events.of(&id, "/tasks/delete"), &id)
        .into_iter()
        .filter(|(topic, _)| topic == "/tasks/exit")
        .map(|(_, other)| other)
        .collect();
    assert_eq!(exits, [true, true, true, false]);
    drop(events);
    // Nobody waited for the processes, so nobody has removed these.
    remove_fifos();
    host.assert_clean();
}

#[test]
fn lack_of_memory_is_told_once_and_before_the_end_it_causes() {
    let host = Host::take();
    let events = Events::listen();
    let run = Run::busybox(Runtime::Sealock, &["tail", "/dev/zero"]).flag(&["--memory-limit", "33554432"]);
    let output = run.output();
    assert_eq!(output.status.code(), Some(137), "{}", story(&output));
    let told: Vec<_> = events
        .of(run.id(), "/tasks/delete")
        .into_iter()
        .map(|(topic, _)| topic)
        .collect();
    assert_eq!(
        told,
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/oom",
            "/tasks/exit",
            "/tasks/delete"
        ]
    );
    drop(events);
    host.assert_clean();
}
