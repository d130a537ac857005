//! Making a template: a machine is booted without a file server and without a network, and saved when its agent waits.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream as StdUnixStream},
    time::Duration,
};

use sealock_protocol::{
    control::{Event, MAX_MESSAGE, Request},
    seqpacket::{self, SeqPacket},
};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{Key, Order, Store, store};
use crate::{
    agent::{Agent, printable, read_hello},
    broker::{self, Ports},
    check, child_log,
    config::Config,
    error::{Error, line},
    launch::{self, describe},
    process::Process,
    socket::AsyncSeqPacket,
    state::Uid,
};

/// How long the guest's kernel takes to report the memory that it has free, so that it needn't be in the template: it does so
/// two seconds after it has become free, in portions.
const REPORTS: Duration = Duration::from_secs(5);

/// How long the monitor may take to write the machine down.
const SAVE_DEADLINE: Duration = Duration::from_secs(120);

/// How long a monitor that breaks off may take to say why.
const FAREWELL: Duration = Duration::from_secs(2);

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// There is a new template.
    New(Key),
    /// It was there already.
    Already(Key),
}

/// Makes a template. To be called within a runtime, on the thread that lives as long as the process ([`Process::start`]).
///
/// # Errors
/// It can't be made, or somebody else is making it; nothing is left then.
pub async fn make(config: &Config, order: &Order) -> Result<Made, Error> {
    let files = check::open(config)?;
    let store = Store::below(config.state_dir());
    let key = Key::of(config, &files, order).map_err(|error| Error::Launch(launch::Error::Socket(error)))?;
    match store.open(&key) {
        Ok(Some(_)) => return Ok(Made::Already(key)),
        Ok(None) | Err(store::Error::Failed(_)) => {}
        Err(error) => {
            tracing::warn!(error = line(&error), "a template is made anew");
            store.remove(&key)?;
        }
    }
    let new = match store.begin(&key) {
        Err(error @ store::Error::NotTmpfs(_)) => {
            store.note_failure(&key, &line(&error));
            return Err(error.into());
        }
        new => new?,
    };
    if new.is_made().unwrap_or(false) {
        return Ok(Made::Already(key));
    }
    let made = boot_and_save(config, &files, order, &new).await;
    match made {
        Ok((state, memory)) => {
            new.publish(order, &state, &memory)?;
            Ok(Made::New(key))
        }
        Err(error) => {
            store.note_failure(&key, &line(&error));
            Err(error)
        }
    }
}

async fn boot_and_save(
    config: &Config,
    files: &check::HostFiles,
    order: &Order,
    new: &store::New,
) -> Result<(std::fs::File, std::fs::File), Error> {
    let failed = |error: io::Error| Error::Launch(launch::Error::Socket(error));
    let uid = Uid::take(config.state_dir(), config.uids())?;
    let (control, theirs) = SeqPacket::pair().map_err(failed)?;
    let (broker, their_broker) = SeqPacket::pair().map_err(failed)?;
    // Nobody serves files before the first pod mounts them; the end is kept, so that the device finds it open.
    let (_files, their_files) = SeqPacket::pair().map_err(failed)?;
    let (hello, their_hello) = StdUnixStream::pair().map_err(failed)?;
    let (vmm, stderr) =
        Process::start(config.vmm(), &[], theirs.into()).map_err(|source| launch::Error::Start {
            path: config.vmm().to_owned(),
            key: "vmm",
            source,
        })?;
    let machine = order.shape.machine(config.console(), uid.get());
    let descriptors = [
        files.kvm.as_fd(),
        files.kernel.as_fd(),
        files.initramfs.as_fd(),
        their_broker.as_fd(),
        their_files.as_fd(),
    ];
    match control.send_json(&Request::Configure(machine), &descriptors) {
        Ok(()) | Err(seqpacket::Error::Closed) => {}
        Err(error) => return Err(launch::Error::Configure(error).into()),
    }
    drop((their_broker, their_files));
    tokio::spawn(async move { child_log::run("sealock-vmm", "template", stderr).await });
    let ports = Ports::default();
    ports.offer_hello(their_hello.into());
    hello.set_nonblocking(true).map_err(failed)?;
    let hello = UnixStream::from_std(hello).map_err(failed)?;
    let control = AsyncSeqPacket::new(control).map_err(failed)?;

    let saved = tokio::select! {
        biased;
        saved = save(config, new, &control, hello) => saved?,
        served = broker::serve(broker, &ports) => {
            let reason = match served {
                Ok(()) => ending(&control).await,
                Err(error) => line(&error),
            };
            return Err(launch::Error::Ended(reason).into());
        }
    };
    // It ends with its sockets; dropping it waits.
    drop(control);
    drop(vmm);
    drop(uid);
    Ok(saved)
}

/// What the monitor says of its end.
async fn ending(control: &AsyncSeqPacket) -> String {
    let last = async {
        loop {
            match control.receive::<Event>(MAX_MESSAGE).await {
                Ok((Event::Exited { reason, detail, .. }, _)) => {
                    return format!("{} {}", describe(reason), printable(&detail, 512));
                }
                Ok(_) => {}
                Err(_) => return "the virtual machine monitor ended".to_owned(),
            }
        }
    };
    timeout(FAREWELL, last)
        .await
        .unwrap_or_else(|_| "the virtual machine monitor broke off".to_owned())
}

async fn save(
    config: &Config,
    new: &store::New,
    control: &AsyncSeqPacket,
    mut hello: UnixStream,
) -> Result<(std::fs::File, std::fs::File), Error> {
    let deadline = config.agent_timeout();
    let late = || launch::Error::Deadline {
        deadline,
        console: String::new(),
    };
    timeout(deadline, read_hello(&mut hello))
        .await
        .map_err(|_| late())??;
    let agent = Agent::new(hello, deadline);
    agent.rest().await?;
    sleep(REPORTS).await;
    let (state, memory) = new.create_files()?;
    let told = control
        .send(&Request::Save, &[state.as_fd(), memory.as_fd()])
        .await;
    told.map_err(launch::Error::Configure)?;
    let answer = async {
        loop {
            match control.receive::<Event>(MAX_MESSAGE).await {
                Ok((Event::Saved { error }, _)) => return error,
                Ok(_) => {}
                Err(error) => return line(&error),
            }
        }
    };
    let error = timeout(SAVE_DEADLINE, answer)
        .await
        .unwrap_or_else(|_| "it takes too long".to_owned());
    if error.is_empty() {
        Ok((state, memory))
    } else {
        Err(launch::Error::Save(printable(&error, 512)).into())
    }
}
