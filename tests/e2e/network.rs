//! The pod's network is what the network plugins have made.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use sealock_tests::{
    cni::{self, Namespace},
    ctr::{MINBASE, Run, Runtime, ctr, remove_fifos},
};
use serde_json::json;

use crate::{Host, story, text};

/// Programs for both ends of a conversation.
const SERVER: &str = r"
import socket, socketserver, sys, threading
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
def udp():
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(('::', 7000))
    while True:
        data, peer = s.recvfrom(65536)
        s.sendto(data, peer)
class Local(Server):
    address_family = socket.AF_INET
    def server_bind(self):
        socketserver.TCPServer.server_bind(self)
threading.Thread(target=udp, daemon=True).start()
threading.Thread(target=Local(('127.0.0.1', 7001), Echo).serve_forever, daemon=True).start()
server = Server(('::', 7000), Echo)
print('ready', flush=True)
server.serve_forever()
";

const CLIENT: &str = r"
import socket, sys
def tcp(to, port=7000, size=300000):
    s = socket.create_connection((to, port), timeout=60)
    data = bytes(i * 7 & 255 for i in range(size))
    import threading
    threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR))).start()
    back = b''
    while part := s.recv(65536):
        back += part
    assert back == data, (to, len(back))
def udp(to, size):
    family = socket.AF_INET6 if ':' in to else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    data = bytes(i * 3 & 255 for i in range(size))
    for attempt in range(5):
        s.sendto(data, (to, 7000))
        try:
            back = s.recv(65536)
        except TimeoutError:
            continue
        assert back == data, (to, len(back))
        return
    raise SystemExit(f'no answer from {to} to {size} bytes')
";

fn client(lines: &str) -> String {
    format!("{CLIENT}\n{lines}\nprint('done')")
}

