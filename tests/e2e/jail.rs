//! What the monitor and the file server of a running pod could do, if the guest had taken them over.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sealock_tests::{
    ctr::{Run, Runtime},
    host::{only_pid_of, pids_of},
    intruder::{Intruder, Outcome},
};

use crate::{Host, exec::Idle, text};

/// A process of a pod's.
struct Confined {
    pid: u32,
}

impl Confined {
    fn only(program: &str) -> Self {
        Self {
            pid: only_pid_of(program),
        }
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.proc(name)).unwrap()
    }

    /// Of each of its threads.
    fn statuses(&self) -> Vec<String> {
        fs::read_dir(self.proc("task"))
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path().join("status")).unwrap())
            .collect()
    }

    fn namespace(&self, name: &str) -> PathBuf {
        fs::read_link(self.proc("ns").join(name)).unwrap()
    }

    /// What holds for both.
    fn assert_confined(&self) {
        for status in self.statuses() {
            let field = |name: &str| field(&status, name);
            assert_eq!(field("NoNewPrivs"), "1", "{status}");
            assert_eq!(field("CapInh"), field("CapAmb"), "{status}");
            assert_eq!(u64::from_str_radix(field("CapInh"), 16), Ok(0), "{status}");
            assert_eq!(field("Groups"), "", "{status}");
        }
        // The first of its own, which sees no other.
        let status = self.read("status");
        let numbers: Vec<_> = field(&status, "NSpid").split_whitespace().collect();
        assert_eq!(numbers, [self.pid.to_string().as_str(), "1"]);
        for name in ["mnt", "net", "ipc", "uts", "cgroup", "pid"] {
            let host = fs::read_link(Path::new("/proc/self/ns").join(name)).unwrap();
            assert_ne!(self.namespace(name), host, "{name}");
        }
        assert_eq!(self.read("environ"), "");
        let limits = self.read("limits");
        for name in ["Max core file size", "Max locked memory", "Max msgqueue size"] {
            let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
            assert_eq!(line[name.len()..].split_whitespace().next(), Some("0"), "{line}");
        }
        // Nobody but root can look into it, of whatever user it is.
        assert_eq!(fs::metadata(self.proc("mem")).unwrap().uid(), 0);
        // No interface but its own, which isn't even up.
        let interfaces = self.read("net/dev");
        let names: Vec<_> = interfaces.lines().skip(2).map(|line| line.trim()).collect();
        assert!(names.iter().all(|line| line.starts_with("lo:")), "{interfaces}");
    }
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let line = status
        .lines()
        .find(|line| line.split(':').next() == Some(name))
        .unwrap();
    line[name.len() + 1..].trim()
}

#[test]
fn each_monitor_is_a_user_of_its_own_without_rights_and_files() {
    let host = Host::take();
    let idle = [(); 2].map(|()| Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"])));
    let monitors: Vec<_> = pids_of("sealock-vmm")
        .into_iter()
        .map(|pid| Confined { pid })
        .collect();
    assert_eq!(monitors.len(), 2);
    let mut users = BTreeSet::new();
    for monitor in &monitors {
        monitor.assert_confined();
        for status in monitor.statuses() {
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(0), "{status}");
            }
            for ids in ["Uid", "Gid"] {
                let ids: BTreeSet<_> = field(&status, ids).split_whitespace().collect();
                assert_eq!(ids.len(), 1, "{status}");
            }
            users.insert(field(&status, "Uid").to_owned());
        }
        // An empty directory, which can't be written, is all there is.
        let mounts = monitor.read("mountinfo");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        let words: Vec<_> = mounts.split_whitespace().collect();
        assert!(words[5].starts_with("ro,nosuid,nodev,noexec"), "{mounts}");
        for link in ["root", "cwd"] {
            assert_eq!(fs::read_dir(monitor.proc(link)).unwrap().count(), 0, "{link}");
        }
        // No descriptor leads to a directory.
        for fd in fs::read_dir(monitor.proc("fd")).unwrap() {
            let path = fd.unwrap().path();
            assert!(
                !fs::metadata(&path).unwrap().is_dir(),
                "{:?}",
                fs::read_link(&path)
            );
        }
    }
    assert_eq!(users.len(), 2, "{users:?}");
    assert!(users.iter().all(|user| !user.starts_with('0')), "{users:?}");
    drop(idle);
    host.assert_clean();
}

