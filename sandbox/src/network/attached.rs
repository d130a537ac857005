//! A pod's network namespace, tied to its machine: a tap beside every interface, packets redirected both ways.

use std::{mem, os::fd::OwnedFd, thread::JoinHandle};

use sealock_netlink::{
    Events, Socket,
    route::{
        RouteNetlinkMessage,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
    },
};
use sealock_protocol::{
    agent::{Network, UpdateNetworkRequest},
    control::{CONFIGURE_FDS, MAX_FDS, MAX_NET_QUEUE_PAIRS, NetConfig},
};
use serde_json::Value;

use super::{
    Error, change,
    error::{device, kernel},
    limit::Limits,
    namespace::Namespace,
    redirect,
    survey::{Link, MAX_INTERFACES, Survey},
    tap,
};
use crate::{config::Config, error::line};

/// The largest MTU that a tap can have: its own matters to nobody, packets are redirected past it.
const MAX_TAP_MTU: u32 = 65_521;

/// A network device for the monitor, and its descriptors.
#[derive(Debug)]
pub struct Plug {
    /// What it is like.
    pub config: NetConfig,
    /// As many as [`NetConfig::descriptors`] says.
    pub descriptors: Vec<OwnedFd>,
}

/// How devices are to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Manner {
    queue_pairs: u8,
    vhost: bool,
    limits: Limits,
}

/// An interface that has a tap.
#[derive(Debug)]
struct Joined {
    link: Link,
    /// The MTU that the device was made with.
    mtu: u16,
}

/// A pod's network being attached, on a thread of its own.
#[derive(Debug)]
pub struct Attaching(JoinHandle<Result<(Attached, Vec<Plug>), Error>>);

impl Attaching {
    /// Waits for it.
    ///
    /// # Errors
    /// There is something in the network that can't be carried out, or another pod has it. Nothing is left then.
    pub fn finish(self) -> Result<(Attached, Vec<Plug>), Error> {
        self.0
            .join()
            .unwrap_or_else(|_| Err(device("attach it")(std::io::Error::other("the thread panicked"))))
    }
}

/// A pod's network, attached. Dropping it undoes everything that is not gone with the taps.
#[derive(Debug)]
pub struct Attached {
    namespace: Namespace,
    socket: Socket,
    events: Events,
    manner: Manner,
    joined: Vec<Joined>,
    network: Network,
}

/// What became of a network.
#[derive(Debug)]
pub struct Change {
    /// Devices that are gone, to be unplugged after the agent has been told. When there are any there are no others to be
    /// plugged in: look again.
    pub unplugged: Vec<[u8; 6]>,
    /// Devices to be plugged in before the agent is told.
    pub plugs: Vec<Plug>,
    /// What to tell the agent.
    pub update: UpdateNetworkRequest,
}

impl Change {
    /// Whether there is something to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unplugged.is_empty() && self.plugs.is_empty() && self.update == UpdateNetworkRequest::default()
    }
}