/// A server in the background: in a pod, or in a namespace of the host.
struct Server(Child);

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn in_pod(run: &Run) -> Self {
        Self::start(run.clone().flag(&["--rm"]).to_command())
    }

    /// On the host, where there is no Python but in the pod's root.
    fn on_host() -> Self {
        let mut command = Command::new("chroot");
        command.args([MINBASE, "/usr/bin/python3", "-c", SERVER]);
        Self::start(command)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python(namespace: &Namespace, program: &str) -> Run {
    Run::rootfs(Runtime::Sealock, MINBASE, &["/usr/bin/python3", "-c", program])
        .flag(&["--with-ns", &namespace.flag()])
}

fn stop(run: &Run, mut server: Server) {
    let killed = ctr(&["task", "kill", "-s", "KILL", run.id()]);
    assert!(killed.status.success(), "{}", story(&killed));
    server.0.wait().unwrap();
}

/// Python on the host, in a namespace.
fn host_python(namespace: &Namespace, program: &str) -> std::process::Output {
    namespace
        .command(&["chroot", MINBASE, "/usr/bin/python3", "-c", program])
        .output()
        .unwrap()
}

fn assert_done(run: &Run) {
    let output = run.output();
    assert!(
        output.status.success() && text(&output.stdout).ends_with("done\n"),
        "{}",
        story(&output)
    );
}

#[test]
fn pods_on_a_bridge_reach_each_other_and_the_host_and_are_reached() {
    let host = Host::take();
    let (mut one, mut two) = (Namespace::new("one"), Namespace::new("two"));
    let addresses = one.add(&[cni::bridge(1500)], "eth0");
    two.add(&[cni::bridge(1500)], "eth0");
    let serving = python(&one, SERVER);
    let server = Server::in_pod(&serving);
    let outside = Server::on_host();
    let lines: String = addresses
        .iter()
        .map(String::as_str)
        .chain(["10.77.0.1", "fd77::1"])
        .map(|to| format!("tcp('{to}'); udp('{to}', 1); udp('{to}', 1400); udp('{to}', 20000)\n"))
        .collect();
    assert_done(&python(&two, &client(&lines)));
    // From the host, too.
    for to in &addresses {
        let output = Command::new("ping")
            .args(["-c", "1", "-W", "20", to])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", story(&output));
        let output = Command::new("chroot")
            .args([
                MINBASE,
                "/usr/bin/python3",
                "-c",
                &client(&format!("tcp('{to}')")),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", story(&output));
    }
    drop(outside);
    stop(&serving, server);
    drop((one, two));
    let _ = cni::ip("link del test0");
    host.assert_clean();
}

#[test]
fn interfaces_and_routes_are_those_of_the_namespace() {
    let host = Host::take();
    let mut namespace = Namespace::new("one");
    namespace.add(&[cni::bridge(1400)], "eth0");
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
    assert!(!namespace.ip("link").contains("slk"));
    let tc = Command::new("tc").args(["-n", "one", "qdisc"]).output().unwrap();
    assert!(!text(&tc.stdout).contains("ingress"), "{}", story(&tc));
    drop(namespace);
    let _ = cni::ip("link del test0");
    host.assert_clean();
}

#[test]
fn large_packets_go_through_where_they_may_and_are_reported_where_not() {
    let host = Host::take();
    let (mut one, mut two) = (Namespace::new("one"), Namespace::new("two"));
    let addresses = one.add(&[cni::bridge(9000)], "eth0");
    two.add(&[cni::bridge(9000)], "eth0");
    let serving = python(&one, SERVER);
    let server = Server::in_pod(&serving);
    let to = &addresses[0];
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
    assert_done(&python(&two, &client(&lines)));
    // A router in between with a smaller link tells; the host is that router.
    let far = Namespace::new("far");
    cni::ip("link add far0 type veth peer name far1");
    cni::ip("link set far1 netns far mtu 1300");
    cni::ip("link set far0 mtu 1300 up");
    cni::ip("addr add 10.78.0.1/24 dev far0");
    let _ = far.ip("addr add 10.78.0.2/24 dev far1");
    let _ = far.ip("link set far1 up");
    let _ = far.ip("route add default via 10.78.0.1");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let server_there = Server::start(far.command(&["chroot", MINBASE, "/usr/bin/python3", "-c", SERVER]));
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
    assert_done(&python(&two, &client(lines)));
    drop(server_there);
    stop(&serving, server);
    drop((one, two, far));
    let _ = cni::ip("link del test0");
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
    let server = Server::start(far.command(&["chroot", MINBASE, "/usr/bin/python3", "-c", SERVER]));
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
    let server = Server::on_host();
    assert_done(&python(&pod, &client("tcp('10.80.0.1'); udp('10.80.0.1', 3000)")));
    drop((server, pod, far));
    host.assert_clean();
}

#[test]
fn connections_from_inside_the_namespace_reach_the_pods_servers() {
    let host = Host::take();
    let mut namespace = Namespace::new("one");
    let addresses = namespace.add(&[cni::bridge(1500)], "eth0");
    let serving = python(&namespace, SERVER);
    let server = Server::in_pod(&serving);
    // On every address; on the guest's loopback interface only; said to be the other family's.
    let lines = format!(
        "tcp('127.0.0.1'); tcp('::1'); tcp('{}'); tcp('127.0.0.1', 7001); tcp('::1', 7001)
for i in range(50): tcp('127.0.0.1', size=10)
try:
    s = socket.create_connection(('127.0.0.1', 9), timeout=30); s.recv(1)
    raise SystemExit('connected')
except ConnectionError:
    pass",
        addresses[0]
    );
    let output = host_python(&namespace, &client(&lines));
    assert!(output.status.success(), "{}", story(&output));
    stop(&serving, server);
    drop(namespace);
    let _ = cni::ip("link del test0");
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
    let ping = Command::new("ping")
        .args(["-c", "1", "-W", "20", &addresses[0]])
        .output()
        .unwrap();
    assert!(ping.status.success(), "{}", story(&ping));
    namespace.remove_last();
    until("0\n0\n");
    namespace.add(&[cni::bridge(1500)], "net1");
    until("1\n1\n");
    drop(input);
    assert!(child.wait().unwrap().success());
    drop(namespace);
    let _ = cni::ip("link del test0");
    host.assert_clean();
}

#[test]
fn a_second_pod_in_a_namespace_is_refused_and_the_first_goes_on() {
    let host = Host::take();
    let mut namespace = Namespace::new("one");
    let addresses = namespace.add(&[cni::bridge(1500)], "eth0");
    let serving = python(&namespace, SERVER);
    let server = Server::in_pod(&serving);
    let output = Run::busybox(Runtime::Sealock, &["true"])
        .flag(&["--with-ns", &namespace.flag()])
        .output();
    assert!(!output.status.success());
    assert!(
        text(&output.stderr).contains("interface eth0 of the network namespace is in use by another pod"),
        "{}",
        story(&output)
    );
    let ping = Command::new("ping")
        .args(["-c", "1", "-W", "20", &addresses[0]])
        .output()
        .unwrap();
    assert!(ping.status.success(), "{}", story(&ping));
    stop(&serving, server);
    drop(namespace);
    let _ = cni::ip("link del test0");
    host.assert_clean();
}

#[test]
fn a_namespace_that_is_deleted_under_a_pod_goes_with_it() {
    let host = Host::take();
    let mut namespace = Namespace::new("one");
    namespace.add(&[cni::bridge(1500)], "eth0");
    let serving = python(&namespace, SERVER);
    let server = Server::in_pod(&serving);
    cni::ip("netns del one");
    stop(&serving, server);
    drop(namespace);
    let _ = cni::ip("link del test0");
    host.assert_clean();
}

#[test]
fn after_a_crash_of_the_shim_nothing_is_left_in_the_namespace() {
    let host = Host::take();
    let mut namespace = Namespace::new("one");
    namespace.add(&[cni::bridge(1500)], "eth0");
    let serving = python(&namespace, SERVER);
    let mut server = Server::in_pod(&serving);
    for pid in sealock_tests::host::pids_of("containerd-shim-sealock-v2") {
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
    }
    server.0.wait().unwrap();
    let _ = ctr(&["task", "rm", "-f", serving.id()]);
    let _ = ctr(&["container", "rm", serving.id()]);
    // ctr, whose server has gone, leaves them behind with any runtime.
    remove_fifos();
    host.before
        .assert_gone_but(&["mount /run/netns", "test0", "veth"]);
    assert!(!namespace.ip("link").contains("slk"));
    let tc = Command::new("tc").args(["-n", "one", "qdisc"]).output().unwrap();
    assert!(!text(&tc.stdout).contains("ingress"), "{}", story(&tc));
    drop(namespace);
    let _ = cni::ip("link del test0");
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
fn ten_thousand_connections_leave_nothing() {
    let host = Host::take();
    let (mut one, mut two) = (Namespace::new("one"), Namespace::new("two"));
    let addresses = one.add(&[cni::bridge(1500)], "eth0");
    two.add(&[cni::bridge(1500)], "eth0");
    let serving = python(&one, SERVER);
    let server = Server::in_pod(&serving);
    let lines = format!(
        "
import threading
def many():
    for i in range(1250):
        s = socket.create_connection(('{}', 7000), timeout=60)
        s.sendall(b'x')
        assert s.recv(1) == b'x'
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0\\0\\0\\0\\0')
        s.close()
threads = [threading.Thread(target=many) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]",
        addresses[0]
    );
    assert_done(&python(&two, &client(&lines)));
    stop(&serving, server);
    drop((one, two));
    let _ = cni::ip("link del test0");
    host.assert_clean();
}
