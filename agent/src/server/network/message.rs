//! What the host says of a network, as requests to the kernel.

use std::net::IpAddr;

use sealock_netlink::route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia},
    rule::{RuleAttribute, RuleFlags, RuleMessage},
};
use sealock_protocol::agent::{InterfaceAddress, Neighbour, Route, Rule};

use super::{Error, Indexes};

const MAIN: u32 = libc::RT_TABLE_MAIN as u32;

/// The number of one of the pod's interfaces.
pub fn index(indexes: &Indexes, name: &str) -> Result<u32, Error> {
    indexes
        .get(name)
        .copied()
        .ok_or_else(|| Error::Argument(format!("the pod has no interface {name:?}")))
}

/// An address of 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Result<IpAddr, Error> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(bytes))
    } else if let Ok(bytes) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(bytes))
    } else {
        Err(Error::Argument(format!("an address of {} bytes", bytes.len())))
    }
}

fn optional(bytes: &[u8]) -> Result<Option<IpAddr>, Error> {
    (!bytes.is_empty()).then(|| ip(bytes)).transpose()
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn named_family(number: u32) -> Result<AddressFamily, Error> {
    match number {
        4 => Ok(AddressFamily::Inet),
        6 => Ok(AddressFamily::Inet6),
        _ => Err(Error::Argument(format!("family {number} is neither 4 nor 6"))),
    }
}

fn byte(what: &str, number: u32) -> Result<u8, Error> {
    u8::try_from(number).map_err(|_| Error::Argument(format!("{what}: {number} is more than a byte")))
}

/// Routes to the address's network are among the routes, if the host has them: the kernel is to make none by itself.
pub fn address(address: &InterfaceAddress, index: u32) -> Result<AddressMessage, Error> {
    let local = ip(&address.address)?;
    let mut message = AddressMessage::default();
    message.header.family = family(local);
    message.header.prefix_len = byte("prefix length", address.prefix_length)?;
    message.header.scope = byte("scope", address.scope)?.into();
    message.header.index = index;
    let mut flags = AddressFlags::Noprefixroute;
    if local.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    message.attributes = vec![
        AddressAttribute::Local(local),
        AddressAttribute::Address(optional(&address.peer)?.unwrap_or(local)),
        AddressAttribute::Flags(flags),
    ];
    if let Some(IpAddr::V4(broadcast)) = optional(&address.broadcast)? {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    Ok(message)
}

pub fn neighbour(neighbour: &Neighbour, indexes: &Indexes) -> Result<NeighbourMessage, Error> {
    let address = ip(&neighbour.address)?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index(indexes, &neighbour.interface)?;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.clone()),
    ];
    Ok(message)
}

pub fn route(route: &Route, indexes: &Indexes) -> Result<RouteMessage, Error> {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = named_family(route.family)?;
    header.destination_prefix_length = byte("prefix length", route.prefix_length)?;
    header.scope = byte("scope", route.scope)?.into();
    header.protocol = byte("protocol", route.protocol)?.into();
    header.kind = match byte("kind", route.kind)? {
        0 => RouteType::Unicast,
        kind => kind.into(),
    };
    if route.on_link {
        header.flags = RouteFlags::Onlink;
    }
    let family = header.address_family;
    let attributes = &mut message.attributes;
    let table = if route.table == 0 { MAIN } else { route.table };
    attributes.push(RouteAttribute::Table(table));
    if !route.interface.is_empty() {
        attributes.push(RouteAttribute::Oif(index(indexes, &route.interface)?));
    }
    if let Some(destination) = optional(&route.destination)? {
        attributes.push(RouteAttribute::Destination(destination.into()));
    }
    match optional(&route.gateway)? {
        Some(IpAddr::V6(gateway)) if family == AddressFamily::Inet => {
            attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway)));
        }
        Some(gateway) => attributes.push(RouteAttribute::Gateway(gateway.into())),
        None => {}
    }
    if let Some(source) = optional(&route.source)? {
        attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    let mut metrics = Vec::new();
    if route.mtu != 0 {
        metrics.push(RouteMetric::Mtu(route.mtu));
    }
    if route.advmss != 0 {
        metrics.push(RouteMetric::Advmss(route.advmss));
    }
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    Ok(message)
}

/// A route in `ip route`'s words.
pub fn describe(route: &Route) -> String {
    let show = |bytes: &[u8]| ip(bytes).map_or_else(|_| "?".to_owned(), |address| address.to_string());
    let mut text = if route.destination.is_empty() {
        format!("the default route of IPv{}", route.family)
    } else {
        format!("the route {}/{}", show(&route.destination), route.prefix_length)
    };
    if !route.gateway.is_empty() {
        text += &format!(" via {}", show(&route.gateway));
    }
    if !route.interface.is_empty() {
        text += &format!(" dev {}", route.interface);
    }
    text
}

pub fn rule(rule: &Rule) -> Result<RuleMessage, Error> {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = named_family(rule.family)?;
    header.action = byte("action", rule.action)?.into();
    header.src_len = byte("source prefix length", rule.source_prefix_length)?;
    header.dst_len = byte("destination prefix length", rule.destination_prefix_length)?;
    if rule.invert {
        header.flags = RuleFlags::Invert;
    }
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Priority(rule.priority));
    if rule.table != 0 {
        attributes.push(RuleAttribute::Table(rule.table));
    }
    if let Some(source) = optional(&rule.source)? {
        attributes.push(RuleAttribute::Source(source));
    }
    if let Some(destination) = optional(&rule.destination)? {
        attributes.push(RuleAttribute::Destination(destination));
    }
    if !rule.incoming.is_empty() {
        attributes.push(RuleAttribute::Iifname(rule.incoming.clone()));
    }
    if !rule.outgoing.is_empty() {
        attributes.push(RuleAttribute::Oifname(rule.outgoing.clone()));
    }
    if rule.mask != 0 {
        attributes.push(RuleAttribute::FwMark(rule.mark));
        attributes.push(RuleAttribute::FwMask(rule.mask));
    }
    Ok(message)
}
