//! `process`, `linux` and `hooks` of the OCI specification, field by field: what a container's `config.json` says is so inside.

use sealock_tests::{
    config::Config,
    ctr::{Run, Runtime},
};
use serde_json::json;

use crate::{Host, exec::Idle, story, text};

/// What the container prints; it must end well.
pub fn says(host: &Host, config: &Config) -> String {
    let output = config.output(Runtime::Sealock);
    assert!(output.status.success(), "{}", story(&output));
    host.before.assert_gone();
    text(&output.stdout)
}

/// The container must print the same under runc and Sealock.
pub fn as_under_runc(host: &Host, config: &Config) -> String {
    let runc = config.output(Runtime::Runc);
    assert!(runc.status.success(), "{}", story(&runc));
    let sealock = says(host, config);
    assert_eq!(sealock, text(&runc.stdout));
    sealock
}

/// The container is refused with these words, and nothing is left.
pub fn refused(host: &Host, config: &Config, words: &str) {
    let output = config.output(Runtime::Sealock);
    assert!(!output.status.success(), "{}", story(&output));
    let said = text(&output.stderr);
    assert!(said.contains(words), "no {words:?} in: {said}");
    host.before.assert_gone();
}

#[test]
fn the_process_is_as_its_fields_say() {
    let host = Host::take();
    let config = Config::shell(
        "umask; id -u; id -g; id -G; pwd; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; uname -m; \
         grep -E '^(Cap|NoNewPrivs)' /proc/self/status; hostname; cat /proc/sys/kernel/domainname",
    )
    .with(
        "/process/user",
        json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [1001, 7, 4_000_000]}),
    )
    .with("/process/cwd", json!("/usr/share"))
    .with("/process/oomScoreAdj", json!(321))
    .with("/process/noNewPrivileges", json!(true))
    .with(
        "/process/rlimits",
        json!([{"type": "RLIMIT_NOFILE", "soft": 2000, "hard": 1_000_000}]),
    )
    .with(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_KILL"],
            "permitted": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
            "effective": ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"],
            "inheritable": ["CAP_NET_BIND_SERVICE"],
            "ambient": ["CAP_NET_BIND_SERVICE"],
        }),
    )
    .with("/linux/personality", json!({"domain": "LINUX32"}))
    .with("/hostname", json!("inside"))
    .with("/domainname", json!("example.org"));
    // Not beside runc: older ones know neither the personality nor the domain name.
    let said = says(&host, &config);
    assert!(
        said.starts_with("0027\n1000\n1001\n1001 7 4000000\n/usr/share\n2000\n1000000\n321\ni686\n"),
        "{said}"
    );
    assert!(said.ends_with("inside\nexample.org\n"), "{said}");
    host.assert_clean();
}

#[test]
fn scheduling_and_queueing_are_as_specified() {
    let host = Host::take();
    let config = Config::shell("chrt -p $$; nice; ionice -p $$")
        .with(
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "nice": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
        )
        .with(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
        );
    let said = says(&host, &config);
    assert!(said.contains("SCHED_BATCH"), "{said}");
    assert!(said.contains("best-effort: prio 6"), "{said}");
    let config = Config::shell("chrt -p $$; ionice -p $$")
        .with(
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 3}),
        )
        .with("/process/ioPriority", json!({"class": "IOPRIO_CLASS_IDLE"}));
    let said = says(&host, &config);
    assert!(
        said.contains("SCHED_FIFO") && said.contains("priority: 3") && said.contains("idle"),
        "{said}"
    );
    host.assert_clean();
}

#[test]
fn capabilities_that_cannot_be_granted_fail_nothing() {
    let host = Host::take();
    let config = Config::shell("grep -E '^Cap(Eff|Bnd)' /proc/self/status").with(
        "/process/capabilities",
        json!({"bounding": ["CAP_CHOWN", "CAP_FLY"], "permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN", "CAP_KILL"]}),
    );
    assert_eq!(
        says(&host, &config),
        "CapEff:\t0000000000000001\nCapBnd:\t0000000000000001\n"
    );
    host.assert_clean();
}

const SECCOMP_PROBE: &str = r#"
import ctypes, os, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    print(name, 'ok' if result >= 0 else errno.errorcode[ctypes.get_errno()], flush=True)
call('getpriority', 140, 0, 0)
call('mkdirat', 258, -100, b'/run/x', 0o755)
call('personality of queries', 135, 0xffffffff)
call('personality of 8', 135, 8)
call('socket of unix', 41, 1, 1, 0)
call('socket of inet', 41, 2, 1, 0)
call('newer', 1000)
print(open('/proc/self/status').read().split('Seccomp:')[1].split()[0])
"#;

