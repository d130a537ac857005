//! Broken `config.json` files, made from whole ones: fields dropped, doubled, of another type, too large. The same number
//! makes the same file everywhere.

use serde_json::{Value, json};

/// What a container of these specifications runs: prints what it finds of its fields, these files' among them. A shell's own commands
/// and then one program, so that few system calls, no second process and no environment are needed. It fails where a file isn't
/// there.
fn show(files: &[&str]) -> String {
    let files = files.join(" ");
    format!(
        "echo port $KUBERNETES_SERVICE_PORT; echo -n 'nofile '; ulimit -n; echo -n 'cwd '; pwd; \
        exec /usr/bin/head -n 99 /proc/self/status /proc/self/oom_score_adj /proc/sys/kernel/hostname /proc/self/mounts {files}"
    )
}

/// A specification with something wrong in it.
#[derive(Clone, Debug)]
pub struct Variant {
    /// What was done to which field.
    pub change: String,
    /// The specification.
    pub spec: Value,
}

/// splitmix64: a small generator whose numbers are the same in every version of it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

/// How many fields `base` has. As many of its first variants change each of them once.
#[must_use]
pub fn fields(base: &Value) -> u64 {
    Pointers::of(base).fields.len() as u64
}

/// The variant of `base` with this number: of the field with this number, or of any.
///
/// # Panics
/// `base` is not an object.
#[must_use]
pub fn variant(base: &Value, number: u64) -> Variant {
    let mut random = Random(number);
    let mut spec = base.clone();
    let Pointers { fields, more } = Pointers::of(base);
    let all = [fields, more].concat();
    let any = random.below(all.len());
    let one = usize::try_from(number).unwrap_or(any);
    let pointer = all.get(one).unwrap_or(&all[any]).clone();
    let (parent, name) = pointer.rsplit_once('/').expect("every field has a parent");
    let change = match random.below(5) {
        0 => {
            remove(&mut spec, parent, name);
            "dropped"
        }
        1 => {
            double(&mut spec, parent, name);
            "doubled"
        }
        2 => {
            let large = too_large(&mut random);
            replace(&mut spec, &pointer, large);
            "too large"
        }
        _ => {
            let other = other(&mut random);
            replace(&mut spec, &pointer, other);
            "of another type"
        }
    };
    Variant {
        change: format!("{number}: {pointer} {change}"),
        spec,
    }
}

/// Everything that there is in a specification, by JSON pointers (RFC 6901).
#[derive(Default)]
struct Pointers {
    /// Fields, and items of lists.
    fields: Vec<String>,
    /// What there is more of in lists of texts and numbers than the first.
    more: Vec<String>,
}

impl Pointers {
    fn of(spec: &Value) -> Self {
        let mut pointers = Self::default();
        pointers.add_below(spec, "");
        pointers
    }

    fn add_below(&mut self, value: &Value, pointer: &str) {
        match value {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    let pointer = format!("{pointer}/{name}");
                    self.add_below(field, &pointer);
                    self.fields.push(pointer);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let pointer = format!("{pointer}/{index}");
                    self.add_below(item, &pointer);
                    if index == 0 || item.is_object() || item.is_array() {
                        self.fields.push(pointer);
                    } else {
                        self.more.push(pointer);
                    }
                }
            }
            _ => {}
        }
    }
}

fn plain(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

fn remove(spec: &mut Value, parent: &str, name: &str) {
    match spec.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            fields.remove(&plain(name));
        }
        Some(Value::Array(items)) => {
            items.remove(name.parse().unwrap_or(0));
        }
        _ => {}
    }
}

fn double(spec: &mut Value, parent: &str, name: &str) {
    match spec.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            let name = plain(name);
            let copy = fields[&name].clone();
            fields.insert(format!("{name}2"), copy);
        }
        Some(Value::Array(items)) => {
            let copy = items[name.parse().unwrap_or(0)].clone();
            items.push(copy);
        }
        _ => {}
    }
}

fn replace(spec: &mut Value, pointer: &str, value: Value) {
    if let Some(place) = spec.pointer_mut(pointer) {
        *place = value;
    }
}

fn other(random: &mut Random) -> Value {
    let all = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e300),
        json!(0.5),
        json!(""),
        json!("x"),
        json!("\0"),
        json!("../../../../etc"),
        json!("/proc/self/exe"),
        json!("\u{202e}\n\"'"),
        json!([]),
        json!([null]),
        json!(["x", "x"]),
        json!({}),
        json!({"x": {"y": [1]}}),
    ];
    all[random.below(all.len())].clone()
}

fn too_large(random: &mut Random) -> Value {
    match random.below(5) {
        0 => json!("x".repeat(200_000)),
        1 => json!("/d".repeat(5_000)),
        2 => json!(vec!["RLIMIT_AS"; 5_000]),
        3 => json!(vec![
            json!({"type": "bind", "destination": "/x", "source": "/usr"});
            500
        ]),
        _ => {
            let mut deep = json!(1);
            for _ in 0..100 {
                deep = json!([deep]);
            }
            deep
        }
    }
}

