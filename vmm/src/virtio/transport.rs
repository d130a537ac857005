//! What a driver does with any device, whatever the bus: status (virtio 1.2, 2.1), feature negotiation (2.2), queue set-up,
//! activation (3.1) and reset (2.4).
//!
//! Nothing the driver writes is believed before DRIVER_OK: then sizes and addresses are checked at once, and from then on
//! they are out of its reach until it resets the device.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use serde::{Deserialize, Serialize};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
        VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    device::{Activation, ActiveQueue, Memory, Rest, VirtioDevice},
    interrupt::{Interrupts, OfConfig, OfQueue},
};
use crate::{
    event_loop::{EventLoops, Running},
    template::{Mismatch, NotAtRest},
};

const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;
/// The bits a driver may set.
const DRIVERS: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What the driver can set of a queue. Unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// In descriptors.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub enabled: bool,
    /// The descriptor table's guest physical address.
    pub descriptors: u64,
    /// The available ring's.
    pub available: u64,
    /// The used ring's.
    pub used: u64,
}

/// What a driver has negotiated and set up, and what the device has of its own.
#[derive(Debug, Serialize, Deserialize)]
pub struct TransportState {
    status: u8,
    features: u64,
    queues: Vec<QueueSetup>,
    device: Vec<u8>,
}

/// A device with its driver's side of the negotiation.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: Memory,
    loops: Arc<EventLoops>,
    interrupts: Arc<Interrupts>,
    status: u8,
    features: u64,
    queues: Vec<QueueSetup>,
    kicks: Vec<EventFd>,
    running: Vec<Running>,
    /// A driver can fail as often as it likes; the log hears of it once.
    complained: bool,
}

