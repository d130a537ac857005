//! Volumes: directories and files of the host in containers.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::Path,
    process::Command,
};

use sealock_cri_tests::{Pod, v1::MountPropagation};
use tempfile::TempDir;

fn volume() -> (TempDir, String) {
    // Not on a tmpfs: as a volume of the kubelet's.
    let directory = tempfile::tempdir_in("/var/lib").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = directory.path().display().to_string();
    (directory, path)
}

#[test]
fn a_directory_is_shared_both_ways() {
    let (directory, path) = volume();
    fs::write(directory.path().join("from-host"), "host").unwrap();
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").mount(&path, "/data").start();
    assert_eq!(container.exec(&["cat", "/data/from-host"]).text(), "host");
    assert_eq!(
        container
            .sh("echo guest > /data/from-container; mkdir /data/new")
            .code,
        0
    );
    assert_eq!(
        fs::read_to_string(directory.path().join("from-container")).unwrap(),
        "guest\n"
    );
    assert!(directory.path().join("new").is_dir());
    // What changes while it runs is seen as well, on both sides.
    fs::write(directory.path().join("from-host"), "changed").unwrap();
    fs::write(directory.path().join("later"), "later").unwrap();
    container.until("the change to be seen", || {
        container.sh("cat /data/from-host /data/later").stdout == "changedlater"
    });
    assert_eq!(container.sh("rm -r /data/later /data/new").code, 0);
    assert!(!directory.path().join("later").exists());
}

#[test]
fn a_read_only_volume_cant_be_written() {
    let (directory, path) = volume();
    fs::write(directory.path().join("file"), "kept").unwrap();
    let pod = Pod::run();
    let output = pod
        .sh("cat /data/file; touch /data/new; echo x > /data/file; rm /data/file")
        .mount_with(&path, "/data", |mount| mount.readonly = true)
        .output();
    assert_eq!(output.stdout, "kept");
    assert_eq!(
        output.stderr.matches("Read-only file system").count(),
        3,
        "{output:?}"
    );
    assert_eq!(fs::read_to_string(directory.path().join("file")).unwrap(), "kept");
}

#[test]
fn a_single_file_is_mounted() {
    let (directory, _) = volume();
    let file = directory.path().join("file");
    fs::write(&file, "before").unwrap();
    let pod = Pod::run();
    let output = pod
        .sh("cat /etc/one.conf; printf after > /etc/one.conf")
        .mount(&file.display().to_string(), "/etc/one.conf")
        .output();
    assert_eq!(output.text(), "before");
    assert_eq!(fs::read_to_string(&file).unwrap(), "after");
}

#[test]
fn the_source_of_a_volume_may_be_a_link() {
    let (directory, _) = volume();
    let real = directory.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("file"), "behind the link").unwrap();
    let link = directory.path().join("link");
    symlink(&real, &link).unwrap();
    let pod = Pod::run();
    let output = pod
        .sh("cat /data/file")
        .mount(&link.display().to_string(), "/data")
        .output();
    assert_eq!(output.text(), "behind the link");
}

#[test]
fn a_source_that_is_missing_becomes_a_directory() {
    let (directory, _) = volume();
    let missing = directory.path().join("to/be/made");
    let pod = Pod::run();
    let output = pod
        .sh("touch /data/file; ls /data")
        .mount(&missing.display().to_string(), "/data")
        .output();
    assert_eq!(output.text(), "file");
    assert!(missing.join("file").exists());
}

#[test]
fn containers_of_a_pod_share_a_volume() {
    let (_directory, path) = volume();
    let pod = Pod::run();
    let writer = pod
        .sh("mkfifo /data/fifo; echo through > /data/fifo")
        .mount(&path, "/data")
        .start();
    let reader = pod
        .sh("until test -p /other/fifo; do sleep 0.1; done; cat /other/fifo")
        .mount(&path, "/other")
        .start();
    assert_eq!(reader.wait().exit_code, 0);
    assert_eq!(reader.log(), "through\n");
    assert_eq!(writer.wait().exit_code, 0);
}

#[test]
fn a_memory_backed_volume_is_shared_and_keeps_its_size() {
    let (directory, path) = volume();
    assert!(mount(&["-t", "tmpfs", "-o", "size=8m", "tmpfs", &path]));
    let pod = Pod::run();
    let output = pod
        .sh("dd if=/dev/zero of=/cache/big bs=1M count=20 2>/dev/null; stat -c %s /cache/big; rm /cache/big; echo x > /cache/small")
        .mount(&path, "/cache")
        .output();
    let size: u64 = output.text().parse().unwrap();
    assert!(size <= 8 << 20, "{size}");
    assert_eq!(
        pod.sh("cat /cache/small").mount(&path, "/cache").output().text(),
        "x"
    );
    drop(pod);
    unmount(directory.path());
}

#[test]
fn owners_modes_and_times_of_files_are_the_same_on_both_sides() {
    let (directory, path) = volume();
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").mount(&path, "/data").start();
    assert_eq!(
        container
            .sh("cd /data && touch file && chown 1234:4321 file && chmod 4751 file && ln file hard && ln -s file soft && touch -d @1000000000 file")
            .code,
        0
    );
    let metadata = fs::metadata(directory.path().join("file")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o4751);
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.nlink()),
        (1234, 4321, 2)
    );
    assert_eq!(metadata.mtime(), 1_000_000_000);
    assert_eq!(
        fs::read_link(directory.path().join("soft")).unwrap(),
        Path::new("file")
    );
    let seen = container.exec(&["stat", "-c", "%a %u %g %h %Y", "/data/file"]);
    assert_eq!(seen.text(), "4751 1234 4321 2 1000000000");
}

