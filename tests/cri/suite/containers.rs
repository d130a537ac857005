//! The life of containers.

use std::{
    thread,
    time::{Duration, Instant},
};

use sealock_cri_tests::{
    Cri, Pod,
    v1::{ContainerFilter, ContainerState, ListContainersRequest},
};
use tonic::Code;

#[test]
fn a_container_is_created_runs_ends_and_is_gone() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").create();
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert!(status.created_at > 0);
    assert_eq!(status.started_at, 0);

    container.start().unwrap();
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at, "{status:?}");
    assert_eq!(status.finished_at, 0);

    container.stop(0).unwrap();
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert!(status.finished_at >= status.started_at, "{status:?}");
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));

    container.remove().unwrap();
    assert_eq!(container.try_status().unwrap_err().code(), Code::NotFound);
}

#[test]
fn a_container_is_listed_by_its_pod_and_its_state() {
    let pod = Pod::run();
    let other = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let _other = other.sh("exec sleep 600").create();
    let ids = |filter: ContainerFilter| -> Vec<String> {
        let request = ListContainersRequest { filter: Some(filter) };
        let list = Cri::get().list_containers(request).unwrap().containers;
        list.into_iter().map(|item| item.id).collect()
    };
    assert_eq!(
        ids(ContainerFilter {
            pod_sandbox_id: pod.id.clone(),
            ..ContainerFilter::default()
        }),
        std::slice::from_ref(&container.id)
    );
    assert!(
        ids(ContainerFilter {
            pod_sandbox_id: other.id.clone(),
            state: Some(sealock_cri_tests::v1::ContainerStateValue {
                state: ContainerState::ContainerRunning as i32
            }),
            ..ContainerFilter::default()
        })
        .is_empty()
    );
}

#[test]
fn stopping_and_removing_a_container_again_is_no_error() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    container.stop(0).unwrap();
    container.stop(0).unwrap();
    container.remove().unwrap();
    container.remove().unwrap();
}

#[test]
fn a_running_container_is_removed_by_force() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    container.remove().unwrap();
    assert!(container.try_status().is_err());
    assert!(pod.is_ready());
}

#[test]
fn a_container_that_was_never_started_can_be_removed() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").create();
    container.remove().unwrap();
    assert_eq!(pod.sh("echo next").output().text(), "next");
}

#[test]
fn a_started_container_is_not_started_again() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    assert!(container.start().is_err());
    container.stop(0).unwrap();
    assert!(container.start().is_err());
}

#[test]
fn exit_codes_arrive() {
    let pod = Pod::run();
    for (script, code, reason) in [
        ("exit 0", 0, "Completed"),
        ("exit 7", 7, "Error"),
        // Not the first process: the kernel keeps that one from being killed within its own namespace.
        ("sh -c 'kill -KILL $$'; exit $?", 137, "Error"),
        ("exit 255", 255, "Error"),
    ] {
        let status = pod.sh(script).start().wait();
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (code, reason),
            "{script}"
        );
    }
}

#[test]
fn a_container_is_stopped_by_sigterm() {
    let pod = Pod::run();
    let container = pod
        .sh("trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done")
        .start();
    container.until_logged("up");
    container.stop(60).unwrap();
    assert_eq!(container.status().exit_code, 3);
    assert_eq!(container.log(), "up\nasked\n");
}

#[test]
fn a_container_that_does_not_listen_is_killed_after_its_time() {
    let pod = Pod::run();
    let container = pod
        .sh("trap '' TERM; echo up; while :; do sleep 0.1; done")
        .start();
    container.until_logged("up");
    let begin = Instant::now();
    container.stop(2).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2));
    assert_eq!(container.status().exit_code, 137);
}

#[test]
fn a_command_that_does_not_exist_is_an_error_of_the_start() {
    let pod = Pod::run();
    let container = pod.container(&["/no/such/command"]).create();
    let error = container.start().unwrap_err();
    assert!(error.message().contains("/no/such/command"), "{error}");
    let status = container.status();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    // The pod has taken no harm.
    assert_eq!(pod.sh("echo fine").output().text(), "fine");
}

