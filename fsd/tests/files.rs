//! The file server with requests as a guest kernel sends them, on real files.

#![allow(clippy::unwrap_used)]

mod guest;

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink},
    },
    path::Path,
};

use guest::*;
use sealock_fsd::{jail, share::Share};

#[test]
fn a_mount_agrees_on_what_performance_needs() {
    let mut guest = Guest::new();
    // All that a kernel offers.
    let answer = guest.done(INIT, 0, &[&words(&[7, 41, 128 * 1024, u32::MAX]), &[0; 48]]);
    assert_eq!(u32_at(&answer, 0), 7);
    let flags = u32_at(&answer, 12);
    for (wanted, name) in [
        (1 << 5, "big writes"),
        (1 << 22, "max pages"),
        (1 << 28, "kill privileges"),
    ] {
        assert_ne!(flags & wanted, 0, "{name}");
    }
    for (refused, name) in [
        (1 << 16, "write-back cache"),
        (1 << 4, "export"),
        (1 << 1, "POSIX locks"),
    ] {
        assert_eq!(flags & refused, 0, "{name}");
    }
    // The largest write.
    assert_eq!(u32_at(&answer, 20), 1 << 20);
    // Not asked again on each close(2).
    assert_eq!(guest.fails(FLUSH, ROOT, &[&[0; 24]]), libc::ENOSYS);
}

#[test]
fn a_mount_that_was_made_before_the_server_started_is_served() {
    // A pod restored from a template has sent FUSE_INIT in another life.
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"12345").unwrap();
    assert_eq!(guest.lookup(ROOT, "file").attributes.size, 5);
}

#[test]
fn a_created_file_comes_with_its_descriptor() {
    let mut guest = Guest::new();
    let (made, handle, file) = guest.create(ROOT, "new", libc::O_RDWR | libc::O_CREAT, 0o100_640);
    file.write_all_at(b"through the descriptor", 0).unwrap();
    assert_eq!(fs::read(guest.path("new")).unwrap(), b"through the descriptor");
    assert_eq!(made.attributes.mode, 0o100_640);
    assert_eq!(guest.attributes(made.node).size, 22);
    guest.done(FSYNC, made.node, &[&handle.to_ne_bytes(), &[0; 8]]);
    guest.release(made.node, handle);
    // A released handle is one no more.
    assert_eq!(
        guest.fails(FSYNC, made.node, &[&handle.to_ne_bytes(), &[0; 8]]),
        libc::EBADF
    );
    // Once more is not exclusive, and truncates only if told to.
    let (again, _, _) = guest.create(ROOT, "new", libc::O_RDONLY, 0o100_600);
    assert_eq!(
        (again.node, again.attributes.size, again.attributes.mode),
        (made.node, 22, 0o100_640)
    );
    let exclusive = words(&[(libc::O_CREAT | libc::O_EXCL).cast_unsigned(), 0o644, 0, 0]);
    assert_eq!(
        guest.fails(CREATE, ROOT, &[&exclusive, &text("new")]),
        libc::EEXIST
    );
    let (truncated, _, _) = guest.create(ROOT, "new", libc::O_WRONLY | libc::O_TRUNC, 0o100_600);
    assert_eq!(guest.attributes(truncated.node).size, 0);
}

#[test]
fn a_descriptor_allows_what_was_asked_and_nothing_else() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"content").unwrap();
    let node = guest.lookup(ROOT, "file").node;
    let (_, read_only) = guest.open(node, libc::O_RDONLY);
    assert!(read_only.write_at(b"x", 0).is_err());
    let (_, write_only) = guest.open(node, libc::O_WRONLY);
    assert!(write_only.read_at(&mut [0], 0).is_err());
    let flags = |file: &File| {
        // SAFETY: no memory is involved.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) }
    };
    // Appending is done write by write; what is not the guest's to choose is left out.
    let (_, strange) = guest.open(
        node,
        libc::O_RDWR | libc::O_APPEND | libc::O_SYNC | libc::O_PATH | libc::O_CREAT | libc::O_ASYNC | 0x20,
    );
    assert_eq!(
        flags(&strange) & (libc::O_APPEND | libc::O_PATH | libc::O_ASYNC),
        0
    );
    assert_eq!(flags(&strange) & libc::O_SYNC, libc::O_SYNC);
    assert_eq!(flags(&strange) & libc::O_ACCMODE, libc::O_RDWR);
    let answer = guest.ask(OPEN, node, &[&words(&[3, 0])]);
    assert_eq!((answer.error, answer.files.len()), (libc::EINVAL, 0));
}

