//! Packets in descriptor chains (virtio 1.2, 5.10.6).
//!
//! The chain is taken apart here and not by a ready-made packet type, because Linux sends large packets as one header
//! and any number of pages: every layout is accepted, as 2.7.4 of the specification wants it (message framing).

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};

/// The host's context id (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// The length of a packet's header in bytes.
pub const HEADER_LEN: usize = 44;

/// The most pieces of guest memory that one packet may be scattered over: far more than the 18 that Linux uses, and
/// few enough to be handled at once.
const MAX_PIECES: usize = 256;

/// `VIRTIO_VSOCK_TYPE_STREAM`.
pub const TYPE_STREAM: u16 = 1;

/// What a packet is for (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Connect.
    Request,
    /// Accept the connection.
    Response,
    /// There is no such connection, or no longer.
    Reset,
    /// The sender will no longer send or receive, as [`SHUTDOWN_SEND`] and [`SHUTDOWN_RECEIVE`] say.
    Shutdown,
    /// Payload.
    ReadWrite,
    /// How much the sender can take.
    CreditUpdate,
    /// Asks for [`Op::CreditUpdate`].
    CreditRequest,
}

impl Op {
    /// The operation of this number, if there is one.
    pub fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::ReadWrite,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// The operation's number.
    pub fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::ReadWrite => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// Flag of [`Op::Shutdown`]: its sender receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of [`Op::Shutdown`]: its sender sends no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both flags of [`Op::Shutdown`].
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `struct virtio_vsock_hdr`, in the host's byte order and not yet believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's context id.
    pub src_cid: u64,
    /// The receiver's context id.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// The payload's length in bytes.
    pub len: u32,
    /// The kind of socket: [`TYPE_STREAM`].
    pub kind: u16,
    /// What the packet is for: see [`Op::from_wire`].
    pub op: u16,
    /// Flags of the operation.
    pub flags: u32,
    /// The sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// How many bytes the sender has taken out of it, ever, modulo 2³².
    pub fwd_cnt: u32,
}

impl Header {
    fn from_wire(bytes: &[u8; HEADER_LEN]) -> Self {
        fn field<const N: usize>(bytes: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
            let mut field = [0; N];
            field.copy_from_slice(&bytes[at..at + N]);
            field
        }
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    fn to_wire(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// A packet that cannot be what the specification describes; it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A descriptor for the device to write where it has to read, or the reverse.
    #[error("a descriptor of the wrong direction")]
    Direction,
    /// A descriptor of memory that the guest doesn't have.
    #[error("a descriptor outside the guest's memory")]
    Memory,
    /// More than [`MAX_PIECES`] descriptors.
    #[error("a packet in more than {MAX_PIECES} pieces")]
    Pieces,
    /// No room for the header, or for any payload in a buffer to be filled.
    #[error("a chain shorter than a packet")]
    Short,
    /// The header's `len` is more than what the chain holds.
    #[error("a header that promises more than the chain holds")]
    Length,
}

/// Pieces of guest memory, one after the other; every one has been checked to be the guest's.
#[derive(Debug)]
pub struct Pieces<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Pieces<'m> {
    /// The buffers of `chain`, which all have to be for the device to write, or all for it to read.
    fn of_chain(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        writable: bool,
    ) -> Result<Self, Malformed> {
        let mut pieces = Self {
            slices: Vec::with_capacity(2),
            len: 0,
        };
        for (index, descriptor) in chain.enumerate() {
            if index >= MAX_PIECES {
                return Err(Malformed::Pieces);
            }
            if descriptor.is_write_only() != writable {
                return Err(Malformed::Direction);
            }
            let len = usize::try_from(descriptor.len()).map_err(|_| Malformed::Memory)?;
            // A descriptor becomes several slices only where it crosses from one memory region into the next.
            for slice in GuestMemoryBackend::get_slices(memory, descriptor.addr(), len) {
                let slice = slice.map_err(|_| Malformed::Memory)?;
                pieces.len = pieces.len.checked_add(slice.len()).ok_or(Malformed::Memory)?;
                pieces.slices.push(slice);
            }
        }
        Ok(pieces)
    }

    /// The bytes in all pieces together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The pieces in order, none of them empty.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// The first `at` bytes and the rest; `None` when there are not as many.
    fn split_at(&self, at: usize) -> Option<(Self, Self)> {
        if at > self.len {
            return None;
        }
        let (mut front, mut back) = (Vec::with_capacity(1), Vec::with_capacity(self.slices.len()));
        let mut missing = at;
        for slice in &self.slices {
            let (one, other) = slice.split_at(missing.min(slice.len())).ok()?;
            missing -= one.len();
            front.extend((!one.is_empty()).then_some(one));
            back.extend((!other.is_empty()).then_some(other));
        }
        Some((
            Self {
                slices: front,
                len: at,
            },
            Self {
                slices: back,
                len: self.len - at,
            },
        ))
    }

    /// What follows the first `at` bytes; nothing when there are not as many.
    pub fn after(&self, at: usize) -> Self {
        self.split_at(at).map_or(
            Self {
                slices: Vec::new(),
                len: 0,
            },
            |(_, rest)| rest,
        )
    }

    /// The first `len` bytes, or all of them.
    pub fn first(&self, len: usize) -> Self {
        self.split_at(len.min(self.len)).map_or(
            Self {
                slices: Vec::new(),
                len: 0,
            },
            |(front, _)| front,
        )
    }

    /// Copies to `target` as much as there is, and as there is room for.
    pub fn copy_to(&self, mut target: &mut [u8]) {
        for slice in &self.slices {
            let copied = slice.copy_to(target);
            target = &mut target[copied..];
        }
    }

    /// Pieces of memory that is no guest's.
    #[cfg(test)]
    pub fn of_bytes(bytes: &'m mut [u8]) -> Self {
        let len = bytes.len();
        Self {
            slices: vec![VolatileSlice::from(bytes)],
            len,
        }
    }
}

/// A packet that the guest has sent: its header, read once, and its payload, which stays in guest memory.
#[derive(Debug)]
pub struct Received<'m> {
    /// The header; its `len` is [`Received::payload`]'s.
    pub header: Header,
    /// The payload, which the guest may still change.
    pub payload: Pieces<'m>,
}

