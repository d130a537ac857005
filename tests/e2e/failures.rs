//! Every failure is one clear line that names the cause and the remedy, and leaves nothing.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use sealock_tests::ctr::{Run, Runtime};

use crate::{Host, story, text};

const CONFIG: &str = "/etc/sealock/config.toml";
const SHARE: &str = "/usr/local/share/sealock";

/// Puts a file's former content back at the end of a test.
struct Changed {
    path: PathBuf,
    before: Vec<u8>,
}

impl Changed {
    fn append(path: &str, text: &str) -> Self {
        let before = fs::read(path).unwrap();
        let mut after = before.clone();
        after.extend_from_slice(text.as_bytes());
        Self::write(path, before, &after)
    }

    fn replace(path: &str, after: &[u8]) -> Self {
        let before = fs::read(path).unwrap();
        Self::write(path, before, after)
    }

    fn write(path: &str, before: Vec<u8>, after: &[u8]) -> Self {
        fs::write(path, after).unwrap();
        Self {
            path: path.into(),
            before,
        }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).unwrap();
    }
}

/// A container is refused with one line that holds all of these, and nothing is left.
fn refused(host: &Host, run: &Run, parts: &[&str]) {
    let output = run.output();
    assert!(!output.status.success(), "{}", story(&output));
    let said = text(&output.stderr);
    let line = said.lines().find(|line| line.contains(parts[0]));
    let line = line.unwrap_or_else(|| panic!("no {:?} in: {said}", parts[0]));
    for part in parts {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
    host.before.assert_gone();
}

pub(crate) fn any() -> Run {
    Run::busybox(Runtime::Sealock, &["true"])
}

/// After whatever went wrong, the next container runs.
pub(crate) fn works_again(host: Host) {
    let output = any().output();
    assert!(output.status.success(), "{}", story(&output));
    host.assert_clean();
}

#[test]
fn a_host_without_kvm() {
    let host = Host::take();
    fs::rename("/dev/kvm", "/dev/kvm.away").unwrap();
    let result = std::panic::catch_unwind(|| refused(&host, &any(), &["/dev/kvm does not exist", "kvm-amd"]));
    fs::rename("/dev/kvm.away", "/dev/kvm").unwrap();
    result.unwrap();
    works_again(host);
}

#[test]
fn a_kvm_without_hardware_behind_it() {
    let host = Host::take();
    let without: String = fs::read_to_string("/proc/cpuinfo")
        .unwrap()
        .replace(" svm", "")
        .replace(" vmx", "");
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(without.as_bytes()).unwrap();
    let mount = |words: &[&str]| {
        assert!(
            Command::new(words[0])
                .args(&words[1..])
                .status()
                .unwrap()
                .success()
        )
    };
    mount(&["mount", "--bind", file.path().to_str().unwrap(), "/proc/cpuinfo"]);
    let inner = std::panic::catch_unwind(|| {
        let output = any().output();
        assert!(!output.status.success(), "{}", story(&output));
        let said = text(&output.stderr);
        assert!(said.contains("svm") && said.contains("virtualization"), "{said}");
    });
    mount(&["umount", "/proc/cpuinfo"]);
    drop(file);
    inner.unwrap();
    works_again(host);
}

#[test]
fn a_missing_kernel_or_initramfs() {
    let host = Host::take();
    for (name, called) in [("vmlinux", "kernel"), ("initramfs", "initramfs")] {
        let path = format!("{SHARE}/{name}");
        let away = format!("{SHARE}/{name}.away");
        fs::rename(&path, &away).unwrap();
        let result = std::panic::catch_unwind(|| refused(&host, &any(), &[&path, called]));
        fs::rename(&away, &path).unwrap();
        result.unwrap();
    }
    works_again(host);
}

#[test]
fn a_truncated_kernel_or_initramfs() {
    let host = Host::take();
    for (name, called) in [("vmlinux", "kernel"), ("initramfs", "initramfs")] {
        let path = format!("{SHARE}/{name}");
        let whole = fs::read(&path).unwrap();
        for length in [0, 100, whole.len() / 2] {
            let _changed = Changed::replace(&path, &whole[..length]);
            refused(
                &host,
                &any(),
                &["the pod did not start", called, "reinstall Sealock"],
            );
        }
    }
    works_again(host);
}

#[test]
fn a_malformed_configuration() {
    let host = Host::take();
    {
        let _changed = Changed::append(CONFIG, "\nthis is not toml\n");
        refused(&host, &any(), &[CONFIG, "line"]);
    }
    {
        let _changed = Changed::append(CONFIG, "\n[nonesuch]\nkey = 1\n");
        refused(&host, &any(), &[CONFIG, "nonesuch"]);
    }
    works_again(host);
}

#[test]
fn too_little_memory_asked_for() {
    let host = Host::take();
    let run = any().flag(&["--annotation", "io.sealock.memory-mib=8"]);
    refused(&host, &run, &["io.sealock.memory-mib", "\"8\"", "from 64"]);
    {
        let _changed = Changed::append(CONFIG, "\nmemory_mib = 8\n");
        refused(&host, &any(), &[CONFIG, "memory_mib", "64"]);
    }
    works_again(host);
}

#[test]
fn a_root_that_does_not_exist() {
    let host = Host::take();
    let run = Run::rootfs(Runtime::Sealock, "/var/lib/nonesuch", &["/bin/true"]);
    refused(&host, &run, &["/var/lib/nonesuch"]);
    works_again(host);
}

#[test]
fn a_bundle_with_a_broken_specification() {
    let host = Host::take();
    let bundle = tempfile::tempdir_in("/run").unwrap();
    fs::write(bundle.path().join("config.json"), "{\"ociVersion\": 1,").unwrap();
    let output = Command::new("containerd-shim-sealock-v2")
        .args([
            "-namespace",
            "default",
            "-id",
            "broken",
            "-address",
            "/run/containerd/containerd.sock",
        ])
        .args(["-publish-binary", "/usr/bin/containerd", "start"])
        .current_dir(bundle.path())
        .output()
        .unwrap();
    assert!(!output.status.success(), "{}", story(&output));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("config.json") && said.contains("line 1"), "{said}");
    drop(bundle);
    works_again(host);
}

