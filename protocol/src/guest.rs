//! What shim and agent agree on before ttrpc: ports, names, and the hello.
//!
//! A cold-booted agent connects to [`HELLO_PORT`] of the host and writes one frame: the length of the body as a 32-bit
//! little-endian number, at most [`MAX_HELLO`], then a [`Hello`] in JSON. From then on the stream carries ttrpc, the
//! shim being the client.

use serde::{Deserialize, Serialize};

/// The guest's context id (virtio 1.2, 5.10.4); every guest has the same, for its VMM connects it to nothing else.
pub const GUEST_CID: u64 = 3;

/// The host's vsock port to which the agent says hello, once.
pub const HELLO_PORT: u32 = 1024;

/// The first of the ports that the shim gives out for standard streams, each for one connection.
pub const FIRST_STREAM_PORT: u32 = 0x1_0000;

/// The longest body of a hello, in bytes.
pub const MAX_HELLO: usize = 4096;

/// The version of the agent's protocol. Agent and shim are built and installed together: anything else is refused.
pub const VERSION: u32 = 1;

/// The tag of the pod's virtio-fs share (virtio 1.2, 5.11.4).
pub const SHARE_TAG: &str = "sealock";

/// The largest OCI specification handed to the agent, in bytes.
pub const MAX_SPEC: usize = 1 << 20;

/// In the specification of a container, the path of a namespace that is another container's of the pod begins with this; that
/// one's identifier follows. Any other path stands for the pod's namespace.
pub const NAMESPACE_OF: &str = "container:";

/// The agent's first words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// When the agent's init began, in nanoseconds of the guest's `CLOCK_BOOTTIME`.
    pub init_ns: u64,
    /// When this was written, in nanoseconds of the guest's `CLOCK_BOOTTIME`.
    pub hello_ns: u64,
}
