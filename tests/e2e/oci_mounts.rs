//! `mounts` of the OCI specification, and what else makes the container's file systems.

use std::{
    fs::Permissions,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
};

use sealock_tests::{config::Config, ctr::Runtime};
use serde_json::{Value, json};

use crate::{
    Host,
    oci::{as_under_runc, refused, says},
    text,
};

fn tmpfs(destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options})
}

/// Each option alone on a tmpfs of its own, below /run, which is one too.
#[test]
fn mount_options_are_applied() {
    let host = Host::take();
    let mut config = Config::shell(
        "awk '$5 ~ \"^/run/\" {print $5, $6}' /proc/self/mountinfo | sort | sed 's/,relatime//'",
    );
    for (index, options) in [
        &["ro"][..],
        &["noexec", "nosuid", "nodev"],
        &["noexec", "exec"],
        &["noatime"],
        &["strictatime"],
        &["nodiratime"],
        &["nosymfollow"],
        &["ro", "rw"],
    ]
    .iter()
    .enumerate()
    {
        config = config.and("/mounts", tmpfs(&format!("/run/m{index}"), options));
    }
    let said = as_under_runc(&host, &config);
    for line in [
        "/run/m0 ro",
        "/run/m1 rw,nosuid,nodev,noexec",
        "/run/m3 rw,noatime",
        "/run/m6 rw,nosymfollow",
    ] {
        assert!(said.contains(line), "{said}");
    }
    host.assert_clean();
}

#[test]
fn recursive_options_reach_what_is_mounted_below() {
    let host = Host::take();
    let top = tempfile::tempdir_in("/var/lib").unwrap();
    std::fs::create_dir(top.path().join("below")).unwrap();
    let script = "touch /mnt/x 2>&1; cp /bin/true /run/twice/true; /run/twice/true 2>&1 || echo not executed";
    let config = Config::shell(script)
        .and(
            "/mounts",
            json!({"destination": "/mnt", "type": "bind", "source": top.path(), "options": ["rbind", "rro"]}),
        )
        .and("/mounts", tmpfs("/run/twice", &["rnoexec"]));
    let said = says(&host, &config);
    assert!(
        said.contains("Read-only file system") && said.contains("not executed"),
        "{said}"
    );
    host.assert_clean();
}

#[test]
fn propagation_is_as_asked_for() {
    let host = Host::take();
    let config = Config::shell(
        "awk '$5 ~ \"^/run/m|^/$\" {print $5, $7}' /proc/self/mountinfo | sed 's/:.*//' | sort",
    )
    .with("/linux/rootfsPropagation", json!("unbindable"))
    .and("/mounts", tmpfs("/run/m1", &["shared"]))
    .and("/mounts", tmpfs("/run/m2", &["rprivate"]))
    .and("/mounts", tmpfs("/run/m3", &["unbindable"]));
    let said = says(&host, &config);
    assert_eq!(
        said,
        "/ unbindable\n/run/m1 shared\n/run/m2 -\n/run/m3 unbindable\n"
    );
    host.assert_clean();
}

#[test]
fn a_tmpfs_takes_the_mode_of_what_it_covers_and_with_copyup_its_files() {
    let host = Host::take();
    let config = Config::shell(
        "stat -c '%n %a' /mnt /var/tmp /run/new /srv; cat /etc/apt/sources.list.d/* /etc/debian_version | head -1 >/dev/null && \
         cmp /etc/debian_version /usr/lib/../../etc/debian_version && stat -c '%a %u:%g %F' /etc /etc/passwd /etc/shadow; \
         grep -c . /etc/passwd; touch /etc/written && echo written; readlink /etc/localtime",
    )
    .and("/mounts", tmpfs("/mnt", &["nosuid"]))
    .and("/mounts", tmpfs("/var/tmp", &["nosuid"]))
    .and("/mounts", tmpfs("/run/new", &["nosuid"]))
    .and("/mounts", tmpfs("/srv", &["mode=0700"]))
    .and("/mounts", tmpfs("/etc", &["tmpcopyup"]));
    let said = as_under_runc(&host, &config);
    assert!(said.contains("written\n"), "{said}");
    host.assert_clean();
}

