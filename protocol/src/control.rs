//! Shim and VMM: one configuration, then events.
//!
//! The VMM is started with the control socket as its standard input. It opens nothing by itself: every resource comes
//! with [`Request::Configure`]. It ends when the socket is closed, whoever closed it.

use serde::{Deserialize, Serialize};

use crate::timeline::Mark;

/// The largest message on the socket, in bytes.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// The most descriptors with one message.
pub const MAX_FDS: usize = 32;

/// The console's tail that the VMM keeps, in bytes.
pub const CONSOLE_TAIL: usize = 32 * 1024;

/// From shim to VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Request {
    /// Boot this machine. Once, as the first message. Descriptors, in this order: `/dev/kvm`, the kernel (an ELF
    /// `vmlinux`), the initramfs, the vsock broker's socket
    /// ([`crate::broker`]), the file server's socket ([`crate::relay`]); then, with [`MachineConfig::template`],
    /// [`TEMPLATE_FDS`]; then, for each of [`MachineConfig::nets`], [`NetConfig::descriptors`].
    Configure(MachineConfig),
    /// Answer with [`Event::Console`].
    ReadConsole,
    /// Plug a network device in, with [`NetConfig::descriptors`]. Answered with [`Event::NetAdded`].
    AddNet(NetConfig),
    /// Unplug the network device with this hardware address. Answered with [`Event::NetRemoved`].
    RemoveNet {
        /// Of the device.
        mac: [u8; 6],
    },
    /// Save the machine, which has one virtual CPU, no network and no mounted file system, and whose agent has said hello and
    /// waits. Descriptors: [`TEMPLATE_FDS`], two empty files to be written. Answered with [`Event::Saved`]; the machine doesn't run
    /// any more then.
    Save,
    /// Let the machine have this much from now on, within its bounds; what it has more of stays. Answered with
    /// [`Event::Resized`].
    Resize {
        /// Virtual CPUs.
        vcpus: u8,
        /// Memory in MiB; what is more than at boot is rounded up to whole steps ([`memory_step_mib`]), as far as the bound
        /// allows.
        memory_mib: u32,
    },
}

/// The unit in which the memory of a machine that booted with `boot_mib` MiB grows, in MiB: what Linux adds at once on
/// x86-64 (`probe_memory_block_size`), which is more where the memory at boot ends beyond 64 GiB.
#[must_use]
pub const fn memory_step_mib(boot_mib: u32) -> u32 {
    // The hole for devices is below 4 GiB.
    if boot_mib < 60 << 10 { 128 } else { 2048 }
}

/// The number of descriptors that go with [`Request::Configure`] before those of the network devices.
pub const CONFIGURE_FDS: usize = 5;

/// The number of a template's descriptors: its state and its memory.
pub const TEMPLATE_FDS: usize = 2;

/// The machine a VMM is to boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// Virtual CPUs that exist from the start, at least 1. The guest boots one of them; its agent brings the others online.
    pub vcpus: u8,
    /// The most there can be later ([`Request::Resize`]), at least as many as [`MachineConfig::vcpus`]: the guest's tables
    /// name them all.
    pub max_vcpus: u8,
    /// Guest memory at boot in MiB.
    pub memory_mib: u32,
    /// The most there can be later, at least as much as [`MachineConfig::memory_mib`].
    pub max_memory_mib: u32,
    /// Whether the kernel logs everything to the serial console; otherwise emergencies only.
    pub console: bool,
    /// The user the VMM becomes after it has been given its descriptors; 0 keeps the caller's (for tests).
    pub uid: u32,
    /// The group the VMM becomes; 0 keeps the caller's.
    pub gid: u32,
    /// Whether a template comes along: the machine is restored from it, or boots where that isn't possible ([`Start`]).
    #[serde(default)]
    pub template: bool,
    /// What of a template is worth having at hand before the machine runs.
    #[serde(default)]
    pub working_set: WorkingSet,
    /// Network devices that are there from the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
}

/// A virtio network device (virtio 1.2, 5.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Its hardware address, by which it is told from others.
    pub mac: [u8; 6],
    /// Its largest packet without the link's header, in bytes: 68 to 65535.
    pub mtu: u16,
    /// Pairs of queues, 1 to [`MAX_NET_QUEUE_PAIRS`]: as many descriptors of the tap come, one for each.
    pub queue_pairs: u8,
    /// Whether as many descriptors of `/dev/vhost-net` come after those of the tap.
    pub vhost: bool,
    /// Limits what the guest receives.
    pub receive_limit: Option<RateLimit>,
    /// Limits what the guest sends.
    pub send_limit: Option<RateLimit>,
}

/// The most pairs of queues of a network device.
pub const MAX_NET_QUEUE_PAIRS: u8 = 4;