#[test]
fn an_unlinked_file_stays_usable() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"content").unwrap();
    let node = guest.lookup(ROOT, "file").node;
    let (handle, mut first) = guest.open(node, libc::O_RDWR);
    guest.done(UNLINK, ROOT, &[&text("file")]);
    assert!(!guest.path("file").exists());
    assert_eq!(guest.attributes(node).links, 0);
    let mut content = String::new();
    first.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content");
    // Even opened once more, as through /proc/self/fd in the guest.
    let (_, second) = guest.open(node, libc::O_RDONLY);
    assert_eq!(second.metadata().unwrap().ino(), first.metadata().unwrap().ino());
    let change = Change {
        valid: SIZE | BY_HANDLE,
        handle,
        size: 3,
        ..Change::default()
    };
    guest.done(SETATTR, node, &[&change.bytes()]);
    assert_eq!(guest.attributes(node).size, 3);
    guest.release(node, handle);
    assert_eq!(guest.fails(LOOKUP, ROOT, &[&text("file")]), libc::ENOENT);
}

#[test]
fn attributes_are_changed() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"content").unwrap();
    let node = guest.lookup(ROOT, "file").node;
    let change = Change {
        valid: MODE | USER | GROUP | SIZE | MTIME,
        size: 100,
        mtime: 1_000_000,
        mode: 0o100_600,
        user: 12,
        group: 34,
        ..Change::default()
    };
    let answer = guest.done(SETATTR, node, &[&change.bytes()]);
    let expected = Attributes {
        size: 100,
        mode: 0o100_600,
        links: 1,
        user: 12,
        group: 34,
        device: 0,
    };
    assert_eq!(attributes(&answer[16..]), expected);
    assert_eq!(fs::metadata(guest.path("file")).unwrap().mtime(), 1_000_000);
    // Only one of the two ids.
    guest.done(
        SETATTR,
        node,
        &[&Change {
            valid: GROUP,
            group: 56,
            ..Change::default()
        }
        .bytes()],
    );
    let now = guest.attributes(node);
    assert_eq!((now.user, now.group), (12, 56));
}

#[test]
fn names_change_and_multiply() {
    let mut guest = Guest::new();
    fs::write(guest.path("one"), b"1").unwrap();
    fs::write(guest.path("two"), b"22").unwrap();
    let directory = found(&guest.done(MKDIR, ROOT, &[&words(&[0o750, 0]), &text("directory")]));
    assert_eq!(directory.attributes.mode, 0o040_750);
    let one = guest.lookup(ROOT, "one").node;

    let rename = |to: u64, flags: u32| [to.to_ne_bytes().to_vec(), words(&[flags, 0])].concat();
    let arguments = rename(directory.node, 0);
    guest.done(RENAME2, ROOT, &[&arguments, &text("one"), &text("moved")]);
    assert_eq!(fs::read(guest.path("directory/moved")).unwrap(), b"1");
    assert_eq!(guest.lookup(directory.node, "moved").node, one);
    let arguments = rename(ROOT, libc::RENAME_NOREPLACE);
    let errno = guest.fails(
        RENAME2,
        directory.node,
        &[&arguments, &text("moved"), &text("two")],
    );
    assert_eq!(errno, libc::EEXIST);
    let arguments = rename(ROOT, libc::RENAME_EXCHANGE);
    guest.done(
        RENAME2,
        directory.node,
        &[&arguments, &text("moved"), &text("two")],
    );
    assert_eq!(fs::read(guest.path("two")).unwrap(), b"1");

    let linked = found(&guest.done(LINK, directory.node, &[&one.to_ne_bytes(), &text("link")]));
    assert_eq!((linked.node, linked.attributes.links), (one, 2));
    assert_eq!(guest.fails(RMDIR, ROOT, &[&text("directory")]), libc::ENOTEMPTY);
    for name in ["link", "moved"] {
        guest.done(UNLINK, directory.node, &[&text(name)]);
    }
    guest.done(RMDIR, ROOT, &[&text("directory")]);
}