fn seccomp(no_new_privileges: bool) -> Config {
    Config::program(&["/usr/bin/python3", "-c", SECCOMP_PROBE])
        .with("/process/noNewPrivileges", json!(no_new_privileges))
        .with(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": ["getpriority"], "action": "SCMP_ACT_ERRNO"},
                    {"names": ["mkdirat", "no_such_system_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                    {"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95,
                     "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97,
                     "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GT"}, {"index": 1, "value": 0xf, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]},
                ],
            }),
        )
}

#[test]
fn system_calls_are_filtered() {
    let host = Host::take();
    for no_new_privileges in [false, true] {
        let said = as_under_runc(&host, &seccomp(no_new_privileges));
        assert_eq!(
            said,
            "getpriority EPERM\nmkdirat ENOSPC\npersonality of queries ok\npersonality of 8 ENOTSUP\nsocket of unix ok\n\
             socket of inet EAFNOSUPPORT\nnewer ENOSYS\n2\n"
        );
    }
    host.assert_clean();
}

#[test]
fn a_system_call_may_be_deadly() {
    let host = Host::take();
    for (action, status) in [
        ("SCMP_ACT_KILL_PROCESS", 159),
        ("SCMP_ACT_KILL_THREAD", 159),
        ("SCMP_ACT_TRAP", 159),
    ] {
        let config = Config::shell("exec mkdir /run/x").with(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}]}),
        );
        let output = config.output(Runtime::Sealock);
        assert_eq!(output.status.code(), Some(status), "{action}: {}", story(&output));
    }
    host.assert_clean();
}

#[test]
fn a_list_of_allowed_system_calls_allows_no_other() {
    let host = Host::take();
    // What a shell needs to print two lines, and what it takes to get there: filters are loaded before the program is.
    let config = Config::shell("echo printed; mkdir /run/x 2>/dev/null || echo refused").with(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": [
                "access", "arch_prctl", "brk", "capget", "capset", "chdir", "clone", "clone3", "close", "close_range", "dup", "dup2",
                "dup3", "execve", "exit", "exit_group", "faccessat2", "fchdir", "fcntl", "fstat", "fstatfs", "openat2", "getdents", "epoll_wait", "timer_create", "timer_settime", "timer_delete", "madvise", "fchown", "getsockopt", "statx", "setresuid", "setresgid", "keyctl", "unlinkat", "mremap", "pidfd_open", "waitid", "pidfd_send_signal", "sysinfo", "kill", "tkill", "getpgrp", "fchmod", "futex", "getcwd", "getdents64",
                "getegid", "geteuid", "getgid", "getpid", "getppid", "getrandom", "getuid", "gettid", "ioctl", "lseek", "mmap",
                "mprotect", "munmap", "nanosleep", "newfstatat", "open", "openat", "epoll_create1", "epoll_ctl", "epoll_pwait",
                "eventfd2", "pipe2", "poll", "prctl", "pread64", "prlimit64", "read", "readlink", "recvmsg", "rseq", "rt_sigaction",
                "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "sendmsg", "set_robust_list",
                "set_tid_address", "setgid", "setgroups", "setuid", "sigaltstack", "stat", "statfs", "tgkill", "umask", "uname",
                "vfork", "wait4", "write", "writev"
            ], "action": "SCMP_ACT_ALLOW"}],
        }),
    );
    assert_eq!(says(&host, &config), "printed\nrefused\n");
    host.assert_clean();
}

#[test]
fn a_broken_filter_starts_nothing() {
    let host = Host::take();
    for (seccomp, words) in [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}),
            "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_WISH"}),
            "linux.seccomp.defaultAction: no such action",
        ),
    ] {
        refused(
            &host,
            &Config::shell("true").with("/linux/seccomp", seccomp),
            words,
        );
    }
    host.assert_clean();
}

#[test]
fn a_filter_that_lets_nothing_start_is_told() {
    let host = Host::take();
    // Neither the agent's last step before the program, nor its usual way of saying so.
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["capset", "sendmsg"], "action": "SCMP_ACT_ERRNO"}]});
    let config = Config::shell("true")
        .with("/process/noNewPrivileges", json!(false))
        .with("/linux/seccomp", seccomp);
    refused(&host, &config, "linux.seccomp: calling capset");
    host.assert_clean();
}

