//! The pod's network is what the network plugins have made.

mod namespace;
mod outside;
mod programs;
mod traffic;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Output, Stdio},
};

use sealock_tests::{
    cni::{self, Namespace},
    ctr::{MINBASE, Run, Runtime, ctr},
};
use serde_json::Value;

use crate::{story, text};

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
    def handle_error(self, *_): pass # a client may go without a word
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
def udp(to, size, port=7000):
    family = socket.AF_INET6 if ':' in to else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(10)
    data = bytes(i * 3 & 255 for i in range(size))
    for attempt in range(5):
        s.sendto(data, (to, port))
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
    /// Starts it, and waits for its word that it is ready.
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

    /// On the host.
    fn on_host(program: &str) -> Self {
        Self::start(python_here(program))
    }

    /// In a namespace of the host.
    fn outside(namespace: &Namespace, program: &str) -> Self {
        Self::start(python_there(namespace, program))
    }

    /// Ends it with its pod.
    fn end(mut self, run: &Run) {
        let killed = ctr(&["task", "kill", "-s", "KILL", run.id()]);
        assert!(killed.status.success(), "{}", story(&killed));
        self.0.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A pod on the bridge that serves.
struct Pod {
    addresses: Vec<String>,
    run: Run,
    server: Server,
    namespace: Namespace,
}

impl Pod {
    fn serving(name: &str, plugins: &[Value]) -> Self {
        Self::running(name, plugins, SERVER)
    }

    fn running(name: &str, plugins: &[Value], server: &str) -> Self {
        let mut namespace = Namespace::new(name);
        let addresses = namespace.add(plugins, "eth0");
        let run = python(&namespace, server);
        let server = Server::start(run.clone().flag(&["--rm"]).to_command());
        Self {
            addresses,
            run,
            server,
            namespace,
        }
    }

    /// Ends the pod, and gives back its namespace.
    fn stop(self) -> Namespace {
        self.server.end(&self.run);
        self.namespace
    }
}

/// A pod on the bridge that could speak.
fn on_bridge(name: &str, mtu: u32) -> Namespace {
    let mut namespace = Namespace::new(name);
    namespace.add(&[cni::bridge(mtu)], "eth0");
    namespace
}

/// A host behind this one, `10.78.0.2` and `fd78::2`, that knows no way to the pods' addresses unless it is told.
fn far_host(mtu: u32) -> Namespace {
    let far = Namespace::new("far");
    cni::ip("link add far0 type veth peer name far1");
    cni::ip(&format!("link set far1 netns far mtu {mtu}"));
    cni::ip(&format!("link set far0 mtu {mtu} up"));
    cni::ip("addr add 10.78.0.1/24 dev far0");
    cni::ip("addr add fd78::1/64 dev far0 nodad");
    let _ = far.ip("addr add 10.78.0.2/24 dev far1");
    let _ = far.ip("addr add fd78::2/64 dev far1 nodad");
    let _ = far.ip("link set far1 up");
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
    }
    far
}

fn python(namespace: &Namespace, program: &str) -> Run {
    Run::rootfs(Runtime::Sealock, MINBASE, &["/usr/bin/python3", "-c", program])
        .flag(&["--with-ns", &namespace.flag()])
}

/// Python on the host, which has none but in the pods' root.
fn python_here(program: &str) -> Command {
    let mut command = Command::new("chroot");
    command.args([MINBASE, "/usr/bin/python3", "-c", program]);
    command
}

/// The same in a namespace.
fn python_there(namespace: &Namespace, program: &str) -> Command {
    namespace.command(&["chroot", MINBASE, "/usr/bin/python3", "-c", program])
}

fn assert_says_done(output: &Output) {
    assert!(
        output.status.success() && text(&output.stdout).ends_with("done\n"),
        "{}",
        story(output)
    );
}

fn assert_reaches(address: &str) {
    let output = Command::new("ping")
        .args(["-c", "1", "-W", "20", address])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", story(&output));
}

fn assert_nothing_on(namespace: &Namespace, name: &str) {
    assert!(!namespace.ip("link").contains("slk"));
    let tc = Command::new("tc").args(["-n", name, "qdisc"]).output().unwrap();
    assert!(!text(&tc.stdout).contains("ingress"), "{}", story(&tc));
}
