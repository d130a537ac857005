//! The network namespace is followed: as it is at first, and as it changes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::Command,
};

use sealock_tests::{
    cni::{self, Namespace},
    ctr::{Run, Runtime, ctr, delete, remove_fifos},
    host::pids_of,
};

use super::{
    Pod, SERVER, Server, assert_nothing_on, assert_reaches, assert_says_done, client, on_bridge, python,
};
use crate::{
    Host, story,
    templates::{self, Templates},
    text,
};

#[test]
fn restored_pods_have_the_network_of_their_own_namespace() {
    let host = Host::take();
    let _templates = Templates::on();
    templates::template(&["create"]);
    let before = templates::log_length();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    let two = on_bridge("two", 1500);
    let to = &pod.addresses;
    let lines = format!(
        "print(open('/sys/class/net/eth0/address').read())
for to in ('{}', '{}', '10.77.0.1'): tcp(to); udp(to, 5000)",
        to[0], to[1]
    );
    let outside = Server::on_host(SERVER);
    let output = python(&two, &client(&lines)).output();
    assert_says_done(&output);
    let address = two
        .command(&["cat", "/sys/class/net/eth0/address"])
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout).lines().next(),
        text(&address.stdout).lines().next()
    );
    drop(outside);
    assert_eq!(templates::logged(before).matches("vmm_restored").count(), 2);
    drop((pod.stop(), two));
    host.assert_clean();
}

#[test]
fn interfaces_and_routes_are_those_of_the_namespace() {
    let host = Host::take();
    let namespace = on_bridge("one", 1400);
    let there = |namespace: &Namespace, words: &str| {
        let mut lines: Vec<_> = namespace
            .ip(words)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort();
        lines
    };
    let run = Run::busybox(
        Runtime::Sealock,
        &[
            "sh",
            "-c",
            "ip route; echo; ip -6 route; echo; ip link show eth0; ip addr show eth0",
        ],
    )
    .flag(&["--with-ns", &namespace.flag()]);
    let output = run.output();
    assert!(output.status.success(), "{}", story(&output));
    let said = text(&output.stdout);
    for route in there(&namespace, "route") {
        // As much of it as busybox prints.
        let words: Vec<_> = route.split(' ').take(3).collect();
        assert!(said.contains(&words.join(" ")), "{route} in {said}");
    }
    for route in there(&namespace, "-6 route") {
        if !route.contains("fe80") {
            let words: Vec<_> = route.split(' ').take(3).collect();
            assert!(said.contains(&words.join(" ")), "{route} in {said}");
        }
    }
    let link = namespace.ip("-o link show eth0");
    let mac = link
        .split("link/ether ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    assert!(said.contains(mac) && said.contains("mtu 1400"), "{mac} in {said}");
    assert!(said.contains("10.77.0."), "{said}");
    assert!(said.contains("fd77::") && !said.contains("tentative"), "{said}");
    // Nothing is left on the plugin's interface.
    assert_nothing_on(&namespace, "one");
    drop(namespace);
    host.assert_clean();
}

#[test]
fn interfaces_come_and_go_while_the_pod_runs() {
    let host = Host::take();
    let mut namespace = Namespace::new("one");
    let run = Run::busybox(
        Runtime::Sealock,
        &[
            "sh",
            "-c",
            "echo ready; while read line; do ip link | grep -c net1; ip addr show net1 2>/dev/null | grep -c 10.77; done",
        ],
    )
    .flag(&["--with-ns", &namespace.flag()]);
    let mut child = run.spawn();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut input = child.stdin.take().unwrap();
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    // Nothing tells outside when the guest has followed: it is asked until it has.
    let mut until = |expected: &str| {
        for _ in 0..200 {
            input.write_all(b"\n").unwrap();
            let mut said = String::new();
            output.read_line(&mut said).unwrap();
            output.read_line(&mut said).unwrap();
            if said == expected {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{expected:?} never came");
    };
    until("0\n0\n");
    let addresses = namespace.add(&[cni::bridge(1500)], "net1");
    until("1\n1\n");
    assert_reaches(&addresses[0]);
    namespace.remove_last();
    until("0\n0\n");
    namespace.add(&[cni::bridge(1500)], "net1");
    until("1\n1\n");
    drop(input);
    assert!(child.wait().unwrap().success());
    drop(namespace);
    host.assert_clean();
}

#[test]
fn a_second_pod_in_a_namespace_is_refused_and_the_first_goes_on() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    let output = Run::busybox(Runtime::Sealock, &["true"])
        .flag(&["--with-ns", &pod.namespace.flag()])
        .output();
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("interface eth0 of the network namespace is in use by another pod"),
        "{}",
        story(&output)
    );
    assert_reaches(&pod.addresses[0]);
    drop(pod.stop());
    host.assert_clean();
}

#[test]
fn a_namespace_that_is_deleted_under_a_pod_goes_with_it() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    cni::ip("netns del one");
    drop(pod.stop());
    host.assert_clean();
}

