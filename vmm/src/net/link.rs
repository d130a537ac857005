//! What the device's configuration space says (virtio 1.2, 5.1.4), shared by those who change it.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;

use crate::virtio::device::DriverInterrupt;

/// `struct virtio_net_config` without the fields of features not offered.
const CONFIG_LENGTH: usize = 12;

/// The link of a device.
pub struct Link {
    /// The hardware address it was made with.
    own: [u8; 6],
    mtu: u16,
    pairs: u16,
    /// The hardware address that the driver has chosen, or its own.
    mac: Mutex<[u8; 6]>,
    up: AtomicBool,
    generation: AtomicU8,
}

impl Link {
    /// A link that is up.
    pub fn new(mac: [u8; 6], mtu: u16, pairs: u16) -> Self {
        Self {
            own: mac,
            mtu,
            pairs,
            mac: Mutex::new(mac),
            up: AtomicBool::new(true),
            generation: AtomicU8::new(0),
        }
    }

    fn mac(&self) -> std::sync::MutexGuard<'_, [u8; 6]> {
        self.mac.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has chosen another hardware address.
    pub fn set_mac(&self, mac: [u8; 6]) {
        *self.mac() = mac;
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// There is a new driver, which knows nothing of what another has chosen.
    pub fn reset(&self) {
        self.set_mac(self.own);
    }

    /// Whether there is a tap interface.
    #[cfg(test)]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// The tap interface is gone for good: the driver hears of it, and the log once.
    pub fn lost(&self, driver: &dyn DriverInterrupt) {
        if self.up.swap(false, Ordering::AcqRel) {
            self.generation.fetch_add(1, Ordering::AcqRel);
            driver.trigger();
            let [a, b, c, d, e, f] = self.own;
            eprintln!(
                "sealock-vmm: the tap interface of {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} is gone: \
                 its link is down"
            );
        }
    }

    /// Changes with the configuration space.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the configuration space; beyond its end are zeroes.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LENGTH];
        config[..6].copy_from_slice(&*self.mac());
        let status = if self.up.load(Ordering::Acquire) {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        };
        config[6..8].copy_from_slice(&status.to_le_bytes());
        config[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(CONFIG_LENGTH);
        for (to, from) in data.iter_mut().zip(&config[start..]) {
            *to = *from;
        }
    }
}
