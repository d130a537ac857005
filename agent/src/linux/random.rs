//! The kernel's random number generator (random(4)).

use std::{fs::File, io, os::fd::AsRawFd};

use super::check;

/// `_IOW('R', 0x03, int[2])`
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// The most bytes added at once.
pub const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info`
#[repr(C)]
struct Pool {
    entropy_bits: i32,
    size: i32,
    bytes: [u8; MAX_ENTROPY],
}

/// Adds random bytes, counts them as such, and has the generator begin anew from them.
///
/// # Errors
/// More than [`MAX_ENTROPY`] bytes, or the kernel refuses.
pub fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    let mut pool = Pool {
        entropy_bits: 0,
        size: 0,
        bytes: [0; MAX_ENTROPY],
    };
    let bytes = pool
        .bytes
        .get_mut(..entropy.len())
        .ok_or(io::ErrorKind::InvalidInput)?;
    bytes.copy_from_slice(entropy);
    pool.size = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    pool.entropy_bits = pool.size * 8;
    let device = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the pool is what the request reads, `size` bytes of it, and outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const pool) }.into())?;
    // SAFETY: the request takes nothing.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG, 0) }.into())?;
    Ok(())
}
