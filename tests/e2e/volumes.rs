//! Volumes: files of the host in a container, as with a runtime without machines.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use sealock_tests::ctr::{MINBASE, Run, Runtime};

use crate::{Host, story, text};

const POD: &str = "io.kubernetes.cri.sandbox-id";

/// A directory of the host on its disk.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/lib").unwrap()
}

pub(crate) fn bind(source: &Path, destination: &str, options: &str) -> String {
    format!(
        "type=bind,src={},dst={destination},options={options}",
        source.display()
    )
}

fn busybox(mounts: &[String], script: &str) -> Run {
    with_mounts(Run::busybox(Runtime::Sealock, &["sh", "-c", script]), mounts)
}

fn python(mounts: &[String], script: &str) -> Run {
    let run = Run::rootfs(Runtime::Sealock, MINBASE, &["/usr/bin/python3", "-uc", script]);
    with_mounts(run, mounts)
}

fn with_mounts(run: Run, mounts: &[String]) -> Run {
    mounts
        .iter()
        .fold(run, |run, mount| run.flag(&["--mount", mount]))
}

fn said(run: &Run) -> String {
    let output = run.output();
    assert!(output.status.success(), "{}", story(&output));
    text(&output.stdout)
}

/// A container that is spoken with, line by line.
struct Talk {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Talk {
    fn with(run: &Run) -> Self {
        let mut child = run.spawn();
        Self {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).unwrap() == 0 {
            let mut errors = String::new();
            let stderr = self.child.stderr.as_mut().unwrap();
            std::io::Read::read_to_string(stderr, &mut errors).unwrap();
            panic!("it ended: {errors}");
        }
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.hear()
    }

