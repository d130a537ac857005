//! What pods say to each other, to the host and to what is behind it.

use std::time::Duration;

use sealock_tests::{
    cni::{self, Namespace},
    host::only_pid_of,
};
use serde_json::json;

use super::{
    Pod, SERVER, Server, assert_reaches, assert_says_done, client, far_host, on_bridge, python, python_here,
    python_there,
};
use crate::{Host, story};

#[test]
fn pods_on_a_bridge_reach_each_other_and_the_host_and_are_reached() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    let two = on_bridge("two", 1500);
    let outside = Server::on_host(SERVER);
    let lines: String = pod
        .addresses
        .iter()
        .map(String::as_str)
        .chain(["10.77.0.1", "fd77::1"])
        .map(|to| format!("tcp('{to}'); udp('{to}', 1); udp('{to}', 1400); udp('{to}', 20000)\n"))
        .collect();
    assert_says_done(&python(&two, &client(&lines)).output());
    // From the host, too.
    for to in &pod.addresses {
        assert_reaches(to);
        let output = python_here(&client(&format!("tcp('{to}')"))).output().unwrap();
        assert!(output.status.success(), "{}", story(&output));
    }
    drop(outside);
    drop((pod.stop(), two));
    host.assert_clean();
}

#[test]
fn large_packets_go_through_where_they_may_and_are_reported_where_not() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(9000)]);
    let two = on_bridge("two", 9000);
    let to = &pod.addresses[0];
    // Not to be fragmented: 8972 bytes and 28 of headers go through; more is refused here already.
    let lines = format!(
        "tcp('{to}'); udp('{to}', 8972); udp('{to}', 60000)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 2)
s.connect(('{to}', 7000)); s.settimeout(20)
s.send(b'x' * 8972); assert len(s.recv(65536)) == 8972
try:
    s.send(b'x' * 8973)
    raise SystemExit('sent')
except OSError as error:
    assert error.errno == 90, error"
    );
    assert_says_done(&python(&two, &client(&lines)).output());
    // A router in between with a smaller link tells; the host is that router.
    let far = far_host(1300);
    let _ = far.ip("route add default via 10.78.0.1");
    let server_there = Server::outside(&far, SERVER);
    let lines = "tcp('10.78.0.2')
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IP, 10, 2)
s.connect(('10.78.0.2', 7000)); s.settimeout(20)
for attempt in range(100):
    try:
        s.send(b'x' * 1400)
        s.recv(65536)
    except OSError as error:
        if error.errno == 90:
            break
assert s.getsockopt(socket.IPPROTO_IP, 14) == 1300";
    assert_says_done(&python(&two, &client(lines)).output());
    drop(server_there);
    drop((pod.stop(), two, far));
    host.assert_clean();
}