#[test]
fn a_symbolic_link_is_read_and_never_followed() {
    let mut guest = Guest::new();
    fs::write(guest.outside.path().join("secret"), b"secret").unwrap();
    for (name, target) in [("file", "../secret"), ("up", ".."), ("root", "/")] {
        let made = found(&guest.done(SYMLINK, ROOT, &[&text(name), &text(target)]));
        assert_eq!(made.attributes.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(guest.done(READLINK, made.node, &[]), target.as_bytes());
        // Its target is the guest's to look up, name by name.
        assert_eq!(guest.fails(OPEN, made.node, &[&[0; 8]]), libc::ELOOP);
        assert_eq!(guest.fails(OPENDIR, made.node, &[&[0; 8]]), libc::ENOTDIR);
        assert_eq!(guest.fails(LOOKUP, made.node, &[&text("secret")]), libc::ENOTDIR);
        let create = words(&[libc::O_WRONLY.cast_unsigned(), 0o644, 0, 0]);
        assert_eq!(
            guest.fails(CREATE, made.node, &[&create, &text("new")]),
            libc::ENOTDIR
        );
        // In the place of a file to be created it is in the way, even without O_EXCL.
        assert_eq!(guest.fails(CREATE, ROOT, &[&create, &text(name)]), libc::ELOOP);
        let change = Change {
            valid: SIZE,
            ..Change::default()
        };
        assert_eq!(guest.fails(SETATTR, made.node, &[&change.bytes()]), libc::ELOOP);
        let link = found(&guest.done(LINK, ROOT, &[&made.node.to_ne_bytes(), &text("another")]));
        assert_eq!(link.node, made.node);
        guest.done(UNLINK, ROOT, &[&text("another")]);
        let change = Change {
            valid: USER | MTIME,
            user: 7,
            mtime: 5,
            ..Change::default()
        };
        guest.done(SETATTR, made.node, &[&change.bytes()]);
        assert_eq!(fs::symlink_metadata(guest.path(name)).unwrap().uid(), 7);
    }
    let secret = fs::metadata(guest.outside.path().join("secret")).unwrap();
    assert_eq!(
        (secret.uid(), secret.nlink(), secret.len()),
        (fs::metadata("/").unwrap().uid(), 1, 6)
    );
    assert_ne!(secret.mtime(), 5);
}

#[test]
fn a_directory_replaced_by_a_link_leads_nowhere() {
    let mut guest = Guest::new();
    fs::create_dir(guest.path("directory")).unwrap();
    let node = guest.lookup(ROOT, "directory").node;
    fs::remove_dir(guest.path("directory")).unwrap();
    symlink(guest.outside.path(), guest.path("directory")).unwrap();
    let create = words(&[libc::O_WRONLY.cast_unsigned(), 0o644, 0, 0]);
    assert_eq!(
        guest.fails(CREATE, node, &[&create, &text("escaped")]),
        libc::ENOENT
    );
    assert!(!guest.outside.path().join("escaped").exists());
}

#[test]
fn a_name_is_one_component() {
    let mut guest = Guest::new();
    fs::write(guest.outside.path().join("secret"), b"secret").unwrap();
    fs::create_dir(guest.path("directory")).unwrap();
    fs::write(guest.path("file"), b"").unwrap();
    let file = guest.lookup(ROOT, "file").node;
    let directory = guest.lookup(ROOT, "directory").node;
    let zeroes = [0; 16];
    for name in [
        "",
        ".",
        "..",
        "../secret",
        "directory/../../secret",
        "/etc/passwd",
        "a/b",
        "file/",
    ] {
        let bad = text(name);
        for parent in [ROOT, directory] {
            let rename = [ROOT.to_ne_bytes().to_vec(), vec![0; 8]].concat();
            let requests: [(u32, Vec<&[u8]>); 9] = [
                (LOOKUP, vec![&bad]),
                (CREATE, vec![&zeroes, &bad]),
                (MKDIR, vec![&zeroes[..8], &bad]),
                (MKNOD, vec![&zeroes, &bad]),
                (SYMLINK, vec![&bad, b"target\0"]),
                (UNLINK, vec![&bad]),
                (RMDIR, vec![&bad]),
                (RENAME2, vec![&rename, b"file\0", &bad]),
                (RENAME2, vec![&rename, &bad, b"file\0"]),
            ];
            for (opcode, arguments) in requests {
                let errno = guest.fails(opcode, parent, &arguments);
                // A name of which nothing is left cannot be told from a malformed request.
                assert!(
                    [libc::EINVAL, libc::EIO].contains(&errno),
                    "{name:?} in {opcode}: {errno}"
                );
            }
            let errno = guest.fails(LINK, parent, &[&file.to_ne_bytes(), &bad]);
            assert!([libc::EINVAL, libc::EIO].contains(&errno), "{name:?}: {errno}");
        }
    }
    assert_eq!(fs::read(guest.outside.path().join("secret")).unwrap(), b"secret");
    let mut left: Vec<_> = fs::read_dir(guest.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["directory", "file"]);
}

#[test]
fn fifos_and_devices_are_made_but_never_opened() {
    let mut guest = Guest::new();
    let zero = u32::try_from(libc::makedev(1, 5)).unwrap();
    for (name, kind, device) in [
        ("fifo", libc::S_IFIFO, 0),
        ("zero", libc::S_IFCHR, zero),
        ("socket", libc::S_IFSOCK, 0),
    ] {
        let made = found(&guest.done(MKNOD, ROOT, &[&words(&[kind | 0o666, device, 0, 0]), &text(name)]));
        assert_eq!(
            (made.attributes.mode, made.attributes.device),
            (kind | 0o666, device)
        );
        for flags in [libc::O_RDONLY, libc::O_RDWR | libc::O_TRUNC] {
            let errno = guest.fails(OPEN, made.node, &[&words(&[flags.cast_unsigned(), 0])]);
            assert_eq!(errno, libc::ENXIO);
            let create = words(&[flags.cast_unsigned(), 0o644, 0, 0]);
            assert_eq!(guest.fails(CREATE, ROOT, &[&create, &text(name)]), libc::ENXIO);
        }
        // Nothing that is done to it opens it behind the scenes: opening a FIFO would wait for ever.
        let change = Change {
            valid: SIZE,
            ..Change::default()
        };
        assert_eq!(guest.fails(SETATTR, made.node, &[&change.bytes()]), libc::ENXIO);
        assert_eq!(guest.done(LISTXATTR, made.node, &[&[0; 8]]), [0; 8]);
        let arguments = words(&[64, 0]);
        assert_eq!(
            guest.fails(GETXATTR, made.node, &[&arguments, &text("user.a")]),
            libc::ENODATA
        );
        let change = Change {
            valid: MODE,
            mode: 0o600,
            ..Change::default()
        };
        guest.done(SETATTR, made.node, &[&change.bytes()]);
    }
    assert!(fs::metadata(guest.path("fifo")).unwrap().file_type().is_fifo());
    // A regular file that becomes a FIFO under the same name is another node.
    fs::write(guest.path("changing"), b"").unwrap();
    let before = guest.lookup(ROOT, "changing").node;
    fs::rename(guest.path("fifo"), guest.path("changing")).unwrap();
    assert_ne!(guest.lookup(ROOT, "changing").node, before);
    guest.open(before, libc::O_RDONLY);
}

#[test]
fn extended_attributes_are_kept() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"").unwrap();
    let node = guest.lookup(ROOT, "file").node;
    let set = words(&[5, 0]);
    guest.done(SETXATTR, node, &[&set, &text("user.name"), b"value"]);
    let room = words(&[64, 0]);
    assert_eq!(guest.done(GETXATTR, node, &[&room, &text("user.name")]), b"value");
    assert_eq!(
        guest.done(GETXATTR, node, &[&words(&[0, 0]), &text("user.name")])[..4],
        words(&[5])
    );
    assert_eq!(
        guest.fails(GETXATTR, node, &[&words(&[2, 0]), &text("user.name")]),
        libc::ERANGE
    );
    // More room than any value has, and than there is memory.
    let huge = words(&[u32::MAX, 0]);
    assert_eq!(guest.done(GETXATTR, node, &[&huge, &text("user.name")]), b"value");
    let names = guest.done(LISTXATTR, node, &[&huge]);
    assert!(names.split(|&byte| byte == 0).any(|name| name == b"user.name"));
    guest.done(REMOVEXATTR, node, &[&text("user.name")]);
    assert_eq!(
        guest.fails(GETXATTR, node, &[&room, &text("user.name")]),
        libc::ENODATA
    );
    // A value that is not as long as it is said to be.
    assert_eq!(
        guest.fails(SETXATTR, node, &[&words(&[500, 0]), &text("user.name"), b"value"]),
        libc::EIO
    );
}

