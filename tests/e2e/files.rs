//! Files of the container are files of its root on the host.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use sealock_tests::ctr::{MINBASE, Run, Runtime};

use crate::{Host, story, text};

/// A root file system of Debian with a layer of its own above, as a snapshotter makes it.
struct Root {
    directory: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        // On the disk, for a tmpfs can't be the upper layer of everything that is tested here.
        let directory = tempfile::tempdir_in("/var/lib").unwrap();
        let root = Self { directory };
        for name in ["upper", "work", "root"] {
            fs::create_dir(root.directory.path().join(name)).unwrap();
        }
        let options = format!(
            "lowerdir={MINBASE},upperdir={0}/upper,workdir={0}/work",
            root.directory.path().display()
        );
        let mounted = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(root.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        root
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// Runs a Python program in a container with this root.
    fn python(&self, program: &str) -> String {
        let output = Run::rootfs(
            Runtime::Sealock,
            self.path().to_str().unwrap(),
            &["/usr/bin/python3", "-c", program],
        )
        .output();
        assert!(output.status.success(), "{}", story(&output));
        text(&output.stdout)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn on_a_fresh_root(test: impl FnOnce(&Root, &Path)) {
    let host = Host::take();
    let root = Root::new();
    test(&root, &root.path());
    drop(root);
    host.assert_clean();
}

#[test]
fn content_owner_mode_times_and_attributes_are_the_same_on_the_host() {
    on_a_fresh_root(|root, host| {
        root.python(
            r#"
import os
with open("/a", "w") as f: f.write("written inside\n")
os.chown("/a", 1234, 5678)
os.chmod("/a", 0o4751)
os.utime("/a", ns=(1_000_000_001_000_000_002, 1_100_000_003_000_000_004))
os.setxattr("/a", "user.colour", b"green")
os.mkdir("/d", 0o700)
os.chown("/d", 7, 8)
os.chmod("/d", 0o1777)
os.setxattr("/d", "user.where", b"\x00\xff")
assert os.getxattr("/a", "user.colour") == b"green"
assert os.listxattr("/d") == ["user.where"], os.listxattr("/d")
os.mkfifo("/fifo", 0o640)
"#,
        );
        let a = host.join("a");
        // Before the content, for reading changes the access time.
        let meta = fs::metadata(&a).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 5678));
        assert_eq!(meta.mode() & 0o7777, 0o4751);
        assert_eq!((meta.atime(), meta.atime_nsec()), (1_000_000_001, 2));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_100_000_003, 4));
        assert_eq!(fs::read_to_string(&a).unwrap(), "written inside\n");
        let meta = fs::metadata(host.join("d")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o1777));
        let fifo = fs::metadata(host.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo());
        assert_eq!(fifo.permissions().mode() & 0o777, 0o640);
        for (file, name, value) in [("a", "user.colour", "green"), ("d", "user.where", "0sAP8=")] {
            let output = Command::new("getfattr")
                .args(["--only-values", "-e", "text", "-n", name])
                .arg(host.join(file))
                .output()
                .unwrap();
            let expected: &[u8] = if value.starts_with("0s") {
                b"\x00\xff"
            } else {
                value.as_bytes()
            };
            assert_eq!(output.stdout, expected, "{}", story(&output));
        }
    });
}

#[test]
fn what_the_host_wrote_is_read_inside() {
    on_a_fresh_root(|root, host| {
        fs::write(host.join("from-host"), "hello, guest").unwrap();
        std::os::unix::fs::chown(host.join("from-host"), Some(42), Some(43)).unwrap();
        let said = root.python(
            r#"
import os
s = os.stat("/from-host")
print(open("/from-host").read(), s.st_uid, s.st_gid, oct(s.st_mode & 0o777))
"#,
        );
        assert_eq!(said, "hello, guest 42 43 0o644\n");
    });
}

#[test]
fn links_and_renames_over_open_files_behave() {
    on_a_fresh_root(|root, host| {
        root.python(
            r#"
import os
with open("/one", "w") as f: f.write("one")
os.link("/one", "/two")
assert os.stat("/one").st_ino == os.stat("/two").st_ino
assert os.stat("/two").st_nlink == 2
os.symlink("/one", "/soft")
os.symlink("nowhere/at/all", "/dangling")
assert os.readlink("/soft") == "/one" and open("/soft").read() == "one"
assert not os.path.exists("/dangling") and os.path.islink("/dangling")
with open("/old", "w") as f: f.write("old")
held = open("/old")
with open("/new", "w") as f: f.write("new")
os.rename("/new", "/old")
assert held.read() == "old"
assert open("/old").read() == "new"
assert not os.path.exists("/new")
gone = open("/gone", "w+")
gone.write("still here")
gone.flush()
os.unlink("/gone")
assert not os.path.exists("/gone")
gone.seek(0)
assert gone.read() == "still here"
os.ftruncate(gone.fileno(), 3)
assert os.fstat(gone.fileno()).st_size == 3
gone.close()
os.mkdir("/dir"); os.mkdir("/dir/sub")
try: os.rmdir("/dir"); raise SystemExit("removed a full directory")
except OSError as e: assert e.errno == 39, e
os.rename("/dir/sub", "/sub")
os.rmdir("/dir")
a = open("/append", "a"); b = open("/append", "a")
for i in range(100):
    a.write("a\n"); a.flush(); b.write("b\n"); b.flush()
assert open("/append").read() == "a\nb\n" * 100
"#,
        );
        assert_eq!(fs::metadata(host.join("one")).unwrap().nlink(), 2);
        assert_eq!(fs::read_link(host.join("soft")).unwrap(), Path::new("/one"));
        assert_eq!(fs::read_to_string(host.join("old")).unwrap(), "new");
        assert!(!host.join("gone").exists());
        assert!(host.join("sub").is_dir());
    });
}

