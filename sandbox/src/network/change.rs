//! What becomes of a network, in the agent's words.

use sealock_protocol::agent::{Interface, Network, UpdateNetworkRequest};

/// What makes `new` of `old`. Interfaces are the same when their hardware addresses are and they are not in `unplugged`,
/// whose members are those that go away, by hardware address, or have to be plugged in again.
#[must_use]
pub fn between(old: &Network, new: &Network, unplugged: &[[u8; 6]]) -> UpdateNetworkRequest {
    let is_unplugged = |interface: &Interface| unplugged.iter().any(|mac| mac[..] == interface.mac[..]);
    let mut request = UpdateNetworkRequest::new();
    let mut gone = Network::new();
    let mut came = Network::new();
    let removed: Vec<&str> = old
        .interfaces
        .iter()
        .filter(|interface| is_unplugged(interface))
        .map(|interface| interface.name.as_str())
        .collect();
    let stays = |interface: &String| !removed.contains(&interface.as_str());

    for interface in &new.interfaces {
        let before = old
            .interfaces
            .iter()
            .find(|before| before.mac == interface.mac && !is_unplugged(before));
        let Some(before) = before else {
            came.interfaces.push(interface.clone());
            continue;
        };
        let mut with = interface.clone();
        with.addresses
            .retain(|address| !before.addresses.contains(address));
        let mut without = before.clone();
        without
            .addresses
            .retain(|address| !interface.addresses.contains(address));
        if !without.addresses.is_empty() {
            gone.interfaces.push(without);
        }
        let same = (&before.name, before.mtu, before.no_arp) == (&with.name, with.mtu, with.no_arp);
        if !same || !with.addresses.is_empty() {
            came.interfaces.push(with);
        }
    }
    // A route that names a removed interface goes with it, and comes again with the one that is plugged in.
    gone.routes = missing(&old.routes, &new.routes);
    gone.routes.retain(|route| stays(&route.interface));
    came.routes = missing(&new.routes, &old.routes);
    let again = new.routes.iter().filter(|route| !stays(&route.interface));
    for route in again {
        if !came.routes.contains(route) {
            came.routes.push(route.clone());
        }
    }
    gone.neighbours = missing(&old.neighbours, &new.neighbours);
    gone.neighbours.retain(|neighbour| stays(&neighbour.interface));
    came.neighbours = missing(&new.neighbours, &old.neighbours);
    let again = new
        .neighbours
        .iter()
        .filter(|neighbour| !stays(&neighbour.interface));
    for neighbour in again {
        if !came.neighbours.contains(neighbour) {
            came.neighbours.push(neighbour.clone());
        }
    }
    gone.rules = missing(&old.rules, &new.rules);
    came.rules = missing(&new.rules, &old.rules);

    request.removed = removed.into_iter().map(str::to_owned).collect();
    if gone != Network::default() {
        request.gone = Some(gone).into();
    }
    if came != Network::default() {
        request.network = Some(came).into();
    }
    request
}

fn missing<T: Clone + PartialEq>(of: &[T], from: &[T]) -> Vec<T> {
    of.iter().filter(|one| !from.contains(one)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use sealock_protocol::agent::{InterfaceAddress, Route};

    use super::*;

    fn interface(name: &str, mac: u8, addresses: &[u8]) -> Interface {
        let mut interface = Interface::new();
        interface.name = name.to_owned();
        interface.mac = vec![mac; 6];
        interface.mtu = 1500;
        for last in addresses {
            let mut address = InterfaceAddress::new();
            address.address = vec![10, 0, 0, *last];
            interface.addresses.push(address);
        }
        interface
    }

    fn route(interface: &str, last: u8) -> Route {
        let mut route = Route::new();
        route.interface = interface.to_owned();
        route.gateway = vec![10, 0, 0, last];
        route
    }

    fn network(interfaces: Vec<Interface>, routes: Vec<Route>) -> Network {
        let mut network = Network::new();
        network.interfaces = interfaces;
        network.routes = routes;
        network
    }

    #[test]
    fn nothing_changed_is_nothing_to_say() {
        let one = network(vec![interface("eth0", 1, &[1])], vec![route("eth0", 9)]);
        assert_eq!(between(&one, &one, &[]), UpdateNetworkRequest::default());
    }

    #[test]
    fn an_interface_that_came_is_named_whole_and_one_that_went_takes_its_routes_along() {
        let both = network(
            vec![interface("eth0", 1, &[1]), interface("net1", 2, &[2])],
            vec![route("eth0", 9), route("net1", 8)],
        );
        let one = network(vec![interface("eth0", 1, &[1])], vec![route("eth0", 9)]);
        let came = between(&one, &both, &[]);
        assert_eq!(
            came.network.get_or_default(),
            &network(vec![interface("net1", 2, &[2])], vec![route("net1", 8)])
        );
        let went = between(&both, &one, &[[2; 6]]);
        assert_eq!(went.removed, ["net1"]);
        assert!(went.network.is_none() && went.gone.is_none());
    }

    #[test]
    fn addresses_and_routes_of_an_interface_that_stays_come_and_go() {
        let old = network(vec![interface("eth0", 1, &[1, 2])], vec![route("eth0", 9)]);
        let new = network(vec![interface("eth0", 1, &[2, 3])], vec![route("eth0", 8)]);
        let change = between(&old, &new, &[]);
        assert_eq!(
            change.gone.get_or_default(),
            &network(vec![interface("eth0", 1, &[1])], vec![route("eth0", 9)])
        );
        assert_eq!(
            change.network.get_or_default(),
            &network(vec![interface("eth0", 1, &[3])], vec![route("eth0", 8)])
        );
    }

    #[test]
    fn an_interface_that_is_plugged_in_again_gets_everything_again() {
        let old = network(vec![interface("eth0", 1, &[1])], vec![route("eth0", 9)]);
        let mut new = old.clone();
        new.interfaces[0].mtu = 9000;
        let change = between(&old, &new, &[[1; 6]]);
        assert_eq!(change.removed, ["eth0"]);
        assert_eq!(change.network.get_or_default(), &new);
        assert!(change.gone.is_none());
    }

    #[test]
    fn a_new_name_or_mtu_is_told_without_the_addresses_that_stay() {
        let old = network(vec![interface("eth0", 1, &[1])], vec![]);
        let mut new = old.clone();
        new.interfaces[0].mtu = 1400;
        let change = between(&old, &new, &[]);
        let told = &change.network.get_or_default().interfaces[0];
        assert_eq!((told.mtu, told.addresses.len()), (1400, 0));
    }
}
