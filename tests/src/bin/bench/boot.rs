//! The virtual machine monitor alone: from its exec to the agent's hello, without shim, file server and containerd.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sealock_chart::bars::Bars;
use sealock_protocol::{
    broker,
    control::{MachineConfig, Request, WorkingSet},
    guest::{HELLO_PORT, Hello, MAX_HELLO, VERSION},
    seqpacket::SeqPacket,
};
use serde::Serialize;

use crate::{report, sample::Sample};

const RUNS: usize = 20;
const WARM_UP: usize = 2;

/// Sizes of machines, in MiB.
const MEMORY: [u32; 3] = [64, 256, 2048];

/// A guest that says nothing by then has not booted.
const DEADLINE: Duration = Duration::from_secs(60);

const PREFIX: &str = "/usr/local";

/// The user that the monitor becomes: nobody's else.
const UID: u32 = 4_000_000;

#[derive(Serialize)]
struct Boot {
    memory_mib: u32,
    /// Milliseconds from the monitor's exec to the agent's hello.
    exec_to_hello_ms: Sample,
    /// Of these, since the guest's kernel counts its time.
    guest_ms: Sample,
}

pub fn run() -> Result<()> {
    let mut times = MEMORY.map(|_| (Vec::new(), Vec::new()));
    for round in 0..WARM_UP + RUNS {
        for (memory_mib, (whole, guest)) in MEMORY.into_iter().zip(&mut times) {
            let (took, of_guest) = boot(memory_mib)?;
            if round >= WARM_UP {
                whole.push(took);
                guest.push(of_guest);
            }
        }
    }
    let mut boots = Vec::new();
    for (memory_mib, (whole, guest)) in MEMORY.into_iter().zip(times) {
        let boot = Boot {
            memory_mib,
            exec_to_hello_ms: Sample::of(whole)?,
            guest_ms: Sample::of(guest)?,
        };
        boot.exec_to_hello_ms
            .print(&format!("VMM exec to hello, {memory_mib} MiB"));
        boot.guest_ms.print("  of that the guest's own");
        boots.push(boot);
    }
    report::figures("boot", &boots)?;
    report::chart(
        "boot",
        &Bars {
            title: "the monitor alone: exec to the agent's hello (median; half of the runs)",
            unit: "ms",
            parts: &["took"],
            groups: boots
                .iter()
                .map(|boot| {
                    report::group(
                        &format!("{} MiB of memory", boot.memory_mib),
                        &[
                            ("the whole", &boot.exec_to_hello_ms, None),
                            ("in the guest", &boot.guest_ms, None),
                        ],
                    )
                })
                .collect(),
        },
    )
}

/// Boots a machine and returns milliseconds until its agent's hello: all, and those that the guest's kernel has counted.
fn boot(memory_mib: u32) -> Result<(f64, f64)> {
    let machine = MachineConfig {
        vcpus: 1,
        max_vcpus: 1,
        memory_mib,
        max_memory_mib: memory_mib,
        console: false,
        uid: UID,
        gid: UID,
        template: false,
        working_set: WorkingSet::default(),
        nets: Vec::new(),
    };
    let (control, theirs) = SeqPacket::pair()?;
    let (broker, their_broker) = SeqPacket::pair()?;
    let (_files, their_files) = SeqPacket::pair()?;
    let open = |path: &str| File::open(path).with_context(|| format!("cannot open {path}"));
    let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
    let kernel = open(&format!("{PREFIX}/share/sealock/vmlinux"))?;
    let initramfs = open(&format!("{PREFIX}/share/sealock/initramfs"))?;
    let (mut hello, their_hello) = UnixStream::pair()?;
    hello.set_read_timeout(Some(DEADLINE))?;

    let began = Instant::now();
    let mut vmm = Command::new(format!("{PREFIX}/libexec/sealock/sealock-vmm"))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .context("cannot start the monitor")?;
    let answer = || -> Result<f64> {
        control.send_json(
            &Request::Configure(machine),
            &[
                kvm.as_fd(),
                kernel.as_fd(),
                initramfs.as_fd(),
                their_broker.as_fd(),
                their_files.as_fd(),
            ],
        )?;
        drop(their_broker);
        let (request, _) = broker.receive_json(broker::MAX_MESSAGE)?;
        let broker::Request::Connect { id, port: HELLO_PORT } = request else {
            bail!("the guest asks for {request:?}");
        };
        broker.send_json(&broker::Answer::Accept { id }, &[their_hello.as_fd()])?;
        let mut length = [0; 4];
        hello.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length))?;
        ensure!(length <= MAX_HELLO, "a hello of {length} bytes");
        let mut body = vec![0; length];
        hello.read_exact(&mut body)?;
        let hello: Hello = serde_json::from_slice(&body)?;
        ensure!(hello.version == VERSION, "{hello:?}");
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        Ok(hello.hello_ns as f64 / 1e6)
    };
    let guest = answer();
    let took = began.elapsed().as_secs_f64() * 1e3;
    // It ends with its socket.
    drop(control);
    vmm.wait()?;
    Ok((took, guest.context("the machine did not boot")?))
}
