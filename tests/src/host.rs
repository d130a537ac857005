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
        wait_for_templates();
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
        // They are kept for later pods.
        all.retain(|line| !line.contains("/run/sealock/.templates"));
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
        wait_for_templates();
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

/// Whether a process, or the one that started it, makes a template: that belongs to no pod.
fn makes_template(pid: &str) -> bool {
    let maker = |pid: &str| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|&byte| byte == 0);
        let program = words.next().unwrap_or_default();
        program.ends_with(b"containerd-shim-sealock-v2") && words.next() == Some(b"template")
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    maker(pid) || parent.is_some_and(|parent| maker(parent.trim()))
}

/// Waits until no template is being made.
///
/// # Panics
/// One still is after two minutes.
pub fn wait_for_templates() {
    let deadline = Instant::now() + Duration::from_secs(120);
    let busy = || {
        let numbers = fs::read_dir("/proc").expect("/proc is mounted").flatten();
        numbers
            .filter_map(|entry| entry.file_name().into_string().ok())
            .any(|pid| makes_template(&pid))
    };
    while busy() {
        assert!(Instant::now() < deadline, "a template is being made for ever");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The host's processes: id and name. Those that make templates are left out.
///
/// # Panics
/// `/proc` can't be read.
#[must_use]
pub fn processes() -> Vec<(u32, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // The command line, for a process's short name is cut at 15 bytes; kernel threads have none.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let program = line.split(|&byte| byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program);
        let name = program.rsplit('/').next().unwrap_or_default();
        if !name.is_empty() && !makes_template(&pid.to_string()) {
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

/// The id of the one process whose program has this name.
///
/// # Panics
/// There is not exactly one.
#[must_use]
pub fn only_pid_of(program: &str) -> u32 {
    let pids = pids_of(program);
    assert_eq!(pids.len(), 1, "{program}: {pids:?}");
    pids[0]
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
