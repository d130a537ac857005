//! Virtio 1.2: what every device shares. A device type adds only what is special to it.
//!
//! | module | what |
//! |---|---|
//! | [`device`] | the border between the transport and a device type |
//! | [`transport`] | negotiation, queues, activation, reset |
//! | [`interrupt`] | which vector a queue or the configuration interrupts with |
//! | [`pci`] | the PCI function with the transport's registers |
//! | [`used`] | a used ring written in batches |
//! | [`rng`] | the entropy device |

pub mod device;
pub mod interrupt;
pub mod pci;
#[cfg(test)]
pub mod ring;
pub mod rng;
pub mod transport;
pub mod used;
