//! Where the time of a start went: `sealock trace`.

use std::{
    fs,
    io::Read,
    process::{Command, Output},
};

use sealock_sandbox::timeline::steps::known;
use sealock_tests::{
    ctr::{Run, Runtime},
    host::wait_for_templates,
};

use crate::{
    Host, story,
    templates::{LOG, Templates},
    text,
};

fn trace(words: &[&str]) -> Output {
    Command::new("sealock").arg("trace").args(words).output().unwrap()
}

/// The names of the steps that a table shows, in order of time.
fn steps(table: &str) -> Vec<&str> {
    table
        .lines()
        .skip(2)
        .map(|line| line.split_ascii_whitespace().nth(3).unwrap())
        .collect()
}

#[test]
fn a_start_is_shown_step_by_step_booted_and_restored_while_the_pod_runs_and_from_the_log() {
    let host = Host::take();
    let directory = tempfile::tempdir().unwrap();
    let templates = Templates::on();
    for restored in [false, true] {
        let run = Run::busybox(Runtime::Sealock, &["sh", "-c", "echo up; cat"]);
        let mut client = run.spawn();
        let mut up = [0; 3];
        client.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();

        let svg = directory.path().join("start.svg");
        let shown = trace(&[run.id(), "--svg", svg.to_str().unwrap()]);
        assert!(shown.status.success(), "{}", story(&shown));
        let table = text(&shown.stdout);
        assert!(table.starts_with(&format!("start of {}\n", run.id())), "{table}");
        let steps = steps(&table);
        assert_eq!(steps.first(), Some(&"shim_start"), "{table}");
        assert_eq!(steps.last(), Some(&"container_started"), "{table}");
        let own = [("vmm_restored", restored), ("agent_hello", !restored)];
        for (step, expected) in own {
            assert_eq!(steps.contains(&step), expected, "{step}: {table}");
        }
        let picture = fs::read_to_string(&svg).unwrap();
        for step in steps {
            assert!(known(step).is_some(), "{step} is not explained");
            assert!(picture.contains(&format!(">{step}<")), "{step}: {picture}");
        }
        // It is the only one.
        assert_eq!(text(&trace(&[]).stdout), table);

        drop(client.stdin.take());
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", story(&output));
        let gone = trace(&[run.id()]);
        assert!(
            !gone.status.success() && text(&gone.stderr).contains("--log"),
            "{}",
            story(&gone)
        );
        assert_eq!(text(&trace(&["--log", LOG, run.id()]).stdout), table);
        wait_for_templates();
    }
    drop((templates, directory));
    host.assert_clean();
}
