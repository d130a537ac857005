//! What there is in the pod's network namespace: interfaces, addresses, routes, neighbours, rules.
//!
//! Everything that the guest can have, too, is taken over; what it can't is refused by name. Not taken over is what a
//! kernel makes by itself, in the guest as well: routes to its own addresses, and what routers advertise.

use std::collections::BTreeMap;

use sealock_netlink::{
    Socket,
    route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{
            RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteType,
            RouteVia,
        },
        rule::{RuleAttribute, RuleFlags, RuleMessage},
    },
};
use sealock_protocol::agent::{Interface, InterfaceAddress, Neighbour, Network, Route, Rule};

use super::{Error, error::kernel, tap};

/// The most interfaces of a pod.
pub const MAX_INTERFACES: usize = 8;

/// The most routes, neighbours and rules, each: more than fit a request are nobody's intention.
const MAX_ENTRIES: usize = 4096;

const MAIN: u32 = libc::RT_TABLE_MAIN as u32;
const LOCAL: u32 = libc::RT_TABLE_LOCAL as u32;
const DEFAULT: u32 = libc::RT_TABLE_DEFAULT as u32;

/// An interface for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its largest packet.
    pub mtu: u16,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The interfaces.
    pub links: Vec<Link>,
    /// All of it in the agent's words, interfaces in the same order.
    pub network: Network,
}

