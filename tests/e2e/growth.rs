//! Machines grow: CPUs come with limits, memory as it is used, and what is free goes back to the host.

use std::{
    thread,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    api::{Empty, UpdateTaskRequest},
    protobuf::well_known_types::any::Any,
};
use sealock_tests::{
    ctr::{MINBASE, Run, Runtime},
    host::only_pid_of,
    memory::footprint,
    task::Shim,
};

use crate::{Host, exec::Idle, story, text};

/// The smallest machine, and one that may grow.
const SMALL: [&str; 4] = [
    "--annotation",
    "io.sealock.memory-mib=64",
    "--annotation",
    "io.sealock.max-memory-mib=2048",
];

/// A program that holds so many MiB at once, and then says so.
fn hold(mib: u32) -> String {
    format!("held = [b'x' * (1 << 20) for _ in range({mib})]; print('held', len(held))")
}

fn python(program: &str) -> Run {
    Run::rootfs(Runtime::Sealock, MINBASE, &["/usr/bin/python3", "-c", program])
}

/// The guest's memory in MiB, by its own count.
fn total(idle: &Idle) -> u64 {
    let meminfo = idle.exec(&[], &["head", "-n1", "/proc/meminfo"]);
    let line = text(&meminfo.stdout);
    let kib = line.split_ascii_whitespace().nth(1);
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .unwrap_or_else(|| panic!("{}", story(&meminfo)))
        / 1024
}

fn processors(idle: &Idle) -> String {
    text(&idle.exec(&[], &["nproc"]).stdout).trim().to_owned()
}

fn update(idle: &Idle, resources: &str) {
    let mut request = UpdateTaskRequest::new();
    idle.id().clone_into(&mut request.id);
    let mut any = Any::new();
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".clone_into(&mut any.type_url);
    any.value = resources.as_bytes().to_vec();
    request.resources = Some(any).into();
    Shim::of(idle.id()).call::<_, Empty>("Update", &request).unwrap();
}

/// The resident part of the one machine's memory, in MiB.
fn resident() -> u64 {
    footprint(only_pid_of("sealock-vmm")).unwrap().pss_of_guest / 1024
}

#[test]
fn a_program_finds_the_processors_of_its_pod_from_the_first() {
    let host = Host::take();
    for count in ["1", "2"] {
        let output = Run::busybox(Runtime::Sealock, &["nproc"])
            .flag(&["--annotation", &format!("io.sealock.vcpus={count}")])
            .output();
        assert_eq!(text(&output.stdout).trim(), count, "{}", story(&output));
    }
    host.assert_clean();
}

#[test]
fn a_program_that_takes_a_gibibyte_as_fast_as_it_can_gets_it() {
    let host = Host::take();
    // In pieces, and in one piece that is larger than what there is of the machine so far.
    let whole = "held = bytearray(1 << 30)
for page in range(0, 1 << 30, 4096): held[page] = 1
print('held', len(held) >> 20)";
    for program in [hold(1024).as_str(), whole] {
        let output = python(program).flag(&SMALL).output();
        assert_eq!(text(&output.stdout).trim(), "held 1024", "{}", story(&output));
    }
    host.assert_clean();
}

#[test]
fn a_machine_that_may_grow_no_further_kills_who_takes_too_much_and_goes_on() {
    let host = Host::take();
    let script = format!("/usr/bin/python3 -c \"{}\"; echo $?", hold(512));
    let fixed = ["--annotation", "io.sealock.memory-mib=128"];
    let growing = [
        SMALL[0],
        SMALL[1],
        "--annotation",
        "io.sealock.max-memory-mib=192",
    ];
    for size in [&fixed[..], &growing[..]] {
        let output = Run::rootfs(Runtime::Sealock, MINBASE, &["/bin/sh", "-c", &script])
            .flag(size)
            .output();
        assert!(output.status.success(), "{}", story(&output));
        assert!(text(&output.stdout).trim().ends_with("137"), "{}", story(&output));
    }
    host.assert_clean();
}

#[test]
fn a_thousand_processes_at_once_make_a_small_machine_grow() {
    let host = Host::take();
    let script = "p='echo through'; for i in $(seq 1000); do p=\"$p | cat\"; done; eval \"$p\"";
    let output = Run::busybox(Runtime::Sealock, &["sh", "-c", script])
        .flag(&SMALL)
        .output();
    assert_eq!(text(&output.stdout), "through\n", "{}", story(&output));
    host.assert_clean();
}

#[test]
fn a_container_over_its_own_limit_is_killed_whatever_its_machine_could_become() {
    let host = Host::take();
    let limit = (64 << 20).to_string();
    let output = python(&hold(256)).flag(&["--memory-limit", &limit]).output();
    assert_eq!(output.status.code(), Some(137), "{}", story(&output));
    assert_eq!(text(&output.stdout), "");
    host.assert_clean();
}

#[test]
fn raised_limits_are_there_when_the_update_is() {
    let host = Host::take();
    let idle = Idle::run(Run::busybox(Runtime::Sealock, &["sleep", "1000"]).flag(&SMALL));
    assert_eq!(processors(&idle), "1");
    let before = total(&idle);
    assert!(before < 64, "{before}");
    update(
        &idle,
        r#"{"memory": {"limit": 734003200}, "cpu": {"quota": 150000, "period": 100000}}"#,
    );
    assert_eq!(processors(&idle), "2");
    let after = total(&idle);
    assert!(after >= 700, "{after}");
    drop(idle);
    host.assert_clean();
}

#[test]
fn memory_that_was_freed_goes_back_to_the_host() {
    /// The guest reports what it has free in rounds of two seconds; the lab is slow.
    const PATIENCE: Duration = Duration::from_secs(120);
    let host = Host::take();
    let run = Run::rootfs(Runtime::Sealock, MINBASE, &["/bin/sleep", "1000"]);
    let idle = Idle::run(run.flag(&SMALL));
    let before = resident();
    let filled = idle.exec(&[], &["/usr/bin/python3", "-c", &hold(400)]);
    assert_eq!(text(&filled.stdout).trim(), "held 400", "{}", story(&filled));
    let held = resident();
    // The first reports may have come by now.
    assert!(held > before + 64, "{before} MiB before, {held} then");
    let deadline = Instant::now() + PATIENCE;
    let mut after = resident();
    while after > before + (held - before) / 2 && Instant::now() < deadline {
        thread::sleep(Duration::from_secs(1));
        after = resident();
    }
    assert!(
        after <= before + (held - before) / 2,
        "{before} MiB before, {held} held, {after} after"
    );
    drop(idle);
    host.assert_clean();
}
