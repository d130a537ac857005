//! The bus: which function answers to a configuration or memory access.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::arch::x86_64::layout::PCI_WINDOW;

/// The number of devices on a bus.
pub const SLOTS: u8 = 32;

/// The memory addresses that belong to each slot, in bytes: the largest region a function can have.
pub const REGION_SIZE: u64 = 64 * 1024;

/// Function 0 of a device on the bus.
pub trait Function: Send {
    /// Reads 1, 2 or 4 bytes of the configuration space, within one double word.
    fn read_config(&mut self, offset: u8, data: &mut [u8]);

    /// Writes 1, 2 or 4 bytes of the configuration space, within one double word.
    fn write_config(&mut self, offset: u8, data: &[u8]);

    /// Reads 1 to 8 bytes of the memory region, `offset` and what follows being below [`REGION_SIZE`].
    fn read_memory(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Writes 1 to 8 bytes of the memory region, `offset` and what follows being below [`REGION_SIZE`].
    fn write_memory(&mut self, _offset: u64, _data: &[u8]) {}
}

/// What can be said of the bus before a function is built.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The device's number.
    pub number: u8,
    /// Where its memory region is.
    pub region: u64,
}

/// All slots are taken.
#[derive(Debug, thiserror::Error)]
#[error("the PCI bus has no free slot left of {SLOTS}")]
pub struct Full;

/// The bus.
#[derive(Default)]
pub struct Bus {
    functions: RwLock<Vec<Arc<Mutex<dyn Function>>>>,
}

impl Bus {
    /// The address of the memory region of the function in slot `slot`.
    #[must_use]
    pub fn region(slot: u8) -> u64 {
        PCI_WINDOW + u64::from(slot) * REGION_SIZE
    }

    /// Puts the function that `build` makes into the next free slot.
    ///
    /// # Errors
    /// There is none, or `build` fails.
    pub fn attach<F: Function + 'static, E: From<Full>>(
        &self,
        build: impl FnOnce(Slot) -> Result<F, E>,
    ) -> Result<(), E> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let number = u8::try_from(functions.len()).unwrap_or(SLOTS);
        if number >= SLOTS {
            return Err(Full.into());
        }
        let function = build(Slot {
            number,
            region: Self::region(number),
        })?;
        functions.push(Arc::new(Mutex::new(function)));
        Ok(())
    }

    fn function(&self, slot: usize) -> Option<Arc<Mutex<dyn Function>>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(slot).cloned()
    }

    /// Reads configuration registers; an empty slot reads as all ones.
    pub fn read_config(&self, slot: u8, offset: u8, data: &mut [u8]) {
        match self.function(slot.into()) {
            Some(function) => lock(&function).read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration registers.
    pub fn write_config(&self, slot: u8, offset: u8, data: &[u8]) {
        if let Some(function) = self.function(slot.into()) {
            lock(&function).write_config(offset, data);
        }
    }

    /// Reads from a memory address of the guest outside of its RAM; where there is nothing it reads as all ones.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.target(address, data.len()) {
            Some((function, offset)) => lock(&function).read_memory(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to a memory address of the guest outside of its RAM.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((function, offset)) = self.target(address, data.len()) {
            lock(&function).write_memory(offset, data);
        }
    }

    fn target(&self, address: u64, length: usize) -> Option<(Arc<Mutex<dyn Function>>, u64)> {
        let within = address.checked_sub(PCI_WINDOW)?;
        let offset = within % REGION_SIZE;
        if offset + length as u64 > REGION_SIZE {
            return None;
        }
        let slot = usize::try_from(within / REGION_SIZE).ok()?;
        Some((self.function(slot)?, offset))
    }
}

fn lock<'a>(function: &'a Arc<Mutex<dyn Function>>) -> std::sync::MutexGuard<'a, dyn Function + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl Function for Echo {
        fn read_config(&mut self, offset: u8, data: &mut [u8]) {
            data.fill(offset);
        }

        fn write_config(&mut self, _offset: u8, _data: &[u8]) {}

        fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
            assert!(offset + data.len() as u64 <= REGION_SIZE);
            data.fill(7);
        }
    }

    #[test]
    fn the_bus_has_32_slots() {
        let bus = Bus::default();
        for number in 0..32 {
            bus.attach(|slot| {
                assert_eq!(slot.number, number);
                Ok::<_, Full>(Echo)
            })
            .unwrap();
        }
        assert!(bus.attach(|_| Ok::<_, Full>(Echo)).is_err());
    }

    #[test]
    fn memory_accesses_reach_the_slot_they_lie_in_whole() {
        let bus = Bus::default();
        bus.attach(|_| Ok::<_, Full>(Echo)).unwrap();
        let read = |address| {
            let mut data = [0; 4];
            bus.read_memory(address, &mut data);
            data
        };
        assert_eq!(read(PCI_WINDOW), [7; 4]);
        assert_eq!(read(PCI_WINDOW + REGION_SIZE - 4), [7; 4]);
        assert_eq!(read(PCI_WINDOW + REGION_SIZE - 2), [0xff; 4]);
        assert_eq!(read(PCI_WINDOW + REGION_SIZE), [0xff; 4]);
        assert_eq!(read(0), [0xff; 4]);
        assert_eq!(read(u64::MAX), [0xff; 4]);
    }
}