impl<'m> Received<'m> {
    /// Takes the packet out of a chain of the transmit queue.
    ///
    /// # Errors
    /// The packet is to be dropped; no payload has been touched.
    pub fn from_chain(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<Self, Malformed> {
        let (front, rest) = Pieces::of_chain(memory, chain, false)?
            .split_at(HEADER_LEN)
            .ok_or(Malformed::Short)?;
        let mut bytes = [0; HEADER_LEN];
        front.copy_to(&mut bytes);
        let header = Header::from_wire(&bytes);
        let len = usize::try_from(header.len).map_err(|_| Malformed::Length)?;
        // Buffers may be longer than what is in them.
        let (payload, _) = rest.split_at(len).ok_or(Malformed::Length)?;
        Ok(Self { header, payload })
    }
}

/// A buffer of the guest's for one packet to it.
#[derive(Debug)]
pub struct Blank<'m> {
    header: Pieces<'m>,
    /// Room for the payload, at least one byte.
    pub payload: Pieces<'m>,
}

impl<'m> Blank<'m> {
    /// Takes the buffer out of a chain of the receive queue.
    ///
    /// # Errors
    /// No packet can be put into it.
    pub fn from_chain(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
    ) -> Result<Self, Malformed> {
        let (header, payload) = Pieces::of_chain(memory, chain, true)?
            .split_at(HEADER_LEN)
            .ok_or(Malformed::Short)?;
        if payload.len() == 0 {
            return Err(Malformed::Short);
        }
        Ok(Self { header, payload })
    }

    /// Writes the packet's header; returns how many bytes of the chain are in use with it.
    pub fn finish(&self, header: &Header) -> u32 {
        let bytes = header.to_wire();
        let mut rest = &bytes[..];
        for slice in self.header.slices() {
            let copied = rest.len().min(slice.len());
            // Cannot fail: no more is written than the slice is long.
            let _ = slice.write_slice(&rest[..copied], 0);
            rest = &rest[copied..];
        }
        // A header's length in u32; the sum can't overflow for the payload is bounded by a credit in u32 that no
        // chain of at most 4 GiB, header included, exceeds.
        header.len.saturating_add(44)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_wire() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 3,
            src_port: u32::MAX,
            dst_port: 1,
            len: 70_000,
            kind: TYPE_STREAM,
            op: Op::Shutdown.to_wire(),
            flags: SHUTDOWN_BOTH,
            buf_alloc: 9,
            fwd_cnt: 10,
        };
        let wire = header.to_wire();
        assert_eq!(wire[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(Header::from_wire(&wire), header);
    }

    #[test]
    fn operations_have_the_numbers_of_the_specification() {
        for number in 0..=u16::from(u8::MAX) {
            match Op::from_wire(number) {
                Some(op) => assert_eq!(op.to_wire(), number),
                None => assert!(!(1..=7).contains(&number)),
            }
        }
    }

    #[test]
    fn pieces_are_split_across_slices() {
        let (mut one, mut other) = ([1, 2, 3], [4, 5]);
        let pieces = Pieces {
            slices: vec![
                VolatileSlice::from(&mut one[..]),
                VolatileSlice::from(&mut other[..]),
            ],
            len: 5,
        };
        let mut bytes = [0; 5];
        pieces.first(4).copy_to(&mut bytes);
        assert_eq!(bytes, [1, 2, 3, 4, 0]);
        let mut bytes = [0; 5];
        pieces.after(3).copy_to(&mut bytes);
        assert_eq!(bytes, [4, 5, 0, 0, 0]);
        assert_eq!(pieces.after(3).slices().len(), 1);
        assert_eq!(pieces.after(6).len(), 0);
    }
}
