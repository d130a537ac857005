//! The device before the driver is ready.

use std::io;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use sealock_protocol::{relay::MAX_MESSAGE, seqpacket::SeqPacket};

use super::session::Session;
use crate::{
    thread::Thread,
    virtio::device::{ActivateError, Activation, Part, Rest, VirtioDevice},
};

/// The device type (virtio 1.2, 5).
const DEVICE_TYPE: u32 = 26;

/// The length of the tag's field in the configuration space.
const TAG_LENGTH: usize = 36;

/// `struct virtio_fs_config` without the fields of features not offered (virtio 1.2, 5.11.4).
const CONFIG_LENGTH: usize = TAG_LENGTH + 4;

/// The queue for `FUSE_FORGET` and the like, which nothing waits for.
const HIPRIO_QUEUE_SIZE: u16 = 64;

/// The queue for requests. Linux asks for as many pages at once as fit its size, 256 at most.
pub const REQUEST_QUEUE_SIZE: u16 = 512;

/// Both queues, in the specification's order (virtio 1.2, 5.11.2).
const QUEUE_SIZES: [u16; 2] = [HIPRIO_QUEUE_SIZE, REQUEST_QUEUE_SIZE];

/// A file system that a file server serves.
#[derive(Debug)]
pub struct FileSystem {
    config: [u8; CONFIG_LENGTH],
    /// Until the driver is ready: what the guest has open is known to this one connection.
    server: Option<SeqPacket>,
}

impl FileSystem {
    /// A file system that the guest mounts as `tag`, served by whoever is at the other end of `server` (see
    /// [`sealock_protocol::relay`]).
    ///
    /// # Errors
    /// A tag that is empty, longer than 36 bytes or contains NUL; the socket cannot be set up.
    pub fn new(tag: &str, server: SeqPacket) -> io::Result<Self> {
        let tag = tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG_LENGTH || tag.contains(&0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a file system's tag has 1 to 36 bytes, none of them NUL",
            ));
        }
        let mut config = [0; CONFIG_LENGTH];
        config[..tag.len()].copy_from_slice(tag);
        config[TAG_LENGTH..].copy_from_slice(&1_u32.to_le_bytes());
        // The socket layer accounts its own headers to the buffer.
        server.set_send_buffer(2 * MAX_MESSAGE)?;
        fcntl(&server, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self {
            config,
            server: Some(server),
        })
    }
}

impl VirtioDevice for FileSystem {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.config.get(offset..))
            .unwrap_or(&[]);
        let length = rest.len().min(data.len());
        data[..length].copy_from_slice(&rest[..length]);
    }

    /// What a guest has opened is known to its file server alone.
    fn rest(&self) -> Rest {
        Rest::Untouched
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
        let failed = |what| move |source| ActivateError::Host { what, source };
        let server = self.server.take().ok_or_else(|| {
            failed("serve files to a second driver")(io::Error::other("the file server knows the first one"))
        })?;
        let session = Session::new(activation, server)?;
        Ok(vec![Part::own(Thread::Fs, session)])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_holds_tag_and_queue_count() {
        let (one, _other) = SeqPacket::pair().unwrap();
        let device = FileSystem::new("sealock", one).unwrap();
        let mut config = [0xff; 44];
        device.read_config(0, &mut config);
        assert_eq!(&config[..8], b"sealock\0");
        assert_eq!(config[36..40], [1, 0, 0, 0]);
        assert_eq!(config[40..], [0; 4]);
        let mut beyond = [0xff; 2];
        device.read_config(u64::MAX, &mut beyond);
        assert_eq!(beyond, [0; 2]);
    }

    #[test]
    fn a_tag_that_the_guest_could_not_name_is_refused() {
        for tag in ["", "a\0b", "a-name-that-is-longer-than-36-bytes-is"] {
            let (one, _other) = SeqPacket::pair().unwrap();
            assert!(FileSystem::new(tag, one).is_err(), "{tag:?}");
        }
    }
}
