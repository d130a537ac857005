//! Containers whose `config.json` a test has written: containerd's own default one, changed.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ctr::{MINBASE, Runtime, ctr, fresh_id};

/// A whole `config.json`.
#[derive(Clone, Debug)]
pub struct Config(pub Value);

impl Config {
    /// A container of Debian's minbase that runs `script` in a shell. Its root is read-only, for others use it, too.
    ///
    /// # Panics
    /// `ctr` prints no specification.
    #[must_use]
    pub fn shell(script: &str) -> Self {
        Self::program(&["/bin/sh", "-c", script])
    }

    /// As [`Config::shell`], with a program instead.
    ///
    /// # Panics
    /// `ctr` prints no specification.
    #[must_use]
    pub fn program(args: &[&str]) -> Self {
        let mut spec: Value = serde_json::from_slice(&ctr(&["oci", "spec"]).stdout).expect("ctr prints JSON");
        spec["process"]["args"] = json!(args);
        spec["process"]["terminal"] = json!(false);
        spec["process"]["env"] = json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        spec["root"] = json!({"path": MINBASE, "readonly": true});
        Self(spec)
    }

    /// Sets what a JSON pointer (RFC 6901) names, with the objects on the way to it.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.0;
        for part in pointer.trim_start_matches('/').split('/') {
            place = &mut place[part];
        }
        *place = value;
        self
    }

    /// Appends to the list that a JSON pointer names.
    ///
    /// # Panics
    /// There is something else.
    #[must_use]
    pub fn and(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.0;
        for part in pointer.trim_start_matches('/').split('/') {
            place = &mut place[part];
        }
        if place.is_null() {
            *place = json!([]);
        }
        place.as_array_mut().expect("a list is there").push(value);
        self
    }

    /// `ctr run` of it.
    ///
    /// # Panics
    /// The file can't be written.
    #[must_use]
    pub fn run(&self, runtime: Runtime) -> ConfigRun {
        let id = fresh_id();
        let directory = TempDir::new_in("/run").expect("/run can be written to");
        let mut spec = self.0.clone();
        if let Some(linux) = spec["linux"].as_object_mut() {
            linux.insert("cgroupsPath".to_owned(), json!(format!("/default/{id}")));
        }
        let file = directory.path().join("config.json");
        fs::write(&file, spec.to_string()).expect("/run can be written to");
        let mut command = Command::new("ctr");
        command
            .args(["run", "--rm", "--runtime", runtime.name(), "--config"])
            .arg(file)
            .arg(id);
        ConfigRun {
            command,
            _directory: directory,
        }
    }

    /// Runs it to the end with an empty standard input; the container is removed.
    ///
    /// # Panics
    /// `ctr` can't be run.
    #[must_use]
    pub fn output(&self, runtime: Runtime) -> Output {
        let mut run = self.run(runtime);
        run.command
            .stdin(Stdio::null())
            .output()
            .expect("ctr is installed in the lab")
    }
}

/// A command line, with the file that it names.
#[derive(Debug)]
pub struct ConfigRun {
    /// For the caller to choose the streams.
    pub command: Command,
    _directory: TempDir,
}
