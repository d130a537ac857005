//! Virtio over PCI (virtio 1.2, 4.1): a function whose memory region holds the transport's registers.
//!
//! | offset | what | capability |
//! |---|---|---|
//! | 0x0000 | common configuration | 1 |
//! | 0x1000 | ISR status | 3 |
//! | 0x2000 | device-specific configuration | 4 |
//! | 0x3000 | notifications, 4 bytes for each queue | 2 |
//! | 0x4000 | MSI-X table | MSI-X |
//! | 0x5000 | MSI-X pending bits | MSI-X |
//!
//! Modern devices only, without an interrupt pin: a driver that doesn't know MSI-X has to poll.

use std::{io, sync::Arc};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::{
    device::{Memory, VirtioDevice},
    interrupt::{InterruptState, Interrupts},
    transport::{QueueSetup, Transport, TransportState},
};
use crate::{
    event_loop::EventLoops,
    pci::{
        bus::{Function, Slot},
        config::{Config, Identity, Region},
        msix::{self, Messenger, Msix},
    },
    template::{Mismatch, NotAtRest, state::FunctionState},
};

const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const REGION: u32 = 0x8000;
const PART: u64 = 0x1000;

const COMMON_SIZE: u32 = 56;
const NOTIFY_MULTIPLIER: u32 = 4;

const VENDOR_CAPABILITY: u8 = 9;
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Has KVM signal an eventfd when the guest writes to an address.
pub trait Doorbells: Send + Sync {
    /// Signals `kick` whenever something is written to `address`.
    ///
    /// # Errors
    /// Something is signalled there already, or KVM has no more of them.
    fn connect(&self, address: u64, kick: &EventFd) -> io::Result<()>;

    /// Does so no longer.
    fn disconnect(&self, address: u64, kick: &EventFd);
}

/// What every function is connected to. Clones are the same.
#[derive(Clone)]
pub struct Wiring {
    /// The guest's memory.
    pub memory: Memory,
    /// Where devices run.
    pub loops: Arc<EventLoops>,
    /// Where interrupts go.
    pub messenger: Arc<dyn Messenger>,
    /// Where notifications come from.
    pub doorbells: Arc<dyn Doorbells>,
}

/// What a driver has made of a function, besides its configuration space.
#[derive(Debug, Serialize, Deserialize)]
pub struct VirtioPciState {
    transport: TransportState,
    interrupts: InterruptState,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

/// The function.
pub struct VirtioPci {
    config: Config,
    /// Where the notifications are connected, by the region's address.
    connected: u64,
    doorbells: Arc<dyn Doorbells>,
    transport: Transport,
    interrupts: Arc<Interrupts>,
    /// Where the MSI-X capability is.
    msix: u8,
    /// Where the capability is that gives access to the region through configuration space.
    window: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

impl VirtioPci {
    /// The function for `device` in `slot`.
    ///
    /// # Errors
    /// The host has no descriptors left, or KVM doesn't watch more addresses.
    ///
    /// # Panics
    /// The device type has more queues than any has: a mistake of whoever wrote the device.
    pub fn new(slot: Slot, device: Box<dyn VirtioDevice>, wiring: &Wiring) -> io::Result<Self> {
        let queues = device.queue_max_sizes().len();
        assert!(queues < 255, "a device has fewer than 255 queues");
        let vectors = queues as u16 + 1;
        let kind = u16::try_from(device.device_type()).unwrap_or(0) & 0x3f;
        let identity = Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + kind,
            // Not transitional (4.1.2.1).
            revision: 1,
            // No class fits every device type, and no driver looks at it.
            class: 0xff_0000,
            subsystem_vendor: VENDOR,
            subsystem: 0x40 + kind,
        };
        let region = Region {
            address: u32::try_from(slot.region).expect("slots lie below 4 GiB"),
            size: REGION,
        };
        let mut config = Config::new(identity, Some(region));
        config.add_capability(
            VENDOR_CAPABILITY,
            &structure(CFG_COMMON, COMMON, COMMON_SIZE, &[]),
            &[],
        );
        config.add_capability(VENDOR_CAPABILITY, &structure(CFG_ISR, ISR, 1, &[]), &[]);
        config.add_capability(
            VENDOR_CAPABILITY,
            &structure(CFG_DEVICE, DEVICE, PART as u32, &[]),
            &[],
        );
        let notify = structure(
            CFG_NOTIFY,
            NOTIFY,
            queues as u32 * NOTIFY_MULTIPLIER,
            &NOTIFY_MULTIPLIER.to_le_bytes(),
        );
        config.add_capability(VENDOR_CAPABILITY, &notify, &[]);
        let msix = config.add_capability(
            msix::CAPABILITY,
            &msix_registers(vectors),
            &msix::CONTROL_WRITABLE.to_le_bytes(),
        );
        // Bar, offset and length are the driver's to choose (4.1.4.9).
        let mut writable = [0; 14];
        writable[2] = 0xff;
        writable[6..].fill(0xff);
        let window = config.add_capability(VENDOR_CAPABILITY, &structure(CFG_PCI, 0, 0, &[0; 4]), &writable);

