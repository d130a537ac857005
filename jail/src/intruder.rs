//! For tests: child processes that do what an attacker would.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs::File,
    io,
};

use serde_json::Value;

use crate::filter::Filter;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Status(i32),
    /// Killed by this signal.
    Signal(i32),
}

/// Runs `body` in a child of one thread, which ends with what it returns.
///
/// # Panics
/// There is no child.
pub fn in_child(body: impl FnOnce() -> i32) -> End {
    // SAFETY: the child has a copy of this thread alone. It makes system calls and allocates, which the C library allows after
    // its own fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: nothing of the test program's is to run at the child's end. Unlike exit_group every filter allows it.
        unsafe { libc::syscall(libc::SYS_exit, body()) };
    }
    let mut status = 0;
    // SAFETY: the status is a live local variable.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Status(libc::WEXITSTATUS(status))
    }
}

/// A system call's number and arguments.
pub type Call = (libc::c_long, [u64; 6]);

/// Makes a call. An error is its number.
///
/// # Errors
/// The kernel's.
pub fn call((number, [a, b, c, d, e, f]): Call) -> Result<i64, i32> {
    // SAFETY: only a child that is about to end calls this, with pointers to static data or null.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 {
        Err(io::Error::last_os_error().raw_os_error().unwrap())
    } else {
        Ok(result)
    }
}

/// A static string as an argument.
#[must_use]
pub fn address(text: &'static CStr) -> u64 {
    text.as_ptr().addr() as u64
}

/// A number as an argument.
#[must_use]
pub fn bits(number: i32) -> u64 {
    number.cast_unsigned().into()
}

/// More than 0, twice: a limit, a time.
static RAISED: [u64; 2] = [1, 1];

/// [`RAISED`] as an argument.
#[must_use]
pub fn raised() -> u64 {
    RAISED.as_ptr().addr() as u64
}

/// A call of one argument.
#[must_use]
pub const fn one(number: libc::c_long, argument: u64) -> Call {
    (number, [argument, 0, 0, 0, 0, 0])
}

/// Opens a file by its path.
#[must_use]
pub fn open(name: &'static CStr, flags: i32) -> Call {
    (
        libc::SYS_openat,
        [bits(libc::AT_FDCWD), address(name), bits(flags), 0o600, 0, 0],
    )
}

/// What must fail for whoever is in a jail, even if no system call were filtered. `host` is a process outside.
#[must_use]
pub fn attempts(host: u32) -> Vec<(&'static str, Call)> {
    let host = u64::from(host);
    vec![
        ("open a file of the host", open(c"/etc/passwd", libc::O_RDONLY)),
        ("open its own memory", open(c"/proc/self/mem", libc::O_RDWR)),
        (
            "mount",
            (
                libc::SYS_mount,
                [address(c"none"), address(c"/"), address(c"proc"), 0, 0, 0],
            ),
        ),
        ("make a mount", one(libc::SYS_fsopen, address(c"proc"))),
        ("unmount", (libc::SYS_umount2, [address(c"/"), 2, 0, 0, 0, 0])),
        ("change the root", one(libc::SYS_chroot, address(c"/"))),
        (
            "have interfaces",
            one(libc::SYS_unshare, bits(libc::CLONE_NEWNET)),
        ),
        ("have mounts", one(libc::SYS_unshare, bits(libc::CLONE_NEWNS))),
        (
            "signal a process of the host's",
            (libc::SYS_kill, [host, 0, 0, 0, 0, 0]),
        ),
        (
            "trace a process of the host's",
            (libc::SYS_ptrace, [16, host, 0, 0, 0, 0]),
        ),
        (
            "get hold of a process of the host's",
            one(libc::SYS_pidfd_open, host),
        ),
        (
            "set the clock",
            (libc::SYS_clock_settime, [0, raised(), 0, 0, 0, 0]),
        ),
        (
            "load a module",
            (libc::SYS_init_module, [0, 0, address(c""), 0, 0, 0]),
        ),
        (
            "call itself otherwise",
            (libc::SYS_sethostname, [address(c"x"), 1, 0, 0, 0, 0]),
        ),
        ("lock memory", one(libc::SYS_mlockall, 3)),
        (
            "reboot",
            (libc::SYS_reboot, [0xfee1_dead, 672_274_793, 0x89ab_cdef, 0, 0, 0]),
        ),
        (
            "listen to interfaces",
            (
                libc::SYS_socket,
                [bits(libc::AF_PACKET), bits(libc::SOCK_RAW), 0, 0, 0, 0],
            ),
        ),
        (
            "make packets",
            (
                libc::SYS_socket,
                [bits(libc::AF_INET), bits(libc::SOCK_RAW), 1, 0, 0, 0],
            ),
        ),
    ]
}

