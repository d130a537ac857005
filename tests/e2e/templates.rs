//! Pods are restored from templates: quickly made, each for itself, and booted where there is none of use.

use std::{
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::PathBuf,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use sealock_tests::{
    ctr::{MINBASE, Run, Runtime},
    host::{pids_of, wait_for_templates},
};

use crate::{Host, story, text};

const STORE: &str = "/run/sealock/.templates";

/// The configuration, which the lab's host otherwise does without.
const CONFIGURATION: &str = "/etc/sealock/config.toml";

/// Where containerd writes what its shims log.
pub(crate) const LOG: &str = "/var/log/containerd.log";

/// Has pods be restored from templates, until this is dropped. Those of earlier tests' machines are gone.
pub(crate) struct Templates;

impl Templates {
    pub(crate) fn on() -> Self {
        fs::create_dir_all("/etc/sealock").unwrap();
        // Ten machines that boot at once on emulated processors take long.
        let configuration = "templates = \"node\"\nagent_timeout_ms = 180000\n";
        fs::write(CONFIGURATION, configuration).unwrap();
        template(&["delete", "--all"]);
        Self
    }
}

impl Drop for Templates {
    fn drop(&mut self) {
        let _ = fs::remove_file(CONFIGURATION);
    }
}

fn sealock(words: &[&str]) -> Output {
    Command::new("sealock").args(words).output().unwrap()
}

pub(crate) fn template(words: &[&str]) -> String {
    let output = sealock(&[&["template"], words].concat());
    assert!(output.status.success(), "{}", story(&output));
    text(&output.stdout)
}

/// The directory of the one template.
fn the_template() -> PathBuf {
    let all: Vec<_> = fs::read_dir(STORE)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [one] = &all[..] else {
        panic!("{all:?}");
    };
    one.clone()
}

/// What the shims have logged since `from`, a length of the log.
pub(crate) fn logged(from: usize) -> String {
    text(&fs::read(LOG).unwrap()[from..])
}

pub(crate) fn log_length() -> usize {
    fs::read(LOG).unwrap().len()
}

/// Runs a shell in a pod, and says whether it was restored.
fn run(script: &str) -> (String, bool) {
    let before = log_length();
    let output = Run::busybox(Runtime::Sealock, &["sh", "-c", script]).output();
    assert!(output.status.success(), "{}", story(&output));
    // The line is written before the container is started.
    (text(&output.stdout), logged(before).contains("vmm_restored"))
}

#[test]
fn the_first_pod_boots_and_has_a_template_made_for_the_next() {
    let host = Host::take();
    let _templates = Templates::on();
    assert!(!run("true").1);
    wait_for_templates();
    assert!(the_template().join("state").exists());
    assert!(run("true").1);
    let listed = template(&["list"]);
    assert!(listed.contains("whole"), "{listed}");
    host.assert_clean();
}

#[test]
fn clones_differ_in_what_is_random_and_know_who_they_are() {
    let host = Host::take();
    let _templates = Templates::on();
    template(&["create"]);
    let script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 32 /dev/urandom | md5sum; \
                  hostname; cat /etc/machine-id 2>/dev/null || echo none";
    let mut seen: Vec<Vec<String>> = Vec::new();
    for name in ["one", "other"] {
        let before = log_length();
        let output = Run::busybox(Runtime::Sealock, &["sh", "-c", script])
            .flag(&["--hostname", name])
            .output();
        assert!(output.status.success(), "{}", story(&output));
        assert!(logged(before).contains("vmm_restored"), "{}", logged(before));
        let lines: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
        assert_eq!(lines[3], name);
        seen.push(lines);
    }
    for (one, other) in seen[0].iter().zip(&seen[1]).take(4) {
        assert_ne!(one, other);
    }
    host.assert_clean();
}

/// Compares the guest's wall clock with the host's by the precision time device, which asks the host's kernel itself: the tightest of
/// some attempts, in nanoseconds, and by how much it may be wrong. Then the uptime, twice.
const CLOCKS: &str = "
import os, subprocess, time
up = lambda: float(open('/proc/uptime').read().split()[0])
print(up())
os.makedirs('/tmp/devices', exist_ok=True)
subprocess.run(['/usr/bin/mount', '-t', 'devtmpfs', 'none', '/tmp/devices'], check=True)
device = ((~os.open('/tmp/devices/ptp0', os.O_RDONLY)) << 3) | 3
now = time.clock_gettime_ns
def attempt():
    before, host, after = now(time.CLOCK_REALTIME), now(device), now(time.CLOCK_REALTIME)
    return after - before, (before + after) // 2 - host
print(*min(attempt() for _ in range(100)))
print(up())
";

#[test]
fn a_restored_pods_wall_clock_is_right_within_a_millisecond_and_no_clock_goes_back() {
    let host = Host::take();
    let _templates = Templates::on();
    template(&["create"]);
    let before = log_length();
    let output = Run::rootfs(Runtime::Sealock, MINBASE, &["/usr/bin/python3", "-c", CLOCKS])
        .flag(&["--privileged"])
        .output();
    assert!(output.status.success(), "{}", story(&output));
    assert!(logged(before).contains("vmm_restored"));
    let text = text(&output.stdout);
    let numbers: Vec<f64> = text
        .split_ascii_whitespace()
        .map(|word| word.parse().unwrap())
        .collect();
    let [first, width, difference, last] = numbers[..] else {
        panic!("{text}");
    };
    assert!(difference.abs() <= 1e6 + width / 2.0, "{text}");
    assert!(last > first && first > 0.0, "{text}");
    host.assert_clean();
}

#[test]
fn a_damaged_half_written_or_foreign_template_is_ignored_with_a_warning() {
    let host = Host::take();
    let _templates = Templates::on();
    type Damage = fn(PathBuf);
    let damages: [(&str, Damage); 3] = [
        ("written to since", |path| {
            let memory = path.join("memory");
            fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).unwrap();
            let memory = fs::OpenOptions::new().write(true).open(memory).unwrap();
            memory.write_all_at(&[0xff; 4096], 0).unwrap();
        }),
        ("its state can't be opened", |path| {
            fs::remove_file(path.join("state")).unwrap()
        }),
        ("makes no sense", |path| {
            fs::write(path.join("about"), "{\"version\":1").unwrap()
        }),
    ];
    for (why, damage) in damages {
        template(&["create"]);
        damage(the_template());
        let before = log_length();
        let (_, restored) = run("true");
        assert!(!restored, "{why}");
        let log = logged(before);
        assert!(log.contains("the pod boots") && log.contains(why), "{why}: {log}");
        wait_for_templates();
        assert!(run("true").1, "another one has been made");
    }
    host.assert_clean();
}

