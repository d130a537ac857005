//! The host bridge: it does nothing, but its presence tells the guest that the bus is there.

use super::{
    bus::Function,
    config::{Config, Identity},
};
use crate::template::{Mismatch, NotAtRest, state::FunctionState};

/// The function 00:00.0.
#[derive(Debug)]
pub struct HostBridge(Config);

impl Default for HostBridge {
    fn default() -> Self {
        // The PCI host bridge of the virtual hardware's usual vendor.
        let identity = Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: 0x06_0000,
            subsystem_vendor: 0,
            subsystem: 0,
        };
        Self(Config::new(identity, None))
    }
}

impl Function for HostBridge {
    fn read_config(&mut self, offset: u8, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write_config(&mut self, offset: u8, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn save(&mut self) -> Result<FunctionState, NotAtRest> {
        Ok(FunctionState {
            config: self.0.save(),
            virtio: None,
        })
    }

    fn restore(&mut self, state: &FunctionState) -> Result<(), Mismatch> {
        self.0.restore(&state.config)
    }
}
