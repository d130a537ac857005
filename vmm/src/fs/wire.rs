//! As much of the FUSE protocol (linux/fuse.h, 7.31 and later) as the device looks at. Numbers are the host's byte
//! order, which is the guest's.

/// `struct fuse_in_header`.
pub const IN_HEADER: usize = 40;
/// `struct fuse_out_header`.
pub const OUT_HEADER: usize = 16;
/// `struct fuse_read_in` and `struct fuse_write_in`: the fields that matter are at the same places.
pub const TRANSFER_IN: usize = 40;
/// `struct fuse_write_out`.
pub const WRITE_OUT: usize = 8;
/// `struct fuse_entry_out`, which comes before `struct fuse_open_out` in an answer to `FUSE_CREATE`.
const ENTRY_OUT: usize = 128;
/// `struct fuse_release_in`.
const RELEASE_IN: usize = 24;

pub const FORGET: u32 = 2;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const RELEASE: u32 = 18;
pub const INIT: u32 = 26;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;

/// A page of a mapping is written back, through whatever handle the guest kernel found (`FUSE_WRITE_CACHE`).
pub const WRITE_CACHE: u32 = 1;

/// The largest error number (`MAX_ERRNO`).
const MAX_ERRNO: i32 = 4095;

/// What every request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InHeader {
    pub length: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
}

impl InHeader {
    pub fn parse(bytes: &[u8; IN_HEADER]) -> Self {
        Self {
            length: u32_at(bytes, 0),
            opcode: u32_at(bytes, 4),
            unique: u64_at(bytes, 8),
            node: u64_at(bytes, 16),
        }
    }
}

/// The arguments of `FUSE_READ` and `FUSE_WRITE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferIn {
    pub handle: u64,
    pub offset: u64,
    pub size: u32,
    /// `FUSE_READ_…` or `FUSE_WRITE_…`.
    pub fuse_flags: u32,
    /// The flags the guest's file was opened with (open(2)).
    pub file_flags: i32,
}

impl TransferIn {
    pub fn parse(bytes: &[u8; TRANSFER_IN]) -> Self {
        Self {
            handle: u64_at(bytes, 0),
            offset: u64_at(bytes, 8),
            size: u32_at(bytes, 16),
            fuse_flags: u32_at(bytes, 20),
            file_flags: u32_at(bytes, 32).cast_signed(),
        }
    }
}

/// What every answer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutHeader {
    pub length: u32,
    /// 0, or a negative error number.
    pub error: i32,
    pub unique: u64,
}

impl OutHeader {
    pub fn parse(bytes: &[u8; OUT_HEADER]) -> Self {
        Self {
            length: u32_at(bytes, 0),
            error: u32_at(bytes, 4).cast_signed(),
            unique: u64_at(bytes, 8),
        }
    }

    /// Whether the header is what an answer of `length` bytes may begin with.
    pub fn is_valid(&self, length: usize) -> bool {
        let errors = -MAX_ERRNO..=0;
        self.length as usize == length
            && errors.contains(&self.error)
            && (self.error == 0 || length == OUT_HEADER)
    }

    pub fn to_bytes(self) -> [u8; OUT_HEADER] {
        let mut bytes = [0; OUT_HEADER];
        bytes[0..4].copy_from_slice(&self.length.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.unique.to_ne_bytes());
        bytes
    }
}

/// The file handle in a request to release one.
pub fn released_handle(request: &[u8]) -> Option<u64> {
    request
        .get(IN_HEADER..IN_HEADER + RELEASE_IN)
        .map(|arguments| u64_at(arguments, 0))
}

/// The node and the file handle in a successful answer to `FUSE_OPEN` (of `node`) or `FUSE_CREATE`.
pub fn opened(opcode: u32, node: u64, answer: &[u8]) -> Option<(u64, u64)> {
    let (node, at) = match opcode {
        OPEN => (node, OUT_HEADER),
        CREATE => (
            answer
                .get(OUT_HEADER..OUT_HEADER + 8)
                .map(|node| u64_at(node, 0))?,
            OUT_HEADER + ENTRY_OUT,
        ),
        _ => return None,
    };
    let handle = answer.get(at..at + 8)?;
    Some((node, u64_at(handle, 0)))
}

/// A request of the device's own, to release a handle that the guest will not hear of.
pub fn release(unique: u64, node: u64, handle: u64) -> [u8; IN_HEADER + RELEASE_IN] {
    let mut request = [0; IN_HEADER + RELEASE_IN];
    let length = u32::try_from(request.len()).expect("64 fits");
    request[0..4].copy_from_slice(&length.to_ne_bytes());
    request[4..8].copy_from_slice(&RELEASE.to_ne_bytes());
    request[8..16].copy_from_slice(&unique.to_ne_bytes());
    request[16..24].copy_from_slice(&node.to_ne_bytes());
    request[IN_HEADER..IN_HEADER + 8].copy_from_slice(&handle.to_ne_bytes());
    request
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
