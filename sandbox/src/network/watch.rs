//! Changes of the pod's network while it runs, carried into the guest.

use std::sync::{Mutex, PoisonError};

use sealock_protocol::agent::UpdateNetworkRequest;

use super::{Attached, Change, Error, Plug};
use crate::{agent::Agent, error::line, socket};

/// The most changes that one look at the namespace leads to: interfaces that go, then those that come.
const MAX_STEPS: usize = 8;

/// Who plugs devices in and out: the monitor.
pub(crate) trait Machine {
    /// Plugs a device in; says in one line why not.
    async fn add_net(&self, plug: Plug) -> Result<(), String>;
    /// Unplugs a device.
    async fn remove_net(&self, mac: [u8; 6]) -> Result<(), String>;
}

/// Watches the namespace for as long as it is polled, or until the network is taken away.
pub(crate) async fn run(id: &str, attached: &Mutex<Option<Attached>>, machine: &impl Machine, agent: &Agent) {
    let events =
        with(attached, |attached| attached.events().try_clone()).map(|events| events.and_then(socket::watch));
    let events = match events {
        None => return,
        Some(Ok(events)) => events,
        Some(Err(error)) => {
            tracing::error!(sandbox = id, %error, "the pod's network is not watched");
            return;
        }
    };
    loop {
        let cleared = match events.readable().await {
            Ok(mut ready) => {
                let cleared = events.get_ref().clear();
                ready.clear_ready();
                cleared
            }
            Err(error) => Err(error),
        };
        if let Err(error) = cleared {
            tracing::error!(sandbox = id, %error, "the pod's network is not watched any longer");
            return;
        }
        for _ in 0..MAX_STEPS {
            let change = match with(attached, Attached::change) {
                None => return,
                Some(change) => change,
            };
            match change {
                Ok(change) if change.is_empty() => break,
                Ok(change) => carry_out(id, change, machine, agent).await,
                Err(error) => {
                    log(id, &error);
                    break;
                }
            }
        }
    }
}

fn log(id: &str, error: &Error) {
    tracing::error!(
        sandbox = id,
        error = line(error),
        "a change of the pod's network is not carried out"
    );
}

fn with<T>(attached: &Mutex<Option<Attached>>, work: impl FnOnce(&mut Attached) -> T) -> Option<T> {
    attached
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_mut()
        .map(work)
}

/// The guest lets go of a device before it is unplugged, and gets to know one after it was plugged in.
async fn carry_out(id: &str, change: Change, machine: &impl Machine, agent: &Agent) {
    for plug in change.plugs {
        let mac = plug.config.mac;
        if let Err(error) = machine.add_net(plug).await {
            tracing::error!(sandbox = id, ?mac, error, "cannot plug a network device in");
        }
    }
    if change.update != UpdateNetworkRequest::default()
        && let Err(error) = agent.update_network(&change.update).await
    {
        tracing::error!(
            sandbox = id,
            error = line(&error),
            "the guest did not carry out a change of the pod's network"
        );
    }
    for mac in change.unplugged {
        if let Err(error) = machine.remove_net(mac).await {
            tracing::error!(sandbox = id, ?mac, error, "cannot unplug a network device");
        }
    }
}
