//! In network namespaces of this machine: they need root.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// In a network namespace with what `script` makes with ip(8), a line each.
fn surveyed(script: &str) -> Result<Survey, Error> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let output = Command::new("ip").args(line.split_whitespace()).output().unwrap();
                assert!(output.status.success(), "ip {line}: {output:?}");
            }
            Survey::take(&mut Socket::open().unwrap())
        });
        thread.join().unwrap()
    })
}

/// One interface, up.
fn veth(more: &str) -> String {
    format!(
        "link add eth0 address 02:00:00:00:00:05 mtu 1400 type veth peer name other
         link set lo up
         link set eth0 up
         {more}"
    )
}

fn shown(route: &Route) -> String {
    let show = |bytes: &[u8]| match bytes.len() {
        0 => "-".to_owned(),
        4 => <[u8; 4]>::try_from(bytes)
            .map(std::net::IpAddr::from)
            .unwrap()
            .to_string(),
        _ => <[u8; 16]>::try_from(bytes)
            .map(std::net::IpAddr::from)
            .unwrap()
            .to_string(),
    };
    format!(
        "{} {}/{} via {} src {} table {} metric {} scope {}",
        route.interface,
        show(&route.destination),
        route.prefix_length,
        show(&route.gateway),
        show(&route.source),
        route.table,
        route.metric,
        route.scope
    )
}

#[test]
fn an_empty_namespace_has_nothing_for_the_guest() {
    assert_eq!(surveyed("link set lo up").unwrap(), Survey::default());
}

#[test]
fn an_interface_is_taken_over_with_its_addresses_and_routes() {
    let survey = surveyed(&veth(
        "link add br0 type bridge
         link set other master br0
         link set other up
         addr add 10.1.1.5/24 brd 10.1.1.255 dev eth0
         addr add 2001:db8::5/64 dev eth0 nodad
         route add default via 10.1.1.1
         route add 10.9.0.0/16 via 10.1.1.2 metric 7
         route add default via 10.1.1.1 table 100
         -6 route add default via fe80::1 dev eth0
         route add blackhole 10.66.0.0/16
         neigh add 10.1.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
         rule add from 10.1.1.5 lookup 100 priority 1000",
    ))
    .unwrap();
    let interface = &survey.network.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
    assert_eq!(interface.mac, [2, 0, 0, 0, 0, 5]);
    let plain: Vec<_> = interface
        .addresses
        .iter()
        .filter(|address| address.address[..2] != [0xfe, 0x80])
        .collect();
    assert_eq!(plain.len(), 2);
    assert_eq!(
        (plain[0].address.as_slice(), plain[0].prefix_length),
        (&[10, 1, 1, 5][..], 24)
    );
    assert_eq!(plain[0].broadcast, [10, 1, 1, 255]);
    assert!(plain[0].peer.is_empty());
    // With the link-local one: the guest is to have the same.
    assert!(interface.addresses.len() == 3, "{:?}", interface.addresses);

    let routes: Vec<_> = survey.network.routes.iter().map(shown).collect();
    for expected in [
        "eth0 -/0 via 10.1.1.1 src - table 0 metric 0 scope 0",
        "eth0 10.1.1.0/24 via - src 10.1.1.5 table 0 metric 0 scope 253",
        "eth0 10.9.0.0/16 via 10.1.1.2 src - table 0 metric 7 scope 0",
        "eth0 -/0 via 10.1.1.1 src - table 100 metric 0 scope 0",
        "eth0 2001:db8::/64 via - src - table 0 metric 256 scope 0",
        "eth0 -/0 via fe80::1 src - table 0 metric 1024 scope 0",
        " 10.66.0.0/16 via - src - table 0 metric 0 scope 0",
    ] {
        assert!(routes.contains(&expected.to_owned()), "{expected} in {routes:#?}");
    }
    let [neighbour] = &survey.network.neighbours[..] else {
        panic!("{:?}", survey.network.neighbours);
    };
    assert_eq!(
        (neighbour.interface.as_str(), &neighbour.mac[..]),
        ("eth0", &[0xee; 6][..])
    );
    let [rule] = &survey.network.rules[..] else {
        panic!("{:?}", survey.network.rules);
    };
    assert_eq!(
        (rule.priority, rule.table, &rule.source[..]),
        (1000, 100, &[10, 1, 1, 5][..])
    );
}

#[test]
fn what_is_down_or_a_part_of_another_is_not_the_pods() {
    let survey = surveyed(
        "link add br0 type bridge
         link add port type veth peer name down
         link set port master br0
         link set port up
         tuntap add tap0 mode tap
         link set tap0 up",
    )
    .unwrap();
    assert_eq!(survey, Survey::default());
}

#[test]
fn what_the_guest_cannot_have_is_refused_by_name() {
    for (script, expected) in [
        (
            veth("link add mv0 link eth0 type macvlan\nlink set mv0 up"),
            "interface mv0, which is on top of another one of the pod's, is not supported",
        ),
        (
            veth(
                "addr add 10.1.1.5/24 dev eth0\nroute add 10.9.0.0/16 nexthop via 10.1.1.1 nexthop via 10.1.1.2",
            ),
            "with several next hops is not supported",
        ),
        (
            veth("link set other address 02:00:00:00:00:05\nlink set other up"),
            "interfaces other and eth0 with one hardware address is not supported",
        ),
        (
            veth("rule add uidrange 1-2 lookup 7 priority 50"),
            "routing rule 50 with a condition",
        ),
    ] {
        let error = surveyed(&script).unwrap_err().to_string();
        assert!(
            error.starts_with("the pod's network: ") && error.contains(expected),
            "{error}"
        );
    }
}
