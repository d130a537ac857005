//! Hooks of the specification that are run on the host.

use std::{fs, path::Path, process::Output};

use sealock_tests::ctr::{self, MINBASE, Runtime, fresh_id};
use serde_json::{Value, json};

use crate::{Host, story, text};

/// Runs a container with `hooks` and returns its id.
fn run(runtime: Runtime, hooks: Value, program: &str) -> (String, Output) {
    let id = fresh_id();
    let spec = ctr::ctr(&["oci", "spec"]);
    let mut spec: Value = serde_json::from_slice(&spec.stdout).unwrap();
    spec["root"] = json!({"path": MINBASE});
    spec["process"]["args"] = json!(["/bin/sh", "-c", program]);
    spec["process"]["env"] = json!(["PATH=/bin:/usr/bin"]);
    spec["process"]["terminal"] = false.into();
    spec["linux"]["cgroupsPath"] = format!("/default/{id}").into();
    spec["annotations"] = json!({"example.com/colour": "green"});
    spec["hooks"] = hooks;
    let top = tempfile::tempdir().unwrap();
    let path = top.path().join("config.json");
    fs::write(&path, spec.to_string()).unwrap();
    let output = ctr::ctr(&[
        "run",
        "--rm",
        "--runtime",
        runtime.name(),
        "--config",
        path.to_str().unwrap(),
        &id,
    ]);
    (id, output)
}

fn shell(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"]})
}

/// Appends the hook's name and state to a file.
fn note(log: &Path, name: &str) -> Value {
    let log = log.display();
    shell(&format!("echo \"{name} $(cat)\" >> {log}"))
}

#[test]
fn hooks_run_in_order_with_the_containers_state() {
    let host = Host::take();
    let top = tempfile::tempdir_in("/var/lib").unwrap();
    for runtime in [Runtime::Runc, Runtime::Sealock] {
        let log = top.path().join(runtime.name());
        let hooks = json!({
            "prestart": [note(&log, "prestart")],
            "createRuntime": [note(&log, "createRuntime")],
            "poststart": [note(&log, "poststart"), shell("exit 1")],
            "poststop": [shell("exit 1"), note(&log, "poststop")],
        });
        // With runc a failing poststart ends the container, and a failing poststop is the last; the specification has both
        // go on with a warning.
        let hooks = match runtime {
            Runtime::Runc => json!({"prestart": hooks["prestart"], "createRuntime": hooks["createRuntime"],
                "poststart": [hooks["poststart"][0]], "poststop": [hooks["poststop"][1]]}),
            Runtime::Sealock => hooks,
        };
        let (id, output) = run(runtime, hooks, "echo inside");
        assert!(output.status.success(), "{}", story(&output));
        assert_eq!(text(&output.stdout), "inside\n");
        let log = fs::read_to_string(log).unwrap();
        let lines: Vec<(&str, Value)> = log
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(name, state)| (name, serde_json::from_str(state).unwrap()))
            .collect();
        let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["prestart", "createRuntime", "poststart", "poststop"]);
        let statuses = ["creating", "creating", "running", "stopped"];
        for ((name, state), status) in lines.iter().zip(statuses) {
            assert_eq!(state["id"], *id, "{name}");
            // Some versions of runc call a container that was just started "created".
            if runtime == Runtime::Sealock {
                assert_eq!(state["status"], status, "{name}");
            }
            assert_eq!(state["annotations"]["example.com/colour"], "green");
            assert!(state["bundle"].as_str().unwrap().ends_with(&format!("/{id}")));
            assert_eq!(
                status != "stopped",
                state["pid"].as_u64().is_some_and(|pid| pid > 1)
            );
        }
    }
    drop(top);
    host.assert_clean();
}

#[test]
fn a_failing_hook_keeps_the_container_from_being_created() {
    let host = Host::take();
    let top = tempfile::tempdir_in("/var/lib").unwrap();
    let (never, stopped) = (top.path().join("never"), top.path().join("stopped"));
    let hooks = json!({
        "createRuntime": [shell("echo the reason >&2; exit 7"), shell(&format!("touch {}", never.display()))],
        "poststop": [note(&stopped, "poststop")],
    });
    let (_, output) = run(Runtime::Sealock, hooks, "echo inside");
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && output.stdout.is_empty(),
        "{}",
        story(&output)
    );
    for part in ["hooks.createRuntime[0]", "/bin/sh", "exit status 7", "the reason"] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert!(!never.exists());
    assert_eq!(fs::read_to_string(&stopped).unwrap().lines().count(), 1);
    let slow = json!({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1});
    let (_, output) = run(Runtime::Sealock, json!({"prestart": [slow]}), "true");
    let said = text(&output.stderr);
    assert!(
        said.contains("hooks.prestart[0]") && said.contains("timeout of 1 s"),
        "{said}"
    );
    drop(top);
    host.assert_clean();
}
