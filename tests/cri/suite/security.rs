//! Users, capabilities, and what keeps a container from its kernel.

use std::fs;

use sealock_cri_tests::{
    ContainerRequest, Pod,
    v1::{Capability, Int64Value, SecurityProfile, security_profile::ProfileType},
    words,
};

const ALL_CAPABILITIES: u64 = (1 << 41) - 1;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;
const CHOWN: u64 = 1;
const NET_BIND_SERVICE: u64 = 1 << 10;

/// The effective capabilities of a container that is asked for so.
fn capabilities(request: impl FnOnce(ContainerRequest<'_>) -> ContainerRequest<'_>) -> u64 {
    let pod = Pod::run();
    let output = request(pod.sh("sed -n 's/CapEff:\\t//p' /proc/self/status")).output();
    u64::from_str_radix(output.text(), 16).unwrap()
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: path.to_owned(),
    })
}

#[test]
fn a_user_and_a_group_are_taken() {
    let pod = Pod::run();
    let output = pod
        .sh("id -u; id -g; id -G")
        .user(1001)
        .security(|security| {
            security.run_as_group = Some(Int64Value { value: 1002 });
            security.supplemental_groups = vec![1234, 5678];
        })
        .output();
    assert_eq!(output.text(), "1001\n1002\n1002 1234 5678");
}

#[test]
fn a_user_is_found_by_its_name() {
    let pod = Pod::run();
    let output = pod
        .sh("id -un; id -g")
        .security(|security| security.run_as_username = "www-data".to_owned())
        .output();
    assert_eq!(output.text(), "www-data\n33");
}

#[test]
fn a_user_that_the_image_does_not_know_is_refused() {
    let pod = Pod::run();
    let answer = pod
        .sh("id")
        .security(|security| security.run_as_username = "nonesuch".to_owned())
        .try_start();
    let error = answer.err().unwrap();
    assert!(error.message().contains("no users found"), "{error}");
}

#[test]
fn a_root_file_system_is_writable_or_read_only() {
    let pod = Pod::run();
    let script = "touch /file 2>&1; touch /dev/shm/file && echo shm";
    assert_eq!(pod.sh(script).output().text(), "shm");
    let output = pod
        .sh(script)
        .security(|security| security.readonly_rootfs = true)
        .output();
    assert_eq!(output.text(), "touch: /file: Read-only file system\nshm");
}

#[test]
fn capabilities_are_added_and_dropped() {
    let default = capabilities(|request| request);
    assert_ne!(default & CHOWN, 0);
    assert_eq!(default & (NET_ADMIN | SYS_ADMIN), 0);
    let of = |add: &[&str], drop: &[&str]| {
        let capability = Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            ..Capability::default()
        };
        capabilities(|request| request.security(|security| security.capabilities = Some(capability)))
    };
    assert_eq!(of(&["NET_ADMIN"], &[]), default | NET_ADMIN);
    assert_eq!(of(&[], &["CHOWN"]), default & !CHOWN);
    assert_eq!(of(&["NET_BIND_SERVICE"], &["ALL"]), NET_BIND_SERVICE);
    assert_eq!(
        of(&["ALL"], &["SYS_ADMIN"]) & ALL_CAPABILITIES,
        ALL_CAPABILITIES & !SYS_ADMIN
    );
}

#[test]
fn a_user_that_is_not_root_has_no_capabilities() {
    assert_eq!(capabilities(|request| request.user(1000)), 0);
}

#[test]
fn a_capability_allows_what_it_is_for() {
    let pod = Pod::run();
    let script =
        "ip link add name test0 type dummy 2>/dev/null || ip link set lo mtu 1400 2>/dev/null; echo $?";
    assert_ne!(pod.sh(script).output().text(), "0");
    let output = pod
        .sh(script)
        .security(|security| {
            security.capabilities = Some(Capability {
                add_capabilities: words(&["NET_ADMIN"]),
                ..Capability::default()
            });
        })
        .output();
    assert_eq!(output.text(), "0");
}

#[test]
fn a_privileged_container_may_do_everything() {
    let pod = Pod::with(|config| Pod::security(config).privileged = true);
    let container = pod
        .sh("exec sleep 600")
        .security(|security| security.privileged = true)
        .start();
    let output = container.sh("sed -n 's/CapEff:\\t//p' /proc/self/status");
    assert_eq!(u64::from_str_radix(output.text(), 16).unwrap(), ALL_CAPABILITIES);
    assert_eq!(
        container
            .sh("mount -t tmpfs tmpfs /mnt && mkdir /mnt/x && umount /mnt")
            .code,
        0
    );
    assert_eq!(
        container
            .sh("test -w /proc/sys/kernel/msgmax && test -w /sys/kernel/mm && mkdir /sys/fs/cgroup/x")
            .code,
        0
    );
}

