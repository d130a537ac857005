//! `process.terminal`: a pseudo-terminal from the container's own devpts (pts(4)).
//!
//! The process opens it, for only the process has the container's files for its own; the master goes to the server.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    sys::{
        stat::{SFlag, fstat, makedev},
        statfs::fstatfs,
    },
    unistd::{Uid, fchown},
};
use sealock_protocol::seqpacket::SeqPacket;

use super::{
    channel::Report,
    failure::{Doing, Failure},
    namespaces::GuestProc,
    rootfs::{RootFs, kind},
};
use crate::{
    linux::{
        mount::{attach, clone_tree},
        terminal::set_size,
    },
    oci::TerminalSize,
};

/// Where a container has its terminals.
const MULTIPLEXER: &str = "/dev/pts/ptmx";

/// What programs know as the system's console.
const CONSOLE: &str = "/dev/console";

/// `/dev/ptmx`: the kernel's devices.txt.
const MULTIPLEXER_NUMBER: (u64, u64) = (5, 2);

/// The program's side of a terminal.
#[derive(Debug)]
pub struct Slave(OwnedFd);

/// Opens a terminal for the user `uid` and hands its master to the server.
///
/// # Errors
/// The container has no devpts at `/dev/pts`, or something else in its place.
pub fn open(
    rootfs: &RootFs,
    size: TerminalSize,
    uid: u32,
    proc: &GuestProc,
    channel: &SeqPacket,
) -> Result<Slave, Failure> {
    let doing = || format!("process.terminal: opening {MULTIPLEXER}");
    // The container may have put anything there: it is looked at before it is opened.
    let node = match rootfs.resolve_without_links(MULTIPLEXER) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => {
            return Err(Failure::Refused(
                "process.terminal: there is no /dev/pts/ptmx: is a devpts mounted at /dev/pts?".to_owned(),
            ));
        }
        node => node.doing(doing)?,
    };
    let number = makedev(MULTIPLEXER_NUMBER.0, MULTIPLEXER_NUMBER.1);
    let genuine = kind(&node).doing(doing)? == SFlag::S_IFCHR
        && fstat(&node).doing(doing)?.st_rdev == number
        && fstatfs(&node).doing(doing)?.filesystem_type().0 == libc::DEVPTS_SUPER_MAGIC;
    if !genuine {
        return Err(Failure::Refused(format!(
            "process.terminal: {MULTIPLEXER} is not the multiplexer of a devpts"
        )));
    }
    let how = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = proc.reopen(&node, how).doing(doing)?;
    let unlock: libc::c_int = 0;
    // SAFETY: the request reads one number, which outlives the call.
    Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })
        .doing(|| "process.terminal: unlocking")?;
    if size != TerminalSize::default() {
        set_size(&master, size.rows, size.columns).doing(|| "process.consoleSize")?;
    }
    // SAFETY: the request takes flags and answers a new descriptor, which is nobody else's.
    let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, how.bits()) })
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .doing(|| "process.terminal: opening the program's side")?;
    fchown(&slave, Some(Uid::from_raw(uid)), None).doing(|| "process.terminal: giving it to the user")?;
    channel
        .send(&Report::Terminal.encode(), &[master.as_fd()])
        .map_err(|error| Failure::Refused(format!("process.terminal: handing it over: {error}")))?;
    Ok(Slave(slave))
}

impl Slave {
    /// Makes it the container's console, too.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn mount_as_console(&self, rootfs: &RootFs) -> Result<(), Failure> {
        let doing = || format!("process.terminal: mounting it on {CONSOLE}");
        let place = rootfs.ensure_file(CONSOLE).doing(doing)?;
        let tree = clone_tree(&self.0, false).doing(doing)?;
        attach(tree, place).doing(doing)
    }

    /// Standard input, output and error, on the session's controlling terminal.
    ///
    /// # Errors
    /// The process has one already or leads no session.
    pub fn into_stdio(self) -> Result<[OwnedFd; 3], Failure> {
        let doing = || "process.terminal: making it the controlling terminal";
        // SAFETY: the request takes a number.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSCTTY, 0) }).doing(doing)?;
        let copy = || self.0.try_clone().doing(doing);
        Ok([copy()?, copy()?, self.0])
    }
}