#[test]
fn a_state_that_the_monitor_does_not_take_is_given_up_with_a_warning() {
    let host = Host::take();
    let _templates = Templates::on();
    template(&["create"]);
    let path = the_template();
    let about = path.join("about");
    // The same file, with the same times, as far as the host can see.
    let state = path.join("state");
    let times = fs::metadata(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&state)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1000).unwrap();
    file.set_modified(times.modified().unwrap()).unwrap();
    drop(file);
    assert!(about.exists());
    let before = log_length();
    assert!(!run("true").1);
    let log = logged(before);
    assert!(
        log.contains("its template is of no use") && log.contains("checksum"),
        "{log}"
    );
    wait_for_templates();
    assert!(run("true").1);
    host.assert_clean();
}

#[test]
fn a_maker_that_is_killed_leaves_nothing_that_is_used() {
    let host = Host::take();
    let _templates = Templates::on();
    template(&["delete", "--all"]);
    let mut maker = Command::new("sealock")
        .args(["template", "create"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    // Until it writes.
    let written = || {
        fs::read_dir(STORE)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| fs::metadata(entry.path().join("memory")).is_ok_and(|memory| memory.len() > 0))
    };
    while !written() {
        assert!(Instant::now() < deadline && maker.try_wait().unwrap().is_none());
        thread::sleep(Duration::from_millis(5));
    }
    maker.kill().unwrap();
    maker.wait().unwrap();
    while !pids_of("sealock-vmm").is_empty() {
        assert!(Instant::now() < deadline, "its machine lives on");
        thread::sleep(Duration::from_millis(20));
    }
    assert!(!run("true").1);
    wait_for_templates();
    let left: Vec<_> = fs::read_dir(STORE)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(run("true").1);
    host.assert_clean();
}

#[test]
fn ten_at_once_make_one_template_and_are_all_restored_from_it() {
    let host = Host::take_for(Duration::from_secs(600));
    let _templates = Templates::on();
    for restored in [false, true] {
        let before = log_length();
        let children: Vec<_> = (0..10)
            .map(|_| Run::busybox(Runtime::Sealock, &["true"]).spawn())
            .collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", story(&output));
        }
        if restored {
            assert_eq!(logged(before).matches("vmm_restored").count(), 10);
        }
        wait_for_templates();
        the_template();
    }
    host.assert_clean();
}

#[test]
fn a_template_serves_pods_with_more_processors() {
    let host = Host::take();
    let _templates = Templates::on();
    template(&["create"]);
    let before = log_length();
    let output = Run::busybox(Runtime::Sealock, &["nproc"])
        .flag(&["--annotation", "io.sealock.vcpus=2"])
        .output();
    assert_eq!(text(&output.stdout).trim(), "2", "{}", story(&output));
    assert!(logged(before).contains("vmm_restored"));
    host.assert_clean();
}
