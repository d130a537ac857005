//! What a pod could leave behind on its host.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

/// Everything of the host that a runtime makes for a pod and has to take away again, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leavings(BTreeSet<String>);

impl Leavings {
    /// What is there now: processes of the runtime, mounts, sockets, state directories, cgroups, network interfaces.
    ///
    /// # Panics
    /// `/proc` can't be read.
    #[must_use]
    pub fn now() -> Self {
        let mut all = BTreeSet::new();
        for (pid, name) in processes() {
            if name.starts_with("sealock") || name.starts_with("containerd-shim") {
                all.insert(format!("process {pid} {name}"));
            }
        }
        for line in fs::read_to_string("/proc/self/mountinfo")
            .expect("/proc is mounted")
            .lines()
        {
            let target = line.split(' ').nth(4).unwrap_or_default();
            all.insert(format!("mount {target}"));
        }
        for directory in [
            "/run/sealock",
            "/run/containerd/s",
            "/run/containerd/io.containerd.runtime.v2.task",
            "/run/containerd/fifo",
            "/sys/class/net",
            "/tmp",
        ] {
            walk(directory, 3, &mut all);
        }
        cgroups("/sys/fs/cgroup", &mut all);
        Self(all)
    }

    /// Waits for what was made since `self` was taken to be gone, for at most ten seconds: a shim ends shortly after
    /// its client has been told.
    ///
    /// # Panics
    /// Something is left: names it.
    pub fn assert_gone(&self) {
        self.assert_gone_but(&[]);
    }

    /// As [`Leavings::assert_gone`], but for lines that contain one of `expected`.
    ///
    /// # Panics
    /// Something else is left: names it.
    pub fn assert_gone_but(&self, expected: &[&str]) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::now();
            let left: Vec<_> = now
                .0
                .difference(&self.0)
                .filter(|line| expected.iter().all(|word| !line.contains(word)))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The host's processes: id and name.
///
/// # Panics
/// `/proc` can't be read.
#[must_use]
pub fn processes() -> Vec<(u32, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The command line, for a process's short name is cut at 15 bytes; kernel threads have none.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let program = line.split(|&byte| byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program);
        let name = program.rsplit('/').next().unwrap_or_default();
        if !name.is_empty() {
            all.push((pid, name.to_owned()));
        }
    }
    all
}

/// Ids of the processes whose program has this name.
#[must_use]
pub fn pids_of(program: &str) -> Vec<u32> {
    processes()
        .into_iter()
        .filter(|(_, name)| name == program)
        .map(|(pid, _)| pid)
        .collect()
}

fn walk(directory: &str, depth: usize, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path().display().to_string();
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, depth - 1, all);
        }
        all.insert(format!("file {path}"));
    }
}

fn cgroups(directory: &str, all: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path().display().to_string();
            cgroups(&path, all);
            all.insert(format!("cgroup {path}"));
        }
    }
}