#[test]
fn new_files_belong_to_the_caller_wherever_the_guest_lets_it() {
    let mut guest = Guest::new();
    // A directory that the caller may write by a supplementary group, of which the host does not know.
    fs::create_dir(guest.path("team")).unwrap();
    chown(guest.path("team"), Some(0), Some(500)).unwrap();
    fs::set_permissions(guest.path("team"), fs::Permissions::from_mode(0o2770)).unwrap();
    let team = guest.lookup(ROOT, "team").node;
    guest.user = (1000, 1001);
    let (file, _, _) = guest.create(team, "file", libc::O_RDWR, 0o100_640);
    assert_eq!((file.attributes.user, file.attributes.group), (1000, 500));
    let directory = found(&guest.done(MKDIR, team, &[&words(&[0o755, 0]), &text("directory")]));
    assert_eq!(
        (directory.attributes.user, directory.attributes.group),
        (1000, 500)
    );
    assert_eq!(directory.attributes.mode, 0o042_755);
    // The guest kernel has taken the bit away if the caller is not of the group.
    let (kept, _, _) = guest.create(team, "kept", libc::O_RDWR, 0o102_755);
    assert_eq!(kept.attributes.mode, 0o102_755);
    let link = found(&guest.done(SYMLINK, team, &[&text("link"), &text("target")]));
    assert_eq!((link.attributes.user, link.attributes.group), (1000, 500));
    let (plain, _, _) = guest.create(ROOT, "plain", libc::O_RDWR, 0o100_600);
    assert_eq!((plain.attributes.user, plain.attributes.group), (1000, 1001));
    // "Unchanged" is not a user.
    guest.user = (u32::MAX, 0);
    assert_eq!(
        guest.fails(MKDIR, ROOT, &[&words(&[0o755, 0]), &text("nobody")]),
        libc::EINVAL
    );
    // And the next one is root again.
    guest.user = (0, 0);
    let (root, _, _) = guest.create(ROOT, "root", libc::O_RDWR, 0o100_600);
    assert_eq!((root.attributes.user, root.attributes.group), (0, 0));
}

