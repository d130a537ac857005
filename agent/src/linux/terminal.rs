//! Terminals (ioctl_tty(2)).

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use super::check;

/// Sets the size that programs see, in characters; those in the foreground hear of a change by SIGWINCH.
///
/// # Errors
/// It is no terminal.
pub fn set_size(terminal: impl AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the size is what this request reads, and outlives the call.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into())?;
    Ok(())
}
