//! The pod's cgroup on the host.

use std::{fs, io::Read, path::Path};

use sealock_tests::{
    ctr::{self, Run, Runtime},
    host::{pids_of, processes},
};

use crate::Host;

fn cgroup_of(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.trim().strip_prefix("0::").unwrap().to_owned()
}

/// Runs a container that waits for the end of its input, with its pod's cgroup at `asked`, and looks at it from outside.
fn with_cgroup(asked: Option<&str>, expected: impl Fn(&str) -> String) {
    let host = Host::take();
    let mut run = Run::busybox(Runtime::Sealock, &["sh", "-c", "echo ready; cat; exit 3"]);
    if let Some(asked) = asked {
        run = run.flag(&["--cgroup", asked]);
    }
    let expected = expected(run.id());
    let mut child = run.spawn();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();

    let shims = processes()
        .into_iter()
        .filter(|(_, name)| name.starts_with("containerd-shim-sealock"))
        .map(|(pid, _)| pid);
    let all: Vec<u32> = shims
        .chain(pids_of("sealock-vmm"))
        .chain(pids_of("sealock-fsd"))
        .collect();
    assert_eq!(all.len(), 3, "{all:?}");
    for pid in all {
        assert_eq!(cgroup_of(pid), expected, "process {pid}");
    }
    // The host counts the machine's memory: what a restored one has of its own.
    let directory = Path::new("/sys/fs/cgroup").join(expected.trim_start_matches('/'));
    let memory = fs::read_to_string(directory.join("memory.current")).unwrap();
    assert!(memory.trim().parse::<u64>().unwrap() > 5 << 20, "{memory}");
    drop(child.stdin.take());
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(3));
    assert!(!directory.exists());
    host.assert_clean();
}

#[test]
fn a_pods_processes_run_where_the_specification_says() {
    with_cgroup(None, |id| format!("/default/{id}"));
}

#[test]
fn a_cgroup_in_systemds_notation_is_found_where_systemd_would_have_it() {
    fs::create_dir_all("/sys/fs/cgroup/lab.slice/lab-pods.slice").unwrap();
    with_cgroup(Some("lab-pods.slice:ctr:one"), |_| {
        "/lab.slice/lab-pods.slice/ctr-one.scope".to_owned()
    });
    fs::remove_dir("/sys/fs/cgroup/lab.slice/lab-pods.slice").unwrap();
    fs::remove_dir("/sys/fs/cgroup/lab.slice").unwrap();
}

#[test]
fn after_a_crash_of_the_shim_nothing_of_it_is_left() {
    let host = Host::take();
    let run = Run::busybox(Runtime::Sealock, &["sh", "-c", "echo ready; cat"]);
    let mut child = run.spawn();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let directory = format!("/sys/fs/cgroup/default/{}", run.id());
    assert!(Path::new(&directory).exists());
    let (shim, _) = processes()
        .into_iter()
        .find(|(_, name)| name.starts_with("containerd-shim-sealock"))
        .unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let _ = child.wait_with_output().unwrap();
    let _ = ctr::ctr(&["container", "delete", run.id()]);
    ctr::remove_fifos();
    host.assert_clean();
    assert!(!Path::new(&directory).exists());
}
