//! What only a runtime whose containers share the host's kernel can do. With one that gives every pod a machine of its
//! own these are refused, by an error that says what and why: nothing is pretended.

use std::fs;

use sealock_cri_tests::{
    Pod, handler, mode,
    v1::{Device, MountPropagation, NamespaceMode},
};

/// Whether the handler's containers share the host's kernel.
fn shares_the_host() -> bool {
    handler() == "runc"
}

/// Runs a script in a container of such a pod: its output, or the error of whichever step is refused.
fn outcome(
    change: impl FnOnce(&mut sealock_cri_tests::v1::PodSandboxConfig),
    script: &str,
) -> Result<String, String> {
    let pod = Pod::try_with(change).map_err(|status| status.message().to_owned())?;
    let container = pod
        .sh(script)
        .try_start()
        .map_err(|status| status.message().to_owned())?;
    container.wait();
    Ok(container.log().trim_end().to_owned())
}

fn host_link(name: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{name}"))
        .unwrap()
        .display()
        .to_string()
}

#[test]
fn the_hosts_network_is_shared_or_refused() {
    let outcome = outcome(
        |config| {
            Pod::namespaces(config).network = mode(NamespaceMode::Node);
            // It is the host's then.
            config.hostname.clear();
        },
        "readlink /proc/self/ns/net",
    );
    if shares_the_host() {
        assert_eq!(outcome.unwrap(), host_link("net"));
    } else {
        let error = outcome.unwrap_err();
        assert!(error.contains("network"), "{error}");
    }
}

#[test]
fn the_hosts_processes_are_shared_or_refused() {
    let outcome = outcome(
        |config| Pod::namespaces(config).pid = mode(NamespaceMode::Node),
        "readlink /proc/self/ns/pid",
    );
    if shares_the_host() {
        assert_eq!(outcome.unwrap(), host_link("pid"));
    } else {
        let error = outcome.unwrap_err();
        assert!(error.contains("pid"), "{error}");
    }
}

#[test]
fn the_hosts_ipc_is_shared_or_refused() {
    let outcome = outcome(
        |config| Pod::namespaces(config).ipc = mode(NamespaceMode::Node),
        "readlink /proc/self/ns/ipc",
    );
    if shares_the_host() {
        assert_eq!(outcome.unwrap(), host_link("ipc"));
    } else {
        let error = outcome.unwrap_err();
        assert!(error.contains("ipc"), "{error}");
    }
}

#[test]
fn a_device_of_the_hosts_is_there_or_refused() {
    let pod = Pod::run();
    let answer = pod
        .sh("exec sleep 600")
        .with(|config| {
            config.devices = vec![Device {
                host_path: "/dev/vda".to_owned(),
                container_path: "/dev/disk".to_owned(),
                permissions: "rwm".to_owned(),
            }];
        })
        .try_start();
    if shares_the_host() {
        assert_eq!(
            answer
                .unwrap()
                .sh("test -b /dev/disk && head -c 512 /dev/disk >/dev/null")
                .code,
            0
        );
    } else {
        let error = answer.err().unwrap();
        assert!(error.message().contains("/dev/disk"), "{error}");
    }
}

#[test]
fn a_mount_made_in_a_container_reaches_the_host_or_is_refused() {
    let directory = tempfile::tempdir_in("/var/lib").unwrap();
    let path = directory.path().display().to_string();
    let run = |words: &[&str]| {
        std::process::Command::new(words[0])
            .args(&words[1..])
            .status()
            .unwrap()
    };
    assert!(run(&["mount", "--bind", &path, &path]).success());
    assert!(run(&["mount", "--make-rshared", &path]).success());
    fs::create_dir(directory.path().join("inner")).unwrap();
    let pod = Pod::with(|config| Pod::security(config).privileged = true);
    let answer = pod
        .sh("mount -t tmpfs tmpfs /data/inner && touch /data/inner/file && echo mounted; exec sleep 600")
        .security(|security| security.privileged = true)
        .mount_with(&path, "/data", |mount| {
            mount.propagation = MountPropagation::PropagationBidirectional as i32;
        })
        .try_start();
    if shares_the_host() {
        let container = answer.unwrap();
        container.until_logged("mounted");
        assert!(directory.path().join("inner/file").exists());
        let _ = run(&["umount", &format!("{path}/inner")]);
    } else {
        let error = answer.err().unwrap();
        assert!(error.message().contains("shared"), "{error}");
    }
    drop(pod);
    let _ = run(&["umount", "-l", &path]);
}
