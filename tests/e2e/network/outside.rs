//! What the reference plugins do on the host side works for a pod as for a container.

use std::time::Instant;

use sealock_tests::cni::{self, Namespace};
use serde_json::json;

use super::{
    Pod, SERVER, Server, assert_says_done, client, far_host, on_bridge, python, python_here, python_there,
};
use crate::{Host, story, text};

/// Tells whoever connects where it sees them come from.
const WHO: &str = r"
import socket
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(('::', 7002)); s.listen()
print('ready', flush=True)
while True:
    c, peer = s.accept()
    c.sendall(peer[0].encode()); c.close()
";

/// A name server that knows one name, by UDP, and by TCP when the answer is too long.
const NAMES: &str = r"
import socketserver, struct, threading
def answer(query, whole):
    at = query.index(0, 12) + 5
    kind = struct.unpack('>H', query[at - 4:at - 2])[0]
    name = query[12:at - 4]
    known = name in (b'\5where\4test\0', b'\4many\4test\0') and kind == 1
    count = 0 if not known else 60 if name.startswith(b'\4many') else 1
    cut = count > 1 and not whole
    flags = 0x8580 | (0x200 if cut else 0) | (0 if known or kind == 28 else 3)
    back = query[:2] + struct.pack('>HHHHH', flags, 1, 0 if cut else count, 0, 0) + query[12:at]
    if not cut:
        for i in range(count):
            back += b'\xc0\x0c' + struct.pack('>HHIH', 1, 1, 60, 4) + bytes([192, 0, 2, 7 + i])
    return back
class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        data, socket = self.request
        socket.sendto(answer(data, False), self.client_address)
class Tcp(socketserver.BaseRequestHandler):
    def handle(self):
        size = struct.unpack('>H', self.request.recv(2))[0]
        data = b''
        while len(data) < size: data += self.request.recv(size - len(data))
        back = answer(data, True)
        self.request.sendall(struct.pack('>H', len(back)) + back)
socketserver.TCPServer.allow_reuse_address = True
threading.Thread(target=socketserver.TCPServer(('10.77.0.1', 53), Tcp).serve_forever, daemon=True).start()
server = socketserver.UDPServer(('10.77.0.1', 53), Udp)
print('ready', flush=True)
server.serve_forever()
";

#[test]
fn published_ports_lead_to_the_pod() {
    let host = Host::take();
    let ports = json!({"type": "portmap", "snat": true, "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": [
        {"hostPort": 8070, "containerPort": 7000, "protocol": "tcp"},
        {"hostPort": 8071, "containerPort": 7000, "protocol": "udp"},
    ]}});
    let far = far_host(1500);
    let pod = Pod::serving("one", &[cni::bridge(1500), ports]);
    let lines = "
def both(to):
    tcp(to, port=8070)
    udp(to, 900, port=8071)
";
    // From the host by its own addresses, from behind it, and from another pod.
    let output = python_here(&client(&format!(
        "{lines}both('10.78.0.1'); both('fd78::1'); tcp('127.0.0.1', port=8070)"
    )))
    .output()
    .unwrap();
    assert_says_done(&output);
    let there = client(&format!("{lines}both('10.78.0.1'); both('fd78::1')"));
    assert_says_done(&python_there(&far, &there).output().unwrap());
    let two = on_bridge("two", 1500);
    assert_says_done(&python(&two, &there).output());
    drop((pod.stop(), two, far));
    host.assert_clean();
}

#[test]
fn behind_the_host_a_pod_is_the_host() {
    let host = Host::take();
    // Without masquerade no answer would find its way back.
    let far = far_host(1500);
    let (servers, echo) = (Server::outside(&far, WHO), Server::outside(&far, SERVER));
    let pod = on_bridge("one", 1500);
    let lines = "
for to, seen in ('10.78.0.2', '::ffff:10.78.0.1'), ('fd78::2', 'fd78::1'):
    s = socket.create_connection((to, 7002), timeout=60)
    said = s.recv(100).decode()
    assert said == seen, said
    udp(to, 1000)";
    assert_says_done(&python(&pod, &client(lines)).output());
    drop((servers, echo, pod, far));
    host.assert_clean();
}

#[test]
fn names_are_found_at_the_server_that_resolv_conf_gives() {
    let host = Host::take();
    let pod = on_bridge("one", 1500);
    let names = Server::on_host(NAMES);
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&config, "nameserver 10.77.0.1\noptions timeout:20\n").unwrap();
    let lines = "
def find(name):
    return sorted({a[4][0] for a in socket.getaddrinfo(name, 80, socket.AF_INET)})
assert find('where.test') == ['192.0.2.7']
assert len(find('many.test')) == 60
try:
    raise SystemExit(find('nowhere.test'))
except socket.gaierror as error:
    assert error.errno == socket.EAI_NONAME, error";
    let mount = format!(
        "type=bind,src={},dst=/etc/resolv.conf,options=rbind:ro",
        config.path().display()
    );
    assert_says_done(&python(&pod, &client(lines)).flag(&["--mount", &mount]).output());
    drop((names, pod, config));
    host.assert_clean();
}

#[test]
fn the_bandwidth_plugins_limit_holds() {
    let host = Host::take();
    // A mebibyte a second, to the pod; a hundred kilobytes may come at once.
    let limit = json!({"type": "bandwidth", "ingressRate": 8 << 20, "ingressBurst": 800_000});
    let pod = Pod::serving("one", &[cni::bridge(1500), limit]);
    let begun = Instant::now();
    let output = python_here(&client(&format!("tcp('{}', size=4 << 20)", pod.addresses[0])))
        .output()
        .unwrap();
    assert_says_done(&output);
    // Not how fast it is, but that it is no faster than allowed.
    assert!(begun.elapsed().as_secs_f64() > 3.5, "{:?}", begun.elapsed());
    drop(pod.stop());
    host.assert_clean();
}

#[test]
fn what_the_tuning_plugin_sets_of_the_interface_is_the_guests() {
    let host = Host::take();
    let tuning = json!({"type": "tuning", "mac": "02:11:22:33:44:55", "mtu": 1350});
    let mut namespace = Namespace::new("one");
    namespace.add(&[cni::bridge(1500), tuning], "eth0");
    let output = python(
        &namespace,
        "print(open('/sys/class/net/eth0/address').read(), open('/sys/class/net/eth0/mtu').read())",
    )
    .output();
    let said = text(&output.stdout);
    assert!(
        said.contains("02:11:22:33:44:55") && said.contains("1350"),
        "{}",
        story(&output)
    );
    drop(namespace);
    host.assert_clean();
}