#[test]
fn after_a_crash_of_the_shim_nothing_is_left_in_the_namespace() {
    let host = Host::take();
    let mut pod = Pod::serving("one", &[cni::bridge(1500)]);
    for pid in pids_of("containerd-shim-sealock-v2") {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    pod.server.0.wait().unwrap();
    delete(pod.run.id());
    // ctr, whose server has gone, leaves them behind with any runtime.
    remove_fifos();
    host.before
        .assert_gone_but(&["mount /run/netns", "test0", "veth"]);
    assert_nothing_on(&pod.namespace, "one");
    drop(pod);
    host.assert_clean();
}

#[test]
fn the_hosts_own_network_is_refused_by_name() {
    let host = Host::take();
    for flag in [&["--net-host"][..], &["--with-ns", "network:/proc/1/ns/net"]] {
        let output = Run::busybox(Runtime::Sealock, &["true"]).flag(flag).output();
        assert!(!output.status.success());
        assert!(
            text(&output.stderr).contains("the host's own network"),
            "{}",
            story(&output)
        );
    }
    host.assert_clean();
}

#[test]
fn of_two_pods_that_want_a_namespace_at_once_one_gets_it() {
    let host = Host::take();
    let namespace = on_bridge("one", 1500);
    let run = || {
        Run::busybox(
            Runtime::Sealock,
            &["sh", "-c", "echo up; read end; ip addr show eth0"],
        )
        .flag(&["--with-ns", &namespace.flag()])
    };
    let pods = [run().spawn(), run().spawn()];
    let mut up = 0;
    for mut pod in pods {
        let mut said = String::new();
        let mut output = BufReader::new(pod.stdout.take().unwrap());
        output.read_line(&mut said).unwrap();
        if said == "up\n" {
            up += 1;
            // The other one has its answer while this one lives, or had it before.
            drop(pod.stdin.take());
            output.read_to_string(&mut said).unwrap();
            assert!(
                pod.wait().unwrap().success() && said.contains("10.77.0."),
                "{said}"
            );
        } else {
            let output = pod.wait_with_output().unwrap();
            assert!(
                !output.status.success() && text(&output.stderr).contains("is in use by another pod"),
                "{}",
                story(&output)
            );
        }
    }
    assert_eq!(up, 1);
    assert_nothing_on(&namespace, "one");
    drop(namespace);
    host.assert_clean();
}

#[test]
fn a_pod_whose_network_is_taken_away_goes_on_without() {
    let host = Host::take();
    for take_away in [
        // As the runtime's client does in the wrong order.
        |pod: &mut Pod| pod.namespace.remove_last(),
        |pod: &mut Pod| {
            let links = pod.namespace.ip("-o link");
            let tap = links
                .split([' ', ':'])
                .find(|word| word.starts_with("slk"))
                .unwrap();
            let _ = pod.namespace.ip(&format!("link del {tap}"));
        },
    ] {
        let mut pod = Pod::serving("one", &[cni::bridge(1500)]);
        take_away(&mut pod);
        let alive = ctr(&[
            "task",
            "exec",
            "--exec-id",
            "alive",
            pod.run.id(),
            "/bin/echo",
            "alive",
        ]);
        assert_eq!(text(&alive.stdout), "alive\n", "{}", story(&alive));
        let namespace = pod.stop();
        assert_nothing_on(&namespace, "one");
        drop(namespace);
    }
    host.assert_clean();
}
