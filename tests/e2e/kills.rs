//! Sudden deaths: whichever of a pod's processes is killed, and whenever, nothing is left of the pod, and it can be deleted.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sealock_tests::{
    ctr::{Run, Runtime, ctr, fresh_id, remove_fifos},
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

fn delete(id: &str) {
    let _ = ctr(&["task", "rm", "--force", id]);
    let _ = ctr(&["container", "rm", id]);
    remove_fifos();
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
            delete(&id);
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
