//! The bus: which function answers to a configuration or memory access.

use std::{
    io,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use super::config::Region;
use crate::{
    arch::x86_64::layout::PCI_WINDOW,
    template::{Mismatch, NotAtRest, state::FunctionState},
};

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

    /// Its memory region, which only [`Function::write_config`] moves; none for most that have no registers.
    fn region(&self) -> Option<Region> {
        None
    }

    /// Reads 1 to 8 bytes that lie within the memory region.
    fn read_memory(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Writes 1 to 8 bytes that lie within the memory region.
    fn write_memory(&mut self, _offset: u64, _data: &[u8]) {}

    /// Stops for good, and returns what the guest has made of it. The vCPUs have stopped before.
    ///
    /// # Errors
    /// It has work under way, or something that can't be saved.
    fn save(&mut self) -> Result<FunctionState, NotAtRest>;

    /// Takes the state back, without doing anything yet.
    ///
    /// # Errors
    /// It is none of this function's.
    fn restore(&mut self, state: &FunctionState) -> Result<(), Mismatch>;

    /// Goes on from there.
    ///
    /// # Errors
    /// The host lacks something.
    fn resume(&mut self) -> io::Result<()> {
        Ok(())
    }
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

/// The bus. Functions come and go while nothing accesses it.
#[derive(Default)]
pub struct Bus(RwLock<[Option<Occupied>; SLOTS as usize]>);

/// A slot with a function.
struct Occupied {
    function: Mutex<Box<dyn Function>>,
    /// The address of its region in the upper half, the size in the lower; 0 without one.
    region: AtomicU64,
}

impl Occupied {
    fn function(&self) -> MutexGuard<'_, Box<dyn Function>> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far into the region `length` bytes at `address` begin, if they lie within it.
    fn offset(&self, address: u64, length: usize) -> Option<u64> {
        let region = self.region.load(Ordering::Acquire);
        let offset = address.checked_sub(region >> 32)?;
        let end = offset.checked_add(length as u64)?;
        (end <= region & u64::from(u32::MAX)).then_some(offset)
    }
}

fn packed(region: Option<Region>) -> u64 {
    region.map_or(0, |region| {
        u64::from(region.address) << 32 | u64::from(region.size)
    })
}

impl Bus {
    /// Where the memory region of the function in slot `slot` is at first.
    #[must_use]
    pub fn region(slot: u8) -> u64 {
        PCI_WINDOW + u64::from(slot) * REGION_SIZE
    }

    fn slots(&self) -> RwLockReadGuard<'_, [Option<Occupied>; SLOTS as usize]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots_mut(&self) -> RwLockWriteGuard<'_, [Option<Occupied>; SLOTS as usize]> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the function that `build` makes into the first free slot and returns its number.
    ///
    /// # Errors
    /// There is none, or `build` fails.
    pub fn attach<F: Function + 'static, E: From<Full>>(
        &self,
        build: impl FnOnce(Slot) -> Result<F, E>,
    ) -> Result<u8, E> {
        let mut slots = self.slots_mut();
        let (number, free) = (0..)
            .zip(slots.iter_mut())
            .find(|(_, slot)| slot.is_none())
            .ok_or(Full)?;
        let function = build(Slot {
            number,
            region: Self::region(number),
        })?;
        *free = Some(Occupied {
            region: AtomicU64::new(packed(function.region())),
            function: Mutex::new(Box::new(function)),
        });
        Ok(number)
    }

    /// Takes the function out of slot `slot`, if there is one. When this returns, it exists no longer.
    pub fn detach(&self, slot: u8) {
        let taken = self.slots_mut().get_mut(usize::from(slot)).and_then(Option::take);
        // Not under the lock: it may have to wait for its threads.
        drop(taken);
    }

    /// Saves every function, which stops them.
    ///
    /// # Errors
    /// One of them is not at rest.
    pub fn save(&self) -> Result<Vec<(u8, FunctionState)>, NotAtRest> {
        let slots = self.slots();
        let occupied = (0..)
            .zip(slots.iter())
            .filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        occupied
            .map(|(number, occupied)| Ok((number, occupied.function().save()?)))
            .collect()
    }

    /// Gives every function its state.
    ///
    /// # Errors
    /// There are others, or one doesn't take its state.
    pub fn restore(&self, states: &[(u8, FunctionState)]) -> Result<(), Mismatch> {
        let slots = self.slots();
        let there = (0..)
            .zip(slots.iter())
            .filter(|(_, slot)| slot.is_some())
            .map(|(number, _)| number);
        if !there.eq(states.iter().map(|(number, _): &(u8, _)| *number)) {
            return Err(Mismatch::Other("set of devices"));
        }
        for (occupied, (_, state)) in slots.iter().flatten().zip(states) {
            let mut function = occupied.function();
            function.restore(state)?;
            occupied
                .region
                .store(packed(function.region()), Ordering::Release);
        }
        Ok(())
    }

    /// Has every function go on.
    ///
    /// # Errors
    /// The host lacks something.
    pub fn resume(&self) -> io::Result<()> {
        self.slots()
            .iter()
            .flatten()
            .try_for_each(|occupied| occupied.function().resume())
    }

    /// Reads configuration registers; an empty slot reads as all ones.
    pub fn read_config(&self, slot: u8, offset: u8, data: &mut [u8]) {
        match self.slots().get(usize::from(slot)) {
            Some(Some(occupied)) => occupied.function().read_config(offset, data),
            _ => data.fill(0xff),
        }
    }

    /// Writes configuration registers.
    pub fn write_config(&self, slot: u8, offset: u8, data: &[u8]) {
        if let Some(Some(occupied)) = self.slots().get(usize::from(slot)) {
            let mut function = occupied.function();
            function.write_config(offset, data);
            occupied
                .region
                .store(packed(function.region()), Ordering::Release);
        }
    }

    /// Reads from a memory address of the guest outside of its RAM; where there is nothing it reads as all ones.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        let length = data.len();
        match target(&*self.slots(), address, length) {
            Some((occupied, offset)) => occupied.function().read_memory(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes to a memory address of the guest outside of its RAM.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((occupied, offset)) = target(&*self.slots(), address, data.len()) {
            occupied.function().write_memory(offset, data);
        }
    }
}

/// The function whose region `length` bytes at `address` lie in, and where there.
fn target(slots: &[Option<Occupied>], address: u64, length: usize) -> Option<(&Occupied, u64)> {
    slots
        .iter()
        .flatten()
        .find_map(|occupied| Some((occupied, occupied.offset(address, length)?)))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    /// Says where it is read, and when it is gone.
    struct Echo {
        region: Region,
        gone: Arc<AtomicBool>,
    }

    impl Echo {
        fn new(slot: Slot) -> Self {
            Self {
                region: Region {
                    address: slot.region as u32,
                    size: 0x8000,
                },
                gone: Arc::default(),
            }
        }
    }

    impl Function for Echo {
        fn read_config(&mut self, offset: u8, data: &mut [u8]) {
            data.fill(offset);
        }

        fn write_config(&mut self, _offset: u8, data: &[u8]) {
            self.region.address = u32::from_le_bytes(data.try_into().unwrap());
        }

        fn region(&self) -> Option<Region> {
            Some(self.region)
        }

        fn save(&mut self) -> Result<FunctionState, NotAtRest> {
            Ok(FunctionState {
                config: self.region.address.to_le_bytes().to_vec(),
                virtio: None,
            })
        }

        fn restore(&mut self, state: &FunctionState) -> Result<(), Mismatch> {
            self.write_config(0, &state.config);
            Ok(())
        }

        fn read_memory(&mut self, offset: u64, data: &mut [u8]) {
            assert!(offset + data.len() as u64 <= 0x8000);
            data.fill(7);
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    fn read(bus: &Bus, address: u64) -> [u8; 4] {
        let mut data = [0; 4];
        bus.read_memory(address, &mut data);
        data
    }

    #[test]
    fn the_bus_has_32_slots() {
        let bus = Bus::default();
        for number in 0..32 {
            let slot = bus.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap();
            assert_eq!(slot, number);
        }
        assert!(bus.attach(|slot| Ok::<_, Full>(Echo::new(slot))).is_err());
    }

    #[test]
    fn a_function_that_is_detached_is_gone_and_its_slot_is_free() {
        let bus = Bus::default();
        let mut gone = Arc::default();
        for _ in 0..3 {
            bus.attach(|slot| {
                let echo = Echo::new(slot);
                gone = echo.gone.clone();
                Ok::<_, Full>(echo)
            })
            .unwrap();
        }
        bus.detach(2);
        assert!(gone.load(Ordering::Relaxed));
        assert_eq!(read(&bus, Bus::region(2)), [0xff; 4]);
        let mut id = [0; 4];
        bus.read_config(2, 9, &mut id);
        assert_eq!(id, [0xff; 4]);
        bus.write_config(2, 16, &[0; 4]);
        bus.detach(2);
        bus.detach(99);
        assert_eq!(bus.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap(), 2);
        assert_eq!(read(&bus, Bus::region(2)), [7; 4]);
    }

    #[test]
    fn memory_accesses_reach_the_region_they_lie_in_whole() {
        let bus = Bus::default();
        bus.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap();
        assert_eq!(read(&bus, PCI_WINDOW), [7; 4]);
        assert_eq!(read(&bus, PCI_WINDOW + 0x7ffc), [7; 4]);
        assert_eq!(read(&bus, PCI_WINDOW + 0x7ffe), [0xff; 4]);
        assert_eq!(read(&bus, PCI_WINDOW + 0x8000), [0xff; 4]);
        assert_eq!(read(&bus, 0), [0xff; 4]);
        assert_eq!(read(&bus, u64::MAX), [0xff; 4]);
    }

    #[test]
    fn a_region_answers_where_the_guest_has_moved_it() {
        let bus = Bus::default();
        for _ in 0..2 {
            bus.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap();
        }
        bus.write_config(1, 16, &0x0800_8000_u32.to_le_bytes());
        assert_eq!(read(&bus, Bus::region(1)), [0xff; 4]);
        assert_eq!(read(&bus, 0x0800_8000), [7; 4]);
        assert_eq!(read(&bus, 0x0800_fffc), [7; 4]);
        assert_eq!(read(&bus, Bus::region(0)), [7; 4]);
        bus.write_config(1, 16, &0xffff_8000_u32.to_le_bytes());
        assert_eq!(read(&bus, 0xffff_fffc), [7; 4]);
        assert_eq!(read(&bus, 0xffff_fffe), [0xff; 4]);
    }

    #[test]
    fn a_bus_is_restored_with_the_same_functions_where_they_were() {
        let bus = Bus::default();
        for _ in 0..2 {
            bus.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap();
        }
        bus.write_config(1, 16, &0x0800_8000_u32.to_le_bytes());
        let saved = bus.save().unwrap();
        let other = Bus::default();
        other.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap();
        assert!(other.restore(&saved).is_err(), "a function is missing");
        other.attach(|slot| Ok::<_, Full>(Echo::new(slot))).unwrap();
        other.restore(&saved).unwrap();
        assert_eq!(read(&other, 0x0800_8000), [7; 4]);
        assert_eq!(read(&other, Bus::region(1)), [0xff; 4]);
    }
}