#[test]
fn clocks_can_be_elsewhere() {
    let host = Host::take();
    let config = Config::shell("cut -d. -f1 /proc/uptime; cat /proc/self/timens_offsets | tr -s ' '")
        .and("/linux/namespaces", json!({"type": "time"}))
        .with(
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 86_400, "nanosecs": 5}, "boottime": {"secs": 1_000_000}}),
        );
    let said = says(&host, &config);
    let mut lines = said.lines();
    let uptime: u64 = lines.next().unwrap().parse().unwrap();
    assert!(uptime >= 1_000_000, "{said}");
    assert_eq!(
        lines.collect::<Vec<_>>(),
        ["monotonic 86400 5", "boottime 1000000 0"]
    );
    host.assert_clean();
}

fn ranges(first: u32) -> serde_json::Value {
    json!([{"containerID": 0, "hostID": first, "size": 65536}])
}

fn in_user_namespace(script: &str) -> Config {
    Config::shell(script)
        .and("/linux/namespaces", json!({"type": "user"}))
        .with("/linux/uidMappings", ranges(100_000))
        .with("/linux/gidMappings", ranges(200_000))
}

#[test]
fn a_user_namespace_makes_root_somebody_else() {
    let host = Host::take();
    let config = in_user_namespace(
        "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; id -u; id -g; grep CapEff /proc/self/status; \
         stat -c %u:%g /usr /dev /dev/null /run; echo x > /dev/null && head -c3 /dev/zero | wc -c; \
         hostname; ls /sys/class/net; ulimit -n; cat /proc/self/oom_score_adj; mkdir /run/made && stat -c %u /run/made; \
         cat /proc/sys/kernel/msgmax /proc/sys/kernel/domainname /proc/sys/net/ipv4/tcp_fin_timeout; echo out > /dev/stdout; \
         awk '$5 == \"/proc\" || $5 == \"/sys\" || $5 == \"/dev/mqueue\" || $5 == \"/mnt\" {print $5}' /proc/self/mountinfo; \
         mknod /run/null c 1 3 2>/dev/null || echo no devices",
    )
    .and(
        "/mounts",
        json!({"destination": "/mnt", "type": "bind", "source": "/usr/local", "options": ["rbind", "ro"]}),
    )
    .with("/linux/sysctl", json!({"kernel.msgmax": "4321", "kernel.domainname": "there", "net.ipv4.tcp_fin_timeout": "7"}))
    .with("/hostname", json!("mapped"))
    .with("/process/oomScoreAdj", json!(-500))
    .with("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 500_000, "hard": 1_000_000}]));
    let said = says(&host, &config);
    let expected = " 0 100000 65536\n 0 200000 65536\n0\n0\nCapEff:\t00000000a80425fb\n\
         65534:65534\n0:0\n0:0\n0:0\n3\nmapped\nlo\n500000\n-500\n0\n4321\nthere\n7\nout\n";
    assert!(said.starts_with(expected), "{said}");
    for place in ["/proc", "/sys", "/dev/mqueue", "/mnt"] {
        assert!(said.contains(&format!("\n{place}\n")), "{said}");
    }
    assert!(said.ends_with("no devices\n"), "{said}");
    host.assert_clean();
}

#[test]
fn files_of_a_remapped_image_are_the_mapped_roots_and_so_is_what_joins() {
    let host = Host::take();
    let told = [Runtime::Runc, Runtime::Sealock].map(|runtime| {
        let idle = Idle::run(Run::busybox(runtime, &["sleep", "1000"]).flag(&[
            "--uidmap",
            "0:100000:65536",
            "--gidmap",
            "0:200000:65536",
        ]));
        let script = "tr -s ' ' < /proc/self/uid_map; stat -c %u:%g / /bin/busybox; echo mine > /file; stat -c %u:%g /file; \
             echo out > /dev/stdout; kill -0 1 && echo of one";
        let joined = idle.exec(&[], &["sh", "-c", script]);
        let other = idle.exec(&["--user", "1000:1000"], &["sh", "-c", "id -u; stat -c %u /proc/self; echo x > /dev/null && echo gone"]);
        assert!(joined.status.success(), "{}", story(&joined));
        assert!(other.status.success(), "{}", story(&other));
        (text(&joined.stdout), text(&other.stdout))
    });
    assert_eq!(told[0], told[1]);
    assert_eq!(told[1].0, " 0 100000 65536\n0:0\n0:0\n0:0\nout\nof one\n");
    host.assert_clean();
}

#[test]
fn kernel_parameters_of_the_containers_namespaces_are_set() {
    let host = Host::take();
    let config = Config::shell(
        "cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_local_port_range /proc/sys/fs/mqueue/msg_max \
         /proc/sys/net/ipv4/ping_group_range",
    )
    .with(
        "/linux/sysctl",
        json!({"kernel.msgmax": "9000", "net.ipv4.ip_local_port_range": "2000 3000", "fs.mqueue.msg_max": "20",
            "net/ipv4/ping_group_range": "0 5"}),
    );
    as_under_runc(&host, &config);
    refused(
        &host,
        &Config::shell("true").with("/linux/sysctl", json!({"kernel.panic": "1"})),
        r#"linux.sysctl["kernel.panic"]: is not a parameter of a namespace"#,
    );
    host.assert_clean();
}

#[test]
fn device_nodes_are_made_as_asked_for() {
    let host = Host::take();
    let devices = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/some/where/disk", "type": "b", "major": 7, "minor": 3},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o600},
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o444},
    ]);
    let config = Config::shell(
        "stat -c '%n %F %t:%T %a %u:%g' /dev/fuse /dev/some/where/disk /dev/fifo /dev/null /dev/zero; \
         readlink /dev/ptmx /dev/fd; head -c1 /dev/urandom | wc -c",
    )
    .with("/linux/devices", devices);
    as_under_runc(&host, &config);
    host.assert_clean();
}

