//! User namespaces (user_namespaces(7)).

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
    unistd::{Pid, pipe2},
};

use super::process::fork;
use crate::oci::{IdMappings, map_text};

/// Writes a process's mappings; `directory` is the process's below the guest's `/proc`.
///
/// # Errors
/// The process has no new user namespace, or the kernel refuses a range.
pub fn map(directory: &str, mappings: &IdMappings) -> io::Result<()> {
    for (file, ranges) in [("uid_map", &mappings.users), ("gid_map", &mappings.groups)] {
        // One write: the kernel takes what comes with it for all there is.
        File::options()
            .write(true)
            .open(format!("{directory}/{file}"))?
            .write_all(map_text(ranges).as_bytes())?;
    }
    Ok(())
}

/// Makes a user namespace with these mappings in which no process is. `/proc` has to be the guest's. To be called by a
/// process with a single thread.
///
/// # Errors
/// The kernel refuses a range, or has no process to spare.
pub fn create(mappings: &IdMappings) -> io::Result<OwnedFd> {
    let (mut said, saying) = pair()?;
    let (mut told, telling) = pair()?;
    let Some(child) = fork()? else {
        drop((said, telling));
        hold(saying, &mut told);
    };
    drop((saying, told));
    let made = (|| {
        let mut pid = String::new();
        said.read_to_string(&mut pid)?;
        // The number is that of the guest's `/proc`, not of the caller's own namespace.
        if pid.is_empty() || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        map(&format!("/proc/{pid}"), mappings)?;
        File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
    })();
    drop(telling);
    waitpid(Pid::from_raw(child), None)?;
    made
}

fn pair() -> io::Result<(File, File)> {
    let (reading, writing) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((reading.into(), writing.into()))
}

/// The namespace's first process: says who it is, and is there until the pipe is closed.
fn hold(mut saying: File, told: &mut File) -> ! {
    if let Ok(()) = unshare(CloneFlags::CLONE_NEWUSER)
        && let Ok(me) = fs::read_link("/proc/self")
    {
        // What was not said is not heard: the parent makes an error of it.
        let _ = saying.write_all(me.as_os_str().as_encoded_bytes());
        drop(saying);
        let _ = told.read(&mut [0]);
    }
    // SAFETY: ends the process at once; it shares nothing with its parent.
    unsafe { libc::_exit(0) }
}
