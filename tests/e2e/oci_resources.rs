//! `linux.resources` of the OCI specification: the limits are those of the container's cgroup in the guest.

use sealock_tests::config::Config;
use serde_json::{Value, json};

use crate::{
    Host,
    oci::{refused, says},
};

/// A container that prints files of its own cgroup.
fn limited(resources: Value, files: &str) -> Config {
    let script = format!("cd /run/cgroup && tail -n +1 -v {files} | grep -v '^$'");
    let mut config = Config::shell(&script)
        .and("/linux/namespaces", json!({"type": "cgroup"}))
        .and(
            "/mounts",
            json!({"destination": "/run/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}),
        );
    for (name, value) in resources.as_object().unwrap() {
        config.0["linux"]["resources"][name] = value.clone();
    }
    config
}

#[test]
fn every_limit_is_a_file_of_the_containers_cgroup() {
    let host = Host::take();
    let said = says(
        &host,
        &limited(
            json!({
                "memory": {"limit": 134_217_728, "reservation": 67_108_864, "swap": 134_217_728, "swappiness": 10},
                "cpu": {"shares": 2048, "quota": 60_000, "period": 50_000, "burst": 10_000, "cpus": "0-1", "mems": "0"},
                "pids": {"limit": 77},
                "blockIO": {"weight": 500},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}, {"pageSize": "16GB", "limit": 0}],
                "unified": {"memory.high": "100663296", "cpu.weight": "123"},
            }),
            "memory.max memory.low memory.high cpu.max cpu.max.burst cpu.weight cpuset.cpus.effective cpuset.mems.effective \
             pids.max io.weight hugetlb.2MB.max hugetlb.2MB.rsvd.max",
        ),
    );
    for (file, value) in [
        ("memory.max", "134217728"),
        ("memory.low", "67108864"),
        ("memory.high", "100663296"),
        ("cpu.max", "60000 50000"),
        ("cpu.max.burst", "10000"),
        ("cpu.weight", "123"),
        ("cpuset.cpus.effective", "0-1"),
        ("cpuset.mems.effective", "0"),
        ("pids.max", "77"),
        ("io.weight", "default 4950"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
    ] {
        let line = format!("==> {file} <==\n{value}\n");
        assert!(said.contains(&line), "no {line:?} in {said}");
    }
    host.assert_clean();
}

#[test]
fn processors_of_the_host_become_as_many_of_the_guest() {
    let host = Host::take();
    let config = limited(
        json!({"cpu": {"cpus": "5", "quota": 200_000, "period": 100_000}}),
        "cpuset.cpus",
    );
    let said = says(&host, &config);
    assert_eq!(said, "==> cpuset.cpus <==\n1\n");
    let config = limited(json!({"cpu": {"idle": 1}}), "cpu.idle");
    assert_eq!(says(&host, &config), "==> cpu.idle <==\n1\n");
    host.assert_clean();
}

#[test]
fn limits_that_cannot_be_kept_are_refused_by_name() {
    let host = Host::take();
    for (resources, words) in [
        (
            json!({"memory": {"disableOOMKiller": true}}),
            "linux.resources.memory.disableOOMKiller is not supported",
        ),
        (
            json!({"network": {"classID": 1}}),
            "linux.resources.network is not supported",
        ),
        (
            json!({"blockIO": {"throttleReadBpsDevice": [{"major": 259, "minor": 9, "rate": 1000}]}}),
            "linux.resources.blockIO.throttleReadBpsDevice[0]",
        ),
        (
            json!({"unified": {"nonesuch.max": "1"}}),
            r#"linux.resources.unified["nonesuch.max"]: the guest's cgroups have no file nonesuch.max"#,
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "16GB", "limit": 1}]}),
            "linux.resources.hugepageLimits[0].limit: the guest's cgroups have no file",
        ),
    ] {
        refused(&host, &limited(resources, "pids.max"), words);
    }
    host.assert_clean();
}
