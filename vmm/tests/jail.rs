//! What code in the monitor could do, if the guest had taken it over. Needs root, as the program does.
//!
//! Each attempt is made by a child process that has gone through the very jail, or has the very filter of a kind of thread.

#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    ptr,
};

use sealock_jail::intruder::{self, Call, End, address, bits, in_child, one, open, raised};
use sealock_vmm::{jail, thread::Thread};

/// What must fail in this jail beside what must in any.
fn attempts() -> Vec<(&'static str, Call)> {
    let here = bits(libc::AT_FDCWD);
    vec![
        ("open KVM", open(c"/dev/kvm", libc::O_RDWR)),
        ("name a file above", open(c"/../../etc", libc::O_PATH)),
        ("make a file", open(c"/new", libc::O_CREAT | libc::O_WRONLY)),
        (
            "make a directory",
            (libc::SYS_mkdirat, [here, address(c"/new"), 0o700, 0, 0, 0]),
        ),
        (
            "make a device",
            (libc::SYS_mknodat, [here, address(c"/mem"), 0o20_600, 0x101, 0, 0]),
        ),
        (
            "make a link",
            (
                libc::SYS_symlinkat,
                [address(c"/etc"), here, address(c"/link"), 0, 0, 0],
            ),
        ),
        (
            "clone a mount",
            (libc::SYS_open_tree, [here, address(c"/"), 1, 0, 0, 0]),
        ),
        ("execute a program", one(libc::SYS_execve, address(c"/bin/sh"))),
        ("become root", one(libc::SYS_setresuid, 0)),
        ("join root's group", one(libc::SYS_setresgid, 0)),
        ("have groups", one(libc::SYS_setgroups, 0)),
        (
            "raise a limit",
            (
                libc::SYS_prlimit64,
                [0, libc::RLIMIT_CORE.into(), raised(), 0, 0, 0],
            ),
        ),
    ]
}

#[test]
fn code_in_the_monitor_reaches_nothing_even_without_its_filters() {
    // What others have: a socket without a file, a shared memory segment.
    let name = format!("sealock-jail-test-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&name).unwrap();
    // SAFETY: no memory is involved.
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o666) };
    assert!(segment >= 0);
    let host = std::process::id();
    let end = in_child(|| {
        // As the shim has it born.
        // SAFETY: no memory is involved.
        if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
            return 100;
        }
        let end = in_child(|| {
            if jail::leave_host().is_err() {
                return 101;
            }
            let user = 1_879_048_192;
            if let Err(error) = jail::renounce(user, user) {
                eprintln!("{error:?}");
                return 102;
            }
            let all = [intruder::attempts(host), attempts()].concat();
            let worked = intruder::first_that_works(all);
            if worked != 0 {
                return worked;
            }
            if UnixStream::connect_addr(&name).is_ok() {
                return 103;
            }
            // SAFETY: the segment is not used.
            if unsafe { libc::shmat(segment, ptr::null(), 0) }.addr() != usize::MAX {
                return 104;
            }
            // Not even the loopback interface is up.
            let sent = std::net::UdpSocket::bind("127.0.0.1:0")
                .and_then(|socket| socket.send_to(b"x", "127.0.0.1:9"));
            if sent.is_ok() {
                return 105;
            }
            0
        });
        match end {
            End::Status(status) => status,
            End::Signal(signal) => 128 + signal,
        }
    });
    // SAFETY: no memory is involved.
    unsafe { libc::shmctl(segment, libc::IPC_RMID, ptr::null_mut()) };
    assert_eq!(end, End::Status(0));
}

#[test]
fn descriptors_that_were_passed_by_mistake_are_closed() {
    let leaked = File::open("/").unwrap();
    let end = in_child(|| {
        // SAFETY: the child's other code uses no descriptor above 2.
        unsafe { sealock_jail::descriptors::close_inherited().unwrap() };
        // SAFETY: no memory is involved.
        i32::from(unsafe { libc::fcntl(leaked.as_raw_fd(), libc::F_GETFD) } >= 0)
    });
    assert_eq!(end, End::Status(0));
}

