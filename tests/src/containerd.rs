//! containerd itself: killed, started again, and listened to.

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{ctr::ctr, host::pids_of};

const DEADLINE: Duration = Duration::from_secs(120);

/// Kills containerd without a warning.
///
/// # Panics
/// There is not one.
pub fn kill() {
    let pids = pids_of("containerd");
    assert_eq!(pids.len(), 1, "{pids:?}");
    let pid = i32::try_from(pids[0]).expect("process numbers are small");
    // SAFETY: a number alone.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    let deadline = Instant::now() + DEADLINE;
    while !pids_of("containerd").is_empty() {
        assert!(Instant::now() < deadline, "containerd does not die");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Starts it as the lab did, and waits until it answers.
///
/// # Panics
/// It doesn't.
pub fn start() {
    let log = || {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .open("/var/log/containerd.log");
        Stdio::from(log.expect("root may write it"))
    };
    let mut command = Command::new("prlimit");
    command
        .args(["--nofile=1048576", "containerd"])
        .stdin(Stdio::null())
        .stdout(log())
        .stderr(log());
    // SAFETY: one system call of no arguments between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    let child = command.spawn().expect("containerd is installed in the lab");
    // It outlives the test, and is reaped when it doesn't.
    thread::spawn(move || {
        let mut child = child;
        child.wait()
    });
    let deadline = Instant::now() + DEADLINE;
    while !ctr(&["--timeout", "5s", "version"]).status.success() {
        assert!(Instant::now() < deadline, "containerd does not answer");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Listens to what containerd tells.
#[derive(Debug)]
pub struct Events {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Events {
    /// From now on.
    ///
    /// # Panics
    /// `ctr` can't be run.
    #[must_use]
    pub fn listen() -> Self {
        let mut child = Command::new("ctr")
            .arg("events")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ctr is installed in the lab");
        let stdout = child.stdout.take().expect("it is piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let events = Self { child, lines };
        // It is heard once something is: what containerd tells of a label, for instance.
        let deadline = Instant::now() + DEADLINE;
        while events.lines().is_empty() {
            assert!(Instant::now() < deadline, "nothing is heard of containerd");
            let _ = ctr(&["namespace", "label", "default", "listening=yes"]);
            thread::sleep(Duration::from_millis(100));
        }
        events
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What has been told of the tasks of container `id`, in order, once `last` is among it: topic and content.
    ///
    /// # Panics
    /// `last` doesn't come.
    #[must_use]
    pub fn of(&self, id: &str, last: &str) -> Vec<(String, String)> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let told: Vec<_> = self
                .lines()
                .iter()
                .filter(|line| line.contains(&format!("\"{id}\"")))
                .filter_map(|line| {
                    let topic = line.split(' ').find(|word| word.starts_with("/tasks/"))?;
                    let (_, content) = line.split_once(topic)?;
                    Some((topic.to_owned(), content.trim().to_owned()))
                })
                .collect();
            if told.iter().any(|(topic, _)| topic == last) {
                return told;
            }
            assert!(Instant::now() < deadline, "{last} does not come: {told:#?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
