//! In network namespaces of this machine: they need root.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use sealock_protocol::agent::{Interface, InterfaceAddress, Neighbour, Rule};

use super::*;

/// In an empty network namespace with one interface.
fn alone(test: impl FnOnce(&mut Socket, Indexes) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            ip("link add eth0 type veth peer name other");
            ip("link set eth0 up");
            ip("link set other up");
            let index = ip("-o link show eth0")
                .split(':')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            let mut socket = Socket::open().unwrap();
            interface::loopback_up(&mut socket).unwrap();
            test(&mut socket, BTreeMap::from([("eth0".to_owned(), index)]));
        });
    });
}

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn bytes(address: &str) -> Vec<u8> {
    match address.parse().unwrap() {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(address: &str, prefix_length: u32) -> InterfaceAddress {
    let mut message = InterfaceAddress::new();
    message.address = bytes(address);
    message.prefix_length = prefix_length;
    message
}

fn route(family: u32, destination: &str, prefix_length: u32, gateway: &str) -> Route {
    let mut route = Route::new();
    route.interface = "eth0".to_owned();
    route.family = family;
    if !destination.is_empty() {
        route.destination = bytes(destination);
    }
    route.prefix_length = prefix_length;
    if gateway.is_empty() {
        route.scope = libc::RT_SCOPE_LINK.into();
    } else {
        route.gateway = bytes(gateway);
    }
    route.protocol = libc::RTPROT_STATIC.into();
    route
}

/// [`add`] without the devices, which this machine does not have.
fn make(socket: &mut Socket, network: &Wanted, indexes: &mut Indexes) {
    let mut rest = network.clone();
    for interface in std::mem::take(&mut rest.interfaces) {
        for address in &interface.addresses {
            let message = message::address(address, indexes[&interface.name]).unwrap();
            socket
                .request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE)
                .unwrap();
        }
    }
    add(socket, &rest, indexes).unwrap();
}

fn network() -> Wanted {
    let mut network = Wanted::new();
    let mut interface = Interface::new();
    interface.name = "eth0".to_owned();
    interface.addresses = vec![
        address("10.1.1.5", 24),
        address("2001:db8::5", 64),
        address("fe80::5", 64),
    ];
    network.interfaces.push(interface);
    // The gateway first: it needs the one after it.
    network.routes = vec![
        route(4, "", 0, "169.254.1.1"),
        route(4, "169.254.1.1", 32, ""),
        route(6, "", 0, "fe80::1"),
        route(6, "fe80::", 64, ""),
    ];
    let mut neighbour = Neighbour::new();
    neighbour.interface = "eth0".to_owned();
    neighbour.address = bytes("169.254.1.1");
    neighbour.mac = vec![0xee; 6];
    network.neighbours.push(neighbour);
    let mut rule = Rule::new();
    rule.family = 4;
    rule.priority = 1000;
    rule.action = 1;
    rule.table = 100;
    rule.source = bytes("10.1.1.5");
    rule.source_prefix_length = 32;
    network.rules.push(rule);
    network
}

#[test]
fn addresses_routes_and_neighbours_are_as_the_host_said_and_no_others() {
    alone(|socket, mut indexes| {
        make(socket, &network(), &mut indexes);
        let routes = ip("route show");
        assert!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
        assert!(routes.contains("169.254.1.1 dev eth0"), "{routes}");
        // The host has no route to the address's network, as where every packet goes by a gateway.
        assert!(!routes.contains("10.1.1.0/24"), "{routes}");
        let routes = ip("-6 route show");
        assert!(routes.contains("default via fe80::1 dev eth0"), "{routes}");
        assert!(!routes.contains("2001:db8::/64"), "{routes}");
        let neighbours = ip("neigh show");
        assert!(
            neighbours.contains("169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT"),
            "{neighbours}"
        );
        let rules = ip("rule show");
        assert!(rules.contains("1000:\tfrom 10.1.1.5 lookup 100"), "{rules}");
    });
}

#[test]
fn an_address_can_be_used_at_once() {
    alone(|socket, mut indexes| {
        make(socket, &network(), &mut indexes);
        let addresses = ip("-6 addr show dev eth0");
        for line in addresses
            .lines()
            .filter(|line| line.contains("2001:db8::5") || line.contains("fe80::5"))
        {
            assert!(!line.contains("tentative"), "{addresses}");
        }
        std::net::TcpListener::bind("[2001:db8::5]:0").unwrap();
        std::net::TcpListener::bind("10.1.1.5:0").unwrap();
    });
}

#[test]
fn what_is_said_twice_is_there_once_and_what_is_gone_goes() {
    alone(|socket, mut indexes| {
        make(socket, &network(), &mut indexes);
        let mut again = network();
        again.interfaces.clear();
        add(socket, &again, &mut indexes).unwrap();
        assert_eq!(ip("route show").matches("default").count(), 1);
        assert_eq!(ip("-6 route show").matches("default").count(), 1);
        for _ in 0..2 {
            take_away(socket, &network(), &indexes).unwrap();
        }
        assert_eq!(ip("route show"), "");
        assert!(!ip("rule show").contains("1000:"));
        assert!(!ip("addr show dev eth0").contains("10.1.1.5"));
    });
}

#[test]
fn a_refused_route_is_named() {
    alone(|socket, mut indexes| {
        let mut network = Wanted::new();
        network.routes.push(route(4, "10.9.0.0", 16, "192.0.2.1"));
        let error = add(socket, &network, &mut indexes).unwrap_err().to_string();
        assert!(
            error.starts_with("adding the route 10.9.0.0/16 via 192.0.2.1 dev eth0: "),
            "{error}"
        );
        network.routes[0].interface = "eth7".to_owned();
        let error = add(socket, &network, &mut indexes).unwrap_err().to_string();
        assert_eq!(error, "the pod has no interface \"eth7\"");
        network.routes[0].destination = vec![1, 2, 3];
        network.routes[0].interface = "eth0".to_owned();
        assert!(add(socket, &network, &mut indexes).is_err());
    });
}