#[test]
fn truncating_in_an_unprivileged_name_clears_set_user_id() {
    let mut guest = Guest::new();
    let make = |name: &Path| {
        fs::write(name, b"content").unwrap();
        fs::set_permissions(name, fs::Permissions::from_mode(0o6755)).unwrap();
    };
    make(&guest.path("tool"));
    let node = guest.lookup(ROOT, "tool").node;
    let mut change = Change {
        valid: SIZE,
        size: 5,
        ..Change::default()
    };
    guest.done(SETATTR, node, &[&change.bytes()]);
    assert_eq!(guest.attributes(node).mode, 0o106_755);
    change.valid |= KILL_SUIDGID;
    guest.done(SETATTR, node, &[&change.bytes()]);
    assert_eq!(guest.attributes(node).mode, 0o100_755);
    make(&guest.path("tool"));
    let flags = (libc::O_WRONLY | libc::O_TRUNC).cast_unsigned();
    assert_eq!(guest.ask(OPEN, node, &[&words(&[flags, 1])]).error, 0);
    assert_eq!(guest.attributes(node).mode, 0o100_755);
}

#[test]
fn a_directory_is_listed_whole_in_pieces() {
    let mut guest = Guest::new();
    let mut expected: Vec<String> = (0..500)
        .map(|n| format!("a-file-with-a-longer-name-{n}"))
        .collect();
    for name in &expected {
        fs::write(guest.path(name), name).unwrap();
    }
    expected.extend([".".into(), "..".into()]);
    expected.sort();
    for (opcode, entry) in [(READDIR, 0), (READDIRPLUS, 128)] {
        let handle = u64_at(&guest.done(OPENDIR, ROOT, &[&[0; 8]]), 0);
        let (mut names, mut offset) = (Vec::new(), 0_u64);
        loop {
            let arguments = [
                &handle.to_ne_bytes()[..],
                &offset.to_ne_bytes(),
                &4096_u32.to_ne_bytes(),
                &[0; 20],
            ];
            let listing = guest.done(opcode, ROOT, &arguments);
            if listing.is_empty() {
                break;
            }
            let mut rest = &listing[..];
            while !rest.is_empty() {
                let record = &rest[entry..];
                let length = u32_at(record, 16) as usize;
                let name = String::from_utf8(record[24..24 + length].to_vec()).unwrap();
                if entry > 0 {
                    let node = u64_at(rest, 0);
                    assert_eq!(node == 0, name == "." || name == "..", "{name}");
                    if node != 0 {
                        assert_eq!(attributes(&rest[40..]).size, name.len() as u64);
                        assert_eq!(u64_at(record, 0), u64_at(&rest[40..], 0), "inode number");
                    }
                }
                names.push(name);
                offset = u64_at(record, 8);
                rest = &rest[(entry + 24 + length).next_multiple_of(8)..];
            }
        }
        names.sort();
        assert_eq!(names, expected);
        guest.done(RELEASEDIR, ROOT, &[&handle.to_ne_bytes(), &[0; 16]]);
    }
}

