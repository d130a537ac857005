//! A machine's devices without its processors: whoever drives them is as free as a guest.

#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{Arc, OnceLock},
};

use arbitrary::{Arbitrary, Unstructured};
use sealock_protocol::{broker::Answer, guest, seqpacket::SeqPacket};
use sealock_vmm::{
    arch::x86_64::ports::Ports,
    balloon::Balloon,
    console::Console,
    ending::Ending,
    event_loop::EventLoops,
    fs::FileSystem,
    mem::{Growth, Mem},
    memory::{self, Plan},
    pci::{
        bridge::HostBridge,
        bus::{Bus, Full},
        msix::{Message, Messenger},
    },
    pvpanic::Pvpanic,
    virtio::{
        device::{Memory, VirtioDevice},
        pci::{Doorbells, VirtioPci, Wiring},
        rng::Rng,
    },
    vsock::Vsock,
};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

/// What a guest does.
#[derive(Arbitrary, Debug)]
pub enum Action {
    /// Reads so many bytes from a port, 1, 2 or 4.
    In(u16, u8),
    /// Writes to a port.
    Out(u16, u8, u32),
    /// Reads a configuration register of a slot by the ports.
    ReadConfig(u8, u8, u8),
    /// Writes it.
    WriteConfig(u8, u8, u8, u32),
    /// Reads from the memory region of a slot.
    Read(u8, u16, u8),
    /// Writes to it.
    Write(u8, u16, u8, u64),
    /// Writes to its memory, at an address that rings like to be at.
    Fill(u16, [u8; 16]),
    /// Writes a descriptor of a table: which, address, length, flags, the next.
    Describe(u8, u8, u32, u32, u8, u8),
    /// Sets a device up as a driver would, with queues of this size at the usual addresses, up to DRIVER_OK.
    Drive(u8, u8),
    /// Makes chains available up to this index, and notifies.
    Offer(u8, u8, u16),
    /// The file server, taken over, answers: error, unique, a payload, whether a file comes along.
    Answer(i32, u8, Vec<u8>, bool),
    /// The shim answers the vsock device's question of this number, or asks it to connect to a port.
    Connect(u8, Option<u32>),
}

struct Nowhere;

impl Messenger for Nowhere {
    fn send(&self, _message: Message) {}

    fn route(&self, _event: &EventFd, _message: Option<Message>) -> io::Result<()> {
        Ok(())
    }
}

