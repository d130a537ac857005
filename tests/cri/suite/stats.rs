//! What containers use, as the kubelet is told.

use std::collections::BTreeSet;

use sealock_cri_tests::{
    Container, Cri, Pod,
    v1::{
        ContainerStats, ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest,
        PodSandboxStatsRequest,
    },
};

fn stats(container: &Container) -> ContainerStats {
    let answer = Cri::get().container_stats(ContainerStatsRequest {
        container_id: container.id.clone(),
    });
    answer.unwrap().stats.unwrap()
}

#[test]
fn memory_that_is_used_is_counted() {
    let pod = Pod::run();
    let container = pod
        .sh("head -c 50000000 /dev/zero > /dev/shm/held; echo held; exec sleep 600")
        .start();
    container.until_logged("held");
    let memory = stats(&container).memory.unwrap();
    let working_set = memory.working_set_bytes.unwrap().value;
    assert!((50_000_000..80_000_000).contains(&working_set), "{working_set}");
    assert!(memory.timestamp > 0);
}

#[test]
fn time_that_is_used_is_counted() {
    let pod = Pod::run();
    let busy = pod.sh("while :; do :; done").start();
    let idle = pod.sh("exec sleep 600").start();
    let used = |container: &Container| {
        stats(container)
            .cpu
            .unwrap()
            .usage_core_nano_seconds
            .unwrap()
            .value
    };
    let before = used(&busy);
    busy.until("a second of the processor's", || {
        used(&busy) > before + 1_000_000_000
    });
    assert!(used(&idle) < used(&busy));
}

#[test]
fn what_a_container_wrote_is_counted() {
    let pod = Pod::run();
    let container = pod
        .sh("head -c 5000000 /dev/urandom > /big; sync; echo written; exec sleep 600")
        .start();
    container.until_logged("written");
    // It is looked at from time to time only.
    container.until("what was written to be counted", || {
        let layer = stats(&container).writable_layer;
        layer
            .and_then(|layer| layer.used_bytes)
            .is_some_and(|bytes| bytes.value >= 5_000_000)
    });
}

#[test]
fn figures_are_listed_for_each_container_of_a_pod() {
    let pod = Pod::run();
    let containers = [pod.sh("exec sleep 600").start(), pod.sh("exec sleep 600").start()];
    let answer = Cri::get().list_container_stats(ListContainerStatsRequest {
        filter: Some(ContainerStatsFilter {
            pod_sandbox_id: pod.id.clone(),
            ..ContainerStatsFilter::default()
        }),
    });
    let all = answer.unwrap().stats;
    let found: BTreeSet<_> = all
        .iter()
        .map(|stats| stats.attributes.as_ref().unwrap().id.as_str())
        .collect();
    assert_eq!(
        found,
        containers.iter().map(|container| container.id.as_str()).collect()
    );
    assert!(
        all.iter()
            .all(|stats| stats.memory.is_some() && stats.cpu.is_some()),
        "{all:?}"
    );
}

#[test]
fn a_pods_figures_hold_its_containers_and_its_network() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    let answer = Cri::get().pod_sandbox_stats(PodSandboxStatsRequest {
        pod_sandbox_id: pod.id.clone(),
    });
    let stats = answer.unwrap().stats.unwrap().linux.unwrap();
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    assert_eq!(stats.containers.len(), 1);
    assert_eq!(stats.containers[0].attributes.as_ref().unwrap().id, container.id);
    let interface = stats.network.unwrap().default_interface.unwrap();
    assert_eq!(interface.name, "eth0");
}
