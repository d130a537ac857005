//! What an administrator sees with crictl.

use std::process::{Command, Output};

use sealock_cri_tests::{Container, Pod};
use serde_json::Value;

fn crictl(arguments: &[&str]) -> Output {
    Command::new("./crictl")
        .env(
            "CONTAINER_RUNTIME_ENDPOINT",
            "unix:///run/containerd/containerd.sock",
        )
        .env("IMAGE_SERVICE_ENDPOINT", "unix:///run/containerd/containerd.sock")
        .args(["--timeout", "60s"])
        .args(arguments)
        .output()
        .unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = crictl(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&said(arguments)).unwrap()
}

/// A number, which JSON of this kind has as a string.
fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn stats(container: &Container) -> (u64, u64) {
    let all = json(&["stats", "--id", &container.id, "--output", "json"]);
    let of = &all["stats"][0];
    (
        number(&of["cpu"]["usageCoreNanoSeconds"]["value"]),
        number(&of["memory"]["workingSetBytes"]["value"]),
    )
}

#[test]
fn figures_are_those_of_what_runs() {
    let pod = Pod::run();
    let busy = pod
        .sh("head -c 52428800 /dev/zero > /dev/shm/held; for i in 1 2 3; do sleep 600 & done; echo up; while :; do :; done")
        .start();
    let idle = pod.sh("exec sleep 600").start();
    busy.until_logged("up");
    let (idle_before, _) = stats(&idle);
    let (before, memory) = stats(&busy);
    assert!((50 << 20..90 << 20).contains(&memory), "{memory}");
    busy.until("a second of the processor's", || {
        stats(&busy).0 > before + 1_000_000_000
    });
    // Its start has taken what it took; since then it has slept.
    let (time, memory) = stats(&idle);
    assert!(
        time - idle_before < 500_000_000,
        "{time} ns, {idle_before} ns before"
    );
    assert!(memory < 16 << 20, "{memory}");

    let all = json(&["statsp", "--id", &pod.id, "--output", "json"]);
    let linux = &all["stats"][0]["linux"];
    assert!(
        number(&linux["memory"]["workingSetBytes"]["value"]) >= 50 << 20,
        "{all}"
    );
    assert!(
        number(&linux["cpu"]["usageCoreNanoSeconds"]["value"]) >= 1_000_000_000,
        "{all}"
    );
}

#[test]
fn pods_and_containers_are_listed_inspected_and_used() {
    let pod = Pod::run();
    let container = pod.sh("echo begun; exec sleep 600").start();
    container.until_logged("begun");

    let listed = json(&["ps", "--pod", &pod.id, "--output", "json"]);
    assert_eq!(listed["containers"][0]["id"], container.id.as_str());
    assert_eq!(listed["containers"][0]["state"], "CONTAINER_RUNNING");
    let inspected = json(&["inspect", &container.id]);
    assert_eq!(inspected["status"]["state"], "CONTAINER_RUNNING");
    // Containers of a pod can be told apart by it, and /proc has it.
    let pid = inspected["info"]["pid"].as_u64().unwrap();
    // A pod without a container of its own has none.
    let pods = json(&["inspectp", &pod.id])["info"]["pid"].as_u64();
    assert_ne!(Some(pid), pods);
    assert!(std::path::Path::new(&format!("/proc/{pid}/ns/pid")).exists());

    assert_eq!(said(&["logs", &container.id]), "begun\n");
    assert_eq!(said(&["exec", &container.id, "echo", "executed"]), "executed\n");
    assert_eq!(
        said(&["exec", "--sync", &container.id, "echo", "synchronous"]).trim_end(),
        "synchronous"
    );
    let failed = crictl(&["exec", &container.id, "sh", "-c", "exit 7"]);
    assert!(!failed.status.success());
    assert!(
        String::from_utf8_lossy(&failed.stderr).contains("exit code 7"),
        "{failed:?}"
    );

    said(&["update", "--memory", "67108864", &container.id]);
    assert_eq!(
        container.exec(&["cat", "/sys/fs/cgroup/memory.max"]).text(),
        "67108864"
    );
    said(&["stop", "--timeout", "0", &container.id]);
    let listed = json(&["ps", "--all", "--pod", &pod.id, "--output", "json"]);
    assert_eq!(listed["containers"][0]["state"], "CONTAINER_EXITED");
}
