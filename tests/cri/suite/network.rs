//! The pod's network, as the CNI plugins made it.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use sealock_cri_tests::{
    Channel, Container, Cri, Pod, Stream,
    v1::{PortForwardRequest, PortMapping},
};

/// A container that answers each connection to its port with a line.
fn server<'p>(pod: &'p Pod, port: u16) -> Container<'p> {
    serve(pod, port, "echo served")
}

/// A container that runs a program for each connection to its port, one after the other.
fn serve<'p>(pod: &'p Pod, port: u16, program: &str) -> Container<'p> {
    let container = pod
        .sh(&format!("while :; do nc -l -p {port} -e {program}; done"))
        .start();
    container.until("the server", || {
        container.sh(&format!("netstat -ltn | grep -q :{port}")).code == 0
    });
    container
}

fn fetch(address: &str) -> String {
    let mut answer = String::new();
    // The server is one that listens again after each client.
    for _ in 0..50 {
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            if stream.read_to_string(&mut answer).is_ok() && !answer.is_empty() {
                break;
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
    answer
}

#[test]
fn a_pod_has_the_address_it_says() {
    let pod = Pod::run();
    let ip = pod.ip();
    assert!(ip.starts_with("10.89."), "{ip}");
    let output = pod.sh("ip -4 -o address show dev eth0; ip route").output();
    assert!(output.text().contains(&format!("{ip}/16")), "{output:?}");
    assert!(
        output.text().contains("default via 10.89.0.1 dev eth0"),
        "{output:?}"
    );
}

#[test]
fn the_host_reaches_a_pod() {
    let pod = Pod::run();
    let _server = server(&pod, 7070);
    assert_eq!(fetch(&format!("{}:7070", pod.ip())), "served\n");
    let ping = Command::new("ping")
        .args(["-c", "1", "-W", "20", &pod.ip()])
        .output()
        .unwrap();
    assert!(ping.status.success(), "{ping:?}");
}

#[test]
fn a_pod_reaches_the_host() {
    let listener = TcpListener::bind("0.0.0.0:7171").unwrap();
    let pod = Pod::run();
    thread::scope(|scope| {
        let peer = scope.spawn(|| {
            let (mut stream, peer) = listener.accept().unwrap();
            stream.write_all(b"from the host\n").unwrap();
            peer.ip().to_string()
        });
        assert_eq!(pod.sh("nc -w 20 10.89.0.1 7171").output().text(), "from the host");
        assert_eq!(peer.join().unwrap(), pod.ip());
    });
}

#[test]
fn pods_reach_each_other() {
    let (first, second) = (Pod::run(), Pod::run());
    let _server = server(&first, 7070);
    let output = second
        .sh(&format!(
            "ping -c 1 -W 20 {0} >/dev/null && nc -w 20 {0} 7070",
            first.ip()
        ))
        .output();
    assert_eq!(output.text(), "served");
}

#[test]
fn a_port_of_the_host_leads_to_the_pod() {
    let pod = Pod::with(|config| {
        config.port_mappings = vec![PortMapping {
            container_port: 80,
            host_port: 12080,
            ..PortMapping::default()
        }];
    });
    let _server = server(&pod, 80);
    // By any address of the host's but the loopback one, which goes its own way.
    let _ = Command::new("ip")
        .args(["address", "replace", "192.0.2.1/32", "dev", "lo"])
        .status();
    assert_eq!(fetch("192.0.2.1:12080"), "served\n");
}

#[test]
fn containers_of_a_pod_have_one_network() {
    let pod = Pod::run();
    let _server = server(&pod, 7070);
    let output = pod
        // The server is one that listens again after each client.
        .sh(&format!(
            "for address in 127.0.0.1 {}; do until nc -w 20 $address 7070 2>/dev/null; do sleep 0.1; done; done",
            pod.ip()
        ))
        .output();
    assert_eq!(output.text(), "served\nserved");
}

#[test]
fn a_port_of_the_pod_is_forwarded_to_a_client() {
    let pod = Pod::run();
    let _server = serve(&pod, 8080, "cat");
    let answer = Cri::get().port_forward(PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![8080],
    });
    let mut stream = Stream::connect(&answer.unwrap().url);
    stream.send(Channel::DATA, b"there and back\n");
    stream.until(Channel::DATA, "there and back\n");
    // Each channel begins with the port's number.
    assert!(
        stream
            .received(Channel::DATA)
            .starts_with(&8080_u16.to_le_bytes())
    );
}