#[test]
fn a_node_is_forgotten_when_every_lookup_is() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"").unwrap();
    let node = guest.lookup(ROOT, "file").node;
    assert_eq!(guest.lookup(ROOT, "file").node, node);
    // No answer comes to these.
    guest.send(FORGET, node, &[&1_u64.to_ne_bytes()]);
    assert_eq!(guest.attributes(node).size, 0);
    guest.send(FORGET, node, &[&1_u64.to_ne_bytes()]);
    let forgotten = (0..1000).any(|_| guest.ask(GETATTR, node, &[&[0; 16]]).error == libc::EBADF);
    assert!(forgotten);
    // The root is always there, even after the guest has unmounted.
    guest.send(FORGET, ROOT, &[&u64::MAX.to_ne_bytes()]);
    guest.done(DESTROY, ROOT, &[]);
    assert_ne!(guest.lookup(ROOT, "file").node, node);
}

#[test]
fn the_absence_of_a_name_is_not_cached_where_the_host_adds_names() {
    let mut guest = Guest::new();
    assert_eq!(guest.fails(LOOKUP, ROOT, &[&text("container")]), libc::ENOENT);
    fs::create_dir(guest.path("container")).unwrap();
    assert_eq!(guest.lookup(ROOT, "container").valid, 0);
}