impl Survey {
    /// Looks around in the socket's namespace.
    ///
    /// # Errors
    /// The guest can't have something of it, or the kernel refuses to tell.
    pub fn take(socket: &mut Socket) -> Result<Self, Error> {
        let mut survey = Self::default();
        let links = dump(
            socket,
            "interfaces",
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
        )?;
        for message in links {
            if let RouteNetlinkMessage::NewLink(link) = message
                && let Some((link, no_arp)) = link_of(link)?
            {
                survey.add_link(link, no_arp)?;
            }
        }
        if survey.links.is_empty() {
            return Ok(survey);
        }
        let names = survey
            .links
            .iter()
            .map(|link| (link.index, link.name.clone()))
            .collect();
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        for message in dump(socket, "addresses", addresses)? {
            if let RouteNetlinkMessage::NewAddress(address) = message
                && let Some(at) = survey
                    .links
                    .iter()
                    .position(|link| link.index == address.header.index)
                && let Some(address) = address_of(&address, &survey.links[at].name)
            {
                survey.network.interfaces[at].addresses.push(address);
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            for message in dump(socket, "routes", RouteNetlinkMessage::GetRoute(question))? {
                if let RouteNetlinkMessage::NewRoute(route) = message
                    && let Some(route) = route_of(&route, &names)?
                {
                    survey.network.routes.push(route);
                }
            }
            let mut question = RuleMessage::default();
            question.header.family = family;
            for message in dump(socket, "routing rules", RouteNetlinkMessage::GetRule(question))? {
                if let RouteNetlinkMessage::NewRule(rule) = message
                    && let Some(rule) = rule_of(&rule)?
                {
                    survey.network.rules.push(rule);
                }
            }
        }
        let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        for message in dump(socket, "neighbours", neighbours)? {
            if let RouteNetlinkMessage::NewNeighbour(neighbour) = message
                && let Some(neighbour) = neighbour_of(&neighbour, &names)
            {
                survey.network.neighbours.push(neighbour);
            }
        }
        for (what, count) in [
            ("routes", survey.network.routes.len()),
            ("neighbours", survey.network.neighbours.len()),
            ("routing rules", survey.network.rules.len()),
        ] {
            if count > MAX_ENTRIES {
                return Err(Error::Unsupported(format!("more than {MAX_ENTRIES} {what}")));
            }
        }
        Ok(survey)
    }

    fn add_link(&mut self, link: Link, no_arp: bool) -> Result<(), Error> {
        if self.links.len() == MAX_INTERFACES {
            return Err(Error::Unsupported(format!(
                "more than {MAX_INTERFACES} interfaces"
            )));
        }
        if let Some(other) = self.links.iter().find(|other| other.mac == link.mac) {
            return Err(Error::Unsupported(format!(
                "interfaces {} and {} with one hardware address",
                other.name, link.name
            )));
        }
        let mut interface = Interface::new();
        interface.name.clone_from(&link.name);
        interface.mac = link.mac.to_vec();
        interface.mtu = link.mtu.into();
        interface.no_arp = no_arp;
        self.network.interfaces.push(interface);
        self.links.push(link);
        Ok(())
    }
}

fn dump(
    socket: &mut Socket,
    what: &str,
    question: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    socket.dump(&question).map_err(kernel(format!("list its {what}")))
}

/// An interface that is the pod's, and whether it has no neighbours to ask for hardware addresses.
///
/// Not the pod's are those that are down or part of another, loopback, tunnels (which every namespace has from the
/// start where their modules are loaded), and taps, ours among them.
fn link_of(message: LinkMessage) -> Result<Option<(Link, bool)>, Error> {
    let header = &message.header;
    if !header.flags.contains(LinkFlags::Up)
        || header.flags.contains(LinkFlags::Loopback)
        || header.link_layer_type != LinkLayerType::Ether
    {
        return Ok(None);
    }
    let no_arp = header.flags.contains(LinkFlags::Noarp);
    let (mut name, mut mac, mut mtu, mut kind) = (String::new(), Vec::new(), 0, None);
    let (mut part, mut lower, mut elsewhere) = (false, false, false);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = value,
            LinkAttribute::Address(value) => mac = value,
            LinkAttribute::Mtu(value) => mtu = value,
            LinkAttribute::Controller(_) => part = true,
            LinkAttribute::Link(value) => lower = value != 0 && value != header.index,
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if part {
        return Ok(None);
    }
    if kind == Some(InfoKind::Tun) {
        if !name.starts_with(tap::PREFIX) {
            tracing::warn!(interface = name, "a tap is not given to the guest");
        }
        return Ok(None);
    }
    if lower && !elsewhere && kind != Some(InfoKind::Veth) {
        return Err(Error::Unsupported(format!(
            "interface {name}, which is on top of another one of the pod's,"
        )));
    }
    let mac = <[u8; 6]>::try_from(mac.as_slice())
        .map_err(|_| Error::Unsupported(format!("interface {name} without an Ethernet address")))?;
    let mtu = u16::try_from(mtu)
        .ok()
        .filter(|mtu| *mtu >= 68)
        .ok_or_else(|| Error::Unsupported(format!("interface {name} with an MTU of {mtu}")))?;
    Ok(Some((
        Link {
            index: header.index,
            name,
            mac,
            mtu,
        },
        no_arp,
    )))
}

fn octets(address: std::net::IpAddr) -> Vec<u8> {
    match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(message: &AddressMessage, interface: &str) -> Option<InterfaceAddress> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut other, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let address = local.or(other)?;
    // What has an end was advertised by a router, which will tell the guest, too.
    if !flags.contains(AddressFlags::Permanent) {
        return None;
    }
    if flags.contains(AddressFlags::Dadfailed) {
        tracing::warn!(interface, %address, "an address is in use by another: the guest does not get it");
        return None;
    }
    let mut result = InterfaceAddress::new();
    result.address = octets(address);
    result.prefix_length = message.header.prefix_len.into();
    result.scope = u8::from(message.header.scope).into();
    result.broadcast = broadcast
        .map(|address| address.octets().to_vec())
        .unwrap_or_default();
    result.peer = other
        .filter(|other| *other != address)
        .map(octets)
        .unwrap_or_default();
    Some(result)
}

fn family(family: AddressFamily) -> u32 {
    if family == AddressFamily::Inet6 { 6 } else { 4 }
}

fn route_octets(address: &RouteAddress) -> Option<Vec<u8>> {
    match address {
        RouteAddress::Inet(address) => Some(address.octets().to_vec()),
        RouteAddress::Inet6(address) => Some(address.octets().to_vec()),
        _ => None,
    }
}

fn route_of(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Result<Option<Route>, Error> {
    let header = &message.header;
    let nowhere = match header.kind {
        RouteType::Unicast => false,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw => true,
        // Of the kernel's own making, in the table of local addresses.
        _ => return Ok(None),
    };
    let mut route = Route::new();
    let mut interface = None;
    let mut odd = None;
    route.table = header.table.into();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Destination(address) => match route_octets(address) {
                Some(bytes) => route.destination = bytes,
                None => odd = Some("a destination of another family"),
            },
            RouteAttribute::Gateway(address) => match route_octets(address) {
                Some(bytes) => route.gateway = bytes,
                None => odd = Some("a gateway of another family"),
            },
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = address.octets().to_vec(),
            RouteAttribute::PrefSource(address) => match route_octets(address) {
                Some(bytes) => route.source = bytes,
                None => odd = Some("a source of another family"),
            },
            RouteAttribute::Metrics(metrics) => {
                for metric in metrics {
                    match metric {
                        RouteMetric::Mtu(mtu) => route.mtu = *mtu,
                        RouteMetric::Advmss(advmss) => route.advmss = *advmss,
                        // As if there was none: the kernel names it in every route of IPv6.
                        RouteMetric::Hoplimit(0) => {}
                        _ => odd = Some("metrics other than mtu and advmss"),
                    }
                }
            }
            RouteAttribute::MultiPath(_) => odd = Some("several next hops"),
            RouteAttribute::Via(_) => odd = Some("a gateway of another family"),
            RouteAttribute::Encap(_) | RouteAttribute::EncapType(_) => odd = Some("an encapsulation"),
            RouteAttribute::Source(_) => odd = Some("a condition on the source"),
            _ => {}
        }
    }
    let own = matches!(header.protocol, RouteProtocol::Ra | RouteProtocol::IcmpRedirect)
        || nowhere && header.protocol == RouteProtocol::Kernel;
    if own || route.table == LOCAL || header.flags.contains(RouteFlags::Cloned) {
        return Ok(None);
    }
    match interface.map(|index| names.get(&index)) {
        Some(Some(name)) if !nowhere => route.interface.clone_from(name),
        // IPv6 names the loopback interface for routes that lead nowhere.
        _ if nowhere => {}
        // Over an interface that is not the pod's.
        Some(_) => return Ok(None),
        None => odd = odd.or(Some("several next hops")),
    }
    if header.tos != 0 {
        odd = Some("a condition on the type of service");
    }
    route.family = family(header.address_family);
    route.prefix_length = header.destination_prefix_length.into();
    route.scope = u8::from(header.scope).into();
    route.kind = u8::from(header.kind).into();
    route.protocol = u8::from(header.protocol).into();
    route.on_link = header.flags.contains(RouteFlags::Onlink);
    if route.table == MAIN {
        route.table = 0;
    }
    match odd {
        None => Ok(Some(route)),
        Some(odd) => Err(Error::Unsupported(format!(
            "a route of IPv{} (prefix length {}, table {}) with {odd}",
            route.family, route.prefix_length, route.table
        ))),
    }
}

