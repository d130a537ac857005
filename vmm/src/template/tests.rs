//! A state to try things with.

use super::{
    memory::Extent,
    state::{FunctionState, MachineState, Shape},
};
use crate::{
    arch::x86_64::{
        ports::PortsState,
        state::{ProcessorState, SystemState},
    },
    pci::{bridge::HostBridge, bus::Function},
};

/// A machine with a host bridge, fresh from the works.
pub fn state() -> MachineState {
    let bridge: FunctionState = HostBridge::default().save().unwrap();
    MachineState {
        shape: Shape {
            memory_mib: 128,
            max_memory_mib: 128,
            max_vcpus: 2,
            console: false,
        },
        extents: vec![Extent {
            offset: 0x1000,
            length: 0x3000,
        }],
        processor: ProcessorState::default(),
        system: SystemState::default(),
        ports: PortsState::default(),
        functions: vec![(0, bridge)],
    }
}
