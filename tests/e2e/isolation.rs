//! What the container sees: a kernel, namespaces and limits of its own, as its specification says.

use sealock_tests::ctr::{Run, Runtime};

use crate::{Host, story, text};

fn inside(flags: &[&str], script: &str) -> String {
    let host = Host::take();
    let output = Run::busybox(Runtime::Sealock, &["sh", "-c", script])
        .flag(flags)
        .output();
    assert!(output.status.success(), "{}", story(&output));
    host.assert_clean();
    text(&output.stdout)
}

/// The same script must print the same under runc and Sealock.
fn as_under_runc(flags: &[&str], script: &str) {
    let host = Host::take();
    let runc = Run::busybox(Runtime::Runc, &["sh", "-c", script])
        .flag(flags)
        .output();
    let sealock = Run::busybox(Runtime::Sealock, &["sh", "-c", script])
        .flag(flags)
        .output();
    assert!(runc.status.success(), "{}", story(&runc));
    assert_eq!(text(&sealock.stdout), text(&runc.stdout), "{}", story(&sealock));
    host.assert_clean();
}

#[test]
fn the_kernel_is_the_guests() {
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let guest = inside(&[], "uname -r");
    assert_ne!(guest, host);
}

#[test]
fn the_container_is_process_1_among_its_own() {
    // The shell counts by itself: programs of a pipeline may or may not see each other.
    as_under_runc(&[], "echo $$; set -- /proc/[0-9]*; echo $#");
}

#[test]
fn capabilities_and_privileges_are_as_specified() {
    as_under_runc(&[], "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
    as_under_runc(
        &["--privileged"],
        "grep -E '^(CapBnd|NoNewPrivs)' /proc/self/status | wc -l",
    );
}

#[test]
fn the_default_seccomp_profile_applies() {
    as_under_runc(
        &["--seccomp"],
        "grep ^Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo refused",
    );
}

#[test]
fn user_and_groups_are_as_specified() {
    as_under_runc(
        &["--user", "1000:1001"],
        "id; grep -E '^(Uid|Gid|Groups)' /proc/self/status",
    );
}

#[test]
fn environment_directory_and_limits_are_as_specified() {
    as_under_runc(
        &["--env", "COLOUR=green", "--cwd", "/usr"],
        "pwd; echo $COLOUR $PATH; ulimit -n",
    );
}

#[test]
fn device_nodes_are_the_default_ones() {
    as_under_runc(
        &[],
        "cd /dev && ls -l null zero full random urandom tty | cut -c1-10,30-60 | awk '{print $1}'; ls /dev | grep -v core; for link in fd stdin stdout stderr ptmx; do readlink $link; done",
    );
}

#[test]
fn mounts_are_those_of_the_specification() {
    as_under_runc(
        &[],
        "awk '{print $2, $3}' /proc/mounts | grep -v '^/ ' | grep -vE '^/proc/|^/sys/firmware' | sort",
    );
}

#[test]
fn a_read_only_root_is_read_only() {
    let said = inside(
        &["--read-only"],
        "touch /x 2>&1 || true; touch /dev/shm/x && echo shm",
    );
    assert!(
        said.contains("Read-only file system") && said.ends_with("shm\n"),
        "{said}"
    );
}

#[test]
fn masked_and_read_only_paths_are() {
    let said = inside(
        &[],
        "cat /proc/kcore 2>/dev/null | wc -c; ls /proc/scsi /sys/firmware 2>/dev/null | grep -v : | wc -w; echo 1 > /proc/sys/kernel/panic 2>&1 || true; echo b > /proc/sysrq-trigger || true",
    );
    assert!(said.starts_with("0\n0\n"), "{said}");
}

#[test]
fn devices_that_are_not_allowed_cannot_be_opened() {
    let said = inside(
        &[],
        "mknod /tmp/mem c 1 1 2>&1 && cat /tmp/mem 2>&1; mknod /kmsg c 1 11; head -c1 /kmsg 2>&1; head -c1 /dev/zero | wc -c",
    );
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(said.ends_with("1\n"), "{said}");
}

#[test]
fn cgroup_limits_apply() {
    let said = inside(
        &[
            "--memory-limit",
            "67108864",
            "--cpus",
            "0.5",
            "--mount",
            "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro",
        ],
        "cd /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup); cat memory.max cpu.max",
    );
    assert_eq!(said, "67108864\n50000 100000\n");
}

#[test]
fn memory_over_the_limit_is_killed() {
    let host = Host::take();
    let output = Run::busybox(
        Runtime::Sealock,
        &[
            "sh",
            "-c",
            "head -c 100000000 /dev/zero | tail -c 99999999 | wc -c; echo survived",
        ],
    )
    .flag(&["--memory-limit", "33554432"])
    .output();
    assert!(!text(&output.stdout).contains("99999999"), "{}", story(&output));
    host.assert_clean();
}

#[test]
fn a_host_directory_can_be_bound_in() {
    let directory = tempfile::tempdir_in("/var/lib").unwrap();
    std::fs::write(directory.path().join("given"), "from the host\n").unwrap();
    let source = directory.path().display();
    let said = inside(
        &[
            "--mount",
            &format!("type=bind,src={source},dst=/given,options=rbind:rw"),
        ],
        "cat /given/given; echo from the guest > /given/taken",
    );
    assert_eq!(said, "from the host\n");
    let taken = std::fs::read_to_string(directory.path().join("taken")).unwrap();
    assert_eq!(taken, "from the guest\n");
    let said = inside(
        &[
            "--mount",
            &format!("type=bind,src={source}/given,dst=/etc/given,options=bind:ro"),
        ],
        "cat /etc/given; echo x 2>&1 > /etc/given || echo refused",
    );
    assert!(
        said.starts_with("from the host\n") && said.ends_with("refused\n"),
        "{said}"
    );
}

#[test]
fn several_processors_come_up() {
    let said = inside(&["--cpus", "2"], "grep -c ^processor /proc/cpuinfo");
    assert_eq!(said, "2\n");
}

#[test]
fn the_network_is_an_empty_one() {
    assert_eq!(
        inside(
            &[],
            "ls /sys/class/net; ping -c1 -W5 127.0.0.1 | grep -c 'bytes from'"
        ),
        "lo\n1\n"
    );
}

#[test]
fn random_numbers_differ_between_guests() {
    let script = "head -c16 /dev/urandom | hexdump; cat /proc/sys/kernel/random/boot_id";
    assert_ne!(inside(&[], script), inside(&[], script));
}

#[test]
fn the_clock_is_the_hosts() {
    let guest: u64 = inside(&[], "date +%s").trim().parse().unwrap();
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    assert!(host.abs_diff(guest) < 60, "{host} {guest}");
}