#[test]
fn every_kind_of_interface_carries_a_pod() {
    let ipam = json!({"type": "host-local", "subnet": "10.79.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]});
    let host = Host::take();
    // A link with somebody at its other end, and a tagged one on it.
    let far = Namespace::new("far");
    cni::ip("link add far0 type veth peer name far1");
    cni::ip("link set far1 netns far");
    cni::ip("link set far0 up");
    let _ = far.ip("link set far1 up");
    let _ = far.ip("addr add 10.79.0.200/24 dev far1");
    let _ = far.ip("link add far1.5 link far1 type vlan id 5");
    let _ = far.ip("link set far1.5 up");
    let server = Server::outside(&far, SERVER);
    for (plugin, to, before) in [
        (
            json!({"network": "mac", "type": "macvlan", "master": "far0", "ipam": ipam}),
            "10.79.0.200",
            "",
        ),
        (
            json!({"network": "ip", "type": "ipvlan", "master": "far0", "ipam": ipam}),
            "10.79.0.200",
            "",
        ),
        (
            json!({"network": "vlan", "type": "vlan", "master": "far0", "vlanId": 5, "ipam": ipam}),
            "10.79.0.201",
            "addr add 10.79.0.201/32 dev far1.5",
        ),
    ] {
        let mut pod = Namespace::new("pod");
        pod.add(std::slice::from_ref(&plugin), "eth0");
        if !before.is_empty() {
            let _ = far.ip(before);
            let _ = far.ip("route add 10.79.0.0/25 dev far1.5");
        }
        let lines =
            format!("print(open('/proc/net/dev').read()); tcp('{to}'); udp('{to}', 1); udp('{to}', 5000)");
        let output = python(&pod, &client(&lines)).output();
        assert!(output.status.success(), "{plugin}: {}", story(&output));
    }
    drop(server);
    // One to one, every packet by the gateway.
    let mut pod = Namespace::new("pod");
    let ptp = json!({"network": "ptp", "type": "ptp", "ipam": {"type": "host-local", "subnet": "10.80.0.0/24",
        "routes": [{"dst": "0.0.0.0/0"}]}});
    pod.add(&[ptp], "eth0");
    let server = Server::on_host(SERVER);
    assert_says_done(&python(&pod, &client("tcp('10.80.0.1'); udp('10.80.0.1', 3000)")).output());
    drop((server, pod, far));
    host.assert_clean();
}

/// Answers each connection with what it says, one after the other, and with how many sockets there are.
const BRIEF: &str = r"
import socket
s = socket.create_server(('', 7003), backlog=128)
print('ready', flush=True)
while True:
    c, _ = s.accept()
    if c.recv(1) == b'?':
        c.sendall(open('/proc/net/sockstat').read().split('TCP: inuse ')[1].split()[0].encode())
    else:
        c.sendall(b'x')
    c.close()
";

#[test]
fn ten_thousand_connections_leave_nothing() {
    let host = Host::take_for(Duration::from_secs(1200));
    let pod = Pod::running("one", &[cni::bridge(1500)], BRIEF);
    let lines = format!(
        "
import threading
def one(said):
    s = socket.create_connection(('{address}', 7003), timeout=60)
    s.sendall(said)
    answer = s.recv(10)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')
    s.close()
    return answer
def many():
    for i in range(1250):
        assert one(b'x') == b'x'
before = one(b'?')
threads = [threading.Thread(target=many) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
after = one(b'?')
assert before == after, (before, after)",
        address = pod.addresses[0]
    );
    let open = || {
        let monitor = only_pid_of("sealock-vmm");
        std::fs::read_dir(format!("/proc/{monitor}/fd")).unwrap().count()
    };
    let before = open();
    assert_says_done(&python_here(&client(&lines)).output().unwrap());
    assert_eq!(open(), before);
    drop(pod.stop());
    host.assert_clean();
}

#[test]
fn connections_from_inside_the_namespace_reach_the_pods_servers() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    // On every address; on the guest's loopback interface only; said to be the other family's.
    let lines = format!(
        "tcp('127.0.0.1'); tcp('::1'); tcp('{}'); tcp('127.0.0.1', 7001); tcp('::1', 7001)
for i in range(50): tcp('127.0.0.1', size=10)
try:
    s = socket.create_connection(('127.0.0.1', 9), timeout=30); s.recv(1)
    raise SystemExit('connected')
except ConnectionError:
    pass",
        pod.addresses[0]
    );
    let output = python_there(&pod.namespace, &client(&lines)).output().unwrap();
    assert!(output.status.success(), "{}", story(&output));
    drop(pod.stop());
    host.assert_clean();
}

#[test]
fn several_queues_and_the_monitors_own_loop_carry_what_vhost_does() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    let two = on_bridge("two", 1500);
    // A limit that is never reached has the monitor move the packets.
    for flags in [
        &["--annotation", "io.sealock.vcpus=2"][..],
        &[
            "--annotation",
            "io.sealock.vcpus=2",
            "--annotation",
            "io.sealock.send-bytes-per-second=1000000000",
        ],
    ] {
        let to = &pod.addresses[0];
        let lines = format!(
            "import os
assert len(os.listdir('/sys/class/net/eth0/queues')) == 4, os.listdir('/sys/class/net/eth0/queues')
threads = [__import__('threading').Thread(target=tcp, args=('{to}',)) for _ in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
udp('{to}', 20000); tcp('{}')",
            pod.addresses[1]
        );
        assert_says_done(&python(&two, &client(&lines)).flag(flags).output());
    }
    drop((pod.stop(), two));
    host.assert_clean();
}

#[test]
fn sealocks_own_limits_hold_for_each_direction() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    let two = on_bridge("two", 1500);
    // What comes back of an echo is as much as what is sent, so that either limit makes all of it slow.
    for direction in ["send", "receive"] {
        let limit = format!("io.sealock.{direction}-bytes-per-second=1048576");
        let lines = format!(
            "import time; begun = time.monotonic()
tcp('{}', size=5 << 20)
took = time.monotonic() - begun
assert took > 3.5, took",
            pod.addresses[0]
        );
        let output = python(&two, &client(&lines))
            .flag(&["--annotation", &limit])
            .output();
        assert_says_done(&output);
    }
    drop((pod.stop(), two));
    host.assert_clean();
}

#[test]
fn a_guest_that_floods_with_frames_of_every_shape_harms_only_itself() {
    let host = Host::take();
    let pod = Pod::serving("one", &[cni::bridge(1500)]);
    let (bad, good) = (on_bridge("bad", 1500), on_bridge("good", 1500));
    let to = &pod.addresses[0];
    // Frames with a header of the guest's choice (packet(7), PACKET_VNET_HDR): what its kernel lets pass reaches the device.
    let lines = format!(
        "import os, random
random.seed(7)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); raw.bind(('eth0', 0))
shaped = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
shaped.setsockopt(263, 15, 1); shaped.bind(('eth0', 0))
sent = 0
for i in range(6000):
    size = random.choice([14, 15, 59, 60, 61, 576, 1513, 1514, 1515, 9000])
    frame = random.choice([b'\\xff' * 6, os.urandom(6)]) + os.urandom(6) + random.choice([b'\\x08\\x00', b'\\x86\\xdd', os.urandom(2)]) + os.urandom(size - 14)
    header = bytes([random.choice([0, 1, 2, 255]), random.choice([0, 1, 3, 4, 5, 0x81, 255])]) + os.urandom(8)
    for s, data in (raw, frame), (shaped, header + frame), (shaped, bytes(10) + frame):
        try:
            sent += s.send(data, socket.MSG_DONTWAIT)
        except OSError:
            pass
assert sent > 1000000, sent
tcp('{to}')"
    );
    let mut flooding = python(&bad, &client(&lines)).spawn();
    assert_says_done(
        &python(
            &good,
            &client(&format!("for i in range(10): tcp('{to}'); udp('{to}', 900)")),
        )
        .output(),
    );
    drop(flooding.stdin.take());
    assert_says_done(&flooding.wait_with_output().unwrap());
    drop((pod.stop(), bad, good));
    host.assert_clean();
}
