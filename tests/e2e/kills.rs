//! Sudden deaths: whichever of a pod's processes is killed, and whenever, nothing is left of the pod, and it can be deleted.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sealock_tests::{
    ctr::{self, Run, Runtime, fresh_id, remove_fifos},
    host::pids_of,
};

use crate::{Host, exec::Idle};

/// Of a pod, in the order of their start.
const PROGRAMS: [&str; 3] = ["containerd-shim-sealock-v2", "sealock-vmm", "sealock-fsd"];

/// Kills every process of this program that there is.
fn kill_all(program: &str) {
    for pid in pids_of(program) {
        // It may have ended.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
}

/// Waits for a client: whatever has been killed, it hears of it.
fn wait_for_end(client: &mut Child, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while client.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "{what}: the client was never told");
        thread::sleep(Duration::from_millis(20));
    }
}

fn quiet(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whether the start of the pod with this id has got so far.
type Reached = fn(&str) -> bool;

/// What can be seen of a start from the host.
const STEPS: [(&str, Reached); 6] = [
    ("its directory is made", |id| fs::exists(directory(id)).unwrap()),
    ("the monitor is there", |_| !pids_of("sealock-vmm").is_empty()),
    ("the file server is there", |_| !pids_of("sealock-fsd").is_empty()),
    ("the root file system is mounted", |id| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(&format!("{}/share/{id}", directory(id)))
    }),
    ("the guest runs", |_| {
        pids_of("sealock-vmm").iter().any(|pid| {
            let threads = fs::read_dir(format!("/proc/{pid}/task"));
            threads.into_iter().flatten().flatten().any(|thread| {
                fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.starts_with("vcpu"))
            })
        })
    }),
    ("the container runs", |id| {
        fs::exists(format!("{}/timeline.json", directory(id))).unwrap()
    }),
];

fn directory(id: &str) -> String {
    format!("/run/sealock/default/{id}")
}

/// Kills a program at each step of a pod's start.
fn kill_at_each_step(program: &str) {
    let host = Host::take();
    for (step, is_reached) in STEPS {
        let run = Run::busybox(Runtime::Sealock, &["sleep", "1000"]).flag(&["--detach", "--null-io"]);
        let mut client = quiet(&mut run.to_command());
        // A client that ends before is one that has been told that the container runs.
        while client.try_wait().unwrap().is_none() && (pids_of(program).is_empty() || !is_reached(run.id())) {
            thread::sleep(Duration::from_millis(1));
        }
        eprintln!("{program} is killed when {step}");
        kill_all(program);
        wait_for_end(&mut client, step);
        ctr::delete(run.id());
        remove_fifos();
        host.before.assert_gone();
    }
    host.assert_clean();
}

#[test]
fn a_shim_that_is_killed_at_any_step_of_a_start_leaves_nothing() {
    kill_at_each_step(PROGRAMS[0]);
}

#[test]
fn a_monitor_that_is_killed_at_any_step_of_a_start_leaves_nothing() {
    kill_at_each_step(PROGRAMS[1]);
}

#[test]
fn a_file_server_that_is_killed_at_any_step_of_a_start_leaves_nothing() {
    kill_at_each_step(PROGRAMS[2]);
}

/// Kills whoever of a pod there is, one after the other, at these `moments` (in milliseconds) of what a client is doing with it.
fn kill_while(moments: [u64; 2], client: impl Fn(&Idle) -> Command) {
    let host = Host::take();
    for program in PROGRAMS {
        for moment in moments {
            let idle = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]).flag(&["--null-io"]));
            let mut client = quiet(&mut client(&idle));
            thread::sleep(Duration::from_millis(moment));
            kill_all(program);
            wait_for_end(&mut client, program);
            let id = idle.id().to_owned();
            drop(idle);
            ctr::delete(&id);
            remove_fifos();
            host.before.assert_gone();
        }
    }
    host.assert_clean();
}

#[test]
fn whoever_is_killed_while_a_process_is_added_leaves_nothing() {
    kill_while([0, 100], |idle| {
        let mut command = Command::new("ctr");
        command.args(["task", "exec", "--exec-id", &fresh_id()]);
        command.args([idle.id(), "sleep", "1000"]);
        command
    });
}

#[test]
fn whoever_is_killed_while_a_container_is_deleted_leaves_nothing() {
    kill_while([0, 150], |idle| {
        let mut command = Command::new("ctr");
        command.args(["task", "rm", "--force", idle.id()]);
        command
    });
}