#[test]
fn a_container_that_is_not_privileged_may_not() {
    let pod = Pod::run();
    let container = pod.sh("exec sleep 600").start();
    for script in [
        "mount -t tmpfs tmpfs /mnt",
        "hostname other",
        "mknod /dev/sda b 8 0 && cat /dev/sda",
        "echo 1 > /proc/sys/kernel/msgmax",
        "mkdir /sys/fs/cgroup/x",
        "echo c > /proc/sysrq-trigger",
    ] {
        assert_ne!(container.sh(script).code, 0, "{script}");
    }
}

#[test]
fn no_new_privileges_is_set_when_asked_for() {
    let pod = Pod::run();
    for asked in [false, true] {
        let output = pod
            .sh("sed -n 's/NoNewPrivs:\\t//p' /proc/self/status")
            .user(1000)
            .security(|security| security.no_new_privs = asked)
            .output();
        assert_eq!(output.text(), if asked { "1" } else { "0" });
    }
}

#[test]
fn paths_are_masked_and_read_only() {
    let pod = Pod::run();
    let container = pod
        .sh("exec sleep 600")
        .security(|security| {
            security.masked_paths = words(&["/proc/keys", "/sys/firmware", "/proc/nonesuch"]);
            security.readonly_paths = words(&["/proc/sys", "/etc"]);
        })
        .start();
    assert_eq!(container.exec(&["cat", "/proc/keys"]).text(), "");
    assert_eq!(container.sh("ls /sys/firmware 2>/dev/null").stdout, "");
    for script in ["touch /etc/new", "echo 5 > /proc/sys/kernel/msgmax"] {
        assert!(
            container.sh(script).stderr.contains("Read-only file system"),
            "{script}"
        );
    }
}

#[test]
fn processes_are_unmasked_when_asked_for() {
    let pod = Pod::run();
    let output = pod.sh("cat /proc/timer_list | wc -l").output();
    assert_eq!(output.text(), "0");
    let output = pod
        .sh("grep -c ' /proc/' /proc/self/mountinfo")
        .security(|security| {
            security.masked_paths = Vec::new();
            security.readonly_paths = Vec::new();
        })
        .output();
    // Without lists containerd takes none: nothing is mounted over.
    assert_eq!(output.stdout, "0\n");
}

#[test]
fn the_default_seccomp_profile_filters_and_unconfined_does_not() {
    let pod = Pod::run();
    for (kind, expected) in [(ProfileType::RuntimeDefault, "2"), (ProfileType::Unconfined, "0")] {
        let output = pod
            .sh("sed -n 's/Seccomp:\\t//p' /proc/self/status")
            .security(|security| security.seccomp = profile(kind, ""))
            .output();
        assert_eq!(output.text(), expected);
    }
}

#[test]
fn the_default_seccomp_profile_denies_what_a_capability_would_have_to_allow() {
    let pod = Pod::run();
    let output = pod
        .sh("unshare -U true 2>&1; echo $?")
        .user(1000)
        .security(|security| security.seccomp = profile(ProfileType::RuntimeDefault, ""))
        .output();
    assert!(output.text().contains("Operation not permitted"), "{output:?}");
}

#[test]
fn a_seccomp_profile_of_the_hosts_is_applied() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("profile.json");
    fs::write(
        &path,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
        ]}"#,
    )
    .unwrap();
    let pod = Pod::run();
    let container = pod
        .sh("exec sleep 600")
        .security(|security| {
            security.seccomp = profile(ProfileType::Localhost, &path.display().to_string());
            security.capabilities = Some(Capability {
                add_capabilities: words(&["SYS_ADMIN"]),
                ..Capability::default()
            });
        })
        .start();
    // Commands that are executed later are filtered, too.
    assert!(
        container
            .sh("chmod 700 /tmp")
            .stderr
            .contains("Operation not permitted")
    );
    assert!(
        container
            .sh("hostname other")
            .stderr
            .contains("Function not implemented")
    );
    assert_eq!(container.sh("chown 1:1 /tmp").code, 0);
}

#[test]
fn a_seccomp_profile_that_is_missing_is_refused() {
    let pod = Pod::run();
    let answer = pod
        .sh("true")
        .security(|security| security.seccomp = profile(ProfileType::Localhost, "/no/such/profile"))
        .try_start();
    assert!(answer.err().unwrap().message().contains("/no/such/profile"));
}

#[test]
fn a_privileged_container_is_not_filtered() {
    let pod = Pod::with(|config| Pod::security(config).privileged = true);
    let output = pod
        .sh("sed -n 's/Seccomp:\\t//p' /proc/self/status")
        .security(|security| {
            security.privileged = true;
            security.seccomp = profile(ProfileType::RuntimeDefault, "");
        })
        .output();
    assert_eq!(output.text(), "0");
}
