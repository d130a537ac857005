//! pvpanic: the guest's kernel says that it has panicked or powered off (QEMU's `docs/specs/pvpanic`).
//!
//! The kernel prints its message before it tells its panic notifiers, so by the time of the event the console has it.

use sealock_protocol::control::ExitReason;

use crate::{
    ending::Ending,
    pci::{
        bus::{Function, Slot},
        config::{Config, Identity, Region},
    },
    template::{Mismatch, NotAtRest, state::FunctionState},
};

const PANICKED: u8 = 1;
const SHUT_DOWN: u8 = 1 << 2;

/// The PCI function.
pub struct Pvpanic {
    config: Config,
    ending: Ending,
}

impl Pvpanic {
    /// The function in `slot`, which ends the machine.
    ///
    /// # Panics
    /// Never: slots lie below 4 GiB.
    #[must_use]
    pub fn new(slot: Slot, ending: Ending) -> Self {
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0011,
            revision: 1,
            class: 0x08_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let region = Region {
            address: u32::try_from(slot.region).expect("slots lie below 4 GiB"),
            size: 16,
        };
        Self {
            config: Config::new(identity, Some(region)),
            ending,
        }
    }
}

impl Function for Pvpanic {
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        self.config.write(offset, data);
    }

    fn region(&self) -> Option<Region> {
        self.config.region()
    }

    /// The events that may be told.
    fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = PANICKED | SHUT_DOWN;
        }
    }

    fn write_memory(&mut self, offset: u64, data: &[u8]) {
        match (offset, data.first()) {
            (0, Some(event)) if event & PANICKED != 0 => self.ending.end(ExitReason::Panic, ""),
            (0, Some(event)) if event & SHUT_DOWN != 0 => self.ending.end(ExitReason::Poweroff, ""),
            _ => {}
        }
    }

    fn save(&mut self) -> Result<FunctionState, NotAtRest> {
        Ok(FunctionState {
            config: self.config.save(),
            virtio: None,
        })
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), Mismatch> {
        self.config.restore(&state.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::bus::Bus;

    fn pvpanic() -> (Pvpanic, Ending) {
        let ending = Ending::new().unwrap();
        let slot = Slot {
            number: 1,
            region: Bus::region(1),
        };
        (Pvpanic::new(slot, ending.clone()), ending)
    }

    #[test]
    fn a_panic_and_a_shutdown_end_the_machine() {
        for (event, reason) in [(1, ExitReason::Panic), (4, ExitReason::Poweroff)] {
            let (mut pvpanic, ending) = pvpanic();
            pvpanic.write_memory(0, &[event]);
            assert_eq!(ending.reason(), Some((reason, "")));
        }
    }

    #[test]
    fn nothing_else_does() {
        let (mut pvpanic, ending) = pvpanic();
        pvpanic.write_memory(0, &[0x82]);
        pvpanic.write_memory(1, &[1]);
        pvpanic.write_memory(0, &[]);
        assert_eq!(ending.reason(), None);
        let mut events = [0xff; 4];
        pvpanic.read_memory(0, &mut events);
        assert_eq!(events, [5, 0, 0, 0]);
    }
}
