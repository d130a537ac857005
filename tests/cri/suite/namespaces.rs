//! What containers of a pod share.

use sealock_cri_tests::{Pod, mode, v1::NamespaceMode};

#[test]
fn each_container_has_processes_of_its_own() {
    let pod = Pod::run();
    let _other = pod.sh("exec sleep 654").start();
    let container = pod.sh("exec sleep 600").start();
    let output = container.sh("cat /proc/1/comm; ps | grep -c 'sleep 65[4]'");
    assert_eq!(output.stdout, "sleep\n0\n");
}

#[test]
fn containers_share_the_processes_of_a_pod_that_says_so() {
    let pod = Pod::with(|config| Pod::namespaces(config).pid = mode(NamespaceMode::Pod));
    let other = pod.sh("exec sleep 654").start();
    let container = pod.sh("exec sleep 600").start();
    let output = container.sh("echo $$; cat /proc/1/comm; ps | grep -c 'sleep 65[4]'");
    let words: Vec<_> = output.text().lines().collect();
    assert_ne!(words[0], "1");
    assert_ne!(words[1], "sleep");
    assert_eq!(words[2], "1");
    // One may signal the other.
    let output = container.sh("kill $(ps | grep 'sleep 65[4]' | awk '{print $1}')");
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(other.wait().exit_code, 143);
    // And what ended is not left as a zombie.
    assert_eq!(container.sh("ps -o stat | grep -c Z").stdout, "0\n");
}

#[test]
fn a_container_of_a_shared_pod_takes_all_its_processes_along() {
    let pod = Pod::with(|config| Pod::namespaces(config).pid = mode(NamespaceMode::Pod));
    let witness = pod.sh("exec sleep 600").start();
    let container = pod.sh("sleep 654 & sleep 654 & wait").start();
    witness.until("the processes", || {
        witness.sh("ps | grep -c 'sleep 65[4]$'").stdout == "2\n"
    });
    container.stop(0).unwrap();
    witness.until("them to be gone", || {
        witness.sh("ps | grep -c 'sleep 65[4]$'").stdout == "0\n"
    });
}

#[test]
fn a_container_may_look_into_another_ones_processes() {
    // As `kubectl debug --target` does it.
    let pod = Pod::run();
    let target = pod.sh("exec sleep 654").start();
    let output = pod
        .sh("cat /proc/1/cmdline | tr '\\0' ' '; cat /proc/1/root/proc/1/comm")
        .namespaces(|namespaces| {
            namespaces.pid = mode(NamespaceMode::Target);
            namespaces.target_id = target.id.clone();
        })
        .security(|security| {
            security.capabilities = Some(sealock_cri_tests::v1::Capability {
                add_capabilities: vec!["SYS_PTRACE".to_owned()],
                ..sealock_cri_tests::v1::Capability::default()
            });
        })
        .output();
    assert_eq!(output.text(), "sleep 654 sleep");
}

#[test]
fn host_name_network_and_ipc_are_the_pods_and_mounts_are_not() {
    let pod = Pod::run();
    let other = Pod::run();
    // They stay: a number is given again when nobody has its namespace any more.
    let of = |kind: &str| {
        pod.sh(&format!("readlink /proc/self/ns/{kind}; exec sleep 600"))
            .start()
    };
    for (kind, shared) in [
        ("uts", true),
        ("net", true),
        ("ipc", true),
        ("mnt", false),
        ("pid", false),
    ] {
        let (first, second) = (of(kind), of(kind));
        for container in [&first, &second] {
            container.until_logged(kind);
        }
        assert_eq!(first.log() == second.log(), shared, "{kind}");
    }
    // In machines of their own numbers say nothing: what is made in one pod is not in the other.
    let container = pod.sh("echo x > /dev/mqueue/queue; exec sleep 600").start();
    container.until("the queue", || {
        container.sh("test -e /dev/mqueue/queue").code == 0
    });
    assert_eq!(pod.sh("ls /dev/mqueue").output().text(), "queue");
    assert_eq!(other.sh("ls /dev/mqueue").output().text(), "");
}

#[test]
fn loopback_is_up_and_shared_by_a_pods_containers() {
    let pod = Pod::run();
    let server = pod.sh("nc -l -p 7070 -e echo from inside").start();
    server.until("the server", || {
        server.sh("netstat -ltn | grep -q :7070").code == 0
    });
    assert_eq!(pod.sh("nc 127.0.0.1 7070").output().text(), "from inside");
}
