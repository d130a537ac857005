//! The inode numbers that the guest shows its programs.
//!
//! The guest sees one file system where the host has one per mount, each with inode numbers of its own. Programs take two
//! files of the same device and inode number for one, so the host's device goes into the number's upper bits.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Bits below the device's: file systems seldom use more.
const DEVICE_SHIFT: u32 = 48;

/// The devices seen so far, in their order.
#[derive(Debug)]
pub struct Numbers(Mutex<HashMap<u64, u16>>);

impl Numbers {
    /// The root's own device leaves numbers as they are.
    pub fn new(root_device: u64) -> Self {
        Self(Mutex::new(HashMap::from([(root_device, 0)])))
    }

    /// The number to show for the host's inode `number` on `device`.
    pub fn shown(&self, device: u64, number: u64) -> u64 {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = u16::try_from(devices.len());
        let index = match (devices.get(&device), next) {
            (Some(&index), _) => index,
            (None, Ok(next)) => {
                devices.insert(device, next);
                next
            }
            // More file systems than the bits tell apart: the rest share.
            (None, Err(_)) => u16::MAX,
        };
        number ^ (u64::from(index) << DEVICE_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_two_devices_never_look_like_one() {
        let numbers = Numbers::new(7);
        assert_eq!(numbers.shown(7, 2), 2);
        let other = numbers.shown(8, 2);
        assert_ne!(other, 2);
        assert_eq!(numbers.shown(8, 2), other);
        assert_ne!(numbers.shown(9, 2), other);
    }
}
