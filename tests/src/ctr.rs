//! Containers by containerd's own client.

use std::{
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// The image that the lab carries: Debian's busybox.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// A root file system of Debian's minbase with Python, in the lab.
pub const MINBASE: &str = "/var/lib/lab/minbase";

/// A container runtime as containerd names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// The subject.
    Sealock,
    /// The reference.
    Runc,
}

impl Runtime {
    /// What `ctr --runtime` takes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sealock => "io.containerd.sealock.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }
}

/// A name for a container that this process has not used yet.
#[must_use]
pub fn fresh_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One `ctr run`.
#[derive(Clone, Debug)]
pub struct Run {
    runtime: Runtime,
    flags: Vec<String>,
    rootfs: Vec<String>,
    id: String,
    command: Vec<String>,
}

impl Run {
    /// Runs `command` in a container of the busybox image.
    #[must_use]
    pub fn busybox(runtime: Runtime, command: &[&str]) -> Self {
        Self::new(runtime, vec![BUSYBOX.to_owned()], command)
    }

    /// Runs `command` in a container whose root is the directory `root`.
    #[must_use]
    pub fn rootfs(runtime: Runtime, root: &str, command: &[&str]) -> Self {
        Self::new(runtime, vec!["--rootfs".to_owned(), root.to_owned()], command)
    }

    fn new(runtime: Runtime, rootfs: Vec<String>, command: &[&str]) -> Self {
        Self {
            runtime,
            flags: Vec::new(),
            rootfs,
            id: fresh_id(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
        }
    }

    /// Adds a flag of `ctr run`, with its value if it has one.
    #[must_use]
    pub fn flag(mut self, words: &[&str]) -> Self {
        self.flags.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The command line, for the caller to choose the streams.
    #[must_use]
    pub fn to_command(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .args(["run", "--runtime", self.runtime.name()])
            .args(&self.flags)
            .args(&self.rootfs)
            .arg(&self.id)
            .args(&self.command);
        command
    }

    /// Runs to the end with an empty standard input; the container is removed.
    ///
    /// # Panics
    /// `ctr` can't be run.
    #[must_use]
    pub fn output(&self) -> Output {
        self.clone()
            .flag(&["--rm"])
            .to_command()
            .stdin(Stdio::null())
            .output()
            .expect("ctr is installed in the lab")
    }

    /// Starts in the background of the test, streams captured; the container is removed when it ends.
    ///
    /// # Panics
    /// `ctr` can't be run.
    #[must_use]
    pub fn spawn(&self) -> Child {
        self.clone()
            .flag(&["--rm"])
            .to_command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ctr is installed in the lab")
    }
}

/// Runs `ctr` with these words and returns what it printed.
///
/// # Panics
/// `ctr` can't be run.
#[must_use]
pub fn ctr(words: &[&str]) -> Output {
    Command::new("ctr")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .expect("ctr is installed in the lab")
}

/// Removes a container and whatever runs in it, if they are there.
///
/// # Panics
/// `ctr` can't be run.
pub fn delete(id: &str) {
    let _ = ctr(&["task", "rm", "--force", id]);
    let _ = ctr(&["container", "rm", id]);
}

/// Makes sure containerd has the busybox image.
///
/// # Panics
/// It can't be imported.
pub fn import_busybox() {
    let images = ctr(&["image", "ls", "-q"]);
    if String::from_utf8_lossy(&images.stdout)
        .lines()
        .any(|name| name == BUSYBOX)
    {
        return;
    }
    let imported = ctr(&["image", "import", "/var/lib/lab/busybox.tar"]);
    assert!(
        imported.status.success(),
        "{}",
        String::from_utf8_lossy(&imported.stderr)
    );
}

/// Removes the FIFOs that clients which did not end well had made for themselves.
///
/// # Panics
/// They can't be removed.
pub fn remove_fifos() {
    for entry in std::fs::read_dir("/run/containerd/fifo")
        .into_iter()
        .flatten()
        .flatten()
    {
        std::fs::remove_dir_all(entry.path()).expect("root may remove them");
    }
}