#[test]
fn the_file_server_is_alone_with_its_share() {
    let host = Host::take();
    let idle = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]));
    let server = Confined::only("sealock-fsd");
    server.assert_confined();
    // What is mounted there can neither make devices work nor other users of those who execute something.
    let mounts = server.read("mountinfo");
    for line in mounts.lines() {
        let options: Vec<_> = line
            .split_whitespace()
            .nth(5)
            .unwrap_or_default()
            .split(',')
            .collect();
        assert!(
            options.contains(&"nodev") && options.contains(&"nosuid"),
            "{mounts}"
        );
    }
    drop(idle);
    host.assert_clean();
}

/// What no thread of the monitor has any business with.
const FORBIDDEN: &[(&str, libc::c_long)] = &[
    ("openat", libc::SYS_openat),
    ("socket", libc::SYS_socket),
    ("kill", libc::SYS_kill),
    ("execve", libc::SYS_execve),
    ("ptrace", libc::SYS_ptrace),
    ("mount", libc::SYS_mount),
];

#[test]
fn code_injected_into_a_monitor_ends_its_pod_and_no_other() {
    let host = Host::take();
    let bystander = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]));
    let spared = pids_of("sealock-vmm");
    let threads = ["vcpu0", "devices", "fs", "balloon", "sealock-vmm"];
    for (thread, (what, number)) in threads.iter().zip(FORBIDDEN) {
        let victim = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]));
        let monitor = *pids_of("sealock-vmm")
            .iter()
            .find(|pid| !spared.contains(pid))
            .unwrap();
        let mut intruder = Intruder::in_thread(monitor, thread);
        let path = intruder.leave("/etc/passwd");
        // What it may do, it can.
        assert_eq!(
            intruder.call(libc::SYS_close, [u64::MAX, 0, 0, 0, 0, 0]),
            Outcome::Returned(-i64::from(libc::EBADF)),
            "{thread}"
        );
        let outcome = intruder.call(*number, [path, path, 0, 0, 0, 0]);
        assert_eq!(outcome, Outcome::Killed(libc::SIGSYS), "{thread}: {what}");
        drop(intruder);
        drop(victim);
    }
    assert_eq!(text(&bystander.exec(&[], &["echo", "fine"]).stdout), "fine\n");
    drop(bystander);
    host.assert_clean();
}

#[test]
fn code_injected_into_a_file_server_cannot_leave_its_share() {
    let host = Host::take();
    let idle = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]));
    let server = pids_of("sealock-fsd")[0];
    {
        let mut intruder = Intruder::in_thread(server, "files");
        for path in [
            "/etc/passwd",
            "/../../../../etc/passwd",
            "/dev/kvm",
            "/proc/1/root",
            "/proc/self/mem",
        ] {
            let path = intruder.leave(path);
            let opened = intruder.call(
                libc::SYS_openat,
                [u64::MAX, path, u64::from(libc::O_RDONLY.cast_unsigned()), 0, 0, 0],
            );
            assert_eq!(opened, Outcome::Returned(-i64::from(libc::ENOENT)), "{path}");
        }
        // It serves on when it is left alone.
    }
    let output = idle.exec(&[], &["ls", "/bin/busybox"]);
    assert_eq!(text(&output.stdout), "/bin/busybox\n");
    let mut intruder = Intruder::in_thread(server, "files");
    let outcome = intruder.call(libc::SYS_socket, [1, 1, 0, 0, 0, 0]);
    assert_eq!(outcome, Outcome::Killed(libc::SIGSYS));
    drop(intruder);
    drop(idle);
    host.assert_clean();
}