        let interrupts = Arc::new(Interrupts::new(
            queues,
            vectors,
            Msix::new(vectors, wiring.messenger.clone()),
        ));
        let transport = Transport::new(
            device,
            wiring.memory.clone(),
            wiring.loops.clone(),
            interrupts.clone(),
        )?;
        let function = Self {
            config,
            connected: slot.region,
            doorbells: wiring.doorbells.clone(),
            transport,
            interrupts,
            msix,
            window,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
        };
        for (address, kick) in function.notifications() {
            function.doorbells.connect(address, kick)?;
        }
        Ok(function)
    }

    /// Where the driver notifies each queue, and the eventfd that a write there is to signal.
    fn notifications(&self) -> impl Iterator<Item = (u64, &EventFd)> {
        let addresses = (self.connected + NOTIFY..).step_by(NOTIFY_MULTIPLIER as usize);
        addresses.zip(self.transport.kicks())
    }

    fn disconnect(&self) {
        for (address, kick) in self.notifications() {
            self.doorbells.disconnect(address, kick);
        }
    }

    fn follow_region(&mut self) {
        if let Some(region) = self.config.region()
            && u64::from(region.address) != self.connected
        {
            self.reconnect(region.address.into());
        }
    }

    /// Follows the region to where the guest has moved it.
    fn reconnect(&mut self, region: u64) {
        self.disconnect();
        self.connected = region;
        for (address, kick) in self.notifications() {
            // Where the guest has put it upon another function's region, or anywhere else it isn't heard, that is the
            // guest's loss. What isn't connected comes as a write to the region.
            let _ = self.doorbells.connect(address, kick);
        }
    }

    /// Reads the common configuration structure (4.1.4.3) in the width of each field, 64-bit fields in halves.
    #[allow(clippy::cast_possible_truncation)]
    fn read_common(&self, offset: u64, data: &mut [u8]) {
        let selected = usize::from(self.queue_select);
        let queue = self.transport.queue(selected);
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let address = |read: fn(&QueueSetup) -> u64, high: bool| {
            let address = queue.map_or(0, read);
            (if high { address >> 32 } else { address }) as u32
        };
        let value: u32 = match (offset, data.len()) {
            (0, 4) => self.device_feature_select,
            (4, 4) => half(self.transport.offered(), self.device_feature_select),
            (8, 4) => self.driver_feature_select,
            (12, 4) => half(self.transport.accepted(), self.driver_feature_select),
            (16, 2) => self.interrupts.config_vector().into(),
            (18, 2) => self.transport.queue_count() as u32,
            (20, 1) => self.transport.status().into(),
            (21, 1) => self.transport.config_generation().into(),
            (22, 2) => self.queue_select.into(),
            (24, 2) => queue.map_or(0, |queue| queue.size).into(),
            (26, 2) => self.interrupts.queue_vector(selected).into(),
            (28, 2) => queue.is_some_and(|queue| queue.enabled).into(),
            (30, 2) => self.queue_select.into(),
            (32, 4) => address(|queue| queue.descriptors, false),
            (36, 4) => address(|queue| queue.descriptors, true),
            (40, 4) => address(|queue| queue.available, false),
            (44, 4) => address(|queue| queue.available, true),
            (48, 4) => address(|queue| queue.used, false),
            (52, 4) => address(|queue| queue.used, true),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        for (place, byte) in data.iter_mut().zip(bytes.into_iter().chain(std::iter::repeat(0))) {
            *place = byte;
        }
    }

    /// Writes the common configuration structure; see [`VirtioPci::read_common`].
    #[allow(clippy::cast_possible_truncation)]
    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let Some(part) = bytes.get_mut(..data.len()) else {
            return;
        };
        part.copy_from_slice(data);
        let value = u32::from_le_bytes(bytes);
        let selected = usize::from(self.queue_select);
        let low = |address: &mut u64| *address = *address >> 32 << 32 | u64::from(value);
        let high = |address: &mut u64| *address = *address & 0xffff_ffff | u64::from(value) << 32;
        let transport = &mut self.transport;
        match (offset, data.len()) {
            (0, 4) => self.device_feature_select = value,
            (8, 4) => self.driver_feature_select = value,
            (12, 4) => {
                let mut features = transport.accepted();
                match self.driver_feature_select {
                    0 => low(&mut features),
                    1 => high(&mut features),
                    // There are no further features to accept, and accepting one is refused with FEATURES_OK only
                    // where it can be kept: 64 bits.
                    _ => return,
                }
                transport.accept(features);
            }
            (16, 2) => self.interrupts.set_config_vector(value as u16),
            (20, 1) => {
                transport.set_status(value as u8);
                if value == 0 {
                    self.device_feature_select = 0;
                    self.driver_feature_select = 0;
                    self.queue_select = 0;
                }
            }
            (22, 2) => self.queue_select = value as u16,
            (24, 2) => transport.set_queue(selected, |queue| queue.size = value as u16),
            (26, 2) => self.interrupts.set_queue_vector(selected, value as u16),
            (28, 2) => transport.set_queue(selected, |queue| queue.enabled = value == 1),
            (32, 4) => transport.set_queue(selected, |queue| low(&mut queue.descriptors)),
            (36, 4) => transport.set_queue(selected, |queue| high(&mut queue.descriptors)),
            (40, 4) => transport.set_queue(selected, |queue| low(&mut queue.available)),
            (44, 4) => transport.set_queue(selected, |queue| high(&mut queue.available)),
            (48, 4) => transport.set_queue(selected, |queue| low(&mut queue.used)),
            (52, 4) => transport.set_queue(selected, |queue| high(&mut queue.used)),
            _ => {}
        }
    }

