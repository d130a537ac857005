//! A function's configuration space: a type 0 header (PCI 3.0, 6.1) and its capabilities (6.7).

use super::bus::REGION_SIZE;
use crate::template::Mismatch;

/// The size of the configuration space in bytes.
const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// The base address register of the memory region.
const REGION: usize = 0x10;
const CAPABILITIES: usize = 0x34;
/// Where the header ends and capabilities begin.
const HEADER_END: usize = 0x40;

/// What a function is (PCI 3.0, 6.2.1).
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// The vendor's number.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
    /// The device's revision.
    pub revision: u8,
    /// Base class, sub-class, programming interface, in bits 23 to 0.
    pub class: u32,
    /// The subsystem's vendor.
    pub subsystem_vendor: u16,
    /// The subsystem's number.
    pub subsystem: u16,
}

/// A memory region in the 32-bit address space, not prefetchable.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Where it is.
    pub address: u32,
    /// Its size in bytes: a power of two from 16 to [`REGION_SIZE`].
    pub size: u32,
}

/// A configuration space.
#[derive(Debug)]
pub struct Config {
    bytes: [u8; SIZE],
    /// The bits that the guest may change.
    writable: [u8; SIZE],
    /// Where the link to the next capability goes.
    link: usize,
    /// Where the next capability goes.
    end: usize,
    region: Option<Region>,
    /// The guest has written all ones to the base address register, to read back the size. The region stays meanwhile.
    sizing: bool,
}