/// The first word of a message's path, `linux` of `linux.namespaces[0].type: …`.
#[must_use]
pub fn first_word(message: &str) -> &str {
    message
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .next()
        .unwrap_or_default()
}

/// The names of a specification's fields at the top.
#[must_use]
pub fn names(spec: &Value) -> Vec<String> {
    let fields = spec.as_object();
    fields
        .into_iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .collect()
}

/// A specification as containerd's Kubernetes plugin writes it for a container of a pod whose pause container is process
/// `pod_pid`. Files to be bound into it are below `files`, an existing directory.
#[must_use]
pub fn kubernetes(files: &str, pod_pid: u32) -> Value {
    let bind = |destination: &str, name: &str| {
        json!({"destination": destination, "type": "bind", "source": format!("{files}/{name}"),
            "options": ["rbind", "rprivate", "rw"]})
    };
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE"
    ]);
    /// What the programs need that are run.
    const SYSTEM_CALLS: &str = "access arch_prctl brk close dup2 execve exit_group fadvise64 fcntl fstat getcwd getegid \
        geteuid getgid getpid getppid getrandom getuid lseek mmap mprotect munmap newfstatat openat pread64 prlimit64 read \
        rseq rt_sigaction rt_sigprocmask set_robust_list set_tid_address stat write";
    let system_calls: Vec<_> = SYSTEM_CALLS.split(' ').collect();
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 1000, "gid": 3000, "additionalGids": [2000, 3000]},
            "args": ["/bin/sh", "-c", show(&["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/memory.max"])],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web-0",
                "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_HOST=10.96.0.1"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "oomScoreAdj": 999,
            "noNewPrivileges": true,
            "apparmorProfile": "cri-containerd.apparmor.d",
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            bind("/etc/hosts", "hosts"),
            bind("/etc/hostname", "hostname"),
            bind("/etc/resolv.conf", "resolv.conf"),
            bind("/var/data", "data"),
        ],
        "annotations": {
            "io.kubernetes.cri.container-name": "web",
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.image-name": "docker.io/library/busybox:latest",
            "io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.sandbox-namespace": "default",
        },
        "linux": {
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 67_108_864, "swap": 67_108_864, "disableOOMKiller": false},
                "cpu": {"shares": 102, "quota": 100_000, "period": 100_000},
                "pids": {"limit": 100},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}],
                "unified": {"memory.oom.group": "1"},
            },
            "cgroupsPath": "/kubepods/burstable/pod42/c1",
            "sysctl": {"net.ipv4.ping_group_range": "0 2147483647"},
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc", "path": format!("/proc/{pod_pid}/ns/ipc")},
                {"type": "uts", "path": format!("/proc/{pod_pid}/ns/uts")},
                {"type": "mount"},
                {"type": "network", "path": format!("/proc/{pod_pid}/ns/net")},
                {"type": "cgroup"},
            ],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [
                    {"names": system_calls, "action": "SCMP_ACT_ALLOW"},
                    {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                        "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                ],
            },
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// A specification as `ctr run` writes it, of the many fields that a user may add.
#[must_use]
pub fn plain_container(rootfs: &str) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 10]},
            "args": ["/bin/sh", "-c", show(&[])],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        },
        "root": {"path": rootfs},
        "hostname": "one",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "hooks": {"startContainer": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 10}]},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}],
                "blockIO": {"weight": 100}},
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}],
            "cgroupsPath": "/default/one",
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1000}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1000}],
            "timeOffsets": {"boottime": {"secs": 5, "nanosecs": 7}},
            "personality": {"domain": "LINUX"},
            "rootfsPropagation": "slave",
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"},
                {"type": "user"}, {"type": "time"}],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

/// A specification as containerd's Kubernetes plugin writes it for the container that a pod named `id` is named after. Its network is the
/// namespace at `netns`.
#[must_use]
pub fn pause(id: &str, netns: &str) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 65535, "gid": 65535, "additionalGids": [65535]},
            "args": ["/pause"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
            "noNewPrivileges": true,
            "oomScoreAdj": -998,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "web-0",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
                "options": ["rbind", "ro", "nosuid", "nodev", "noexec"]},
        ],
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": id,
            "io.kubernetes.cri.sandbox-name": "web-0",
            "io.kubernetes.cri.sandbox-namespace": "default",
            "io.kubernetes.cri.sandbox-cpu-period": "100000",
            "io.kubernetes.cri.sandbox-cpu-quota": "100000",
            "io.kubernetes.cri.sandbox-memory": "67108864",
        },
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}},
            "cgroupsPath": format!("/default/{id}"),
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            "namespaces": [
                {"type": "pid"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "mount"},
                {"type": "network", "path": netns},
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore"],
            "readonlyPaths": ["/proc/bus", "/proc/sys"],
        },
    })
}