/// Why a device could not be activated.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("queue {0} has a size or an address that no queue can have")]
    BadQueue(usize),
    #[error("cannot duplicate an eventfd")]
    Kick(#[source] io::Error),
    #[error(transparent)]
    Device(#[from] super::device::ActivateError),
    #[error("cannot start the device's event loop")]
    Loop(#[source] io::Error),
}

impl Transport {
    /// A device that no driver has found yet.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: Memory,
        loops: Arc<EventLoops>,
        interrupts: Arc<Interrupts>,
    ) -> io::Result<Self> {
        let sizes = device.queue_max_sizes().to_vec();
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        let mut transport = Self {
            device,
            memory,
            loops,
            interrupts,
            status: 0,
            features: 0,
            queues: Vec::new(),
            kicks,
            running: Vec::new(),
            complained: false,
        };
        transport.queues = transport.unset_queues();
        Ok(transport)
    }

    fn unset_queues(&self) -> Vec<QueueSetup> {
        let unset = |size: &u16| QueueSetup {
            size: *size,
            enabled: false,
            descriptors: 0,
            available: 0,
            used: 0,
        };
        self.device.queue_max_sizes().iter().map(unset).collect()
    }

    /// The device's type number.
    #[must_use]
    pub fn device_type(&self) -> u32 {
        self.device.device_type()
    }

    /// One eventfd for each queue: readable when the driver has notified it.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Does what KVM does with a notification that takes the usual way.
    pub fn notify(&self, queue: usize) {
        if let Some(kick) = self.kicks.get(queue) {
            // Fails only when the counter is full: then the device has been kicked often enough.
            let _ = kick.write(1);
        }
    }

    /// The features offered.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    /// The features the driver has accepted.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.features
    }

    /// Accepts features; of no effect once FEATURES_OK is set.
    pub fn accept(&mut self, features: u64) {
        if self.status & DRIVER != 0 && self.status & FEATURES_OK == 0 {
            self.features = features;
        }
    }

    /// The device's status.
    #[must_use]
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Writes the device's status: 0 resets it, otherwise bits can only be added, in order.
    pub fn set_status(&mut self, status: u8) {
        if status == 0 {
            self.reset();
            return;
        }
        let status = status & DRIVERS;
        let kept = self.status & DRIVERS;
        if status & kept != kept {
            return;
        }
        let added = status & !kept;
        self.status |= added & (ACKNOWLEDGE | DRIVER | FAILED);
        let ready = self.status & (ACKNOWLEDGE | DRIVER | FAILED) == ACKNOWLEDGE | DRIVER;
        if added & FEATURES_OK != 0
            && ready
            && self.features & !self.offered() == 0
            && self.features & VERSION_1 != 0
        {
            self.status |= FEATURES_OK;
        }
        if added & DRIVER_OK != 0 && ready && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
            if let Err(error) = self.activate(false) {
                self.fail(&error);
            }
        }
    }

    fn fail(&mut self, error: &Error) {
        self.status |= NEEDS_RESET;
        self.interrupts.trigger_config();
        if !self.complained {
            self.complained = true;
            let chain = crate::chain(error);
            eprintln!(
                "sealock-vmm: virtio device of type {}: {chain}",
                self.device_type()
            );
        }
    }

    /// The number of queues.
    #[must_use]
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// What is set of a queue; `None` for one that doesn't exist.
    #[must_use]
    pub fn queue(&self, queue: usize) -> Option<&QueueSetup> {
        self.queues.get(queue)
    }

    /// Changes a queue, unless it is out of the driver's reach: before FEATURES_OK, after DRIVER_OK, or enabled.
    pub fn set_queue(&mut self, queue: usize, change: impl FnOnce(&mut QueueSetup)) {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        if let Some(setup) = self.queues.get_mut(queue)
            && !setup.enabled
        {
            change(setup);
        }
    }

    /// With `resumed`, the queues have been served before.
    fn activate(&mut self, resumed: bool) -> Result<(), Error> {
        let mut queues = Vec::with_capacity(self.queues.len());
        let sizes = self.device.queue_max_sizes().to_vec();
        for (index, (setup, max_size)) in self.queues.iter().zip(sizes).enumerate() {
            let mut queue = checked(setup, max_size, self.features & EVENT_IDX != 0, &self.memory)
                .ok_or(Error::BadQueue(index))?;
            if resumed && queue.ready() {
                // What it had taken it has returned (`Rest`).
                let used = queue
                    .used_idx(self.memory.as_ref(), Ordering::Acquire)
                    .map_err(|_| Error::BadQueue(index))?;
                queue.set_next_avail(used.0);
                queue.set_next_used(used.0);
            }
            queues.push(ActiveQueue {
                queue,
                kick: self.kicks[index].try_clone().map_err(Error::Kick)?,
                interrupt: Arc::new(OfQueue {
                    interrupts: self.interrupts.clone(),
                    queue: index,
                }),
            });
        }
        let parts = self.device.activate(Activation {
            memory: self.memory.clone(),
            features: self.features,
            queues,
            config_interrupt: Arc::new(OfConfig(self.interrupts.clone())),
        })?;
        for part in parts {
            match self.loops.add(part.event_loop, part.subscriber) {
                Ok(running) => self.running.push(running),
                Err(error) => {
                    self.stop();
                    return Err(Error::Loop(error));
                }
            }
        }
        Ok(())
    }

    /// Stops the device. When this returns, it no longer touches the guest's memory.
    fn stop(&mut self) {
        for running in self.running.drain(..) {
            self.loops.remove(running);
        }
    }

    /// Stops the device and forgets everything the driver set. When this returns, the device no longer touches the
    /// guest's memory.
    pub fn reset(&mut self) {
        self.stop();
        self.device.reset();
        self.status = 0;
        self.features = 0;
        self.queues = self.unset_queues();
        self.interrupts.reset();
    }

    /// Stops the device for good, and returns what a driver has made of it. The vCPUs have stopped before.
    ///
    /// # Errors
    /// It has work under way, or something that can't be saved.
    pub fn save(&mut self) -> Result<TransportState, NotAtRest> {
        self.stop();
        if self.status & (FAILED | NEEDS_RESET) != 0 {
            return Err(self.busy("has failed"));
        }
        if self.status & DRIVER_OK == 0 && self.status != 0 {
            return Err(self.busy("is being set up"));
        }
        for (setup, max_size) in self.queues.iter().zip(self.device.queue_max_sizes()) {
            if self.device.rest() == Rest::Untouched && setup.enabled {
                let queue = checked(setup, *max_size, false, &self.memory);
                let untouched = queue.is_some_and(|queue| {
                    let memory = self.memory.as_ref();
                    let available = queue.avail_idx(memory, Ordering::Acquire);
                    let used = queue.used_idx(memory, Ordering::Acquire);
                    matches!((available, used), (Ok(available), Ok(used)) if available.0 == 0 && used.0 == 0)
                });
                if !untouched {
                    return Err(self.busy("has been used"));
                }
            }
        }
        Ok(TransportState {
            status: self.status,
            features: self.features,
            queues: self.queues.clone(),
            device: self.device.save()?,
        })
    }

    fn busy(&self, what: &str) -> NotAtRest {
        NotAtRest(format!("the device of type {} {what}", self.device_type()))
    }

    /// Does what the driver had done, but for the last step.
    ///
    /// # Errors
    /// No driver could have done that.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), Mismatch> {
        self.device.restore(&state.device)?;
        if state.status == 0 {
            return Ok(());
        }
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        self.accept(state.features);
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        for (index, setup) in state.queues.iter().enumerate() {
            self.set_queue(index, |queue| *queue = *setup);
        }
        let right = self.status | DRIVER_OK == state.status
            && self.queues == state.queues
            && self.features == state.features
            && self
                .queues
                .iter()
                .zip(self.device.queue_max_sizes())
                .all(|(setup, max_size)| checked(setup, *max_size, false, &self.memory).is_some());
        if right {
            Ok(())
        } else {
            Err(Mismatch::Part { part: "a device" })
        }
    }

    /// Serves the queues from where they were left, after [`Transport::restore`] has set up a device that a driver had made ready.
    ///
    /// # Errors
    /// The device can't be activated.
    pub fn resume(&mut self) -> io::Result<()> {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return Ok(());
        }
        self.status |= DRIVER_OK;
        self.activate(true)
            .map_err(|error| io::Error::other(crate::chain(&error)))?;
        // Whatever the driver has made available, and nobody has looked at.
        for (queue, setup) in self.queues.iter().enumerate() {
            if setup.enabled {
                self.notify(queue);
            }
        }
        Ok(())
    }

    /// Changes with the device-specific configuration.
    #[must_use]
    pub fn config_generation(&self) -> u8 {
        self.device.config_generation()
    }

    /// Reads the device-specific configuration.
    pub fn read_device_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    /// Writes the device-specific configuration, which a driver may after FEATURES_OK at the earliest (2.5.1).
    pub fn write_device_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & FEATURES_OK != 0 {
            self.device.write_config(offset, data);
        }
    }
}

