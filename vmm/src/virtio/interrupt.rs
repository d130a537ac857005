//! A device's interrupts (virtio 1.2, 4.1.5.1.2 to 4.1.5.4): MSI-X vectors that the driver assigns to queues.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU8, AtomicU16, Ordering},
};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::device::DriverInterrupt;
use crate::{
    pci::msix::{Entry, Message, Msix},
    template::Mismatch,
};

/// "No interrupt" (`VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Which vectors the driver has assigned, and the vectors themselves.
#[derive(Debug, Serialize, Deserialize)]
pub struct InterruptState {
    config_vector: u16,
    queue_vectors: Vec<u16>,
    isr: u8,
    entries: Vec<Entry>,
}

/// The interrupts of one device.
pub struct Interrupts {
    msix: Msix,
    vectors: u16,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    /// What interrupts for a queue from outside this process.
    outside: Mutex<Vec<Outside>>,
    /// What a driver without MSI-X would look at. There is no interrupt pin, so such a driver has to poll.
    isr: AtomicU8,
}

/// An eventfd whose events are interrupts of a queue.
struct Outside {
    queue: usize,
    event: EventFd,
    /// What the host's kernel sends for it.
    sends: Option<Message>,
}

impl Interrupts {
    /// Interrupts for `queues` queues by `msix`, which has `vectors` vectors; none is assigned.
    #[must_use]
    pub fn new(queues: usize, vectors: u16, msix: Msix) -> Self {
        Self {
            msix,
            vectors,
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            outside: Mutex::default(),
            isr: AtomicU8::new(0),
        }
    }

    /// The vectors themselves, to be read.
    #[must_use]
    pub fn msix(&self) -> &Msix {
        &self.msix
    }

    /// As [`Msix::set_control`].
    pub fn set_control(&self, control: u16) {
        self.msix.set_control(control);
        self.follow();
    }

    /// As [`Msix::write_table`].
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        self.msix.write_table(offset, data);
        self.follow();
    }

    /// Has what interrupts from outside this process do so with the vectors as they are now.
    fn follow(&self) {
        for outside in &mut *self.outside() {
            self.follow_one(outside);
        }
    }

    fn follow_one(&self, outside: &mut Outside) {
        let message = self.msix.deliverable(self.queue_vector(outside.queue));
        // Where the host's kernel refuses all stays as it was: events go where they went, at first to whoever watches for them here.
        if message != outside.sends && self.msix.messenger().route(&outside.event, message).is_ok() {
            outside.sends = message;
        }
    }

    fn outside(&self) -> MutexGuard<'_, Vec<Outside>> {
        self.outside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has each event of `event` interrupt for `queue` without this process, while the vector can be delivered.
    fn connect(&self, queue: usize, event: &EventFd) {
        // Without a descriptor for it, events are left to whoever watches for them here.
        if let Ok(event) = event.try_clone() {
            let mut outside = Outside {
                queue,
                event,
                sends: None,
            };
            let mut all = self.outside();
            self.follow_one(&mut outside);
            all.push(outside);
        }
    }

    /// Undoes [`Interrupts::connect`].
    fn disconnect(&self, queue: usize) {
        self.outside().retain(|outside| {
            let other = outside.queue != queue;
            if !other && outside.sends.is_some() {
                // Fails only for what isn't there.
                let _ = self.msix.messenger().route(&outside.event, None);
            }
            other
        });
    }

    /// The vector of the configuration.
    #[must_use]
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    /// Assigns a vector to the configuration; one that doesn't exist reads back as [`NO_VECTOR`].
    pub fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Relaxed);
    }

    /// The vector of `queue`.
    #[must_use]
    pub fn queue_vector(&self, queue: usize) -> u16 {
        self.queue_vectors
            .get(queue)
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    /// Assigns a vector to `queue`; one that doesn't exist reads back as [`NO_VECTOR`].
    pub fn set_queue_vector(&self, queue: usize, vector: u16) {
        if let Some(place) = self.queue_vectors.get(queue) {
            place.store(self.existing(vector), Ordering::Relaxed);
            self.follow();
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.vectors { vector } else { NO_VECTOR }
    }

    /// Takes every assignment back.
    pub fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Relaxed);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.follow();
        self.isr.store(0, Ordering::Relaxed);
    }

    /// What the driver has set up.
    #[must_use]
    pub fn save(&self) -> InterruptState {
        InterruptState {
            config_vector: self.config_vector(),
            queue_vectors: (0..self.queue_vectors.len())
                .map(|queue| self.queue_vector(queue))
                .collect(),
            isr: self.isr.load(Ordering::Relaxed),
            entries: self.msix.save(),
        }
    }

    /// Takes it back.
    ///
    /// # Errors
    /// It is of a device with other queues.
    pub fn restore(&self, state: &InterruptState) -> Result<(), Mismatch> {
        if state.queue_vectors.len() != self.queue_vectors.len() {
            return Err(Mismatch::Other("number of queues"));
        }
        self.msix.restore(&state.entries)?;
        self.set_config_vector(state.config_vector);
        for (queue, vector) in state.queue_vectors.iter().enumerate() {
            self.set_queue_vector(queue, *vector);
        }
        self.isr.store(state.isr, Ordering::Relaxed);
        Ok(())
    }

    /// The ISR status, which reading clears.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Tells the driver that `queue` has used chains.
    pub fn trigger_queue(&self, queue: usize) {
        self.trigger(self.queue_vector(queue), ISR_QUEUE);
    }

    /// Tells the driver that the configuration or the device's status has changed.
    pub fn trigger_config(&self) {
        self.trigger(self.config_vector(), ISR_CONFIG);
    }

    fn trigger(&self, vector: u16, isr: u8) {
        if self.msix.enabled() {
            self.msix.trigger(vector);
        } else {
            self.isr.fetch_or(isr, Ordering::AcqRel);
        }
    }
}