#[test]
fn space_is_reserved_and_holes_are_found() {
    let mut guest = Guest::new();
    let (made, handle, _file) = guest.create(ROOT, "file", libc::O_RDWR, 0o100_600);
    let allocate = |offset: u64, length: u64| {
        [
            &handle.to_ne_bytes()[..],
            &offset.to_ne_bytes(),
            &length.to_ne_bytes(),
            &[0; 8],
        ]
        .concat()
    };
    guest.done(FALLOCATE, made.node, &[&allocate(0, 1 << 16)]);
    assert_eq!(guest.attributes(made.node).size, 1 << 16);
    assert_eq!(
        guest.fails(FALLOCATE, made.node, &[&allocate(u64::MAX, 1)]),
        libc::EINVAL
    );
    assert_eq!(
        guest.fails(FALLOCATE, made.node, &[&allocate(0, u64::MAX)]),
        libc::EINVAL
    );
    let seek = |offset: u64, whence: i32| {
        [
            &handle.to_ne_bytes()[..],
            &offset.to_ne_bytes(),
            &words(&[whence.cast_unsigned(), 0]),
        ]
        .concat()
    };
    let hole = guest.done(LSEEK, made.node, &[&seek(0, libc::SEEK_HOLE)]);
    assert!(u64_at(&hole, 0) <= 1 << 16);
    assert_eq!(
        guest.fails(LSEEK, made.node, &[&seek(0, libc::SEEK_SET)]),
        libc::EINVAL
    );
    assert_eq!(
        guest.fails(LSEEK, made.node, &[&seek(u64::MAX, libc::SEEK_DATA)]),
        libc::ENXIO
    );
    assert_eq!(u32_at(&guest.done(STATFS, ROOT, &[]), 44), 255);
}

#[test]
fn malformed_requests_get_an_error_and_do_no_harm() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), b"").unwrap();
    let node = guest.lookup(ROOT, "file").node;
    // Arguments cut short, for every operation there is and some there are not.
    let silent = [0, FORGET, 36, 42];
    for opcode in (0..60)
        .chain([4096, u32::MAX])
        .filter(|opcode| !silent.contains(opcode))
    {
        for length in [0, 1, 7, 8, 15, 39, 100] {
            let answer = guest.ask(opcode, node, &[&vec![0xff; length]]);
            assert!(answer.files.is_empty());
        }
    }
    // Without a header there is nothing to answer.
    let socket = guest.socket.as_ref().unwrap();
    socket.send(&[1; 39], &[]).unwrap();
    // With one that says another length.
    let mut message = vec![0; 48];
    message[0] = 40;
    message[4] = 3;
    message[8] = u8::try_from((guest.unique + 2) % 256).unwrap();
    message[9] = u8::try_from((guest.unique + 2) / 256).unwrap();
    guest.unique += 2;
    guest.socket.as_ref().unwrap().send(&message, &[]).unwrap();
    assert_eq!(guest.receive().error, libc::EINVAL);
    // Unknown nodes and handles.
    assert_eq!(guest.fails(GETATTR, 0, &[&[0; 16]]), libc::EBADF);
    assert_eq!(guest.fails(OPEN, u64::MAX, &[&[0; 8]]), libc::EBADF);
    assert_eq!(guest.fails(RELEASE, ROOT, &[&[0xff; 24]]), libc::EBADF);
}

#[test]
fn only_a_directory_is_shared() {
    let outside = tempfile::tempdir().unwrap();
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(outside.path().join("f"))
        .unwrap();
    assert!(Share::open(&outside.path().join("f"), jail::host_proc().unwrap()).is_err());
    symlink("/", outside.path().join("link")).unwrap();
    assert!(Share::open(&outside.path().join("link"), jail::host_proc().unwrap()).is_err());
}
