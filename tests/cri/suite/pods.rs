//! The life of pods.

use std::thread;

use sealock_cri_tests::{
    Cri, Pod, handler,
    v1::{
        ContainerState, DnsConfig, ListPodSandboxRequest, NamespaceMode, PodSandboxFilter, PodSandboxState,
        StatusRequest, VersionRequest,
    },
};
use tonic::Code;

#[test]
fn the_runtime_is_ready() {
    let version = Cri::get().version(VersionRequest::default()).unwrap();
    assert_eq!(version.runtime_name, "containerd");
    assert_eq!(version.runtime_api_version, "v1");
    let status = Cri::get().status(StatusRequest { verbose: true }).unwrap();
    for condition in status.status.unwrap().conditions {
        if ["RuntimeReady", "NetworkReady"].contains(&condition.r#type.as_str()) {
            assert!(condition.status, "{condition:?}");
        }
    }
    assert!(status.info["config"].contains(handler()));
}

#[test]
fn a_pod_is_ready_listed_and_says_what_it_is() {
    let pod = Pod::with(|config| {
        config
            .annotations
            .insert("note".to_owned(), "of the pod".to_owned());
    });
    let status = pod.status();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    assert_eq!(status.runtime_handler, handler());
    assert!(status.created_at > 0);
    let namespaces = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(namespaces.network(), NamespaceMode::Pod);

    let list = Cri::get()
        .list_pod_sandbox(ListPodSandboxRequest {
            filter: Some(PodSandboxFilter {
                label_selector: pod.config.labels.clone(),
                ..PodSandboxFilter::default()
            }),
        })
        .unwrap();
    let ids: Vec<_> = list.items.iter().map(|item| item.id.as_str()).collect();
    assert_eq!(ids, [pod.id.as_str()]);
}

#[test]
fn a_stopped_pod_is_not_ready_and_a_removed_one_is_unknown() {
    let pod = Pod::run();
    pod.stop().unwrap();
    assert!(!pod.is_ready());
    pod.remove().unwrap();
    let status = pod.try_status().unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[test]
fn stopping_and_removing_again_is_no_error() {
    let pod = Pod::run();
    pod.stop().unwrap();
    pod.stop().unwrap();
    pod.remove().unwrap();
    pod.remove().unwrap();
}

#[test]
fn a_running_pod_can_be_removed_at_once() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    pod.remove().unwrap();
    assert!(container.try_status().is_err());
}

#[test]
fn stopping_a_pod_ends_its_containers() {
    let pod = Pod::run();
    let first = pod.sh("exec sleep 600").start();
    let second = pod.sh("exec sleep 600").start();
    pod.stop().unwrap();
    for container in [&first, &second] {
        let status = container.status();
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!(status.exit_code, 137);
    }
}

#[test]
fn a_pods_name_is_in_use_once() {
    let pod = Pod::run();
    let error = Pod::try_with(|config| *config = pod.config.clone()).err();
    // The log's directory is the first one's: a second pod of that name would have been given it.
    assert!(error.unwrap().message().contains("is reserved for"));
}

#[test]
fn the_next_attempt_at_a_pod_runs_when_the_one_before_was_stopped() {
    let first = Pod::run();
    first.stop().unwrap();
    let second = Pod::with(|config| {
        *config = first.config.clone();
        config.metadata.as_mut().unwrap().attempt = 1;
    });
    assert_eq!(second.sh("echo again").output().text(), "again");
}

#[test]
fn every_container_has_the_pods_host_name() {
    let pod = Pod::with(|config| config.hostname = "a-pods-name".to_owned());
    for _ in 0..2 {
        let output = pod.sh("hostname; cat /etc/hostname; echo $HOSTNAME").output();
        assert_eq!(output.text(), "a-pods-name\na-pods-name\na-pods-name");
    }
}

#[test]
fn names_are_looked_up_where_the_pod_says() {
    let pod = Pod::with(|config| {
        config.dns_config = Some(DnsConfig {
            servers: vec!["10.10.10.10".to_owned()],
            searches: vec!["google.com".to_owned(), "example.org".to_owned()],
            options: vec!["ndots:8".to_owned()],
        });
    });
    let output = pod.sh("cat /etc/resolv.conf").output();
    for line in [
        "nameserver 10.10.10.10",
        "search google.com example.org",
        "options ndots:8",
    ] {
        assert!(output.text().contains(line), "{output:?}");
    }
}

#[test]
fn sysctls_of_a_pod_hold_in_all_its_containers() {
    let settings = [
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "4096"),
        ("fs.mqueue.msg_max", "100"),
        ("net.ipv4.ip_local_port_range", "1024\t65000"),
        ("net.ipv4.ip_unprivileged_port_start", "0"),
    ];
    let pod = Pod::with(|config| {
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        for (name, value) in settings {
            sysctls.insert(name.to_owned(), value.replace('\t', " "));
        }
    });
    let container = pod.sh("exec sleep 600").start();
    for (name, value) in settings {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        assert_eq!(container.exec(&["cat", &path]).text(), value, "{name}");
    }
}

#[test]
fn a_sysctl_that_does_not_exist_fails_the_pod() {
    let error = Pod::try_with(|config| {
        let sysctls = &mut config.linux.as_mut().unwrap().sysctls;
        sysctls.insert("net.ipv4.nonesuch".to_owned(), "1".to_owned());
    });
    assert!(error.err().unwrap().message().contains("nonesuch"));
}

#[test]
fn three_pods_at_once_run() {
    thread::scope(|scope| {
        let pods: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || {
                    let pod = Pod::run();
                    assert_eq!(
                        pod.sh(&format!("echo {number}")).output().text(),
                        number.to_string()
                    );
                })
            })
            .collect();
        for pod in pods {
            pod.join().unwrap();
        }
    });
}