#[test]
fn a_user_writes_only_where_it_may() {
    let (directory, path) = volume();
    for (name, mode) in [("mine", 0o700), ("groups", 0o770), ("closed", 0o755)] {
        let path = directory.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::chown(directory.path().join("mine"), Some(1234), None).unwrap();
    std::os::unix::fs::chown(directory.path().join("groups"), None, Some(4321)).unwrap();
    let pod = Pod::run();
    let output = pod
        .sh("for d in mine groups closed; do touch /data/$d/file 2>/dev/null && echo $d; done; stat -c %u:%g /data/mine/file")
        .user(1234)
        .security(|security| {
            security.run_as_group = Some(sealock_cri_tests::v1::Int64Value { value: 5 });
            security.supplemental_groups = vec![4321];
        })
        .mount(&path, "/data")
        .output();
    assert_eq!(output.text(), "mine\ngroups\n1234:5");
}

#[test]
fn a_configuration_that_is_exchanged_by_its_link_is_seen() {
    // As the kubelet writes config maps: files are links through "..data" to a directory that is replaced whole.
    let (directory, path) = volume();
    let write = |version: &str| {
        let target = directory.path().join(format!("..{version}"));
        fs::create_dir(&target).unwrap();
        fs::write(target.join("key"), version).unwrap();
        let next = directory.path().join("..data_tmp");
        symlink(format!("..{version}"), &next).unwrap();
        fs::rename(next, directory.path().join("..data")).unwrap();
    };
    write("one");
    symlink("..data/key", directory.path().join("key")).unwrap();
    let pod = Pod::run();
    let container = pod
        .sh("exec sleep 600")
        .mount_with(&path, "/config", |mount| mount.readonly = true)
        .start();
    assert_eq!(container.exec(&["cat", "/config/key"]).text(), "one");
    write("two");
    fs::remove_dir_all(directory.path().join("..one")).unwrap();
    container.until("the new version", || {
        container.exec(&["cat", "/config/key"]).stdout == "two"
    });
}

#[test]
fn what_a_container_reports_at_its_end_is_on_the_host() {
    // The kubelet's termination log: a file, mounted alone.
    let (directory, _) = volume();
    let log = directory.path().join("termination-log");
    fs::write(&log, "").unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666)).unwrap();
    let pod = Pod::run();
    let output = pod
        .sh("echo why > /dev/termination-log")
        .user(1000)
        .mount(&log.display().to_string(), "/dev/termination-log")
        .output();
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "why\n");
}

#[test]
fn mounts_inside_a_volume_come_with_it() {
    let (directory, path) = volume();
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).unwrap();
    assert!(mount(&["-t", "tmpfs", "tmpfs", &inner.display().to_string()]));
    fs::write(inner.join("file"), "within").unwrap();
    let pod = Pod::run();
    let output = pod.sh("cat /data/inner/file").mount(&path, "/data").output();
    assert_eq!(output.text(), "within");
    drop(pod);
    unmount(&inner);
}

#[test]
fn a_mount_of_the_hosts_reaches_a_container_that_asked_for_it_and_no_other() {
    let (directory, path) = volume();
    assert!(mount(&["--bind", &path, &path]) && mount(&["--make-rshared", &path]));
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let pod = Pod::run();
    let private = pod.sh("exec sleep 600").mount(&path, "/data").start();
    let follower = pod
        .sh("exec sleep 600")
        .mount_with(&path, "/data", |mount| {
            mount.propagation = MountPropagation::PropagationHostToContainer as i32;
        })
        .start();
    assert!(mount(&["-t", "tmpfs", "tmpfs", &inner.display().to_string()]));
    fs::write(inner.join("file"), "late").unwrap();
    follower.until("the mount", || {
        follower.sh("cat /data/inner/file 2>/dev/null").stdout == "late"
    });
    assert_eq!(private.sh("ls /data/inner").text(), "");
    drop(pod);
    unmount(&inner);
    unmount(directory.path());
}

#[test]
fn a_socket_of_the_hosts_is_at_least_seen() {
    let (directory, path) = volume();
    let _listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let pod = Pod::run();
    let output = pod
        .sh("test -S /data/socket && echo socket")
        .mount(&path, "/data")
        .output();
    assert_eq!(output.text(), "socket");
}

#[test]
fn shared_memory_of_the_pod_is_the_same_in_its_containers() {
    let pod = Pod::run();
    let first = pod.sh("echo shared > /dev/shm/file; exec sleep 600").start();
    first.until("the file", || first.sh("test -s /dev/shm/file").code == 0);
    assert_eq!(pod.sh("cat /dev/shm/file").output().text(), "shared");
    let other = Pod::run();
    assert_ne!(other.sh("cat /dev/shm/file").output().code, 0);
}

fn mount(arguments: &[&str]) -> bool {
    Command::new("mount").args(arguments).status().unwrap().success()
}

fn unmount(path: &Path) {
    assert!(
        Command::new("umount")
            .arg("-l")
            .arg(path)
            .status()
            .unwrap()
            .success()
    );
}
