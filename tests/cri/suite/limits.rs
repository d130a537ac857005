//! Containers' limits, when they are made and while they run.

use sealock_cri_tests::{
    Cri, Pod,
    v1::{HugepageLimit, LinuxContainerResources, UpdateContainerResourcesRequest},
};

fn update(id: &str, linux: LinuxContainerResources) -> Result<(), Box<tonic::Status>> {
    Cri::get()
        .update_container_resources(UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        })
        .map(|_| ())
}

#[test]
fn limits_are_the_containers_cgroups() {
    let pod = Pod::run();
    let container = pod
        .sh("exec sleep 600")
        .limits(|limits| {
            limits.memory_limit_in_bytes = 64 << 20;
            limits.cpu_period = 100_000;
            limits.cpu_quota = 50_000;
            limits.cpu_shares = 512;
            limits.oom_score_adj = 500;
            limits.hugepage_limits = vec![HugepageLimit {
                page_size: "2MB".to_owned(),
                limit: 0,
            }];
            limits.unified.insert("pids.max".to_owned(), "77".to_owned());
        })
        .start();
    let output =
        container.sh("cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight pids.max /proc/1/oom_score_adj");
    // runc has changed how it turns shares into a weight (1.3.2): either is right.
    let expected = ["20", "59"].map(|weight| format!("67108864\n50000 100000\n{weight}\n77\n500"));
    assert!(expected.contains(&output.text().to_owned()), "{output:?}");
}

#[test]
fn limits_change_while_the_container_runs() {
    let pod = Pod::run();
    let container = pod
        .sh("exec sleep 600")
        .limits(|limits| {
            limits.memory_limit_in_bytes = 64 << 20;
            limits.cpu_period = 100_000;
            limits.cpu_quota = 50_000;
            limits.cpu_shares = 512;
        })
        .start();
    update(
        &container.id,
        LinuxContainerResources {
            memory_limit_in_bytes: 96 << 20,
            cpu_quota: 25_000,
            cpu_period: 100_000,
            cpu_shares: 1024,
            ..LinuxContainerResources::default()
        },
    )
    .unwrap();
    let output = container.sh("cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight");
    let expected = ["39", "100"].map(|weight| format!("100663296\n25000 100000\n{weight}"));
    assert!(expected.contains(&output.text().to_owned()), "{output:?}");
    let status = container.status().resources.unwrap().linux.unwrap();
    assert_eq!(status.memory_limit_in_bytes, 96 << 20);
    assert_eq!(status.cpu_quota, 25_000);
}

#[test]
fn limits_of_a_created_container_can_be_changed() {
    let pod = Pod::run();
    let container = pod
        .sh("cat /sys/fs/cgroup/memory.max")
        .limits(|limits| limits.memory_limit_in_bytes = 64 << 20)
        .create();
    update(
        &container.id,
        LinuxContainerResources {
            memory_limit_in_bytes: 80 << 20,
            ..LinuxContainerResources::default()
        },
    )
    .unwrap();
    container.start().unwrap();
    container.wait();
    assert_eq!(container.log(), "83886080\n");
}

#[test]
fn a_container_that_ran_out_of_memory_says_so() {
    let pod = Pod::run();
    let container = pod
        .sh("exec dd if=/dev/zero of=/dev/null bs=128M count=20")
        .limits(|limits| limits.memory_limit_in_bytes = 20 << 20)
        .start();
    let status = container.wait();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    // The others of the pod have taken no harm.
    assert_eq!(pod.sh("echo fine").output().text(), "fine");
}

#[test]
fn a_child_that_ran_out_of_memory_does_not_end_its_container() {
    let pod = Pod::run();
    let container = pod
        .sh("dd if=/dev/zero of=/dev/null bs=128M count=20 2>/dev/null; echo status $?; exit 3")
        .limits(|limits| limits.memory_limit_in_bytes = 20 << 20)
        .start();
    let status = container.wait();
    assert_eq!(status.exit_code, 3);
    assert_eq!(container.log(), "status 137\n");
}

#[test]
fn a_container_sees_its_own_cgroup_only() {
    let pod = Pod::run();
    let output = pod
        .sh("cat /proc/self/cgroup; grep -c cgroup /proc/mounts; ls -d /sys/fs/cgroup/kubepods* 2>/dev/null")
        .limits(|limits| limits.memory_limit_in_bytes = 64 << 20)
        .output();
    assert_eq!(output.stdout, "0::/\n1\n");
}
