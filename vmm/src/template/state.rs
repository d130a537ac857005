//! What there is to a machine besides its memory.

use serde::{Deserialize, Serialize};

use super::memory::Extent;
use crate::{
    arch::x86_64::{ports::PortsState, state::ProcessorState, state::SystemState},
    virtio::pci::VirtioPciState,
};

/// A machine at rest.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// What it was configured as.
    pub shape: Shape,
    /// Where the memory is not zero.
    pub extents: Vec<Extent>,
    /// The one virtual CPU that runs.
    pub processor: ProcessorState,
    /// Interrupt controllers and clock.
    pub system: SystemState,
    /// The ports.
    pub ports: PortsState,
    /// The functions on the bus by their slots, in ascending order.
    pub functions: Vec<(u8, FunctionState)>,
}

/// What a guest knows of its machine from its start on: only a machine of the same shape can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Memory at boot, in MiB.
    pub memory_mib: u32,
    /// What it can grow to, in MiB.
    pub max_memory_mib: u32,
    /// Virtual CPUs that the tables name.
    pub max_vcpus: u8,
    /// Whether the kernel logs to the serial console.
    pub console: bool,
}

/// A function on the bus.
#[derive(Debug, Serialize, Deserialize)]
pub struct FunctionState {
    /// Its configuration space.
    pub config: Vec<u8>,
    /// What there is more to a virtio device.
    pub virtio: Option<VirtioPciState>,
}
