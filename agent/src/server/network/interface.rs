//! The pod's interfaces: found by their hardware address, named, brought up, unplugged.

use std::{fs, io, path::PathBuf};

use sealock_netlink::{
    Socket,
    route::{
        RouteNetlinkMessage,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    },
};
use sealock_protocol::agent::Interface;

use super::{Error, Indexes, refused};
use crate::init::log;

/// The longest name of an interface, in bytes (`IFNAMSIZ` without the terminating zero).
const MAX_NAME: usize = 15;

/// The loopback interface's number: it is the first in every namespace.
const LOOPBACK: u32 = 1;

/// Where the kernel is told to look for new devices.
const RESCAN: &str = "/sys/bus/pci/rescan";

/// Brings the loopback interface up.
pub fn loopback_up(socket: &mut Socket) -> Result<(), Error> {
    let doing = "bringing the loopback interface up";
    set(socket, up(LOOPBACK)).map_err(refused(doing))
}

fn link(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link
}

fn up(index: u32) -> LinkMessage {
    let mut link = link(index);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn set(socket: &mut Socket, link: LinkMessage) -> Result<(), sealock_netlink::Error> {
    socket.request(RouteNetlinkMessage::SetLink(link), 0)
}

/// An interface that the guest has.
#[derive(Clone, Debug)]
struct Present {
    index: u32,
    name: String,
    mac: Vec<u8>,
    /// It is a device on the bus: software may make others with the same hardware address.
    device: bool,
}

fn present(socket: &mut Socket) -> Result<Vec<Present>, Error> {
    let links = socket
        .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(refused("looking for interfaces"))?;
    let present = links.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => {
            let mut present = Present {
                index: link.header.index,
                name: String::new(),
                mac: Vec::new(),
                device: false,
            };
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => present.name = name,
                    LinkAttribute::Address(mac) => present.mac = mac,
                    LinkAttribute::ParentDevBusName(bus) => present.device = bus == "virtio",
                    _ => {}
                }
            }
            Some(present)
        }
        _ => None,
    });
    Ok(present.collect())
}

/// The guest's interfaces, and which of them are those asked for.
#[derive(Debug)]
pub struct Interfaces {
    present: Vec<Present>,
    /// In the order in which they were asked for.
    wanted: Vec<Present>,
}

impl Interfaces {
    /// Finds the devices, if need be after a look at the bus.
    ///
    /// # Errors
    /// One is not there.
    pub fn find(socket: &mut Socket, interfaces: &[Interface]) -> Result<Self, Error> {
        for interface in interfaces {
            check_name(&interface.name)?;
        }
        if let Ok(found) = Self::match_up(present(socket)?, interfaces) {
            return Ok(found);
        }
        fs::write(RESCAN, "1").map_err(Error::system("looking for new devices"))?;
        Self::match_up(present(socket)?, interfaces)
    }

    fn match_up(present: Vec<Present>, interfaces: &[Interface]) -> Result<Self, Error> {
        let wanted = interfaces
            .iter()
            .map(|interface| {
                present
                    .iter()
                    .find(|one| one.device && one.mac == interface.mac)
                    .cloned()
                    .ok_or_else(|| {
                        let mac: Vec<String> =
                            interface.mac.iter().map(|byte| format!("{byte:02x}")).collect();
                        Error::Setup(format!(
                            "interface {}: the guest has no device with the hardware address {}",
                            interface.name,
                            mac.join(":")
                        ))
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { present, wanted })
    }

    /// Names them and brings them up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_up(
        &self,
        socket: &mut Socket,
        interfaces: &[Interface],
        indexes: &mut Indexes,
    ) -> Result<(), Error> {
        // Who has a name that another is to get makes room first.
        for (interface, found) in interfaces.iter().zip(&self.wanted) {
            let holder = self.present.iter().find(|one| one.name == interface.name);
            if let Some(holder) = holder.filter(|holder| holder.index != found.index) {
                rename(socket, holder.index, &format!("moved{}", holder.index))?;
            }
        }
        for (interface, found) in interfaces.iter().zip(&self.wanted) {
            let name = &interface.name;
            let moved = interfaces
                .iter()
                .zip(&self.wanted)
                .any(|(other, by)| by.index != found.index && other.name == found.name);
            if found.name != *name || moved {
                rename(socket, found.index, name)?;
            }
            // The addresses are the host's, the link-local one among them.
            let mut message = link(found.index);
            message.attributes = vec![
                LinkAttribute::Mtu(interface.mtu),
                LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                    In6AddrGenMode::None,
                )])]),
            ];
            set(socket, message).map_err(refused(format!(
                "interface {name}: setting its MTU {}",
                interface.mtu
            )))?;
            let mut message = up(found.index);
            message.header.change_mask |= LinkFlags::Noarp;
            message.header.flags.set(LinkFlags::Noarp, interface.no_arp);
            set(socket, message).map_err(refused(format!("interface {name}: bringing it up")))?;
            indexes.insert(name.clone(), found.index);
        }
        Ok(())
    }
}

fn rename(socket: &mut Socket, index: u32, name: &str) -> Result<(), Error> {
    let mut message = link(index);
    message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    set(socket, message).map_err(refused(format!("naming an interface {name}")))
}

fn check_name(name: &str) -> Result<(), Error> {
    let fit = (1..=MAX_NAME).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
    if fit {
        Ok(())
    } else {
        Err(Error::Argument(format!(
            "interface {name:?}: not a name of 1 to {MAX_NAME} bytes"
        )))
    }
}

/// Has the kernel let go of an interface's device, which then may be taken off the bus. One that is gone is no error.
pub fn unplug(socket: &mut Socket, index: u32) -> Result<(), Error> {
    let present = present(socket)?;
    let Some(found) = present.iter().find(|one| one.index == index && one.device) else {
        return Ok(());
    };
    // The interface's device is the virtio one; its parent is on the bus. The name is one the kernel has admitted.
    let device: PathBuf = ["/sys/class/net", &found.name, "device/../remove"]
        .iter()
        .collect();
    match fs::write(&device, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log(&format!("{}: {error}", device.display()));
            Err(Error::system(format!("interface {}: unplugging it", found.name))(
                error,
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(index: u32, name: &str, mac: u8, device: bool) -> Present {
        Present {
            index,
            name: name.to_owned(),
            mac: vec![2, 0, 0, 0, 0, mac],
            device,
        }
    }

    fn asked(name: &str, mac: u8) -> Interface {
        let mut interface = Interface::new();
        interface.name = name.to_owned();
        interface.mac = vec![2, 0, 0, 0, 0, mac];
        interface
    }

    #[test]
    fn a_bridge_with_a_devices_hardware_address_is_not_taken_for_it() {
        let present = vec![one(5, "br0", 7, false), one(6, "eth0", 7, true)];
        let found = Interfaces::match_up(present, &[asked("eth0", 7)]).unwrap();
        assert_eq!(found.wanted[0].index, 6);
    }

    #[test]
    fn a_missing_device_is_named_by_its_hardware_address() {
        let error = Interfaces::match_up(vec![one(5, "eth0", 1, true)], &[asked("net1", 2)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "interface net1: the guest has no device with the hardware address 02:00:00:00:00:02"
        );
    }

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for name in ["eth0", "net1", "a.b-c_d@e"] {
            check_name(name).unwrap();
        }
        for name in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx", "ä"] {
            check_name(name).unwrap_err();
        }
    }
}