#[test]
fn a_directory_of_ten_thousand_entries_is_listed_whole() {
    on_a_fresh_root(|root, host| {
        fs::create_dir(host.join("many")).unwrap();
        for number in 0..10_000 {
            fs::write(host.join(format!("many/entry-{number:05}")), "").unwrap();
        }
        root.python(
            r#"
import os
names = os.listdir("/many")
assert len(names) == 10000 and len(set(names)) == 10000, len(names)
assert sorted(names) == [f"entry-{i:05}" for i in range(10000)]
# With a listing under way, entries come and go: what stays must be listed once.
seen = []
with os.scandir("/many") as entries:
    for number, entry in enumerate(entries):
        seen.append(entry.name)
        if number < 100:
            os.close(os.open(f"/many/made-{number:05}", os.O_CREAT | os.O_WRONLY))
            os.unlink(f"/many/entry-{9999 - number:05}")
stayed = [f"entry-{i:05}" for i in range(9900)]
assert sorted(n for n in seen if n in set(stayed)) == stayed
assert len(os.listdir("/many")) == 10000
"#,
        );
        assert_eq!(fs::read_dir(host.join("many")).unwrap().count(), 10_000);
    });
}

#[test]
fn sparse_files_and_files_over_4_gib_behave() {
    on_a_fresh_root(|root, host| {
        root.python(
            r#"
import os
size = 5 << 30
with open("/big", "wb+") as f:
    f.seek(size - 4); f.write(b"tail")
    f.seek((4 << 30) + 1); f.write(b"over")
    f.seek(0); f.write(b"head")
    f.flush()
    s = os.fstat(f.fileno())
    assert s.st_size == size, s
    assert s.st_blocks * 512 < 1 << 20, s
    f.seek((4 << 30) + 1); assert f.read(4) == b"over"
    f.seek(1 << 30); assert f.read(16) == bytes(16)
    assert os.lseek(f.fileno(), 4096, os.SEEK_DATA) == 4 << 30
    os.posix_fallocate(f.fileno(), 1 << 20, 1 << 20)
    os.ftruncate(f.fileno(), (4 << 30) + 3)
    f.seek((4 << 30) + 1); assert f.read() == b"ov"
"#,
        );
        let meta = fs::metadata(host.join("big")).unwrap();
        assert_eq!(meta.size(), (4 << 30) + 3);
        assert!(meta.blocks() * 512 < 4 << 20, "{}", meta.blocks());
    });
}

#[test]
fn a_mapped_file_is_written_back() {
    on_a_fresh_root(|root, host| {
        root.python(
            r#"
import mmap, os
with open("/mapped", "wb+") as f:
    f.truncate(1 << 20)
    m = mmap.mmap(f.fileno(), 0)
    for i in range(0, 1 << 20, 4096): m[i:i+4] = i.to_bytes(4, "little")
    m.flush(); m.close()
"#,
        );
        let bytes = fs::read(host.join("mapped")).unwrap();
        for (index, page) in bytes.chunks(4096).enumerate() {
            let number = u32::from_le_bytes(page[..4].try_into().unwrap());
            assert_eq!(usize::try_from(number).unwrap(), index * 4096);
        }
    });
}

#[test]
fn permissions_hold_for_other_users_and_their_groups() {
    on_a_fresh_root(|root, host| {
        root.python(
            r#"
import os
os.mkdir("/shared"); os.chown("/shared", 0, 500); os.chmod("/shared", 0o2775)
with open("/secret", "w") as f: f.write("x")
os.chmod("/secret", 0o600)
child = os.fork()
if child == 0:
    os.setgroups([500]); os.setgid(1000); os.setuid(1000)
    try: open("/secret"); os._exit(1)
    except PermissionError: pass
    try: open("/forbidden", "w"); os._exit(2)
    except PermissionError: pass
    with open("/shared/mine", "w") as f: f.write("mine")
    os.mkdir("/shared/dir")
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
"#,
        );
        let file = fs::metadata(host.join("shared/mine")).unwrap();
        assert_eq!((file.uid(), file.gid()), (1000, 500));
        let dir = fs::metadata(host.join("shared/dir")).unwrap();
        assert_eq!((dir.uid(), dir.gid()), (1000, 500));
        assert_ne!(dir.mode() & 0o2000, 0, "a directory inherits the set-gid bit");
    });
}