impl Config {
    /// The configuration space of a function without an interrupt pin.
    #[must_use]
    pub fn new(identity: Identity, region: Option<Region>) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            link: CAPABILITIES,
            end: HEADER_END,
            region,
            sizing: false,
        };
        config.set(0x00, &identity.vendor.to_le_bytes());
        config.set(0x02, &identity.device.to_le_bytes());
        config.set(
            0x08,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        config.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.set(0x2e, &identity.subsystem.to_le_bytes());
        // Memory space, bus master, interrupt disable.
        config.writable[COMMAND] = 0b110;
        config.writable[COMMAND + 1] = 0b100;
        // The interrupt line: software's own note.
        config.writable[0x3c] = 0xff;
        debug_assert!(region.is_none_or(|region| region.size.is_power_of_two()
            && region.size >= 16
            && u64::from(region.size) <= REGION_SIZE
            && region.address.is_multiple_of(region.size)));
        config
    }

    /// Adds a capability whose registers after id and link are `body`, of which the guest may change the bits in
    /// `writable`. Returns where the capability begins.
    ///
    /// # Panics
    /// The capabilities of one function don't fit: a mistake of whoever wrote the device.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let start = self.end;
        self.end = (start + 2 + body.len()).next_multiple_of(4);
        assert!(
            self.end <= SIZE,
            "the capabilities don't fit the configuration space"
        );
        // Below SIZE, as asserted.
        let offset = start as u8;
        self.bytes[self.link] = offset;
        self.link = start + 1;
        self.bytes[start] = id;
        self.set(start + 2, body);
        self.writable[start + 2..start + 2 + writable.len()].copy_from_slice(writable);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        offset
    }

    fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    /// Reads registers; beyond the end there are zeroes.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        let address = self.region.map_or(0, |region| {
            if self.sizing {
                (region.size - 1) ^ u32::MAX
            } else {
                region.address
            }
        });
        let address = address.to_le_bytes();
        for (place, byte) in (usize::from(offset)..).zip(data) {
            *byte = match place {
                REGION..0x14 => address[place - REGION],
                _ => self.bytes.get(place).copied().unwrap_or(0),
            };
        }
    }

    /// The memory region, where it is now.
    #[must_use]
    pub fn region(&self) -> Option<Region> {
        self.region
    }

    /// Writes registers, as far as the guest may.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        let offset = usize::from(offset);
        if offset == REGION {
            self.sizing = data == [0xff; 4];
            if let (false, Ok(address), Some(region)) = (self.sizing, data.try_into(), &mut self.region) {
                region.address = u32::from_le_bytes(address) & !(region.size - 1);
            }
            return;
        }
        for (place, byte) in (offset..SIZE).zip(data) {
            let mask = self.writable[place];
            self.bytes[place] = self.bytes[place] & !mask | byte & mask;
        }
    }

    /// All of it.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = self.bytes.to_vec();
        if let Some(region) = self.region {
            bytes[REGION..REGION + 4].copy_from_slice(&region.address.to_le_bytes());
        }
        bytes
    }

    /// Writes what the guest had written.
    ///
    /// # Errors
    /// It is another function's: something differs that no guest can change.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), Mismatch> {
        let fixed = |place: usize| !(REGION..REGION + 4).contains(&place);
        let same = saved.len() == SIZE
            && (0..SIZE)
                .filter(|&place| fixed(place))
                .all(|place| (saved[place] ^ self.bytes[place]) & !self.writable[place] == 0);
        if !same {
            return Err(Mismatch::Other("device on the bus"));
        }
        for (offset, bytes) in (0..=u8::MAX).step_by(4).zip(saved.chunks_exact(4)) {
            self.write(offset, bytes);
        }
        Ok(())
    }

    /// The 16-bit register at `offset`, which lies within the configuration space.
    #[must_use]
    pub fn read_u16(&self, offset: u8) -> u16 {
        let mut value = [0; 2];
        self.read(offset, &mut value);
        u16::from_le_bytes(value)
    }

    /// The 32-bit register at `offset`, which lies within the configuration space.
    #[must_use]
    pub fn read_u32(&self, offset: u8) -> u32 {
        let mut value = [0; 4];
        self.read(offset, &mut value);
        u32::from_le_bytes(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: 0x00ff_0000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x44,
        };
        Config::new(
            identity,
            Some(Region {
                address: 0xc001_0000,
                size: 0x8000,
            }),
        )
    }

    #[test]
    fn the_header_identifies_the_function() {
        let config = config();
        assert_eq!(config.read_u32(0), 0x1044_1af4);
        assert_eq!(config.read_u32(8), 0xff00_0001);
        assert_eq!(config.read_u32(0x2c), 0x0044_1af4);
        assert_eq!(config.read_u16(0x0e), 0, "a single function with a type 0 header");
        assert_eq!(config.read_u16(0x3c) >> 8, 0, "no interrupt pin");
    }

    #[test]
    fn the_guest_learns_the_size_of_a_region_and_moves_it_by_that() {
        let mut config = config();
        assert_eq!(config.read_u32(0x10), 0xc001_0000);
        config.write(0x10, &[0xff; 4]);
        assert_eq!(config.read_u32(0x10), 0xffff_8000);
        config.write(0x10, &0xd000_8fff_u32.to_le_bytes());
        assert_eq!(config.read_u32(0x10), 0xd000_8000);
        config.write(0x10, &[0xff, 0xff]);
        assert_eq!(config.read_u32(0x10), 0xd000_8000, "half a register is none");
        config.write(0x14, &[0xff; 4]);
        assert_eq!(config.read_u32(0x14), 0, "there is no second region");
    }

    #[test]
    fn only_writable_bits_change() {
        let mut config = config();
        config.write(0, &[0; 4]);
        assert_eq!(config.read_u32(0), 0x1044_1af4);
        config.write(4, &[0xff; 4]);
        assert_eq!(config.read_u32(4), 0x0406);
        config.write(0xfe, &[0xff; 4]);
        assert_eq!(config.read_u16(0xfe), 0);
    }

    #[test]
    fn only_the_same_function_takes_what_was_saved_and_only_what_a_guest_can_write() {
        let mut used = config();
        used.write(4, &[6, 0]);
        used.write(0x10, &0xd000_8000_u32.to_le_bytes());
        let saved = used.save();
        let mut fresh = config();
        fresh.restore(&saved).unwrap();
        assert_eq!(fresh.save(), saved);
        assert_eq!(fresh.region().unwrap().address, 0xd000_8000);
        let mut other = saved.clone();
        other[0] ^= 1;
        assert!(config().restore(&other).is_err());
        assert!(config().restore(&saved[1..]).is_err());
        let mut more = config();
        more.add_capability(9, &[1], &[]);
        assert!(more.restore(&saved).is_err());
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut config = config();
        assert_eq!(config.read_u16(6), 0);
        let first = config.add_capability(9, &[1, 2, 3], &[0, 0xf0]);
        let second = config.add_capability(0x11, &[0; 10], &[]);
        assert_eq!(config.read_u16(6), 0x10);
        assert_eq!(config.read_u16(0x34), u16::from(first));
        assert_eq!(config.read_u16(first), u16::from(second) << 8 | 9);
        assert_eq!(config.read_u16(second), 0x11);
        config.write(first + 2, &[0xff, 0xff]);
        assert_eq!(config.read_u16(first + 2), 0xf201);
    }
}