    /// Ends its input, and waits for its end.
    fn end(mut self) {
        self.stdin = None;
        let output = self.child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", story(&output));
    }
}

/// A shell that does what it is told.
fn shell(run: impl Fn(&str) -> Run) -> Talk {
    let mut talk = Talk::with(&run(
        "echo ready; while read -r line; do eval \"$line\" 2>&1; done; exit 0",
    ));
    assert_eq!(talk.hear(), "ready");
    talk
}

#[test]
fn host_and_container_see_each_others_changes_at_once() {
    let host = Host::take();
    let volume = scratch();
    let file = volume.path().join("file");
    fs::write(&file, "one").unwrap();
    let mounts = [bind(volume.path(), "/v", "rbind:rw")];
    let mut talk = shell(|script| busybox(&mounts, script));
    assert_eq!(talk.ask("cat /v/file; echo"), "one");
    fs::write(&file, "two").unwrap();
    assert_eq!(talk.ask("cat /v/file; echo"), "two");
    fs::write(volume.path().join("new"), "").unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(talk.ask("echo $(ls /v)"), "new");
    fs::rename(volume.path().join("new"), volume.path().join("renamed")).unwrap();
    assert_eq!(talk.ask("echo $(ls /v)"), "renamed");
    assert_eq!(talk.ask("echo three > /v/mine; mkdir /v/d; echo ok"), "ok");
    assert_eq!(fs::read_to_string(volume.path().join("mine")).unwrap(), "three\n");
    assert!(volume.path().join("d").is_dir());
    talk.end();
    host.assert_clean();
}

#[test]
fn single_files_are_volumes_and_read_only_ones_stay_as_they_are() {
    let host = Host::take();
    let volume = scratch();
    let (hosts, log) = (volume.path().join("hosts"), volume.path().join("log"));
    fs::write(&hosts, "10.0.0.1 here\n").unwrap();
    fs::write(&log, "first\n").unwrap();
    fs::create_dir(volume.path().join("d")).unwrap();
    let mounts = [
        bind(&hosts, "/etc/hosts", "rbind:ro"),
        bind(&log, "/new/place/log", "rbind:rw"),
        bind(&volume.path().join("d"), "/d", "rbind:ro"),
    ];
    let script = "cat /etc/hosts; echo second >> /new/place/log; \
                  echo x > /etc/hosts; touch /d/x; rm /etc/hosts; mount -o remount,rw /d; grep -c ' /etc/hosts ' /proc/mounts";
    let output = busybox(&mounts, script).output();
    assert_eq!(text(&output.stdout), "10.0.0.1 here\n1\n", "{}", story(&output));
    let errors = text(&output.stderr);
    assert_eq!(errors.matches("Read-only file system").count(), 2, "{errors}");
    assert_eq!(fs::read_to_string(&hosts).unwrap(), "10.0.0.1 here\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "first\nsecond\n");
    assert_eq!(fs::read_dir(volume.path().join("d")).unwrap().count(), 0);
    host.assert_clean();
}

/// What the first container of a pod does in a volume, for the second to find.
const OWNER: &str = r#"
import fcntl, mmap, os, select, socket, sys
s = socket.socket(socket.AF_UNIX); s.bind("/v/socket"); s.listen()
f = open("/v/flock", "w"); fcntl.flock(f, fcntl.LOCK_EX)
p = open("/v/posix", "w"); fcntl.lockf(p, fcntl.LOCK_EX, 10, 5)
m = open("/v/map", "w+b"); m.truncate(4096); m = mmap.mmap(m.fileno(), 4096)
os.mkfifo("/v/fifo")
print("ready")
c, _ = s.accept(); c.sendall(b"hello"); print(c.recv(5).decode())
print(m[:5].decode())
fd = os.open("/v/fifo", os.O_RDONLY); print(os.read(fd, 5).decode())
sys.stdin.read()
"#;

const NEIGHBOUR: &str = r#"
import errno, fcntl, mmap, socket
c = socket.socket(socket.AF_UNIX); c.connect("/v/socket"); assert c.recv(5) == b"hello"
def held(lock):
    try: lock()
    except OSError as e: return e.errno in (errno.EAGAIN, errno.EACCES)
f = open("/v/flock", "w"); assert held(lambda: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB))
p = open("/v/posix", "r+"); assert held(lambda: fcntl.lockf(p, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 7))
fcntl.lockf(p, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
m = open("/v/map", "r+b"); m = mmap.mmap(m.fileno(), 4096); m[:5] = b"there"
c.sendall(b"howdy")
open("/v/fifo", "w").write("fifos")
print("done")
"#;

#[test]
fn containers_of_a_pod_share_sockets_locks_and_mappings_on_a_volume() {
    let host = Host::take();
    let volume = scratch();
    let mounts = [bind(volume.path(), "/v", "rbind:rw")];
    let owner = python(&mounts, OWNER);
    let mut talk = Talk::with(&owner);
    assert_eq!(talk.hear(), "ready");
    let neighbour = python(&mounts, NEIGHBOUR).flag(&["--annotation", &format!("{POD}={}", owner.id())]);
    assert_eq!(said(&neighbour), "done\n");
    assert_eq!(
        [talk.hear(), talk.hear(), talk.hear()],
        ["howdy", "there", "fifos"]
    );
    talk.end();
    host.assert_clean();
}

#[test]
fn a_volume_is_writable_for_the_container_that_may() {
    let host = Host::take();
    let volume = scratch();
    let reader = |script: &str| busybox(&[bind(volume.path(), "/v", "rbind:ro")], script);
    let first = reader("echo ready; while read -r line; do eval \"$line\" 2>&1; done; exit 0");
    let mut talk = Talk::with(&first);
    assert_eq!(talk.hear(), "ready");
    assert!(talk.ask("touch /v/x").contains("Read-only file system"));
    let in_pod = ["--annotation", &format!("{POD}={}", first.id())];
    let writer = busybox(&[bind(volume.path(), "/v", "rbind:rw")], "echo written > /v/file").flag(&in_pod);
    said(&writer);
    assert_eq!(talk.ask("cat /v/file"), "written");
    assert!(talk.ask("touch /v/x").contains("Read-only file system"));
    assert_eq!(
        fs::read_to_string(volume.path().join("file")).unwrap(),
        "written\n"
    );
    talk.end();
    host.assert_clean();
}

#[test]
fn files_of_a_volume_behave_as_files_do() {
    let host = Host::take();
    let volume = scratch();
    let program = r#"
import ctypes, mmap, os, select, struct
os.chdir("/v")
# inotify
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(os.O_NONBLOCK); assert libc.inotify_add_watch(fd, b"/v", 0x100 | 0x80) >= 0
open("a", "w").write("content"); os.rename("a", "b")
seen = b""
while b"b\0" not in seen:
    assert select.select([fd], [], [], 30)[0]; seen += os.read(fd, 4096)
assert b"a\0" in seen
# links and renames between directories
os.mkdir("d"); os.mkdir("e"); os.link("b", "d/hard"); os.rename("d/hard", "e/hard")
assert os.stat("e/hard").st_ino == os.stat("b").st_ino and os.stat("b").st_nlink == 2
os.symlink("b", "soft"); assert open("soft").read() == "content"
os.rename("d", "e/d"); assert os.listdir("e/d") == []
try: os.rename("e", "e/d/e"); assert False
except OSError as error: assert error.errno == 22
# attributes
os.setxattr("b", "user.k", b"v"); assert os.listxattr("b") == ["user.k"]
os.utime("b", ns=(5, 7)); assert os.stat("b").st_mtime_ns == 7
# direct and mapped
m = mmap.mmap(-1, 8192); m[:] = b"x" * 8192
fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT); assert os.write(fd, m) == 8192
m[:] = b"y" * 8192; os.lseek(fd, 0, 0); assert os.readv(fd, [m]) == 8192 and m[:] == b"x" * 8192
f = open("direct", "r+b"); s = mmap.mmap(f.fileno(), 8192); s[4096:4101] = b"shown"; s.flush()
assert os.pread(f.fileno(), 5, 4096) == b"shown"
# an open file without a name
f = open("gone", "w+"); os.unlink("gone"); f.write("still"); f.seek(0); assert f.read() == "still"
# a large directory
os.mkdir("many")
for i in range(200): open(f"many/{i}", "w").close()
assert sorted(os.listdir("many"), key=int) == [str(i) for i in range(200)]
assert sum(1 for entry in os.scandir("many") if entry.stat().st_size == 0) == 200
# holes
fd = os.open("sparse", os.O_RDWR | os.O_CREAT); os.pwrite(fd, b"z", 1 << 30)
assert os.lseek(fd, 0, os.SEEK_DATA) >= (1 << 30) - 65536 and os.stat("sparse").st_blocks < 1000
os.posix_fallocate(fd, 0, 4096); os.truncate("sparse", 10); assert os.stat("sparse").st_size == 10
print("done", os.statvfs("/v").f_blocks > 0)
"#;
    assert_eq!(
        said(&python(&[bind(volume.path(), "/v", "rbind:rw")], program)),
        "done True\n"
    );
    let direct = fs::read(volume.path().join("direct")).unwrap();
    assert_eq!(&direct[4096..4101], b"shown");
    assert_eq!(fs::read_dir(volume.path().join("many")).unwrap().count(), 200);
    host.assert_clean();
}

/// Mounts for as long as it lives.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn new(words: &[&str], target: &Path) -> Self {
        let done = Command::new("mount").args(words).arg(target).status().unwrap();
        assert!(done.success());
        Self(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_is_mounted_on_the_host_later_appears_where_it_is_asked_for() {
    let host = Host::take();
    let top = scratch();
    let source = top.path().join("source");
    fs::create_dir(&source).unwrap();
    let _whole = Mounted::new(&["-t", "tmpfs", "tmpfs"], &source);
    assert!(
        Command::new("mount")
            .arg("--make-shared")
            .arg(&source)
            .status()
            .unwrap()
            .success()
    );
    fs::create_dir(source.join("sub")).unwrap();
    let mounts = [
        bind(&source, "/follows", "rbind:rw:rslave"),
        bind(&source, "/stays", "rbind:rw:rprivate"),
    ];
    let mut talk = shell(|script| busybox(&mounts, script));
    assert_eq!(talk.ask("ls /follows/sub /stays/sub | wc -l"), "3");
    let later = Mounted::new(&["-t", "tmpfs", "tmpfs"], &source.join("sub"));
    fs::write(source.join("sub/file"), "").unwrap();
    assert_eq!(talk.ask("echo $(ls /follows/sub) $(ls /stays/sub)"), "file");
    drop(later);
    assert_eq!(talk.ask("echo gone $(ls /follows/sub)"), "gone");
    talk.end();

    let shared = busybox(&[bind(&source, "/v", "rbind:rw:rshared")], "true").output();
    let line = text(&shared.stderr);
    assert!(
        !shared.status.success() && line.contains("rshared") && line.contains("Bidirectional"),
        "{line}"
    );
    drop(_whole);
    drop(top);
    host.assert_clean();
}

#[test]
fn what_is_the_hosts_is_refused_by_name_and_what_every_kernel_has_is_the_guests() {
    let host = Host::take();
    let top = scratch();
    let socket = top.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    for (source, expected) in [
        (Path::new("/"), "/ is the host's whole root"),
        (Path::new("/dev"), "/dev is in the host's /dev"),
        (Path::new("/sys/kernel"), "/sys/kernel is in the host's sysfs"),
        (Path::new("/dev/vda"), "/dev/vda is in the host's /dev"),
        (&socket, "is a socket"),
        (&top.path().join("missing"), "No such file"),
    ] {
        let output = busybox(&[bind(source, "/x", "rbind:ro")], "true").output();
        let line = text(&output.stderr);
        assert!(
            !output.status.success() && line.contains("mounts["),
            "{}",
            story(&output)
        );
        assert!(line.contains(expected), "no {expected:?} in: {line}");
    }
    let mounts = [
        bind(Path::new("/proc"), "/host/proc", "rbind:ro"),
        bind(Path::new("/sys"), "/host/sys", "rbind:ro"),
        bind(Path::new("/dev/null"), "/host/null", "bind:rw"),
        bind(top.path(), "/v", "rbind:rw"),
    ];
    let script = "cat /host/proc/sys/kernel/ostype; ls -d /host/sys/devices; echo x > /host/null; test -c /host/null; \
                  nc local:/v/socket </dev/null 2>&1 | grep -o refused";
    let output = busybox(&mounts, script).output();
    // A process of the host listens there: in the guest nobody does.
    let heard = text(&output.stdout);
    assert!(
        heard.starts_with("Linux\n/host/sys/devices\n"),
        "{}",
        story(&output)
    );
    drop(listener);
    drop(top);
    host.assert_clean();
}

/// A directory like a ConfigMap's, as kubelet writes it.
struct ConfigMap {
    top: tempfile::TempDir,
    generation: u32,
}

impl ConfigMap {
    fn new(text: &str) -> Self {
        let mut map = Self {
            top: scratch(),
            generation: 0,
        };
        fs::create_dir_all(map.path()).unwrap();
        map.update(text);
        symlink("..data/key", map.path().join("key")).unwrap();
        map
    }

    fn path(&self) -> PathBuf {
        self.top
            .path()
            .join("pods/u1/volumes/kubernetes.io~configmap/settings")
    }

    fn update(&mut self, text: &str) {
        let old = fs::read_link(self.path().join("..data"));
        self.generation += 1;
        let name = format!("..2026_11_22_{}", self.generation);
        fs::create_dir(self.path().join(&name)).unwrap();
        fs::write(self.path().join(&name).join("key"), text).unwrap();
        symlink(&name, self.path().join("..data_tmp")).unwrap();
        fs::rename(self.path().join("..data_tmp"), self.path().join("..data")).unwrap();
        if let Ok(old) = old {
            fs::remove_dir_all(self.path().join(old)).unwrap();
        }
    }
}

const WATCHER: &str = r#"
import ctypes, os, select
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.inotify_init1(0); assert libc.inotify_add_watch(fd, b"/settings", 0x80 | 0x200) >= 0
print(open("/settings/key").read())
seen = b""
while b"..data\0" not in seen:
    assert select.select([fd], [], [], 60)[0]; seen += os.read(fd, 65536)
print(open("/settings/key").read(), os.readlink("/settings/..data"))
print(open("/part").read())
"#;

#[test]
fn an_updated_config_map_is_noticed_in_the_container_and_its_subpath_stays() {
    let host = Host::take();
    let mut map = ConfigMap::new("one");
    let part = fs::canonicalize(map.path().join("key")).unwrap();
    let mounts = [
        bind(&map.path(), "/settings", "rbind:ro"),
        bind(&part, "/part", "rbind:ro"),
    ];
    let mut talk = Talk::with(&python(&mounts, WATCHER));
    assert_eq!(talk.hear(), "one");
    map.update("two");
    assert_eq!(talk.hear(), "two ..2026_11_22_2");
    // As with runc: a subPath is the file that it was at the start.
    assert_eq!(talk.hear(), "one");
    talk.end();
    drop(map);
    host.assert_clean();
}

#[test]
fn memory_is_the_pods_and_as_large_as_on_the_host() {
    let host = Host::take();
    let top = scratch();
    let shm = top.path().join("shm");
    let cache = top.path().join("pods/u1/volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir(&shm).unwrap();
    fs::create_dir_all(&cache).unwrap();
    let shm_mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=8m,mode=1777", "shm"], &shm);
    let cache_mounted = Mounted::new(&["-t", "tmpfs", "-o", "size=4m,mode=777,gid=77", "tmpfs"], &cache);
    // What ctr mounts there itself comes first, ours on top.
    let mounts = [
        bind(&shm, "/dev/shm", "rbind:rw"),
        bind(&cache, "/cache", "rbind:rw"),
    ];
    let first = busybox(
        &mounts,
        "echo ready; while read -r line; do eval \"$line\" 2>&1; done; exit 0",
    );
    let mut talk = Talk::with(&first);
    assert_eq!(talk.hear(), "ready");
    assert_eq!(talk.ask("stat -c '%a %g' /cache"), "777 77");
    assert_eq!(
        talk.ask("echo $(df -m /dev/shm /cache | awk '/dev.shm|cache/ {print $2}')"),
        "8 4"
    );
    assert_eq!(
        talk.ask("echo shared > /dev/shm/file; echo too > /cache/file; echo ok"),
        "ok"
    );
    let in_pod = ["--annotation", &format!("{POD}={}", first.id())];
    let second = busybox(&mounts, "cat /dev/shm/file /cache/file").flag(&in_pod);
    assert_eq!(said(&second), "shared\ntoo\n");
    assert_eq!(fs::read_dir(&shm).unwrap().count(), 0);
    talk.end();
    drop((shm_mounted, cache_mounted));
    drop(top);
    host.assert_clean();
}