impl Drop for Transport {
    /// The function was taken off the bus.
    fn drop(&mut self) {
        self.stop();
    }
}

/// The queue that `setup` describes, or `None` when the driver set it up wrongly: the size is no power of two or larger
/// than the device's, an address isn't aligned, or a part of it lies outside of the guest's memory.
fn checked(setup: &QueueSetup, max_size: u16, event_idx: bool, memory: &Memory) -> Option<Queue> {
    let mut queue = Queue::new(max_size).ok()?;
    if !setup.enabled {
        return Some(queue);
    }
    queue.try_set_size(setup.size).ok()?;
    queue
        .try_set_desc_table_address(GuestAddress(setup.descriptors))
        .ok()?;
    queue
        .try_set_avail_ring_address(GuestAddress(setup.available))
        .ok()?;
    queue.try_set_used_ring_address(GuestAddress(setup.used)).ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue.is_valid(memory.as_ref()).then_some(queue)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use event_manager::{EventOps, Events, MutEventSubscriber};
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::{
        ending::Ending,
        pci::msix::{Msix, tests::Recorder},
        virtio::device::{ActivateError, Part},
    };

    /// What happened to a device.
    #[derive(Default)]
    pub struct Log {
        pub activations: Vec<(u64, Vec<u16>)>,
        pub dropped: usize,
        pub config: Vec<(u64, Vec<u8>)>,
        pub fail: bool,
    }

    pub struct TestDevice(pub Arc<Mutex<Log>>);

    struct Active(Arc<Mutex<Log>>);

    impl MutEventSubscriber for Active {
        fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}

        fn init(&mut self, _ops: &mut EventOps<'_>) {}
    }

    impl Drop for Active {
        fn drop(&mut self) {
            self.0.lock().unwrap().dropped += 1;
        }
    }

    impl VirtioDevice for TestDevice {
        fn device_type(&self) -> u32 {
            4
        }

        fn queue_max_sizes(&self) -> &[u16] {
            &[64, 8]
        }

        fn features(&self) -> u64 {
            0b1000
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            for (place, byte) in (offset..4).zip(data) {
                *byte = place as u8 + 1;
            }
        }

        fn write_config(&mut self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().config.push((offset, data.to_vec()));
        }

        fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
            let mut log = self.0.lock().unwrap();
            if log.fail {
                return Err(ActivateError::QueueNotEnabled(0));
            }
            let sizes = activation.queues.iter().filter(|active| active.queue.ready());
            let sizes = sizes.map(|active| active.queue.size()).collect();
            log.activations.push((activation.features, sizes));
            drop(log);
            Ok(vec![Part::shared(Active(self.0.clone()))])
        }
    }

    pub fn transport() -> (Transport, Arc<Mutex<Log>>, Arc<Interrupts>) {
        let log = Arc::new(Mutex::new(Log::default()));
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let interrupts = Arc::new(Interrupts::new(2, 3, Msix::new(3, Arc::new(Recorder::default()))));
        let loops = Arc::new(EventLoops::new(Ending::new().unwrap()));
        let device = Box::new(TestDevice(log.clone()));
        let transport = Transport::new(device, Arc::new(memory), loops, interrupts.clone()).unwrap();
        (transport, log, interrupts)
    }

    fn negotiate(transport: &mut Transport, features: u64) {
        transport.set_status(ACKNOWLEDGE);
        transport.set_status(ACKNOWLEDGE | DRIVER);
        transport.accept(features);
        transport.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn enable(transport: &mut Transport, queue: usize, size: u16, base: u64) {
        transport.set_queue(queue, |setup| {
            *setup = QueueSetup {
                size,
                enabled: true,
                descriptors: base,
                available: base.wrapping_add(0x1000),
                used: base.wrapping_add(0x2000),
            };
        });
    }

    fn ok(transport: &mut Transport) {
        transport.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    #[test]
    fn a_driver_that_does_everything_right_activates_the_device() {
        let (mut transport, log, _) = transport();
        negotiate(&mut transport, VERSION_1 | EVENT_IDX | 0b1000);
        assert_ne!(transport.status() & FEATURES_OK, 0);
        enable(&mut transport, 0, 32, 0x1000);
        ok(&mut transport);
        assert_eq!(transport.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(
            log.lock().unwrap().activations,
            [(VERSION_1 | EVENT_IDX | 0b1000, vec![32])]
        );
    }

    #[test]
    fn features_that_were_not_offered_or_lack_version_1_are_refused() {
        for features in [0, 0b1000, VERSION_1 | 0b1_0000, u64::MAX] {
            let (mut transport, log, _) = transport();
            negotiate(&mut transport, features);
            assert_eq!(transport.status() & FEATURES_OK, 0, "{features:#x}");
            ok(&mut transport);
            assert_eq!(transport.status() & DRIVER_OK, 0);
            assert!(log.lock().unwrap().activations.is_empty());
        }
    }

    #[test]
    fn features_are_frozen_once_they_are_ok() {
        let (mut transport, ..) = transport();
        negotiate(&mut transport, VERSION_1);
        transport.accept(VERSION_1 | 0b1000);
        assert_eq!(transport.accepted(), VERSION_1);
    }

    #[test]
    fn status_bits_come_in_order_and_stay() {
        let (mut transport, log, _) = transport();
        transport.set_status(DRIVER_OK | FEATURES_OK);
        assert_eq!(transport.status(), 0);
        negotiate(&mut transport, VERSION_1);
        transport.set_status(ACKNOWLEDGE | DRIVER);
        assert_eq!(
            transport.status(),
            ACKNOWLEDGE | DRIVER | FEATURES_OK,
            "a bit cannot be taken back"
        );
        transport.set_status(0xff);
        assert_eq!(
            transport.status() & (NEEDS_RESET | DRIVER_OK),
            0,
            "a driver that gave up gets no further"
        );
        assert!(log.lock().unwrap().activations.is_empty());
    }

    #[test]
    fn queues_are_out_of_reach_before_features_and_once_enabled_or_active() {
        let (mut transport, ..) = transport();
        enable(&mut transport, 0, 16, 0x1000);
        assert!(!transport.queue(0).unwrap().enabled);
        negotiate(&mut transport, VERSION_1);
        enable(&mut transport, 0, 16, 0x1000);
        let enabled = *transport.queue(0).unwrap();
        enable(&mut transport, 0, 8, 0x4000);
        assert_eq!(*transport.queue(0).unwrap(), enabled);
        ok(&mut transport);
        enable(&mut transport, 1, 8, 0x4000);
        assert!(!transport.queue(1).unwrap().enabled);
        enable(&mut transport, 2, 8, 0x4000);
    }

    #[test]
    fn a_queue_no_device_can_use_needs_a_reset_and_activates_nothing() {
        let bad = [
            (0, 0x1000),
            (3, 0x1000),
            (128, 0x1000),
            (16, 0x1004),
            (16, 0xe000),
            (16, 0x1_0000),
            (16, !15),
            (16, 0xffff_ffff_ffff_e000),
        ];
        for (size, base) in bad {
            let (mut transport, log, interrupts) = transport();
            negotiate(&mut transport, VERSION_1);
            enable(&mut transport, 0, size, base);
            ok(&mut transport);
            assert_ne!(transport.status() & NEEDS_RESET, 0, "{size} {base:#x}");
            assert!(log.lock().unwrap().activations.is_empty());
            assert_eq!(interrupts.take_isr(), 2, "the driver is told");
        }
    }

    #[test]
    fn a_device_that_cannot_be_activated_needs_a_reset() {
        let (mut transport, log, _) = transport();
        log.lock().unwrap().fail = true;
        negotiate(&mut transport, VERSION_1);
        ok(&mut transport);
        assert_ne!(transport.status() & NEEDS_RESET, 0);
        transport.set_status(0);
        assert_eq!(transport.status(), 0);
    }

    #[test]
    fn a_reset_stops_the_device_and_it_can_be_activated_again() {
        let (mut transport, log, interrupts) = transport();
        for round in 1..=2 {
            negotiate(&mut transport, VERSION_1);
            enable(&mut transport, 1, 8, 0x1000);
            interrupts.set_queue_vector(1, 2);
            ok(&mut transport);
            assert_eq!(log.lock().unwrap().activations.len(), round);
            transport.set_status(0);
            assert_eq!(log.lock().unwrap().dropped, round);
            assert_eq!(transport.accepted(), 0);
            assert!(!transport.queue(1).unwrap().enabled);
            assert_eq!(interrupts.queue_vector(1), 0xffff);
        }
    }

    fn enabled() -> (Transport, Arc<Mutex<Log>>) {
        let (mut transport, log, _) = transport();
        negotiate(&mut transport, VERSION_1 | EVENT_IDX);
        enable(&mut transport, 0, 32, 0x1000);
        ok(&mut transport);
        (transport, log)
    }

    #[test]
    fn a_restored_device_is_as_its_driver_had_made_it_and_works_when_resumed() {
        let (mut used, log) = enabled();
        let state = used.save().unwrap();
        assert_eq!(log.lock().unwrap().dropped, 1, "it has stopped");
        let (mut fresh, log, _) = transport();
        fresh.restore(&state).unwrap();
        assert!(log.lock().unwrap().activations.is_empty());
        fresh.resume().unwrap();
        assert_eq!(
            (fresh.status(), fresh.accepted()),
            (used.status(), used.accepted())
        );
        assert_eq!(fresh.queue(0), used.queue(0));
        assert_eq!(log.lock().unwrap().activations.len(), 1);
        assert!(fresh.kicks()[0].read().is_ok(), "it looks at its queues");
        let (mut untouched, ..) = transport();
        let state = untouched.save().unwrap();
        let (mut fresh, log, _) = transport();
        fresh.restore(&state).unwrap();
        fresh.resume().unwrap();
        assert_eq!((fresh.status(), log.lock().unwrap().activations.len()), (0, 0));
    }

    #[test]
    fn what_no_driver_could_have_done_is_not_restored() {
        let changes: [fn(&mut TransportState); 9] = [
            |state| state.features |= 1 << 60,
            |state| state.features = 0,
            |state| state.status |= NEEDS_RESET,
            |state| state.status = DRIVER_OK,
            |state| state.queues.push(state.queues[0]),
            |state| state.queues.truncate(1),
            |state| state.device = vec![1],
            |state| state.status &= !FEATURES_OK,
            |state| state.queues[0].available = 0x10_0000,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut state = enabled().0.save().unwrap();
            change(&mut state);
            let (mut fresh, ..) = transport();
            assert!(fresh.restore(&state).is_err(), "{number}");
        }
    }

    #[test]
    fn a_device_that_failed_or_is_being_set_up_is_not_at_rest() {
        let (mut transport, log, _) = transport();
        negotiate(&mut transport, VERSION_1);
        assert!(transport.save().is_err());
        log.lock().unwrap().fail = true;
        ok(&mut transport);
        assert!(transport.save().is_err());
    }
}
