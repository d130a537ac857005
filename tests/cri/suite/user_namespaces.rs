//! Pods with a user namespace (`hostUsers: false`).

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
};

use sealock_cri_tests::{
    Cri, Pod, mode,
    v1::{IdMapping, NamespaceMode, UserNamespace, VersionRequest},
};

/// What root in such a pod is outside of it.
const OUTSIDE: u32 = 200_000;

fn mapping() -> Vec<IdMapping> {
    vec![IdMapping {
        host_id: OUTSIDE,
        container_id: 0,
        length: 65536,
    }]
}

fn pod() -> Pod {
    Pod::with(|config| {
        Pod::namespaces(config).userns_options = Some(UserNamespace {
            mode: mode(NamespaceMode::Pod),
            uids: mapping(),
            gids: mapping(),
        });
        let linux = config.linux.get_or_insert_default();
        for (name, value) in [
            ("kernel.shm_rmid_forced", "1"),
            ("net.ipv4.ip_local_port_range", "2000 3000"),
        ] {
            linux.sysctls.insert(name.to_owned(), value.to_owned());
        }
    })
}

#[test]
fn root_of_a_pod_is_somebody_else_outside() {
    let pod = pod();
    let container = pod
        .sh("tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; id -u; stat -c %u:%g / /bin/busybox; \
             echo mine > /file; stat -c %u:%g /file; touch /dev/shm/file && cat /proc/sys/kernel/shm_rmid_forced; \
             tr '\\t' ' ' < /proc/sys/net/ipv4/ip_local_port_range; exec sleep 600")
        .start();
    container.until("all to be said", || container.lines().len() == 8);
    assert_eq!(
        container.log(),
        format!(" 0 {OUTSIDE} 65536\n 0 {OUTSIDE} 65536\n0\n0:0\n0:0\n0:0\n1\n2000 3000\n")
    );
    // Whoever joins is in it, too.
    assert_eq!(
        container
            .exec(&["sh", "-c", "tr -s ' ' < /proc/self/uid_map; id -u"])
            .text(),
        format!(" 0 {OUTSIDE} 65536\n0")
    );
    let other = pod
        .sh("id -u; touch /tmp/file && echo made; echo x > /dev/null && echo gone")
        .user(1000)
        .output();
    assert_eq!(other.text(), "1000\nmade\ngone");
}

#[test]
fn containers_of_a_pod_are_in_one_user_namespace() {
    let pod = pod();
    let names = "for name in user ipc uts; do readlink /proc/self/ns/$name; done";
    let [first, second] = [(); 2].map(|()| pod.sh(names).output());
    assert_eq!(first.text().lines().count(), 3);
    assert_eq!(first, second);
    // What is the pod's is its root's to change.
    let privileged = pod
        .sh("hostname changed && hostname")
        .security(|security| security.privileged = true)
        .try_start();
    if let Ok(container) = privileged {
        container.wait();
        assert_eq!(container.log(), "changed\n");
    }
}

#[test]
fn processes_of_a_pod_are_shared_in_its_user_namespace() {
    let pod = Pod::with(|config| {
        let namespaces = Pod::namespaces(config);
        namespaces.pid = mode(NamespaceMode::Pod);
        namespaces.userns_options = Some(UserNamespace {
            mode: mode(NamespaceMode::Pod),
            uids: mapping(),
            gids: mapping(),
        });
    });
    let first = pod.sh("exec sleep 617").start();
    let second = pod.sh("exec sleep 600").start();
    let script = "pid=$(pgrep -f 'sleep 617' || ps -o pid,args | awk '$2 == \"sleep\" && $3 == 617 { print $1 }'); \
                  ls /proc/$pid/root/bin/busybox && kill $pid";
    assert_eq!(second.sh(script).code, 0, "{:?}", second.sh(script));
    assert_eq!(first.wait().exit_code, 143);
}

#[test]
fn files_of_a_volume_are_whose_they_are_on_the_host() {
    let directory = tempfile::tempdir_in("/var/lib").unwrap();
    let path = directory.path().display().to_string();
    fs::write(directory.path().join("roots"), "").unwrap();
    fs::write(directory.path().join("users"), "").unwrap();
    chown(directory.path().join("users"), Some(1000), Some(1001)).unwrap();
    let pod = pod();
    let request = pod
        .sh("cd /data; stat -c %u:%g . roots users; echo x > made; stat -c %u:%g made; chown 7:8 users")
        .mount_with(&path, "/data", |mount| {
            mount.uid_mappings = mapping();
            mount.gid_mappings = mapping();
        });
    let version = Cri::get().version(VersionRequest::default()).unwrap();
    if version.runtime_version.trim_start_matches('v').starts_with("1.") {
        // containerd 1.7 itself asks no runtime for that.
        let error = request.try_start().err().unwrap();
        assert!(
            error.message().contains("idmap mounts not yet supported"),
            "{error}"
        );
        return;
    }
    assert_eq!(request.output().text(), "0:0\n0:0\n1000:1001\n0:0");
    let owner = |name: &str| {
        let metadata = fs::metadata(directory.path().join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(owner("made"), (0, 0));
    assert_eq!(owner("users"), (7, 8));
}