mod filter {
    use sealock_jail::intruder::Rules;
    use serde_json::Value;

    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/x86_64.json");

    fn rules(thread: Thread) -> Rules {
        let name = match thread {
            Thread::Main => "main",
            Thread::FsIo => "fs_io",
            other => other.name(),
        };
        intruder::rules(FILE, name)
    }

    fn filtered(thread: Thread, attempt: Call) -> End {
        intruder::filtered(thread.filter(), attempt)
    }

    #[test]
    fn whatever_it_does_not_list_ends_the_process() {
        for thread in Thread::ALL {
            for number in intruder::unlisted(&rules(thread)) {
                let end = filtered(thread, (number, [0; 6]));
                assert_eq!(end, End::Signal(libc::SIGSYS), "{thread:?}: {number}");
            }
        }
    }

    #[test]
    fn a_call_with_other_arguments_ends_the_process() {
        let executable = bits(libc::PROT_READ | libc::PROT_EXEC);
        let anonymous = bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let ioctl = |request: u64| (libc::SYS_ioctl, [bits(-1), request, 0, 0, 0, 0]);
        let clone = |flags| (libc::SYS_clone, [bits(flags | libc::SIGCHLD), 0, 0, 0, 0, 0]);
        let calls = [
            (
                "memory to execute",
                (libc::SYS_mmap, [0, 4096, executable, anonymous, bits(-1), 0]),
            ),
            (
                "memory made executable",
                (libc::SYS_mprotect, [0, 4096, executable, 0, 0, 0]),
            ),
            ("a process", clone(0)),
            ("a process that shares memory", clone(libc::CLONE_VM)),
            ("a user namespace", clone(libc::CLONE_NEWUSER)),
            ("typing into a terminal", ioctl(libc::TIOCSTI)),
            ("KVM_CREATE_VM", ioctl(0xae01)),
            ("KVM_SET_USER_MEMORY_REGION", ioctl(0x4020_ae46)),
            ("TUNSETIFF", ioctl(0x4004_54ca)),
            ("SIOCGIFCONF", ioctl(0x8912)),
            (
                "being looked into",
                (libc::SYS_prctl, [bits(libc::PR_SET_DUMPABLE), 1, 0, 0, 0, 0]),
            ),
            (
                "a signal for the end of another",
                (libc::SYS_prctl, [bits(libc::PR_SET_PDEATHSIG), 0, 0, 0, 0, 0]),
            ),
            (
                "signals by descriptors",
                (libc::SYS_fcntl, [0, bits(libc::F_SETOWN), 1, 0, 0, 0]),
            ),
            ("locks", (libc::SYS_fcntl, [0, bits(libc::F_SETLKW), 0, 0, 0, 0])),
            (
                "the end of another thread",
                (libc::SYS_tgkill, [1, 1, bits(libc::SIGKILL), 0, 0, 0]),
            ),
            ("a path", (libc::SYS_newfstatat, [0, 0, 0, 0, 0, 0])),
            ("another path", (libc::SYS_statx, [0, 0, 0, 0, 0, 0])),
            ("broken memory", (libc::SYS_madvise, [0, 0, 100, 0, 0, 0])),
        ];
        for thread in Thread::ALL {
            for (what, attempt) in calls {
                let end = filtered(thread, attempt);
                assert_eq!(end, End::Signal(libc::SIGSYS), "{thread:?}: {what}");
            }
            if !matches!(thread, Thread::Main | Thread::Vcpu) {
                let end = filtered(thread, ioctl(0xae80));
                assert_eq!(end, End::Signal(libc::SIGSYS), "{thread:?}: KVM_RUN");
            }
            // Of which no argument can be looked at.
            let end = filtered(thread, (libc::SYS_clone3, [0; 6]));
            assert_eq!(end, End::Status(libc::ENOSYS), "{thread:?}");
            let end = filtered(thread, (libc::SYS_futex, [0; 6]));
            assert_eq!(end, End::Status(libc::EFAULT), "{thread:?}");
        }
    }

