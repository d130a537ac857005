//! Streams to the host (vsock(7)).

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket},
};

/// The option that says how long connecting may take, a `struct timeval` (linux/vm_sockets.h,
/// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD`).
const CONNECT_TIMEOUT: libc::c_int = 6;

/// Begins to connect to a port of the host. The socket does not block; once it can be written to, `SO_ERROR` says what became of it.
/// The kernel gives up after `patience`; by itself it would after two seconds, which is short for a host with much to do.
///
/// # Errors
/// There is no vsock device, or no descriptor left.
pub fn begin_to_connect(port: u32, patience: Duration) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    let timeout = libc::timeval {
        tv_sec: patience.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: 0,
    };
    // SAFETY: the option takes such a structure, which outlives the call, and its size is the one given.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of_val(&timeout) as libc::socklen_t,
        )
    };
    super::check(set.into())?;
    match connect(stream.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, port)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(error) => Err(error.into()),
    }
}