    /// The access of the region that the window in configuration space selects: an offset and a length, if an access of
    /// the window's data at `offset`, `length` bytes long, makes one.
    fn windowed(&self, offset: u8, length: usize) -> Option<u64> {
        let data = self.window + 16;
        let target = u64::from(self.config.read_u32(self.window + 8));
        let wanted = usize::try_from(self.config.read_u32(self.window + 12)).ok()?;
        let bar = self.config.read_u16(self.window + 4) & 0xff;
        let fits = offset == data
            && bar == 0
            && matches!(wanted, 1 | 2 | 4)
            && length >= wanted
            && target + wanted as u64 <= u64::from(REGION);
        fits.then_some(target)
    }

    fn window_length(&self) -> usize {
        // Checked by windowed.
        self.config.read_u32(self.window + 12) as usize
    }
}

impl Function for VirtioPci {
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        self.config.read(offset, data);
        if let Some(target) = self.windowed(offset, data.len()) {
            let length = self.window_length();
            self.read_memory(target, &mut data[..length]);
        }
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
        self.follow_region();
        let control = self.msix + 2;
        let place = usize::from;
        let written = place(offset)..place(offset) + data.len();
        if written.contains(&place(control)) || written.contains(&place(control + 1)) {
            self.interrupts.set_control(self.config.read_u16(control));
        }
        if let Some(target) = self.windowed(offset, data.len()) {
            let length = self.window_length();
            self.write_memory(target, &data[..length]);
        }
    }

    fn region(&self) -> Option<Region> {
        self.config.region()
    }

    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let within = offset % PART;
        match offset - within {
            COMMON => self.read_common(within, data),
            ISR => {
                if let (0, Some(first)) = (within, data.first_mut()) {
                    *first = self.interrupts.take_isr();
                }
            }
            DEVICE => self.transport.read_device_config(within, data),
            TABLE => self.interrupts.msix().read_table(within, data),
            PENDING => self.interrupts.msix().read_pending(within, data),
            _ => {}
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        let within = offset % PART;
        match offset - within {
            COMMON => self.write_common(within, data),
            DEVICE => self.transport.write_device_config(within, data),
            NOTIFY => {
                let queue = within / u64::from(NOTIFY_MULTIPLIER);
                self.transport
                    .notify(usize::try_from(queue).unwrap_or(usize::MAX));
            }
            TABLE => self.interrupts.write_table(within, data),
            _ => {}
        }
    }

    fn save(&mut self) -> Result<FunctionState, NotAtRest> {
        Ok(FunctionState {
            config: self.config.save(),
            virtio: Some(VirtioPciState {
                transport: self.transport.save()?,
                interrupts: self.interrupts.save(),
                device_feature_select: self.device_feature_select,
                driver_feature_select: self.driver_feature_select,
                queue_select: self.queue_select,
            }),
        })
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), Mismatch> {
        let Some(virtio) = &state.virtio else {
            return Err(Mismatch::Other("device on the bus"));
        };
        self.config.restore(&state.config)?;
        self.follow_region();
        self.transport.restore(&virtio.transport)?;
        self.interrupts.restore(&virtio.interrupts)?;
        let control = self.config.read_u16(self.msix + 2);
        self.interrupts.set_control(control);
        self.device_feature_select = virtio.device_feature_select;
        self.driver_feature_select = virtio.driver_feature_select;
        self.queue_select = virtio.queue_select;
        Ok(())
    }

    fn resume(&mut self) -> io::Result<()> {
        self.transport.resume()
    }
}

impl Drop for VirtioPci {
    /// It was taken off the bus.
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// `struct virtio_pci_cap` (4.1.4) without its first two bytes: a structure of `length` bytes at `offset` of the region.
fn structure(kind: u8, offset: u64, length: u32, more: &[u8]) -> Vec<u8> {
    // Offsets lie within the region.
    let offset = offset as u32;
    let mut body = vec![16 + more.len() as u8, kind, 0, 0, 0, 0];
    body.extend_from_slice(&offset.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(more);
    body
}

/// The MSI-X capability (PCI 3.0, 6.8.2.3 to 6.8.2.5) without its first two bytes.
fn msix_registers(vectors: u16) -> [u8; 10] {
    let mut body = [0; 10];
    body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    // Region 0, in the low three bits.
    body[2..6].copy_from_slice(&(TABLE as u32).to_le_bytes());
    body[6..].copy_from_slice(&(PENDING as u32).to_le_bytes());
    body
}
