//! The pod's network in the guest: what the host has found in the pod's network namespace, made again.
//!
//! Everything is one request to the kernel and its answer, and nothing is waited for: the interfaces' devices are there
//! before the first process, or after a look at the bus, and addresses are used at once, for their uniqueness was
//! the business of whoever gave them out.

mod forward;
mod interface;
mod message;
mod queues;

use std::{collections::BTreeMap, sync::Mutex};

use sealock_netlink::{
    Error as NetlinkError, Socket,
    core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE},
    route::RouteNetlinkMessage,
};
use sealock_protocol::agent::{Network as Wanted, Route, UpdateNetworkRequest};

use self::interface::Interfaces;
pub use self::{forward::connect_port, queues::spread as spread_queues};
use super::error::Error;

/// Interfaces of the pod by name, and their numbers: by these they are found again, for a tenant may rename them.
type Indexes = BTreeMap<String, u32>;

/// The network of the guest, as far as the host has it made.
#[derive(Debug, Default)]
pub struct Network(Mutex<Indexes>);

/// For `map_err`: the kernel refused what was being done.
fn refused(doing: impl Into<String>) -> impl FnOnce(NetlinkError) -> Error {
    let doing = doing.into();
    move |error| {
        Error::system(doing)(match error {
            NetlinkError::Refused(error) => error,
            other => std::io::Error::other(other),
        })
    }
}

fn socket() -> Result<Socket, Error> {
    Socket::open().map_err(refused("speaking with the kernel about the network"))
}

impl Network {
    /// Brings the loopback interface up, whose addresses come by themselves, and makes the pod's network.
    ///
    /// # Errors
    /// An interface's device is not there, or the kernel refuses something; it is named.
    pub fn set_up(&self, network: &Wanted) -> Result<(), Error> {
        let mut socket = socket()?;
        interface::loopback_up(&mut socket)?;
        if *network == Wanted::default() {
            return Ok(());
        }
        let mut indexes = self.lock()?;
        add(&mut socket, network, &mut indexes)
    }

    /// Changes it.
    ///
    /// # Errors
    /// As [`Network::set_up`].
    pub fn update(&self, request: &UpdateNetworkRequest) -> Result<(), Error> {
        let mut socket = socket()?;
        let mut indexes = self.lock()?;
        take_away(&mut socket, &request.gone, &indexes)?;
        for name in &request.removed {
            if let Some(index) = indexes.remove(name) {
                interface::unplug(&mut socket, index)?;
            }
        }
        add(&mut socket, &request.network, &mut indexes)?;
        if !request.network.interfaces.is_empty() {
            spread_queues().map_err(Error::system("using the queues of an interface"))?;
        }
        Ok(())
    }

    fn lock(&self) -> Result<std::sync::MutexGuard<'_, Indexes>, Error> {
        // One change at a time: the host waits for the answer before it asks for another.
        self.0
            .try_lock()
            .map_err(|_| Error::State("the network is being changed already"))
    }
}

fn add(socket: &mut Socket, network: &Wanted, indexes: &mut Indexes) -> Result<(), Error> {
    if !network.interfaces.is_empty() {
        let found = Interfaces::find(socket, &network.interfaces)?;
        found.set_up(socket, &network.interfaces, indexes)?;
    }
    for interface in &network.interfaces {
        let index = message::index(indexes, &interface.name)?;
        for address in &interface.addresses {
            let message = message::address(address, index)?;
            let doing = || format!("giving {} an address", interface.name);
            let request = RouteNetlinkMessage::NewAddress(message);
            tolerate(
                socket.request(request, NLM_F_CREATE | NLM_F_REPLACE),
                libc::EEXIST,
            )
            .map_err(refused(doing()))?;
        }
    }
    for neighbour in &network.neighbours {
        let request = RouteNetlinkMessage::NewNeighbour(message::neighbour(neighbour, indexes)?);
        socket
            .request(request, NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(refused(format!("naming a neighbour on {}", neighbour.interface)))?;
    }
    // A gateway must be on a link by a route that is there already.
    let mut routes: Vec<&Route> = network.routes.iter().collect();
    routes.sort_by_key(|route| !route.gateway.is_empty());
    for route in routes {
        let request = RouteNetlinkMessage::NewRoute(message::route(route, indexes)?);
        tolerate(socket.request(request, NLM_F_CREATE | NLM_F_APPEND), libc::EEXIST)
            .map_err(refused(format!("adding {}", message::describe(route))))?;
    }
    for rule in &network.rules {
        let request = RouteNetlinkMessage::NewRule(message::rule(rule)?);
        tolerate(socket.request(request, NLM_F_CREATE), libc::EEXIST)
            .map_err(refused(format!("adding routing rule {}", rule.priority)))?;
    }
    Ok(())
}

/// What is gone already is no error: addresses take their routes with them, and a tenant may have been there first.
fn take_away(socket: &mut Socket, gone: &Wanted, indexes: &Indexes) -> Result<(), Error> {
    for rule in &gone.rules {
        let request = RouteNetlinkMessage::DelRule(message::rule(rule)?);
        tolerate(socket.request(request, 0), libc::ENOENT)
            .map_err(refused(format!("removing routing rule {}", rule.priority)))?;
    }
    for route in &gone.routes {
        let request = RouteNetlinkMessage::DelRoute(message::route(route, indexes)?);
        tolerate(socket.request(request, 0), libc::ESRCH)
            .map_err(refused(format!("removing {}", message::describe(route))))?;
    }
    for neighbour in &gone.neighbours {
        let request = RouteNetlinkMessage::DelNeighbour(message::neighbour(neighbour, indexes)?);
        tolerate(socket.request(request, 0), libc::ENOENT).map_err(refused(format!(
            "forgetting a neighbour on {}",
            neighbour.interface
        )))?;
    }
    for interface in &gone.interfaces {
        let index = message::index(indexes, &interface.name)?;
        for address in &interface.addresses {
            let request = RouteNetlinkMessage::DelAddress(message::address(address, index)?);
            tolerate(socket.request(request, 0), libc::EADDRNOTAVAIL)
                .map_err(refused(format!("taking an address of {} away", interface.name)))?;
        }
    }
    Ok(())
}

fn tolerate(result: Result<(), NetlinkError>, errno: i32) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == Some(errno) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