/// An initramfs whose init is this script, run by Debian's static busybox.
fn scripted_initramfs(script: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for name in ["bin", "dev"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let mut init = fs::File::create(root.join("init")).unwrap();
    write!(init, "#!/bin/busybox sh\n{script}\n").unwrap();
    fs::set_permissions(
        root.join("init"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    drop(init);
    let archive = Command::new("sh")
        .args(["-c", "find . | busybox cpio -o -H newc"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(archive.status.success(), "{}", story(&archive));
    archive.stdout
}

#[test]
fn an_agent_that_does_not_answer() {
    let host = Host::take();
    let initramfs = scripted_initramfs(
        "/bin/busybox mount -t devtmpfs dev /dev; echo the agent is asleep > /dev/console; exec /bin/busybox sleep 1000",
    );
    {
        let _initramfs = Changed::replace(&format!("{SHARE}/initramfs"), &initramfs);
        let _config = Changed::append(CONFIG, "\nagent_timeout_ms = 8000\n");
        refused(&host, &any(), &["agent did not answer within"]);
        let log = fs::read_to_string("/var/log/containerd.log").unwrap();
        assert!(
            log.contains("the agent is asleep"),
            "the console's tail is not in the log"
        );
    }
    works_again(host);
}

#[test]
fn a_kernel_that_panics() {
    let host = Host::take();
    let initramfs = scripted_initramfs("exit 1");
    {
        let _initramfs = Changed::replace(&format!("{SHARE}/initramfs"), &initramfs);
        refused(&host, &any(), &["panic"]);
        let log = fs::read_to_string("/var/log/containerd.log").unwrap();
        assert!(
            log.contains("Attempted to kill init"),
            "the kernel's last words are not in the log"
        );
    }
    works_again(host);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let host = Host::take();
    let run = any().flag(&["--net-host"]);
    refused(&host, &run, &["network"]);
    works_again(host);
}
