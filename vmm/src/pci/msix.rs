//! MSI-X (PCI 3.0, 6.8.2): one message for each vector, with masks and pending bits.
//!
//! A vector is delivered with `KVM_SIGNAL_MSI` and the address and data that its table entry holds at that moment. The
//! other way, an irqfd and an entry of KVM's interrupt routing for each vector, would save a lock and a copy with every
//! interrupt; but each change of the routing waits for a grace period, and the guest makes one with every vector it
//! sets up while it boots. Only what interrupts from outside this process is given one ([`Messenger::route`]).

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::template::Mismatch;

/// The capability's id.
pub const CAPABILITY: u8 = 0x11;
/// The size of a table entry in bytes.
pub const ENTRY_SIZE: u64 = 16;

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;
/// The bits of the message control register that the guest may change.
pub const CONTROL_WRITABLE: u16 = ENABLE | MASK_ALL;

const VECTOR_MASKED: u32 = 1;

/// What an interrupt controller is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// Takes messages to the interrupt controllers.
pub trait Messenger: Send + Sync {
    /// Sends `message`. Never blocks.
    fn send(&self, message: Message);

    /// Has each event of `event` send `message` without this process, from now on and until it is told otherwise; with `None`
    /// nothing more. That is to be said before `event` is closed.
    ///
    /// # Errors
    /// The host's kernel refuses. Nothing has changed.
    fn route(&self, event: &EventFd, message: Option<Message>) -> io::Result<()>;
}

/// The vectors of a function.
pub struct Msix {
    state: Mutex<State>,
    messenger: Arc<dyn Messenger>,
}

struct State {
    control: u16,
    entries: Vec<Entry>,
}

/// A vector.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Entry {
    message: Message,
    control: u32,
    pending: bool,
}

impl Msix {
    /// `vectors` vectors, 1 to 2048, each masked, MSI-X being disabled.
    #[must_use]
    pub fn new(vectors: u16, messenger: Arc<dyn Messenger>) -> Self {
        let entry = Entry {
            message: Message::default(),
            control: VECTOR_MASKED,
            pending: false,
        };
        Self {
            state: Mutex::new(State {
                control: 0,
                entries: vec![entry; vectors.into()],
            }),
            messenger,
        }
    }

    /// What its messages are sent by.
    #[must_use]
    pub fn messenger(&self) -> &dyn Messenger {
        &*self.messenger
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest uses MSI-X.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.state().control & ENABLE != 0
    }

    /// What `vector` sends now: nothing while it is masked, or doesn't exist, or MSI-X is disabled.
    #[must_use]
    pub fn deliverable(&self, vector: u16) -> Option<Message> {
        let state = self.state();
        let entry = state.entries.get(usize::from(vector))?;
        let now = state.control & (ENABLE | MASK_ALL) == ENABLE && entry.control & VECTOR_MASKED == 0;
        now.then_some(entry.message)
    }

    /// Interrupts with `vector`, now or when it is unmasked. A vector that doesn't exist is ignored, as is any while
    /// MSI-X is disabled.
    pub fn trigger(&self, vector: u16) {
        let mut state = self.state();
        let deliverable = state.control & (ENABLE | MASK_ALL) == ENABLE;
        let enabled = state.control & ENABLE != 0;
        let Some(entry) = state.entries.get_mut(usize::from(vector)) else {
            return;
        };
        if deliverable && entry.control & VECTOR_MASKED == 0 {
            self.messenger.send(entry.message);
        } else if enabled {
            entry.pending = true;
        }
    }

    /// Sets the message control register; what became deliverable by that is delivered.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.control = control & CONTROL_WRITABLE;
        self.deliver(&mut state);
    }

    /// The table. The message control register is in the configuration space.
    #[must_use]
    pub fn save(&self) -> Vec<Entry> {
        self.state().entries.clone()
    }

    /// Takes a table back; what is pending is delivered with [`Msix::set_control`].
    ///
    /// # Errors
    /// It has another number of vectors.
    pub fn restore(&self, entries: &[Entry]) -> Result<(), Mismatch> {
        let mut state = self.state();
        if entries.len() != state.entries.len() {
            return Err(Mismatch::Other("number of vectors"));
        }
        for (to, from) in state.entries.iter_mut().zip(entries) {
            *to = *from;
            to.control &= VECTOR_MASKED;
        }
        Ok(())
    }

    /// Reads 4 or 8 aligned bytes of the table; anything else reads as zeroes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let state = self.state();
        for (offset, data) in dwords(offset, data.len()).zip(data.chunks_exact_mut(4)) {
            if let Some(entry) = state.entries.get(index(offset)) {
                data.copy_from_slice(&entry.register(offset % ENTRY_SIZE).to_le_bytes());
            }
        }
    }

    /// Writes 4 or 8 aligned bytes of the table; anything else is ignored.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        for (offset, data) in dwords(offset, data.len()).zip(data.chunks_exact(4)) {
            let value = data.try_into().map_or(0, u32::from_le_bytes);
            if let Some(entry) = state.entries.get_mut(index(offset)) {
                entry.set_register(offset % ENTRY_SIZE, value);
            }
        }
        self.deliver(&mut state);
    }

    /// Reads the pending bits, one for each vector.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state();
        for (place, byte) in (offset..).zip(data) {
            let first = usize::try_from(place).unwrap_or(usize::MAX).saturating_mul(8);
            *byte = (0..8)
                .filter(|bit| {
                    state
                        .entries
                        .get(first.saturating_add(*bit))
                        .is_some_and(|entry| entry.pending)
                })
                .fold(0, |byte, bit| byte | 1 << bit);
        }
    }

    fn deliver(&self, state: &mut State) {
        if state.control & (ENABLE | MASK_ALL) != ENABLE {
            return;
        }
        for entry in &mut state.entries {
            if entry.pending && entry.control & VECTOR_MASKED == 0 {
                entry.pending = false;
                self.messenger.send(entry.message);
            }
        }
    }
}