/// The interrupt of one queue.
pub struct OfQueue {
    /// The device's interrupts.
    pub interrupts: Arc<Interrupts>,
    /// The queue's number.
    pub queue: usize,
}

impl DriverInterrupt for OfQueue {
    fn trigger(&self) {
        self.interrupts.trigger_queue(self.queue);
    }

    fn connect(&self, event: &EventFd) {
        self.interrupts.connect(self.queue, event);
    }

    fn disconnect(&self) {
        self.interrupts.disconnect(self.queue);
    }
}

/// The interrupt of the configuration.
pub struct OfConfig(pub Arc<Interrupts>);

impl DriverInterrupt for OfConfig {
    fn trigger(&self) {
        self.0.trigger_config();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::msix::tests::{Recorder, set_up};

    fn interrupts() -> (Interrupts, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Interrupts::new(2, 3, Msix::new(3, recorder.clone())), recorder)
    }

    #[test]
    fn queues_and_configuration_interrupt_with_their_vectors() {
        let (interrupts, recorder) = interrupts();
        set_up(interrupts.msix(), 3);
        interrupts.set_config_vector(0);
        interrupts.set_queue_vector(1, 2);
        interrupts.trigger_queue(0);
        assert!(recorder.take().is_empty(), "no vector assigned");
        interrupts.trigger_queue(1);
        interrupts.trigger_config();
        interrupts.trigger_queue(2);
        let data: Vec<_> = recorder.take().iter().map(|message| message.data).collect();
        assert_eq!(data, [0x42, 0x40]);
        assert_eq!(interrupts.take_isr(), 0);
    }

    #[test]
    fn what_interrupts_from_outside_follows_assignments_and_masks() {
        let (interrupts, recorder) = interrupts();
        let event = EventFd::new(0).unwrap();
        let of_queue = OfQueue {
            interrupts: Arc::new(interrupts),
            queue: 1,
        };
        let interrupts = &of_queue.interrupts;
        let sends = |data| {
            vec![Some(Message {
                address: 0xfee0_0000,
                data,
            })]
        };
        of_queue.connect(&event);
        assert!(recorder.take_routes().is_empty(), "nothing is assigned");
        interrupts.set_queue_vector(1, 2);
        set_up(interrupts.msix(), 3);
        interrupts.follow();
        assert_eq!(recorder.take_routes(), sends(0x42));
        interrupts.set_queue_vector(0, 1);
        interrupts.follow();
        assert!(recorder.take_routes().is_empty(), "nothing has changed");
        interrupts.set_queue_vector(1, 1);
        assert_eq!(recorder.take_routes(), sends(0x41));
        // Its vector is masked, and not any longer.
        interrupts.write_table(28, &1_u32.to_le_bytes());
        assert_eq!(recorder.take_routes(), [None]);
        interrupts.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(recorder.take_routes(), sends(0x41));
        of_queue.disconnect();
        assert_eq!(recorder.take_routes(), [None]);
        interrupts.reset();
        assert!(recorder.take_routes().is_empty());
    }

    #[test]
    fn a_vector_that_does_not_exist_reads_back_as_none() {
        let (interrupts, _) = interrupts();
        interrupts.set_queue_vector(0, 3);
        assert_eq!(interrupts.queue_vector(0), NO_VECTOR);
        interrupts.set_config_vector(3);
        assert_eq!(interrupts.config_vector(), NO_VECTOR);
        interrupts.set_queue_vector(9, 1);
        assert_eq!(interrupts.queue_vector(9), NO_VECTOR);
    }

    #[test]
    fn without_msix_the_status_says_what_happened_once() {
        let (interrupts, recorder) = interrupts();
        interrupts.trigger_queue(0);
        interrupts.trigger_config();
        assert_eq!(interrupts.take_isr(), 3);
        assert_eq!(interrupts.take_isr(), 0);
        assert!(recorder.take().is_empty());
    }
}
