//! The program itself, as the shim starts it. Needs root, as the program does.

#![allow(clippy::unwrap_used)]

mod guest;

use std::{
    ffi::CString,
    fs,
    io::Read,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    process::{Child, Command, Stdio},
    ptr, thread,
};

use guest::*;
use sealock_protocol::seqpacket::SeqPacket;

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