fn neighbour_of(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbour = Neighbour::new();
    neighbour.interface = names.get(&message.header.ifindex)?.clone();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                neighbour.address = address.octets().to_vec();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbour.address = address.octets().to_vec();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac.clone_from(mac),
            _ => {}
        }
    }
    (!neighbour.address.is_empty() && neighbour.mac.len() == 6).then_some(neighbour)
}

fn rule_of(message: &RuleMessage) -> Result<Option<Rule>, Error> {
    let header = &message.header;
    let mut rule = Rule::new();
    rule.family = family(header.family);
    rule.table = header.table.into();
    let mut odd = (header.tos != 0).then_some("a condition on the type of service");
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Source(address) => rule.source = octets(*address),
            RuleAttribute::Destination(address) => rule.destination = octets(*address),
            RuleAttribute::Iifname(name) => rule.incoming.clone_from(name),
            RuleAttribute::Oifname(name) => rule.outgoing.clone_from(name),
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mask = *mask,
            // Who made it, and nothing to suppress.
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::Goto(_) => odd = Some("a jump"),
            _ => odd = Some("a condition that is not on addresses, interfaces and marks"),
        }
    }
    // Every kernel begins with these.
    if [(0, LOCAL), (32766, MAIN), (32767, DEFAULT)].contains(&(rule.priority, rule.table)) {
        return Ok(None);
    }
    rule.action = u8::from(header.action).into();
    rule.source_prefix_length = header.src_len.into();
    rule.destination_prefix_length = header.dst_len.into();
    rule.invert = header.flags.contains(RuleFlags::Invert);
    match odd {
        None => Ok(Some(rule)),
        Some(odd) => Err(Error::Unsupported(format!(
            "routing rule {} with {odd}",
            rule.priority
        ))),
    }
}

#[cfg(test)]
#[path = "survey/tests.rs"]
mod tests;