/// Makes all attempts; which one works, counted from 1, or 0.
#[must_use]
pub fn first_that_works(attempts: Vec<(&'static str, Call)>) -> i32 {
    for (index, (what, attempt)) in (1..).zip(attempts) {
        if call(attempt).is_ok() {
            eprintln!("it could {what}");
            return index;
        }
    }
    0
}

/// What a call comes to for who is left with `filter`: 0 if it works, else the error number, unless it is its end.
#[must_use]
pub fn filtered(filter: Filter, attempt: Call) -> End {
    in_child(|| {
        filter.install().unwrap();
        call(attempt).map_or_else(|error| error, |_| 0)
    })
}

/// The rules of a filter: by the name of the call, the conditions of each of its rules, "null" for none.
pub type Rules = BTreeMap<String, BTreeSet<String>>;

/// The rules of the filter `name` in `file`, which must be one that kills.
///
/// # Panics
/// It isn't.
#[must_use]
pub fn rules(file: &str, name: &str) -> Rules {
    let file: Value = serde_json::from_reader(File::open(file).unwrap()).unwrap();
    let filter = &file[name];
    assert_eq!(filter["mismatch_action"], "kill_process");
    let mut rules = Rules::new();
    for rule in filter["filter"].as_array().unwrap() {
        let name = rule["syscall"].as_str().unwrap().to_owned();
        rules.entry(name).or_default().insert(rule["args"].to_string());
    }
    rules
}

/// `clone3` gets an error. `uretprobe` and `uprobe` are the kernel's own: it takes them from nobody but its own code, and
/// doesn't ask the filter (Linux, `arch/x86/kernel/uprobes.c`).
const ANSWERED_OTHERWISE: [libc::c_long; 3] = [libc::SYS_clone3, 335, 336];

/// Every number of a system call that the rules don't name, and those that are no system call.
#[must_use]
pub fn unlisted(rules: &Rules) -> Vec<libc::c_long> {
    /// Beyond the last there is.
    const END: libc::c_long = 480;
    let listed: BTreeSet<_> = rules.keys().map(|name| number(name)).collect();
    // And by their second numbers, of another width of pointers.
    let x32 = [0, 1, 2, 16, 41, 59].map(|number| 0x4000_0000 + number);
    (0..END)
        .chain(x32)
        .filter(|number| !listed.contains(number) && !ANSWERED_OTHERWISE.contains(number))
        .collect()
}

/// The number of a system call.
///
/// # Panics
/// It isn't one of those that filters name.
#[must_use]
pub fn number(name: &str) -> libc::c_long {
    macro_rules! numbers {
        ($($name:ident $constant:ident)*) => {
            match name {
                $(stringify!($name) => libc::$constant,)*
                _ => panic!("{name} is in a filter, and not in this table"),
            }
        };
    }
    numbers!(
        brk SYS_brk capget SYS_capget capset SYS_capset clock_gettime SYS_clock_gettime
        clone SYS_clone close SYS_close epoll_create1 SYS_epoll_create1 epoll_ctl SYS_epoll_ctl
        epoll_wait SYS_epoll_wait eventfd2 SYS_eventfd2 exit SYS_exit exit_group SYS_exit_group
        fallocate SYS_fallocate fchmodat SYS_fchmodat fchownat SYS_fchownat fcntl SYS_fcntl
        fdatasync SYS_fdatasync fgetxattr SYS_fgetxattr flistxattr SYS_flistxattr fremovexattr SYS_fremovexattr
        fsetxattr SYS_fsetxattr fstatfs SYS_fstatfs fsync SYS_fsync ftruncate SYS_ftruncate
        sched_yield SYS_sched_yield futex SYS_futex getdents64 SYS_getdents64 getpid SYS_getpid getrandom SYS_getrandom
        gettid SYS_gettid ioctl SYS_ioctl linkat SYS_linkat lseek SYS_lseek
        madvise SYS_madvise mincore SYS_mincore mkdirat SYS_mkdirat mknodat SYS_mknodat
        mmap SYS_mmap mprotect SYS_mprotect mremap SYS_mremap munmap SYS_munmap
        newfstatat SYS_newfstatat openat SYS_openat poll SYS_poll prctl SYS_prctl
        preadv2 SYS_preadv2 pwrite64 SYS_pwrite64 pwritev2 SYS_pwritev2 read SYS_read
        readlinkat SYS_readlinkat readv SYS_readv recvmsg SYS_recvmsg renameat SYS_renameat renameat2 SYS_renameat2
        restart_syscall SYS_restart_syscall rseq SYS_rseq rt_sigaction SYS_rt_sigaction rt_sigprocmask SYS_rt_sigprocmask
        rt_sigreturn SYS_rt_sigreturn sched_getaffinity SYS_sched_getaffinity seccomp SYS_seccomp sendmsg SYS_sendmsg
        set_robust_list SYS_set_robust_list setresgid SYS_setresgid setresuid SYS_setresuid shutdown SYS_shutdown
        sigaltstack SYS_sigaltstack statx SYS_statx symlinkat SYS_symlinkat tgkill SYS_tgkill
        timerfd_create SYS_timerfd_create timerfd_settime SYS_timerfd_settime unlinkat SYS_unlinkat utimensat SYS_utimensat
        write SYS_write writev SYS_writev
    )
}