#[test]
fn device_nodes_are_made_in_a_bound_dev_too_and_not_on_the_host() {
    let host = Host::take();
    let dev = tempfile::tempdir_in("/var/lib").unwrap();
    let mut config = Config::shell("ls /dev; head -c2 /dev/given | wc -c; stat -c '%t:%T %a' /dev/given")
        .with(
            "/linux/devices",
            json!([{"path": "/dev/given", "type": "c", "major": 1, "minor": 5, "fileMode": 0o600}]),
        )
        .and(
            "/linux/resources/devices",
            json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"}),
        );
    config.0["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "bind", "source": dev.path(), "options": ["rbind", "rw"]},
    ]);
    assert_eq!(says(&host, &config), "given\n2\n1:5 600\n");
    let left = std::fs::metadata(dev.path().join("given")).unwrap();
    assert!(left.is_file(), "{left:?}");
    host.assert_clean();
}

#[test]
fn what_a_microvm_cannot_do_is_refused_by_name() {
    let host = Host::take();
    for (pointer, value, words) in [
        (
            "/linux/intelRdt",
            json!({"closID": "x"}),
            "linux.intelRdt is not supported",
        ),
        (
            "/process/selinuxLabel",
            json!("x"),
            "process.selinuxLabel is not supported: the guest has no SELinux",
        ),
        (
            "/process/apparmorProfile",
            json!("mine"),
            "process.apparmorProfile: \"mine\" can't be applied",
        ),
    ] {
        refused(&host, &Config::shell("true").with(pointer, value), words);
    }
    host.assert_clean();
}

#[test]
fn hooks_of_the_guest_run_and_may_fail() {
    let host = Host::take();
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["KIND=given"], "timeout": 100}]);
    let config = Config::shell("cat /run/created /run/started")
        .with(
            "/hooks/createContainer",
            hook("read state; echo \"$KIND $HOME $state\" > /run/created"),
        )
        .with(
            "/hooks/startContainer",
            hook("read state; echo \"$KIND $(id -u) $state\" > /run/started"),
        )
        .with("/annotations", json!({"colour": "green"}));
    let said = says(&host, &config);
    let states: Vec<serde_json::Value> = said
        .lines()
        .map(|line| serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap())
        .collect();
    assert!(
        said.starts_with("given  {") && said.contains("given 0 {"),
        "{said}"
    );
    for (state, status) in states.iter().zip(["creating", "created"]) {
        assert_eq!(state["status"], status);
        assert_eq!(state["pid"], 1);
        assert_eq!(state["annotations"]["colour"], "green");
        assert!(
            state["id"].as_str().is_some_and(|id| id.starts_with('t')),
            "{state}"
        );
    }
    let failing = |kind: &str| {
        Config::shell("echo ran").with(&format!("/hooks/{kind}"), hook("echo no way >&2; exit 3"))
    };
    for kind in ["createContainer", "startContainer"] {
        refused(
            &host,
            &failing(kind),
            &format!("hooks.{kind}[0]: /bin/sh ended with status 3: no way"),
        );
    }
    host.assert_clean();
}
