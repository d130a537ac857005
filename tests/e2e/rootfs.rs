//! A distribution's programs run.

use sealock_tests::ctr::{MINBASE, Run, Runtime};

use crate::{Host, story, text};

fn debian(command: &[&str]) -> String {
    let host = Host::take();
    let output = Run::rootfs(Runtime::Sealock, MINBASE, command).output();
    assert!(output.status.success(), "{}", story(&output));
    host.assert_clean();
    text(&output.stdout)
}

#[test]
fn apt_tells_its_version() {
    assert!(debian(&["/usr/bin/apt-get", "--version"]).starts_with("apt "));
}

#[test]
fn python_computes() {
    assert_eq!(debian(&["/usr/bin/python3", "-c", "print(6 * 7)"]), "42\n");
}

#[test]
fn a_pipeline_of_a_thousand_processes_passes_its_line_on() {
    let pipeline = r#"line="echo through a thousand"; i=1; while [ $i -lt 1000 ]; do line="$line | cat"; i=$((i+1)); done; eval "$line""#;
    assert_eq!(debian(&["/bin/sh", "-c", pipeline]), "through a thousand\n");
}