/// Notifications come as writes to the region.
impl Doorbells for Nowhere {
    fn connect(&self, _address: u64, _kick: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn disconnect(&self, _address: u64, _kick: &EventFd) {}
}

/// The devices, and the other ends of their sockets.
pub struct Machine {
    memory: Memory,
    bus: Arc<Bus>,
    ports: Ports,
    broker: SeqPacket,
    files: SeqPacket,
    slots: Vec<u8>,
}

/// Registers of the modern transport, relative to the common structure (virtio 1.2, 4.1.4.3).
mod common {
    pub const DRIVER_FEATURE_SELECT: u16 = 0x08;
    pub const DRIVER_FEATURE: u16 = 0x0c;
    pub const STATUS: u16 = 0x14;
    pub const QUEUE_SELECT: u16 = 0x16;
    pub const QUEUE_SIZE: u16 = 0x18;
    pub const QUEUE_ENABLE: u16 = 0x1c;
    pub const QUEUE_DESC: u16 = 0x20;
    pub const QUEUE_DRIVER: u16 = 0x28;
    pub const QUEUE_DEVICE: u16 = 0x30;
}

/// Where queue *n* of any device has its parts: a table, an available and a used ring.
fn queue_at(queue: u8) -> u64 {
    0x1_0000 + u64::from(queue % 8) * 0x4000
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// One of each device.
    ///
    /// # Panics
    /// The host has no descriptors left.
    #[must_use]
    pub fn new() -> Self {
        let plan = Plan::new(8, 264).unwrap();
        let growth = plan
            .growth
            .map(|(start, length)| Growth::new(start, length as u64))
            .unwrap();
        let memory = memory::allocate(&plan).unwrap();
        // Shared by all, for a loop never ends.
        static LOOPS: OnceLock<(Ending, Arc<EventLoops>)> = OnceLock::new();
        let (ending, loops) = LOOPS
            .get_or_init(|| {
                let ending = Ending::new().unwrap();
                (ending.clone(), Arc::new(EventLoops::new(ending)))
            })
            .clone();
        let (broker, broker_there) = SeqPacket::pair().unwrap();
        let (files, files_there) = SeqPacket::pair().unwrap();
        let bus = Arc::new(Bus::default());
        let wiring = Wiring {
            memory: memory.clone(),
            loops,
            messenger: Arc::new(Nowhere),
            doorbells: Arc::new(Nowhere),
        };
        bus.attach(|_| Ok::<_, Full>(HostBridge::default())).unwrap();
        bus.attach(|slot| Ok::<_, Full>(Pvpanic::new(slot, ending.clone())))
            .unwrap();
        let devices: Vec<Box<dyn VirtioDevice>> = vec![
            Box::new(Vsock::new(broker_there, guest::GUEST_CID).unwrap()),
            Box::new(FileSystem::new(guest::SHARE_TAG, files_there).unwrap()),
            Box::new(Rng),
            Box::new(Balloon),
            Box::new(Mem::new(growth)),
        ];
        let slots = devices
            .into_iter()
            .map(|device| {
                bus.attach(|slot| VirtioPci::new(slot, device, &wiring).map_err(|_| Full))
                    .unwrap()
            })
            .collect();
        let interrupt = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        Self {
            ports: Ports::new(interrupt, Console::default(), bus.clone(), ending),
            memory,
            bus,
            broker,
            files,
            slots,
        }
    }

    /// Does what the guest does.
    pub fn act(&self, action: &Action) {
        let mut data = [0; 8];
        match *action {
            Action::In(port, width) => self.ports.read(port, &mut data[..width_of(width, 4)]),
            Action::Out(port, width, value) => {
                self.ports.write(port, &value.to_le_bytes()[..width_of(width, 4)]);
            }
            Action::ReadConfig(slot, register, width) => {
                let within = self.select(slot, register);
                self.ports.read(0xcfc + within, &mut data[..width_of(width, 4)]);
            }
            Action::WriteConfig(slot, register, width, value) => {
                let within = self.select(slot, register);
                self.ports
                    .write(0xcfc + within, &value.to_le_bytes()[..width_of(width, 4)]);
            }
            Action::Read(slot, offset, width) => {
                self.bus
                    .read_memory(address(slot, offset), &mut data[..width_of(width, 8)]);
            }
            Action::Write(slot, offset, width, value) => self
                .bus
                .write_memory(address(slot, offset), &value.to_le_bytes()[..width_of(width, 8)]),
            Action::Fill(at, bytes) => self.fill(0x1_0000 + u64::from(at) * 4, &bytes),
            Action::Describe(queue, index, address, length, flags, next) => {
                let mut descriptor = [0; 16];
                descriptor[..8].copy_from_slice(&u64::from(address & 0x00ff_ffff).to_le_bytes());
                descriptor[8..12].copy_from_slice(&length.to_le_bytes());
                descriptor[12] = flags;
                descriptor[14] = next;
                self.fill(queue_at(queue) + u64::from(index) * 16, &descriptor);
            }
            Action::Drive(slot, size) => self.drive(slot, size),
            Action::Offer(slot, queue, index) => {
                self.fill(queue_at(queue) + 0x2002, &index.to_le_bytes());
                self.bus.write_memory(
                    address(slot, 0x3000 + u16::from(queue % 8) * 4),
                    &u16::from(queue % 8).to_le_bytes(),
                );
            }
            Action::Answer(error, unique, ref payload, file) => {
                self.answer(error, unique, &payload[..payload.len().min(4096)], file);
            }
            Action::Connect(id, port) => self.connect(id, port),
        }
    }

    fn answer(&self, error: i32, unique: u8, payload: &[u8], file: bool) {
        let length = u32::try_from(16 + payload.len()).unwrap_or(u32::MAX);
        let mut message = length.to_le_bytes().to_vec();
        message.extend(error.to_le_bytes());
        message.extend(u64::from(unique).to_le_bytes());
        message.extend(payload);
        let null = nowhere();
        // Nobody may be there any more, or take it.
        let descriptors = [null.as_fd()];
        let _ = self.files.send(&message, if file { &descriptors } else { &[] });
    }

    fn connect(&self, id: u8, port: Option<u32>) {
        let id = id.into();
        let answer = port.map_or(Answer::Accept { id }, |port| Answer::Dial { id, port });
        let (_here, there) = UnixStream::pair().unwrap();
        let _ = self.broker.send_json(&answer, &[there.as_fd()]);
    }

    fn fill(&self, at: u64, bytes: &[u8]) {
        // Where there is no memory, nothing is written.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    fn select(&self, slot: u8, register: u8) -> u16 {
        let select = 1 << 31 | u32::from(slot % 32) << 11 | u32::from(register & 0xfc);
        self.ports.write(0xcf8, &select.to_le_bytes());
        u16::from(register & 3)
    }

    fn drive(&self, slot: u8, size: u8) {
        let write = |offset: u16, bytes: &[u8]| self.bus.write_memory(address(slot, offset), bytes);
        for status in [0_u8, 1, 3] {
            write(common::STATUS, &[status]);
        }
        // VIRTIO_F_VERSION_1, and all that the transport itself knows.
        for (half, bits) in [(0_u32, 3_u32 << 28), (1, 1)] {
            write(common::DRIVER_FEATURE_SELECT, &half.to_le_bytes());
            write(common::DRIVER_FEATURE, &bits.to_le_bytes());
        }
        write(common::STATUS, &[11]);
        let size = 1_u16 << (size % 8);
        for queue in 0..3_u8 {
            write(common::QUEUE_SELECT, &u16::from(queue).to_le_bytes());
            write(common::QUEUE_SIZE, &size.to_le_bytes());
            let at = queue_at(queue);
            for (register, place) in [
                (common::QUEUE_DESC, at),
                (common::QUEUE_DRIVER, at + 0x2000),
                (common::QUEUE_DEVICE, at + 0x3000),
            ] {
                // In halves, as it must be.
                write(register, &(place as u32).to_le_bytes());
                write(register + 4, &0_u32.to_le_bytes());
            }
            write(common::QUEUE_ENABLE, &1_u16.to_le_bytes());
        }
        write(common::STATUS, &[15]);
    }
}

fn width_of(width: u8, most: usize) -> usize {
    (1 << (width % 4)).min(most)
}

fn address(slot: u8, offset: u16) -> u64 {
    Bus::region(slot % 8) + u64::from(offset)
}

/// Does what `data` says, on new devices.
pub fn run(data: &[u8]) {
    let machine = Machine::new();
    let mut bytes = Unstructured::new(data);
    while let Ok(action) = Action::arbitrary(&mut bytes) {
        machine.act(&action);
        if bytes.is_empty() {
            break;
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for slot in &self.slots {
            self.bus.detach(*slot);
        }
    }
}

fn nowhere() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}