#[test]
fn file_systems_of_the_kernel_are_mounted() {
    let host = Host::take();
    let config = Config::shell(
        "awk '$5 ~ \"^/run/\" {split($0, half, \" - \"); split(half[2], kind, \" \"); print $5, kind[1]}' /proc/self/mountinfo | sort; \
         mkdir /run/own/x; ls /run/cgroup/cgroup.procs /run/sys/class/net",
    )
    .and("/mounts", json!({"destination": "/run/q", "type": "mqueue", "source": "mqueue"}))
    .and("/mounts", json!({"destination": "/run/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}))
    .and("/mounts", json!({"destination": "/run/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}))
    .and("/mounts", json!({"destination": "/run/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "mode=0620"]}))
    .and("/mounts", json!({"destination": "/run/own", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}));
    let said = as_under_runc(&host, &config);
    assert!(said.contains("/run/cgroup cgroup2\n"), "{said}");
    host.assert_clean();
}

#[test]
fn ids_of_a_mounts_files_can_be_mapped() {
    let host = Host::take();
    let ranges = json!([{"containerID": 5000, "hostID": 0, "size": 1000}]);
    let config = Config::shell("stat -c %u:%g /run/mapped; touch /run/mapped/made && stat -c %u:%g /run/mapped/made").and(
        "/mounts",
        json!({"destination": "/run/mapped", "type": "tmpfs", "source": "tmpfs", "options": ["idmap", "uid=5000", "gid=5000", "mode=0700"],
            "uidMappings": ranges, "gidMappings": ranges}),
    );
    // What the file system says is 5000's is 0's at the mount, and what 0 makes there is stored as 5000's.
    assert_eq!(says(&host, &config), "0:0\n0:0\n");
    host.assert_clean();
}

/// Root's files are somebody else's, those below only where that is asked for.
#[test]
fn ids_of_a_volumes_files_can_be_mapped() {
    let host = Host::take();
    let volume = tempfile::tempdir_in("/var/lib").unwrap();
    for name in ["roots", "others"] {
        std::fs::write(volume.path().join(name), "").unwrap();
    }
    chown(volume.path().join("others"), Some(3000), Some(3000)).unwrap();
    let range = |inside: u32| json!([{"containerID": inside, "hostID": 7000, "size": 1000}]);
    let bind = |at: &str, inside: u32| {
        json!({"destination": at, "type": "bind", "source": volume.path(), "options": ["rbind", "ridmap"],
            "uidMappings": range(inside), "gidMappings": range(inside)})
    };
    let config = Config::shell(
        "cd /run; stat -c '%n %u:%g' first/roots second/others; chroot --userspec=7005:7005 / touch /run/first/made; \
         stat -c '%n %u:%g' first/made",
    )
    .and("/mounts", bind("/run/first", 0))
    .and("/mounts", bind("/run/second", 3000));
    std::fs::set_permissions(volume.path(), Permissions::from_mode(0o777)).unwrap();
    let said = says(&host, &config);
    assert_eq!(
        said,
        "first/roots 7000:7000\nsecond/others 7000:7000\nfirst/made 7005:7005\n"
    );
    let made = std::fs::metadata(volume.path().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 5));
    host.assert_clean();
}

#[test]
fn a_remount_changes_what_is_there() {
    let host = Host::take();
    let config = Config::shell("touch /run/m/x 2>&1 || true; awk '$5 == \"/run/m\" {print $6}' /proc/self/mountinfo")
        .and("/mounts", tmpfs("/run/m", &["rw", "nosuid"]))
        .and("/mounts", json!({"destination": "/run/m", "type": "none", "source": "none", "options": ["remount", "ro", "nodev"]}));
    let said = says(&host, &config);
    assert!(
        said.contains("Read-only file system") && said.contains("ro,nodev,relatime"),
        "{said}"
    );
    host.assert_clean();
}

#[test]
fn paths_are_masked_and_made_read_only() {
    let host = Host::take();
    let config = Config::shell(
        "wc -c < /etc/passwd; ls /usr/share/doc | wc -l; touch /run/kept/x 2>&1 | cut -d: -f3; touch /run/kept/x 2>/dev/null || echo no",
    )
    .and("/mounts", tmpfs("/run/kept", &[]))
    .with("/linux/maskedPaths", json!(["/etc/passwd", "/usr/share/doc", "/no/such/path"]))
    .with("/linux/readonlyPaths", json!(["/run/kept", "/no/such/path"]));
    assert_eq!(
        as_under_runc(&host, &config),
        "0\n0\n Read-only file system\nno\n"
    );
    host.assert_clean();
}

#[test]
fn mounts_that_cannot_be_made_are_refused_by_place() {
    let host = Host::take();
    for (mount, words) in [
        (
            json!({"destination": "/mnt", "type": "ext4", "source": "/dev/vda"}),
            r#"].type "ext4" is not supported"#,
        ),
        (
            tmpfs("/run/x", &["no-such-option"]),
            r#"].options: "no-such-option" for tmpfs"#,
        ),
        (
            json!({"destination": "/proc/self/attr", "type": "tmpfs", "source": "tmpfs"}),
            "is inside /proc and can't be mounted over",
        ),
    ] {
        refused(&host, &Config::shell("true").and("/mounts", mount), words);
    }
    host.assert_clean();
}

#[test]
fn a_specification_without_dev_still_has_its_devices() {
    let host = Host::take();
    let root = tempfile::tempdir_in("/var/lib").unwrap();
    for name in ["bin", "proc", "dev"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap();
    std::fs::copy(busybox, root.path().join("bin/busybox")).unwrap();
    let mut config = Config::program(&[
        "/bin/busybox",
        "sh",
        "-c",
        "head -c2 /dev/zero | wc -c; echo x > /dev/null; busybox ls /dev | busybox grep -c .",
    ])
    .with("/root", json!({"path": root.path(), "readonly": true}))
    .with("/process/env", json!(["PATH=/bin"]));
    config.0["process"]["args"] = json!([
        "/bin/busybox",
        "sh",
        "-c",
        "busybox head -c2 /dev/zero | busybox wc -c; echo x > /dev/null && echo null"
    ]);
    config.0["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    let output = config.output(Runtime::Sealock);
    assert_eq!(text(&output.stdout), "2\nnull\n", "{}", crate::story(&output));
    let null = std::fs::symlink_metadata(root.path().join("dev/null")).unwrap();
    assert!(null.is_file(), "{null:?}");
    host.assert_clean();
}
