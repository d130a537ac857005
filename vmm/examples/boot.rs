//! Boots a machine the way the shim does and prints what it says: `boot VMM KERNEL INITRAMFS [KEY=VALUE]...`
//!
//! | key | default | what |
//! |---|---|---|
//! | `vcpus` | 1 | virtual CPUs |
//! | `max_vcpus` | 1 | virtual CPUs that the guest's tables name |
//! | `memory` | 128 | MiB of memory |
//! | `max_memory` | 128 | MiB it could grow to |
//! | `console` | false | whether the kernel logs to the serial console |
//! | `uid`, `gid` | 0 | what the VMM becomes |
//! | `close` | 0 | close the control socket after as many milliseconds; 0 is never |
//! | `expect` | | the reason the machine must end for, as the protocol writes it |
//! | `net` | | a tap interface, made as `ip tuntap add NAME mode tap vnet_hdr` makes it, for a network device (repeatable) |
//! | `plug` | | the same, plugged in when the guest has run for as long as `wait` says, and unplugged after twice that |
//! | `wait` | 5000 | milliseconds |
//! | `pairs` | 1 | pairs of queues of each; with more than one the interfaces are `multi_queue` |
//! | `vhost` | false | whether the host's kernel serves them |
//! | `rate` | | packets a second that each may receive and send |
//!
//! The exit status is 0 when the machine ended for the expected reason and the VMM's exit status says so too.

use std::{
    error::Error,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use sealock_protocol::{
    control::{Event, ExitReason, MAX_MESSAGE, MachineConfig, NetConfig, RateLimit, Request, WorkingSet},
    seqpacket::SeqPacket,
    timeline::{Mark, monotonic_ns},
};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("the {what} is missing"));
    let (vmm, kernel, initramfs) = (next("VMM")?, next("kernel")?, next("initramfs")?);
    let mut machine = MachineConfig {
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 128,
        max_memory_mib: 128,
        console: false,
        uid: 0,
        gid: 0,
        template: false,
        working_set: WorkingSet::default(),
        nets: Vec::new(),
    };
    let mut close = 0;
    let (mut nets, mut plugs) = (Vec::new(), Vec::new());
    let (mut wait, mut pairs, mut vhost, mut rate) = (5000, 1, false, None);
    let mut expected: Option<ExitReason> = None;
    for argument in arguments {
        let (key, value) = argument.split_once('=').ok_or("KEY=VALUE is expected")?;
        match key {
            "vcpus" => machine.vcpus = value.parse()?,
            "max_vcpus" => machine.max_vcpus = value.parse()?,
            "max_memory" => machine.max_memory_mib = value.parse()?,
            "memory" => machine.memory_mib = value.parse()?,
            "console" => machine.console = value.parse()?,
            "uid" => machine.uid = value.parse()?,
            "gid" => machine.gid = value.parse()?,
            "close" => close = value.parse()?,
            "net" => nets.push(value.to_owned()),
            "plug" => plugs.push(value.to_owned()),
            "wait" => wait = value.parse()?,
            "pairs" => pairs = value.parse()?,
            "vhost" => vhost = value.parse()?,
            "rate" => rate = Some(value.parse()?),
            "expect" => expected = Some(serde_json::from_value(value.into())?),
            _ => return Err(format!("unknown key {key}").into()),
        }
    }

    machine.max_vcpus = machine.max_vcpus.max(machine.vcpus);
    machine.max_memory_mib = machine.max_memory_mib.max(machine.memory_mib);
    let (control, theirs) = SeqPacket::pair()?;
    let (_broker, their_broker) = SeqPacket::pair()?;
    let (_files, their_files) = SeqPacket::pair()?;
    let mut descriptors: Vec<OwnedFd> = vec![
        File::options().read(true).write(true).open("/dev/kvm")?.into(),
        File::open(kernel)?.into(),
        File::open(initramfs)?.into(),
        their_broker.into(),
        their_files.into(),
    ];
    let limit = rate.map(|packets| RateLimit {
        packets,
        packets_burst: packets / 10,
        ..RateLimit::default()
    });
    let mut last = 0;
    let mut net = |name: &str| {
        last += 1;
        let config = NetConfig {
            mac: [2, 0, 0, 0, 0, last],
            mtu: 1500,
            queue_pairs: pairs,
            vhost,
            receive_limit: limit,
            send_limit: limit,
        };
        Ok::<_, Box<dyn Error>>((taps(name, &config)?, config))
    };
    for name in nets {
        let (fds, config) = net(&name)?;
        descriptors.extend(fds);
        machine.nets.push(config);
    }
    let plugs = plugs
        .iter()
        .map(|name| net(name))
        .collect::<Result<Vec<_>, _>>()?;

    let before = monotonic_ns();
    let mut child = Command::new(vmm)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()?;
    let fds: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    control.send_json(&Request::Configure(machine), &fds)?;
    drop(descriptors);
    let since = |mark: &Mark| mark.ns.saturating_sub(before) / 1000;

    for (fds, config) in &plugs {
        thread::sleep(Duration::from_millis(wait));
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        control.send_json(&Request::AddNet(config.clone()), &fds)?;
    }
    for (_, config) in &plugs {
        thread::sleep(Duration::from_millis(wait));
        control.send_json(&Request::RemoveNet { mac: config.mac }, &[])?;
    }
    drop(plugs);

    let mut reason = None;
    if close > 0 {
        thread::sleep(Duration::from_millis(close));
        print_memory(child.id());
        control.send_json(&Request::ReadConsole, &[])?;
    }
    while let Ok((event, _)) = control.receive_json::<Event>(MAX_MESSAGE) {
        let now = (monotonic_ns() - before) / 1000;
        match event {
            Event::Running { marks, .. } => {
                for mark in &marks {
                    println!("{:8} µs {}", since(mark), mark.step);
                }
            }
            Event::Console { tail } => {
                println!("--- console\n{tail}\n---");
                break;
            }
            plugged @ (Event::NetAdded { .. } | Event::NetRemoved { .. }) => {
                println!("{now:8} µs {plugged:?}")
            }
            Event::Resized { .. } | Event::Saved { .. } => {}
            Event::Exited {
                reason: ended,
                detail,
                console,
            } => {
                println!("--- console\n{console}\n---\n{now:8} µs {ended:?} {detail}");
                reason = Some(ended);
            }
        }
    }
    drop(control);
    let status = child.wait()?;
    println!("{status}");
    let reason = reason.unwrap_or(ExitReason::Closed);
    let told = status.code() == Some(reason.status());
    let right = told && expected.is_none_or(|expected| expected == reason);
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The descriptors of a network device on the tap interface `name`.
fn taps(name: &str, config: &NetConfig) -> io::Result<Vec<OwnedFd>> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if config.queue_pairs > 1 {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let open = |path| File::options().read(true).write(true).open(path);
    let mut fds = Vec::new();
    for _ in 0..config.queue_pairs {
        let tap = open("/dev/net/tun")?;
        // SAFETY: all zeroes is a value of this structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request
            .ifr_name
            .iter_mut()
            .take(libc::IFNAMSIZ - 1)
            .zip(name.bytes())
        {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the request takes such a structure, which outlives the call.
        if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        fds.push(tap.into());
    }
    for _ in 0..config.descriptors() - fds.len() {
        fds.push(open("/dev/vhost-net")?.into());
    }
    Ok(fds)
}

fn print_memory(pid: u32) {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    for line in rollup.lines().filter(|line| {
        ["Rss", "Pss:", "AnonHuge"]
            .iter()
            .any(|name| line.starts_with(name))
    }) {
        println!("{line}");
    }
}
