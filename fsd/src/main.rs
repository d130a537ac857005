//! `sealock-fsd SHARE`: serves the files below the directory SHARE to the VMM at the other end of standard input, a
//! `SOCK_SEQPACKET` socket (see `sealock_protocol::relay`).
//!
//! Started by the shim as root, before anything is mounted below SHARE, which is a mount point with shared propagation.

use std::{
    env,
    error::Error,
    ffi::OsString,
    io,
    os::fd::{FromRawFd, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use sealock_fsd::{jail, server::FileServer, share::Share};
use sealock_protocol::seqpacket::SeqPacket;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut line = error.to_string();
            let mut cause = error.source();
            while let Some(source) = cause {
                line = format!("{line}: {source}");
                cause = source.source();
            }
            eprintln!("sealock-fsd: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // SAFETY: nothing in this process has opened a descriptor yet: only standard input, output and error were passed on purpose.
    unsafe { sealock_jail::descriptors::close_inherited()? };
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let [share] = arguments.as_slice() else {
        return Err("usage: sealock-fsd SHARE, with the relay socket as standard input".into());
    };
    let socket = relay_socket()?;
    // A heap for each thread would cost more memory than four threads contend for; and for those the C library looks into files of the
    // host's, when it likes.
    // SAFETY: no memory is involved.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let proc_fds = jail::enter(&PathBuf::from(share))?;
    let share = Share::open("/".as_ref(), proc_fds)?;
    let server = FileServer::new(share, socket)?;
    jail::filter().install()?;
    server.run()?;
    Ok(())
}

fn relay_socket() -> Result<SeqPacket, Box<dyn Error>> {
    let mut kind: libc::c_int = 0;
    let mut size: libc::socklen_t = 4;
    // SAFETY: the option is an int, and its size is said.
    let result = unsafe {
        libc::getsockopt(
            libc::STDIN_FILENO,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut size,
        )
    };
    if result < 0 || kind != libc::SOCK_SEQPACKET {
        let reason = if result < 0 {
            io::Error::last_os_error().to_string()
        } else {
            String::from("another type")
        };
        return Err(format!("standard input is not a SOCK_SEQPACKET socket: {reason}").into());
    }
    // SAFETY: standard input is open, as we have just seen, and nobody else here uses it.
    Ok(SeqPacket::from(unsafe {
        OwnedFd::from_raw_fd(libc::STDIN_FILENO)
    }))
}