impl Attached {
    /// Begins to attach the network of the pod whose first container has `spec`, for a machine with `vcpus` processors.
    /// None when the specification names no namespace: then there is nothing to do.
    ///
    /// # Errors
    /// What is named is no namespace, or an annotation can't be met.
    pub fn begin(spec: &Value, config: &Config, vcpus: u8) -> Result<Option<Attaching>, Error> {
        let limits = Limits::of(spec)?;
        let Some(namespace) = Namespace::of(spec)? else {
            return Ok(None);
        };
        let manner = Manner {
            queue_pairs: vcpus.clamp(1, MAX_NET_QUEUE_PAIRS),
            // Limits are the monitor's to keep.
            vhost: config.vhost_net() && !limits.any(),
            limits,
        };
        std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || Self::attach(namespace, manner))
            .map(|thread| Some(Attaching(thread)))
            .map_err(device("start a thread"))
    }

    fn attach(namespace: Namespace, mut manner: Manner) -> Result<(Self, Vec<Plug>), Error> {
        let entered = namespace.within(|| {
            // Before anything is looked at, so that no change is missed.
            let events = Events::open().map_err(kernel("watch it"))?;
            let mut socket = Socket::open().map_err(kernel("look at it"))?;
            let survey = Survey::take(&mut socket)?;
            manner.fit(survey.links.len());
            let mut joined = Vec::new();
            let mut plugs = Vec::new();
            for link in &survey.links {
                match join(&mut socket, link, manner) {
                    Ok(plug) => plugs.push(plug),
                    Err(error) => {
                        undo(&mut socket, &joined);
                        return Err(error);
                    }
                }
                joined.push(Joined {
                    link: link.clone(),
                    mtu: link.mtu,
                });
            }
            Ok((events, socket, joined, plugs, survey.network))
        });
        let (events, socket, joined, plugs, network) = entered.map_err(device(format!(
            "enter the network namespace {}",
            namespace.path().display()
        )))??;
        let attached = Self {
            namespace,
            socket,
            events,
            manner,
            joined,
            network,
        };
        Ok((attached, plugs))
    }

    /// What the agent is to make of it in the guest.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Becomes readable when there may be a [`Attached::change`].
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Looks around again, and makes and removes taps accordingly: first those that go, then, asked again, those that come.
    ///
    /// # Errors
    /// There is something new that can't be carried out; everything is as before then.
    pub fn change(&mut self) -> Result<Change, Error> {
        let survey = Survey::take(&mut self.socket)?;
        // A device is made with its hardware address, and for packets of a size: another one is another device.
        let stays = |joined: &Joined| {
            survey.links.iter().any(|link| {
                (link.index, link.mac) == (joined.link.index, joined.link.mac) && link.mtu <= joined.mtu
            })
        };
        let (stay, go): (Vec<_>, Vec<_>) = mem::take(&mut self.joined).into_iter().partition(stays);
        self.joined = stay;
        undo(&mut self.socket, &go);
        let unplugged: Vec<_> = go.iter().map(|joined| joined.link.mac).collect();

        // A tap is gone when its device is: what replaces it is for the next time.
        let may_join = unplugged.is_empty();
        let mut manner = self.manner;
        // The taps of those that were there first are what they are.
        manner.fit(MAX_INTERFACES.min(survey.links.len().max(1)));
        let (mut plugs, mut failed) = (Vec::new(), None);
        let new: Vec<&Link> = survey
            .links
            .iter()
            .filter(|link| may_join && self.joined.iter().all(|joined| joined.link.index != link.index))
            .collect();
        for link in new {
            let socket = &mut self.socket;
            let entered = self.namespace.within(|| join(socket, link, manner));
            match entered
                .map_err(device("enter the network namespace"))
                .and_then(|plug| plug)
            {
                Ok(plug) => {
                    plugs.push(plug);
                    self.joined.push(Joined {
                        link: link.clone(),
                        mtu: link.mtu,
                    });
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            // The others are carried out with the next change, if that one is better.
            tracing::error!(
                error = line(&error),
                "an interface of the pod's network is left out"
            );
        }
        for joined in &mut self.joined {
            if let Some(link) = survey.links.iter().find(|link| link.index == joined.link.index) {
                joined.link = link.clone();
            }
        }
        let mut network = survey.network;
        let names: Vec<&str> = self
            .joined
            .iter()
            .map(|joined| joined.link.name.as_str())
            .collect();
        network
            .interfaces
            .retain(|interface| names.contains(&interface.name.as_str()));
        network
            .routes
            .retain(|route| route.interface.is_empty() || names.contains(&route.interface.as_str()));
        network
            .neighbours
            .retain(|neighbour| names.contains(&neighbour.interface.as_str()));
        let update = change::between(&self.network, &network, &unplugged);
        self.network = network;
        Ok(Change {
            unplugged,
            plugs,
            update,
        })
    }

    /// Ends the redirections. To be called when the monitor has ended, and the taps with it.
    pub fn detach(&mut self) {
        undo(&mut self.socket, &mem::take(&mut self.joined));
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Manner {
    /// Makes as many queues as descriptors may be sent along with the machine's configuration.
    fn fit(&mut self, interfaces: usize) {
        let each = (MAX_FDS - CONFIGURE_FDS) / interfaces.max(1);
        let pairs = if self.vhost { each / 2 } else { each };
        self.queue_pairs = self
            .queue_pairs
            .min(u8::try_from(pairs).unwrap_or(u8::MAX))
            .max(1);
    }
}

/// Ends what [`join`] began, as far as it is not gone by itself.
fn undo(socket: &mut Socket, joined: &[Joined]) {
    for joined in joined {
        if let Err(error) = redirect::remove(socket, joined.link.index) {
            tracing::warn!(
                interface = joined.link.name,
                error = line(&error),
                "cannot undo a redirection"
            );
        }
    }
}

/// Makes a tap for an interface, in whose namespace the calling thread is.
fn join(socket: &mut Socket, link: &Link, manner: Manner) -> Result<Plug, Error> {
    let name = tap::name(link.index);
    let mut descriptors = tap::create(&name, manner.queue_pairs, &link.name)?;
    let index =
        nix::net::if_::if_nametoindex(name.as_str()).map_err(device(format!("find the tap {name}")))?;
    set_up(socket, index, link.mtu).map_err(kernel(format!("bring the tap {name} up")))?;
    redirect::add(socket, index, link.index)?;
    redirect::add(socket, link.index, index).inspect_err(|_| {
        let _ = redirect::remove(socket, link.index);
    })?;
    let mut vhost = if manner.vhost {
        tap::vhost(manner.queue_pairs)?
    } else {
        Vec::new()
    };
    let config = NetConfig {
        mac: link.mac,
        mtu: link.mtu,
        queue_pairs: manner.queue_pairs,
        vhost: !vhost.is_empty(),
        receive_limit: manner.limits.receive,
        send_limit: manner.limits.send,
    };
    descriptors.append(&mut vhost);
    Ok(Plug { config, descriptors })
}

/// Nobody is to hear from the tap itself: it asks for nothing and has no address.
fn set_up(socket: &mut Socket, index: u32, mtu: u16) -> Result<(), sealock_netlink::Error> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![
        LinkAttribute::Mtu(u32::from(mtu).min(MAX_TAP_MTU)),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    socket.request(RouteNetlinkMessage::SetLink(message.clone()), 0)?;
    message.attributes.clear();
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = message.header.flags;
    socket.request(RouteNetlinkMessage::SetLink(message), 0)
}

/// What a crashed supervisor left in the namespace at `path`: redirections to taps that are gone.
pub fn clean_up(path: &std::path::Path) -> Result<(), Error> {
    // The namespace itself may be gone: then there is nothing.
    let Ok(namespace) = Namespace::open(path, "the pod's network") else {
        return Ok(());
    };
    namespace
        .within(|| {
            let mut socket = Socket::open().map_err(kernel("look at it"))?;
            let links = socket
                .dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))
                .map_err(kernel("list its interfaces"))?;
            for link in links {
                if let RouteNetlinkMessage::NewLink(link) = link {
                    redirect::remove(&mut socket, link.header.index)?;
                }
            }
            Ok(())
        })
        .map_err(device("enter the network namespace"))?
}
