//! The program itself, as the shim starts it. Needs root, as the program does.

#![allow(clippy::unwrap_used)]

mod guest;

use std::{
    ffi::CString,
    fs,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    ptr,
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use guest::*;
use sealock_fsd::{identity, jail, server::FileServer, share::Share};
use sealock_jail::intruder::{self, Call, End, address, bits, call, in_child, open};
use sealock_protocol::{relay::MAX_MESSAGE, seqpacket::SeqPacket};

fn mount(source: &Path, target: &Path, kind: &str, flags: libc::c_ulong) {
    let text = |bytes: &[u8]| CString::new(bytes).unwrap();
    let (source, target) = (
        text(source.as_os_str().as_bytes()),
        text(target.as_os_str().as_bytes()),
    );
    let kind = text(kind.as_bytes());
    // SAFETY: the strings are NUL-terminated.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            flags,
            ptr::null(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn start(share: &Path) -> (SeqPacket, Child) {
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_sealock-fsd"))
        .arg(share)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (ours, child)
}

/// Runs `test` with mounts of its own: they are gone with the thread.
fn with_own_mounts(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        // SAFETY: no memory is involved; the thread takes its own current directory and mounts.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) }, 0);
        mount(
            Path::new("none"),
            Path::new("/"),
            "none",
            libc::MS_PRIVATE | libc::MS_REC,
        );
        test();
    });
    thread.join().unwrap();
}

fn status(child: &Child, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn the_server_sees_its_share_and_nothing_else() {
    with_own_mounts(|| {
        let outside = tempfile::tempdir().unwrap();
        let share = outside.path().join("share");
        fs::create_dir(&share).unwrap();
        mount(&share, &share, "none", libc::MS_BIND);
        mount(Path::new("none"), &share, "none", libc::MS_SHARED);
        let (socket, mut child) = start(&share);
        let mut guest = Guest::of(socket, outside);

        // The first answer says that the jail is made.
        assert_eq!(guest.fails(LOOKUP, ROOT, &[&text("container")]), libc::ENOENT);
        for link in ["root", "cwd"] {
            let seen = fs::metadata(format!("/proc/{}/{link}", child.id())).unwrap();
            let meant = fs::metadata(&share).unwrap();
            use std::os::unix::fs::MetadataExt;
            assert_eq!((seen.dev(), seen.ino()), (meant.dev(), meant.ino()), "{link}");
        }
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.id())).unwrap();
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        for namespace in ["mnt", "net", "ipc", "uts"] {
            let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
            assert_ne!(of(&child.id().to_string()), of("self"), "{namespace}");
        }
        // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, MKNOD, SETFCAP.
        let expected: u64 = [0, 1, 3, 4, 6, 7, 27, 31]
            .map(|number| 1_u64 << number)
            .iter()
            .sum();
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(
                u64::from_str_radix(&status(&child, set), 16).unwrap(),
                expected,
                "{set}"
            );
        }
        assert_eq!(status(&child, "CapInh"), "0000000000000000");
        assert_eq!(status(&child, "NoNewPrivs"), "1");

        // A root file system that is mounted now is there, and is the guest's alone; the host's unmounting is seen.
        let rootfs = share.join("container/rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        mount(Path::new("tmpfs"), &rootfs, "tmpfs", 0);
        fs::write(rootfs.join("file"), b"content").unwrap();
        let container = guest.lookup(ROOT, "container");
        assert_eq!(container.valid, 0);
        let root = guest.lookup(container.node, "rootfs");
        assert_eq!(root.valid, 24 * 60 * 60);
        let file = guest.lookup(root.node, "file");
        assert_eq!((file.valid, file.attributes.size), (24 * 60 * 60, 7));
        let absent = guest.done(LOOKUP, root.node, &[&text("absent")]);
        assert_eq!((u64_at(&absent, 0), u64_at(&absent, 16)), (0, 24 * 60 * 60));

        // What goes through /proc works without a /proc in sight, and so does another user's name.
        let (_, opened) = guest.open(file.node, libc::O_RDWR);
        assert_eq!(opened.metadata().unwrap().len(), 7);
        let change = Change {
            valid: MODE | SIZE,
            mode: 0o4755,
            size: 3,
            ..Change::default()
        };
        guest.done(SETATTR, file.node, &[&change.bytes()]);
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        guest.done(
            SETXATTR,
            file.node,
            &[&words(&[20, 0]), &text("security.capability"), &capability],
        );
        guest.done(LINK, root.node, &[&file.node.to_ne_bytes(), &text("link")]);
        fs::create_dir(rootfs.join("closed")).unwrap();
        let closed = guest.lookup(root.node, "closed");
        guest.user = (1000, 1000);
        let (made, _, _) = guest.create(closed.node, "new", libc::O_RDWR, 0o100_600);
        assert_eq!((made.attributes.user, made.attributes.group), (1000, 1000));
        let node = guest.done(
            MKNOD,
            root.node,
            &[&words(&[libc::S_IFCHR | 0o666, 0x103, 0, 0]), &text("null")],
        );
        assert_eq!(found(&node).attributes.device, 0x103);
        let target = CString::new(rootfs.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is NUL-terminated.
        assert_eq!(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }, 0);
        assert_ne!(guest.lookup(container.node, "rootfs").node, root.node);

        let memory: u64 = status(&child, "RssAnon").trim_end_matches(" kB").parse().unwrap();
        assert!(memory < 2048, "{memory} KiB of its own");
        // It ends with the VMM.
        drop(guest);
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn a_share_that_is_no_mount_point_is_refused_in_one_line() {
    let outside = tempfile::tempdir().unwrap();
    let (_socket, mut child) = start(outside.path());
    assert!(!child.wait().unwrap().success());
    let mut line = String::new();
    child.stderr.take().unwrap().read_to_string(&mut line).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("is it a mount point?"), "{line}");
}

/// What must fail in the jail of a share beside what must in any.
fn attempts() -> Vec<(&'static str, Call)> {
    vec![
        ("follow a link out of the share", open(c"/out", libc::O_RDONLY)),
        (
            "climb out of the share",
            open(c"/../../../../etc/passwd", libc::O_RDONLY),
        ),
        ("open a device", open(c"/memory", libc::O_RDONLY)),
        ("open another device", open(c"/disk", libc::O_RDWR)),
        (
            "open by handle",
            (
                libc::SYS_open_by_handle_at,
                [bits(libc::AT_FDCWD), address(c"\x08"), 0, 0, 0, 0],
            ),
        ),
        (
            "have devices work",
            (
                libc::SYS_mount,
                [0, address(c"/"), 0, libc::MS_REMOUNT | libc::MS_BIND, 0, 0],
            ),
        ),
    ]
}

#[test]
fn code_in_the_server_stays_in_its_share_even_without_its_filter() {
    with_own_mounts(|| {
        let outside = tempfile::tempdir().unwrap();
        let share = outside.path().join("share");
        fs::create_dir(&share).unwrap();
        mount(&share, &share, "none", libc::MS_BIND);
        mount(
            Path::new("none"),
            &share,
            "none",
            libc::MS_BIND | libc::MS_REMOUNT | libc::MS_NODEV | libc::MS_NOSUID,
        );
        mount(Path::new("none"), &share, "none", libc::MS_SHARED);
        std::os::unix::fs::symlink("/etc/passwd", share.join("out")).unwrap();
        let host = std::process::id();
        let end = in_child(|| {
            // As the shim has it born.
            // SAFETY: no memory is involved.
            if unsafe { libc::unshare(libc::CLONE_NEWPID) } != 0 {
                return 100;
            }
            let end = in_child(|| {
                if let Err(error) = jail::enter(&share) {
                    eprintln!("{error:?}");
                    return 101;
                }
                // It may make the nodes, for its guest: 1, 1 is the memory, 254, 0 any disk.
                for (name, kind, number) in [
                    (c"/memory", libc::S_IFCHR, libc::makedev(1, 1)),
                    (c"/disk", libc::S_IFBLK, libc::makedev(254, 0)),
                ] {
                    let mode = u64::from(kind | 0o600);
                    let made = (
                        libc::SYS_mknodat,
                        [bits(libc::AT_FDCWD), address(name), mode, number, 0, 0],
                    );
                    if call(made).is_err() {
                        return 102;
                    }
                }
                intruder::first_that_works([intruder::attempts(host), attempts()].concat())
            });
            match end {
                End::Status(status) => status,
                End::Signal(signal) => 128 + signal,
            }
        });
        assert_eq!(end, End::Status(0));
    });
}

const FILTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/filters/x86_64.json");

#[test]
fn a_call_that_the_filter_does_not_list_ends_the_server() {
    let executable = bits(libc::PROT_READ | libc::PROT_EXEC);
    let anonymous = bits(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let unlisted = intruder::unlisted(&intruder::rules(FILTERS, "files"));
    let calls = unlisted.into_iter().map(|number| (number, [0; 6])).chain([
        (libc::SYS_mmap, [0, 4096, executable, anonymous, bits(-1), 0]),
        (libc::SYS_mprotect, [0, 4096, executable, 0, 0, 0]),
        (libc::SYS_clone, [bits(libc::SIGCHLD), 0, 0, 0, 0, 0]),
        (libc::SYS_clone, [bits(libc::CLONE_NEWUSER), 0, 0, 0, 0, 0]),
        (libc::SYS_prctl, [bits(libc::PR_SET_DUMPABLE), 1, 0, 0, 0, 0]),
        // For good.
        (libc::SYS_setresuid, [0; 6]),
        (libc::SYS_setresgid, [0; 6]),
        // To a file.
        (libc::SYS_write, [bits(3), 0, 0, 0, 0, 0]),
        (libc::SYS_writev, [bits(3), 0, 0, 0, 0, 0]),
        // A path that links are followed on.
        (
            libc::SYS_statx,
            [bits(libc::AT_FDCWD), address(c"/etc"), 0, 0, 0, 0],
        ),
    ]);
    for attempt in calls {
        let end = intruder::filtered(jail::filter(), attempt);
        assert_eq!(end, End::Signal(libc::SIGSYS), "{attempt:?}");
    }
    let end = intruder::filtered(jail::filter(), (libc::SYS_clone3, [0; 6]));
    assert_eq!(end, End::Status(libc::ENOSYS));
}

/// Listed for what is rare: a reason for each that the test below can't make a server call.
const RARE: &[(&str, &str)] = &[
    ("brk", "memory: as the C library likes"),
    ("clock_gettime", "where the host's clock can't be read without"),
    ("mremap", "memory: as the C library likes"),
    ("restart_syscall", "after the process was stopped and goes on"),
    (
        "rt_sigaction",
        "with the first thread, which this test has had before",
    ),
    ("write", "messages for the log"),
];

/// One of everything that a guest asks for. Ends early when the server does.
fn ask_for_everything(guest: &mut Guest) -> Option<()> {
    let mut ask = |user: u32, operation: u32, node: u64, arguments: &[&[u8]]| {
        guest.user = (user, user);
        guest.try_send(operation, node, arguments).ok()?;
        let mut buffer = vec![0; MAX_MESSAGE];
        let (message, _) = guest.socket.as_ref()?.receive(&mut buffer).ok()?;
        Some(message[16..].to_vec())
    };
    let padding = [0_u8; 16];
    ask(0, INIT, 0, &[&words(&[7, 41, 1 << 17, u32::MAX]), &[0; 48]])?;
    ask(0, STATFS, ROOT, &[])?;
    let create = words(&[libc::O_RDWR.cast_unsigned(), 0o100_644, 0, 0]);
    let made = ask(100, CREATE, ROOT, &[&create, &text("file")])?;
    let (file, handle) = (u64_at(&made, 0), u64_at(&made, 128).to_ne_bytes());
    let change = |valid, size| Change {
        valid,
        size,
        mode: 0o600,
        ..Change::default()
    };
    ask(
        0,
        SETATTR,
        file,
        &[&change(MODE | SIZE | USER | GROUP | MTIME, 9).bytes()],
    )?;
    ask(100, SETATTR, file, &[&change(SIZE | KILL_SUIDGID, 5).bytes()])?;
    ask(0, SETXATTR, file, &[&words(&[1, 0]), &text("user.a"), b"x"])?;
    ask(0, GETXATTR, file, &[&words(&[10, 0]), &text("user.a")])?;
    ask(0, LISTXATTR, file, &[&words(&[100, 0])])?;
    ask(0, REMOVEXATTR, file, &[&text("user.a")])?;
    ask(
        100,
        FALLOCATE,
        file,
        &[&handle, &[0; 8], &8192_u64.to_ne_bytes(), &[0; 8]],
    )?;
    ask(
        0,
        LSEEK,
        file,
        &[&handle, &[0; 8], &words(&[libc::SEEK_HOLE.cast_unsigned(), 0])],
    )?;
    for data_only in [0, 1] {
        ask(0, FSYNC, file, &[&handle, &words(&[data_only, 0])])?;
    }
    ask(0, RELEASE, file, &[&handle, &padding])?;
    ask(0, MKDIR, ROOT, &[&words(&[0o755, 0]), &text("directory")])?;
    ask(
        0,
        MKNOD,
        ROOT,
        &[&words(&[libc::S_IFIFO | 0o600, 0, 0, 0]), &text("fifo")],
    )?;
    let link = ask(0, SYMLINK, ROOT, &[&text("link"), &text("file")])?;
    ask(0, READLINK, u64_at(&link, 0), &[])?;
    ask(0, LINK, ROOT, &[&file.to_ne_bytes(), &text("another")])?;
    let renamed = [
        &ROOT.to_ne_bytes()[..],
        &[0; 8],
        &text("another"),
        &text("renamed"),
    ]
    .concat();
    ask(0, RENAME2, ROOT, &[&renamed])?;
    let exchange = words(&[libc::RENAME_EXCHANGE, 0]);
    let exchanged = [
        &ROOT.to_ne_bytes()[..],
        &exchange,
        &text("file"),
        &text("renamed"),
    ]
    .concat();
    ask(0, RENAME2, ROOT, &[&exchanged])?;
    let opened = ask(0, OPENDIR, ROOT, &[&[0; 8]])?;
    let list = [&opened[..8], &[0; 8], &words(&[4096, 0]), &padding].concat();
    ask(0, READDIRPLUS, ROOT, &[&list])?;
    ask(0, READDIR, ROOT, &[&list])?;
    ask(0, UNLINK, ROOT, &[&text("renamed")])?;
    ask(0, RMDIR, ROOT, &[&text("directory")])?;
    Some(())
}

/// Whether a server that is left with the filter, but for the call `without`, answers everything and ends by itself.
fn survives(without: &str) -> bool {
    let mut filters: serde_json::Value = serde_json::from_reader(fs::File::open(FILTERS).unwrap()).unwrap();
    let rules = filters["files"]["filter"].as_array_mut().unwrap();
    rules.retain(|rule| rule["syscall"] != without);
    let filters = serde_json::to_vec(&filters).unwrap();
    let mut programs = sealock_jail::compile::programs(&filters[..], std::env::consts::ARCH).unwrap();
    let filter = sealock_jail::filter::Filter::new(programs.remove("files").unwrap().leak());

    let outside = tempfile::tempdir().unwrap();
    let share = outside.path().join("share");
    fs::create_dir(&share).unwrap();
    let (ours, theirs) = SeqPacket::pair().unwrap();
    let guests_end = ours.as_raw_fd();
    let (ended, end) = channel();
    let mut guest = Guest::of(ours, outside);
    let server = thread::spawn(move || {
        let end = in_child(|| {
            // Unlike the program's its threads find heaps of the test program's threads. Before the C library makes one smaller for the
            // first time, it looks into a file.
            drop(vec![vec![1_u8; 100_000]; 64]);
            identity::keep_capabilities().unwrap();
            let share = Share::open(&share, jail::host_proc().unwrap()).unwrap();
            let server = FileServer::new(share, theirs).unwrap();
            // The child's copy: the server is to see it closed.
            // SAFETY: nothing in the child uses it.
            unsafe { libc::close(guests_end) };
            filter.install().unwrap();
            std::process::exit(i32::from(server.run().is_err()))
        });
        ended.send(end).unwrap();
    });
    let answered = ask_for_everything(&mut guest).is_some();
    drop(guest);
    let end = end.recv_timeout(Duration::from_secs(20)).unwrap();
    server.join().unwrap();
    answered && end == End::Status(0)
}

#[test]
fn each_call_that_the_filter_lists_is_needed() {
    assert!(survives("none"), "it is not enough");
    let rules = intruder::rules(FILTERS, "files");
    let is_rare = |name: &String| RARE.iter().any(|(rare, _)| rare == name);
    let needless: Vec<_> = rules
        .keys()
        .filter(|name| !is_rare(name) && survives(name))
        .collect();
    assert!(needless.is_empty(), "{needless:?}");
    for (name, reason) in RARE {
        assert!(rules.contains_key(*name), "{name} ({reason}) is not listed");
    }
}