#[test]
fn a_container_is_restarted_in_its_pod() {
    let pod = Pod::run();
    for attempt in 0..4 {
        let container = pod
            .sh("touch /mark-$$; ls / | grep -c mark; exit 1")
            .with(|config| {
                let metadata = config.metadata.as_mut().unwrap();
                metadata.name = "restarted".to_owned();
                metadata.attempt = attempt;
                config.log_path = format!("restarted-{attempt}.log");
            })
            .start();
        assert_eq!(container.wait().exit_code, 1);
        // Each has a root file system of its own.
        assert_eq!(container.log(), "1\n");
    }
    assert!(pod.is_ready());
}

#[test]
fn arguments_environment_and_directory_arrive_as_they_are() {
    let pod = Pod::run();
    let output = pod
        .container(&["sh", "-c"])
        .with(|config| {
            config.args = [
                "printf '<%s>' \"$@\" \"$A\" \"$B\" \"$(pwd)\"",
                "sh",
                "",
                " a  b ",
                "$HOME",
                "it's\n\"ä\"",
            ]
            .map(str::to_owned)
            .to_vec();
            config.working_dir = "/made/for/it".to_owned();
        })
        .env("A", "x=y z")
        .env("B", "")
        .output();
    assert_eq!(output.code, 0);
    assert_eq!(
        format!("{}{}", output.stdout, output.stderr).trim_end(),
        "<>< a  b ><$HOME><it's\n\"ä\"><x=y z><></made/for/it>"
    );
}

#[test]
fn a_container_sees_what_the_kubelet_relies_on() {
    let pod = Pod::run();
    let output = pod
        .sh(
            "test -s /etc/hosts && test -e /etc/resolv.conf && test -w /dev/shm && test -c /dev/null && \
             test -L /dev/stdout && test -d /proc/1 && test -r /sys/fs/cgroup/cgroup.controllers && \
             grep -q 'localhost' /etc/hosts && cat /proc/1/comm; exit",
        )
        .output();
    assert_eq!(output.text(), "sh");
}

#[test]
fn containers_of_a_pod_can_be_made_all_at_once() {
    let pod = Pod::run();
    thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|number| {
                let pod = &pod;
                scope.spawn(move || {
                    let output = pod.sh(&format!("echo {number}; exit {number}")).output();
                    assert_eq!((output.stdout, output.code), (format!("{number}\n"), number));
                })
            })
            .collect();
        for one in all {
            one.join().unwrap();
        }
    });
}

#[test]
fn many_containers_one_after_the_other_leave_a_pod_as_it_was() {
    let pod = Pod::run();
    let witness = pod.sh("exec sleep 600").start();
    let mounts = || witness.sh("cat /proc/mounts | wc -l").text().to_owned();
    let before = mounts();
    for number in 0..10 {
        let container = pod.sh(&format!("echo {number}")).start();
        assert_eq!(container.wait().exit_code, 0);
        container.remove().unwrap();
    }
    assert_eq!(mounts(), before);
    assert_eq!(witness.status().state(), ContainerState::ContainerRunning);
}

#[test]
fn an_orphan_of_a_containers_init_is_reaped_or_ends_with_it() {
    let pod = Pod::run();
    let container = pod.sh("(sleep 600 & echo $!) ; exec sleep 0.2").start();
    let status = container.wait();
    assert_eq!(status.exit_code, 0);
    // Its namespace's first process is gone, and all with it.
    assert_eq!(pod.sh("ps | grep -c 'sleep 60[0]'").output().stdout, "0\n");
}

#[test]
fn a_checkpoint_is_refused_or_made_but_never_pretended() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let location = pod.log("checkpoint.tar");
    let answer = Cri::get().checkpoint_container(sealock_cri_tests::v1::CheckpointContainerRequest {
        container_id: container.id.clone(),
        location: location.display().to_string(),
        timeout: 30,
    });
    assert_eq!(answer.is_ok(), location.exists());
}