    #[test]
    fn a_thread_has_no_more_than_who_starts_it() {
        for (starter, started) in [
            (Thread::Main, Thread::Vcpu),
            (Thread::Devices, Thread::Net),
            (Thread::Devices, Thread::Balloon),
            (Thread::Devices, Thread::Fs),
            (Thread::Fs, Thread::FsIo),
        ] {
            let has = rules(starter);
            for (name, conditions) in rules(started) {
                let missing: Vec<_> = match has.get(&name) {
                    // Without conditions.
                    Some(own) if own.contains("null") => continue,
                    Some(own) => conditions.difference(own).collect(),
                    None => conditions.iter().collect(),
                };
                assert!(
                    missing.is_empty(),
                    "{starter:?} → {started:?}: {name} {missing:?}"
                );
            }
        }
    }

    #[test]
    fn the_numbers_are_those_that_the_comments_name() {
        let file: Value = serde_json::from_reader(File::open(FILE).unwrap()).unwrap();
        let filters = file.as_object().unwrap().values();
        let rules = filters.flat_map(|filter| filter["filter"].as_array().unwrap());
        for condition in rules.flat_map(|rule| rule["args"].as_array().into_iter().flatten()) {
            let comment = condition["comment"].as_str().unwrap();
            if comment == "without PROT_EXEC" {
                assert_eq!(condition["op"]["masked_eq"], libc::PROT_EXEC);
                assert_eq!(condition["val"], 0);
                continue;
            }
            let value = comment.split('|').fold(0, |all, name| all | constant(name));
            assert_eq!(condition["val"], value, "{comment}");
            assert_eq!(condition["op"], "eq", "{comment}");
        }
    }

    /// `_IO`, `_IOR`, `_IOW`, `_IOWR` (asm-generic/ioctl.h): direction, type, number, size.
    fn ioctl(direction: u64, kind: u64, number: u64, size: usize) -> u64 {
        direction << 30 | (size as u64) << 16 | kind << 8 | number
    }

