//! Shim and the VMM's vsock device: descriptors for streams.
//!
//! There are no socket files. When the guest connects to a port of the host, the device asks the shim for what is
//! behind it; when the shim wants to reach a port of the guest, it sends the descriptor to be connected.

use serde::{Deserialize, Serialize};

/// The largest message on the socket, in bytes.
pub const MAX_MESSAGE: usize = 512;

/// From the device to the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Request {
    /// The guest connects to `port` of the host. To be answered with [`Answer::Accept`] or [`Answer::Refuse`].
    Connect {
        /// The device's name for this request; unique among those not answered yet.
        id: u64,
        /// The host's port.
        port: u32,
    },
    /// What became of [`Answer::Dial`].
    Dialed {
        /// The shim's name for the request.
        id: u64,
        /// Whether the guest accepted.
        connected: bool,
    },
}

/// From the shim to the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Answer {
    /// Carries one descriptor: a stream socket, a pipe or a FIFO, which becomes the device's. What the guest sends is
    /// written to it, what can be read from it is sent to the guest, as far as it is open for that.
    Accept {
        /// From [`Request::Connect`].
        id: u64,
    },
    /// Nothing listens there, or no longer: the guest sees a reset connection.
    Refuse {
        /// From [`Request::Connect`].
        id: u64,
    },
    /// Carries one descriptor, to be connected to `port` of the guest. Answered with [`Request::Dialed`].
    Dial {
        /// The shim's name for the request.
        id: u64,
        /// The guest's port.
        port: u32,
    },
}
