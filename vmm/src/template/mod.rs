//! A machine as a file: saved at rest, restored any number of times.
//!
//! A template is two files, whose descriptors the shim sends: the *state* ([`codec`]: versioned, with a checksum) and the *memory*
//! ([`memory`]: the guest's, at the same offsets, without what is zero). A restored machine maps the memory copy-on-write, so that
//! what no guest changes exists once on the host.
//!
//! Every part says what it has in a type of its own ([`state`]), and takes it back the way that the guest had set it: through the
//! same registers, checked by the same code. So a state can't ask for what a guest couldn't; what is KVM's is checked by KVM.
//!
//! At rest means: the vCPU is stopped between two instructions, no network is plugged in, no file system is mounted, and no
//! connection is open but the one on which the agent has said hello. That one survives: the restored device asks the shim for the
//! descriptor behind it as if the guest had just connected, and the guest doesn't notice.
//!
//! | part | where |
//! |---|---|
//! | virtual CPU, interrupt controllers, clocks | [`crate::arch::x86_64::state`] |
//! | functions on the bus | [`crate::pci::bus::Bus::save`] |
//! | virtio transport | [`crate::virtio::transport`] |
//! | what is a device's own | [`crate::virtio::device::VirtioDevice::save`] |

pub mod codec;
pub mod memory;
pub mod state;

/// Why a machine is not at rest, or has something that can't be saved.
#[derive(Debug, thiserror::Error)]
#[error("the machine can't be saved: {0}")]
pub struct NotAtRest(pub String);

/// Why a template is of no use for this machine, which then has to boot.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// A file of it can't be read or mapped.
    #[error("cannot {what}")]
    File {
        /// What was being done.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It isn't one, or it is damaged.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
    /// It was made by another build.
    #[error("the state has format {given}, this is {expected}")]
    Format {
        /// Of the file.
        given: u32,
        /// Of this program.
        expected: u32,
    },
    /// It was made for something else.
    #[error("it was made for another {0}")]
    Other(&'static str),
    /// A part doesn't take what is its.
    #[error("{part} does not take its state")]
    Part {
        /// Which one.
        part: &'static str,
    },
    /// KVM doesn't.
    #[error("KVM does not take {what}")]
    Kvm {
        /// What.
        what: String,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
}

#[cfg(test)]
mod tests;