    fn constant(name: &str) -> u64 {
        use kvm_bindings::{
            kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_ioeventfd, kvm_irq_routing, kvm_irqchip,
            kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msr_list, kvm_msrs, kvm_regs, kvm_sregs,
            kvm_vcpu_events, kvm_xcrs, kvm_xsave,
        };
        let (none, write, read, both) = (0, 1, 2, 3);
        let (kvm, tun, vhost) = (0xae, u64::from(b'T'), 0xaf);
        match name {
            "KVM_RUN" => ioctl(none, kvm, 0x80, 0),
            "KVM_CREATE_VCPU" => ioctl(none, kvm, 0x41, 0),
            "KVM_IOEVENTFD" => ioctl(write, kvm, 0x79, size_of::<kvm_ioeventfd>()),
            "KVM_SET_GSI_ROUTING" => ioctl(write, kvm, 0x6a, size_of::<kvm_irq_routing>()),
            "KVM_IRQFD" => ioctl(write, kvm, 0x76, size_of::<kvm_irqfd>()),
            "KVM_SIGNAL_MSI" => ioctl(write, kvm, 0xa5, size_of::<kvm_msi>()),
            "KVM_GET_REGS" => ioctl(read, kvm, 0x81, size_of::<kvm_regs>()),
            "KVM_SET_MSRS" => ioctl(write, kvm, 0x89, size_of::<kvm_msrs>()),
            "KVM_GET_LAPIC" => ioctl(read, kvm, 0x8e, size_of::<kvm_lapic_state>()),
            "KVM_SET_LAPIC" => ioctl(write, kvm, 0x8f, size_of::<kvm_lapic_state>()),
            "KVM_SET_CPUID2" => ioctl(write, kvm, 0x90, size_of::<kvm_cpuid2>()),
            "KVM_GET_MSR_INDEX_LIST" => ioctl(both, kvm, 0x02, size_of::<kvm_msr_list>()),
            "KVM_GET_IRQCHIP" => ioctl(both, kvm, 0x62, size_of::<kvm_irqchip>()),
            "KVM_GET_CLOCK" => ioctl(read, kvm, 0x7c, size_of::<kvm_clock_data>()),
            "KVM_GET_SREGS" => ioctl(read, kvm, 0x83, size_of::<kvm_sregs>()),
            "KVM_GET_MSRS" => ioctl(both, kvm, 0x88, size_of::<kvm_msrs>()),
            "KVM_GET_MP_STATE" => ioctl(read, kvm, 0x98, size_of::<kvm_mp_state>()),
            "KVM_GET_VCPU_EVENTS" => ioctl(read, kvm, 0x9f, size_of::<kvm_vcpu_events>()),
            "KVM_GET_DEBUGREGS" => ioctl(read, kvm, 0xa1, size_of::<kvm_debugregs>()),
            "KVM_GET_TSC_KHZ" => ioctl(none, kvm, 0xa3, 0),
            "KVM_GET_XSAVE" => ioctl(read, kvm, 0xa4, size_of::<kvm_xsave>()),
            "KVM_GET_XCRS" => ioctl(read, kvm, 0xa6, size_of::<kvm_xcrs>()),
            "TUNSETOFFLOAD" => ioctl(write, tun, 208, 4),
            "TUNGETIFF" => ioctl(read, tun, 210, 4),
            "TUNSETVNETHDRSZ" => ioctl(write, tun, 216, 4),
            "TUNSETQUEUE" => ioctl(write, tun, 217, 4),
            "VHOST_GET_FEATURES" => ioctl(read, vhost, 0x00, 8),
            "VHOST_SET_FEATURES" => ioctl(write, vhost, 0x00, 8),
            "VHOST_SET_OWNER" => ioctl(none, vhost, 0x01, 0),
            "VHOST_SET_MEM_TABLE" => ioctl(write, vhost, 0x03, 8),
            "VHOST_SET_VRING_NUM" => ioctl(write, vhost, 0x10, 8),
            "VHOST_SET_VRING_ADDR" => ioctl(write, vhost, 0x11, 40),
            "VHOST_SET_VRING_BASE" => ioctl(write, vhost, 0x12, 8),
            "VHOST_SET_VRING_KICK" => ioctl(write, vhost, 0x20, 8),
            "VHOST_SET_VRING_CALL" => ioctl(write, vhost, 0x21, 8),
            "VHOST_NET_SET_BACKEND" => ioctl(write, vhost, 0x30, 8),
            "F_GETFD" => bits(libc::F_GETFD),
            "F_GETFL" => bits(libc::F_GETFL),
            "F_SETFL" => bits(libc::F_SETFL),
            "1 MiB" => 1 << 20,
            "F_SETPIPE_SZ" => bits(libc::F_SETPIPE_SZ),
            "F_DUPFD_CLOEXEC" => bits(libc::F_DUPFD_CLOEXEC),
            "MADV_DONTNEED" => bits(libc::MADV_DONTNEED),
            "PR_SET_NAME" => bits(libc::PR_SET_NAME),
            "SECCOMP_SET_MODE_FILTER" => libc::SECCOMP_SET_MODE_FILTER.into(),
            "AT_EMPTY_PATH" => bits(libc::AT_EMPTY_PATH),
            // The C library keeps the first two for itself.
            "SIGRTMIN" => bits(libc::SIGRTMIN()),
            "CLONE_VM" => bits(libc::CLONE_VM),
            "CLONE_FS" => bits(libc::CLONE_FS),
            "CLONE_FILES" => bits(libc::CLONE_FILES),
            "CLONE_SIGHAND" => bits(libc::CLONE_SIGHAND),
            "CLONE_THREAD" => bits(libc::CLONE_THREAD),
            "CLONE_SYSVSEM" => bits(libc::CLONE_SYSVSEM),
            "CLONE_SETTLS" => bits(libc::CLONE_SETTLS),
            "CLONE_PARENT_SETTID" => bits(libc::CLONE_PARENT_SETTID),
            "CLONE_CHILD_CLEARTID" => bits(libc::CLONE_CHILD_CLEARTID),
            _ => panic!("{name} is in a filter, and not in this test's table"),
        }
    }
}
