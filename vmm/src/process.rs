//! The process from its first instruction to its exit status.

use std::{io, os::fd::OwnedFd, time::Duration};

use sealock_protocol::{
    control::{Event, ExitReason},
    guest,
    seqpacket::SeqPacket,
    timeline::Mark,
};

use crate::{
    balloon::Balloon,
    chain,
    console::Console,
    control::{Control, Error},
    ending::Ending,
    fs::FileSystem,
    jail,
    machine::{self, Machine, Parts, RunningMachine},
    mem::{Growth, Mem},
    memory::Plan,
    virtio::{device::VirtioDevice, rng::Rng},
    vsock::Vsock,
};

/// How long the vCPUs may take to stop: only one that hangs in the host's kernel takes longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Boots the machine that comes over the control socket and serves it to its end. Returns the exit status
/// ([`ExitReason::status`]); the process is to end with it at once.
#[must_use]
pub fn run(started: Mark, socket: OwnedFd) -> i32 {
    let control = Control::new(socket);
    let console = Console::default();
    let (reason, detail) = match serve(&control, &console, started) {
        Ok(ended) => ended,
        Err(Failure { reason, detail }) => (reason, detail),
    };
    if reason == ExitReason::Closed {
        return reason.status();
    }
    // For whoever starts this by hand; the shim has it from the event.
    if !detail.is_empty() {
        eprintln!("sealock-vmm: {detail}");
    }
    control.tell(&Event::Exited {
        reason,
        detail,
        console: console.tail(),
    });
    reason.status()
}

struct Failure {
    reason: ExitReason,
    detail: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::Closed => ExitReason::Closed,
            _ => ExitReason::Config,
        };
        Self {
            reason,
            detail: chain(&error),
        }
    }
}

impl From<sealock_jail::Error> for Failure {
    fn from(error: sealock_jail::Error) -> Self {
        Self {
            reason: ExitReason::Host,
            detail: chain(&error),
        }
    }
}

impl From<machine::Error> for Failure {
    fn from(error: machine::Error) -> Self {
        Self {
            reason: error.reason(),
            detail: chain(&error),
        }
    }
}

fn serve(control: &Control, console: &Console, started: Mark) -> Result<(ExitReason, String), Failure> {
    let mut marks = vec![started];
    jail::leave_host()?;
    marks.push(Mark::now("vmm_left_host"));
    let configuration = control.configuration()?;
    marks.push(Mark::now("vmm_configured"));
    let config = configuration.machine;
    jail::renounce(config.uid, config.gid)?;
    marks.push(Mark::now("vmm_confined"));
    let ending = Ending::new().map_err(|error| Failure {
        reason: ExitReason::Host,
        detail: format!("cannot make an eventfd: {error}"),
    })?;
    let plan = Plan::new(config.memory_mib, config.max_memory_mib).map_err(machine::Error::from)?;
    let (broker, files) = (configuration.broker, configuration.files);
    let parts = Parts {
        config,
        plan,
        kvm: configuration.kvm,
        kernel: configuration.kernel,
        initramfs: configuration.initramfs,
        template: configuration.template,
        devices: &|growth| devices(&broker, &files, growth),
        nets: configuration.nets,
        console: console.clone(),
        ending: ending.clone(),
    };
    let machine = Machine::new(parts, &mut marks)?;
    // The devices have their own.
    drop((broker, files));
    let start = machine.began().clone();
    let mut machine = machine.start()?;
    marks.push(Mark::now("vmm_vcpus_started"));
    control.tell(&Event::Running { marks, start });
    let served = control.serve(console, &ending, &mut machine);
    if let Err(error) = served {
        let failure = Failure::from(error);
        ending.end(failure.reason, failure.detail);
    }
    Ok(end(machine, &ending))
}

/// The machine's virtio devices, in the order of their slots.
fn devices(
    broker: &SeqPacket,
    files: &SeqPacket,
    growth: Option<Growth>,
) -> io::Result<Vec<Box<dyn VirtioDevice>>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(Vsock::new(broker.try_clone()?, guest::GUEST_CID)?),
        Box::new(FileSystem::new(guest::SHARE_TAG, files.try_clone()?)?),
        Box::new(Rng),
        Box::new(Balloon),
    ];
    if let Some(growth) = growth {
        devices.push(Box::new(Mem::new(growth)));
    }
    Ok(devices)
}

fn end(machine: RunningMachine, ending: &Ending) -> (ExitReason, String) {
    machine.stop(PATIENCE);
    let (reason, detail) = ending.reason().unwrap_or((ExitReason::Closed, ""));
    (reason, detail.to_owned())
}