impl NetConfig {
    /// The number of descriptors that go with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        usize::from(self.queue_pairs) * if self.vhost { 2 } else { 1 }
    }
}

/// A token bucket for each of bytes and packets; a rate of 0 sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes a second.
    pub bytes: u64,
    /// Bytes that may come at once after a silence, beyond the rate.
    pub bytes_burst: u64,
    /// Packets a second.
    pub packets: u64,
    /// Packets that may come at once after a silence.
    pub packets_burst: u64,
}

/// From VMM to shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Event {
    /// All of [`MachineConfig::vcpus`] exist, and the first is running; the steps until then.
    Running {
        /// `vmm_exec`, `vmm_left_host`, `vmm_configured`, `vmm_confined`, `vmm_memory`, `vmm_kernel_loaded` or `vmm_restored`,
        /// `vmm_vcpus_started`.
        marks: Vec<Mark>,
        /// How it began.
        start: Start,
    },
    /// The end of what the guest wrote to its serial console, at most [`CONSOLE_TAIL`] bytes, made valid UTF-8.
    Console {
        /// The text.
        tail: String,
    },
    /// The device is on the bus: the guest finds it when it looks for new devices.
    NetAdded {
        /// Of the device.
        mac: [u8; 6],
        /// Why not, in one line; empty when it is.
        error: String,
    },
    /// The device is gone from the bus, and its descriptors are closed.
    NetRemoved {
        /// Of the device.
        mac: [u8; 6],
        /// Why not, in one line; empty when it is.
        error: String,
    },
    /// The machine has been saved.
    Saved {
        /// Why not, in one line; empty when it is.
        error: String,
    },
    /// The machine offers this much. The guest uses it when its agent has brought the CPUs online and its kernel the memory.
    Resized {
        /// Virtual CPUs.
        vcpus: u8,
        /// Memory in MiB.
        memory_mib: u32,
        /// Why it isn't what was asked for, in one line; empty when it is.
        error: String,
    },
    /// The machine has ended; the VMM's process does so next, with [`ExitReason::status`].
    Exited {
        /// Why.
        reason: ExitReason,
        /// One line for a person: what failed and what to do; empty when the reason says it all.
        detail: String,
        /// The console's tail, as with [`Event::Console`].
        console: String,
    },
}

/// The pages that a restored machine touches before its first container runs, as ranges: the first one's number, counted from the
/// beginning of the memory at boot, and how many. It costs much less to have them at hand than to let the guest run into each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkingSet {
    /// Those it writes to.
    pub written: Vec<(u32, u32)>,
    /// Those it only reads.
    pub read: Vec<(u32, u32)>,
}

/// The most ranges of each kind of a [`WorkingSet`]: they fit a message.
pub const MAX_WORKING_RANGES: usize = 2048;

/// The most pages of each kind of a [`WorkingSet`].
pub const MAX_WORKING_PAGES: u32 = 8192;

impl WorkingSet {
    /// Whether there are no more ranges and pages than there may be.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        [&self.written, &self.read].into_iter().all(|ranges| {
            let pages = ranges
                .iter()
                .try_fold(0_u32, |sum, (_, count)| sum.checked_add(*count));
            ranges.len() <= MAX_WORKING_RANGES && pages.is_some_and(|pages| pages <= MAX_WORKING_PAGES)
        })
    }
}

/// How a machine began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Start {
    /// It boots; its agent will say hello.
    Booted {
        /// Why not from the template that came along, in one line; empty when none did.
        instead: String,
    },
    /// Its agent said hello before the template was saved, on a stream that goes on. Network devices have been plugged in since.
    Restored {
        /// By which the guest can tell the time, where the host's KVM says.
        clock: Option<GuestClock>,
    },
}

/// A moment by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestClock {
    /// The guest's time stamp counter.
    pub tsc: u64,
    /// Its frequency, in kHz.
    pub tsc_khz: u32,
    /// The host's `CLOCK_REALTIME`, in nanoseconds since 1970.
    pub realtime_ns: u64,
}

/// Why a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off.
    Poweroff,
    /// The guest asked for a reboot: a microVM is not rebooted, it ends.
    Reboot,
    /// The guest's kernel panicked.
    Panic,
    /// A virtual CPU shut down by triple fault.
    TripleFault,
    /// The shim closed the control socket.
    Closed,
    /// The configuration can't be carried out: the detail says which part of it and why.
    Config,
    /// KVM or the host's kernel refused something: the detail says what.
    Host,
}

impl ExitReason {
    /// The VMM's exit status for this reason: the one table of them.
    #[must_use]
    pub fn status(self) -> i32 {
        match self {
            Self::Poweroff | Self::Closed => 0,
            Self::Config => 1,
            Self::Host => 2,
            Self::Reboot => 10,
            Self::Panic => 11,
            Self::TripleFault => 12,
        }
    }
}