impl Entry {
    #[allow(clippy::cast_possible_truncation)]
    fn register(&self, offset: u64) -> u32 {
        match offset {
            0 => self.message.address as u32,
            4 => (self.message.address >> 32) as u32,
            8 => self.message.data,
            _ => self.control,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        let address = &mut self.message.address;
        match offset {
            0 => *address = *address >> 32 << 32 | u64::from(value),
            4 => *address = *address & 0xffff_ffff | u64::from(value) << 32,
            8 => self.message.data = value,
            _ => self.control = value & VECTOR_MASKED,
        }
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset / ENTRY_SIZE).unwrap_or(usize::MAX)
}

/// The offsets of the double words of an access; none for an access that isn't one or two whole ones.
fn dwords(offset: u64, length: usize) -> impl Iterator<Item = u64> {
    let count = if offset.is_multiple_of(4) && matches!(length, 4 | 8) {
        length as u64 / 4
    } else {
        0
    };
    (0..count).map(move |number| offset + number * 4)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Keeps what was sent.
    #[derive(Default)]
    pub struct Recorder(Mutex<Vec<Message>>, Mutex<Vec<Option<Message>>>);

    impl Recorder {
        pub fn take(&self) -> Vec<Message> {
            std::mem::take(&mut self.0.lock().unwrap())
        }

        pub fn take_routes(&self) -> Vec<Option<Message>> {
            std::mem::take(&mut self.1.lock().unwrap())
        }
    }

    impl Messenger for Recorder {
        fn send(&self, message: Message) {
            self.0.lock().unwrap().push(message);
        }

        fn route(&self, _event: &EventFd, message: Option<Message>) -> io::Result<()> {
            self.1.lock().unwrap().push(message);
            Ok(())
        }
    }

    /// MSI-X whose vector `n` sends 0x40 + n, everything unmasked and enabled.
    pub fn set_up(msix: &Msix, vectors: u16) {
        for vector in 0..u64::from(vectors) {
            msix.write_table(vector * 16, &0xfee0_0000_u64.to_le_bytes());
            msix.write_table(vector * 16 + 8, &(0x40 + vector as u32).to_le_bytes());
            msix.write_table(vector * 16 + 12, &0_u32.to_le_bytes());
        }
        msix.set_control(ENABLE);
    }

    fn message(data: u32) -> Message {
        Message {
            address: 0xfee0_0000,
            data,
        }
    }

    fn pending(msix: &Msix) -> u8 {
        let mut byte = [0];
        msix.read_pending(0, &mut byte);
        byte[0]
    }

    #[test]
    fn an_unmasked_vector_sends_what_its_entry_says() {
        let recorder = Arc::new(Recorder::default());
        let msix = Msix::new(3, recorder.clone());
        set_up(&msix, 3);
        msix.trigger(1);
        assert_eq!(recorder.take(), [message(0x41)]);
        msix.write_table(24, &7_u32.to_le_bytes());
        msix.trigger(1);
        assert_eq!(recorder.take(), [message(7)]);
        msix.trigger(3);
        msix.trigger(0xffff);
        assert!(recorder.take().is_empty());
    }

    #[test]
    fn a_masked_vector_is_pending_and_delivered_once_when_unmasked() {
        let recorder = Arc::new(Recorder::default());
        let msix = Msix::new(2, recorder.clone());
        set_up(&msix, 2);
        msix.write_table(28, &1_u32.to_le_bytes());
        msix.trigger(1);
        msix.trigger(1);
        assert!(recorder.take().is_empty());
        assert_eq!(pending(&msix), 0b10);
        msix.write_table(28, &0_u32.to_le_bytes());
        assert_eq!(recorder.take(), [message(0x41)]);
        assert_eq!(pending(&msix), 0);
    }

    #[test]
    fn masking_the_function_holds_every_vector_back() {
        let recorder = Arc::new(Recorder::default());
        let msix = Msix::new(2, recorder.clone());
        set_up(&msix, 2);
        msix.set_control(ENABLE | MASK_ALL);
        msix.trigger(0);
        msix.trigger(1);
        assert!(recorder.take().is_empty());
        assert_eq!(pending(&msix), 0b11);
        msix.set_control(ENABLE);
        assert_eq!(recorder.take(), [message(0x40), message(0x41)]);
    }

    #[test]
    fn nothing_is_sent_or_kept_while_disabled() {
        let recorder = Arc::new(Recorder::default());
        let msix = Msix::new(1, recorder.clone());
        set_up(&msix, 1);
        msix.set_control(0);
        msix.trigger(0);
        msix.set_control(ENABLE);
        assert!(recorder.take().is_empty());
    }

    #[test]
    fn accesses_that_are_no_double_words_do_nothing() {
        let msix = Msix::new(1, Arc::new(Recorder::default()));
        msix.write_table(0, &[0xff]);
        msix.write_table(2, &[0xff; 4]);
        msix.write_table(16, &[0xff; 4]);
        msix.write_table(u64::MAX - 3, &[0xff; 4]);
        let mut entry = [0xee; 8];
        msix.read_table(0, &mut entry);
        assert_eq!(entry, [0; 8]);
        msix.read_table(12, &mut entry);
        assert_eq!(
            entry,
            [1, 0, 0, 0, 0, 0, 0, 0],
            "reset state is masked; beyond the end are zeroes"
        );
    }
}
