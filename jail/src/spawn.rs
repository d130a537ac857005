//! Starting a program as the first process of a process id namespace (pid_namespaces(7)): it sees no other process, and can
//! signal or trace none.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// A process that was started.
#[derive(Debug)]
pub struct Spawned {
    /// Its number, as the caller sees it.
    pub pid: u32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
}

/// The stack on which the new process runs until it executes its program: it calls a few system calls.
const STACK: usize = 64 * 1024;

/// Signals are 1 to this (signal(7)).
const LAST_SIGNAL: libc::c_int = 64;

/// What the new process reads, in the caller's memory, which it shares until it has executed its program.
struct Plan {
    program: *const c_char,
    arguments: *const *const c_char,
    streams: [RawFd; 3],
    /// 0, or why the program could not be executed.
    error: libc::c_int,
}

/// Starts `program` with `arguments`, of which the first is its own name, an empty environment, in the root directory, with
/// `streams` as its standard input, output and error, and with the signals' defaults. It dies with the calling thread
/// (prctl(2), `PR_SET_PDEATHSIG`). The caller is to reap it.
///
/// # Errors
/// It can't be executed, or the caller isn't root.
pub fn spawn(program: &CStr, arguments: &[CString], streams: [BorrowedFd<'_>; 3]) -> io::Result<Spawned> {
    let arguments: Vec<*const c_char> = arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([ptr::null()])
        .collect();
    // Those that are in the way of others get another number.
    let moved = streams
        .iter()
        .map(|stream| move_up(*stream))
        .collect::<io::Result<Vec<_>>>()?;
    let mut raw = streams.map(|stream| stream.as_raw_fd());
    for (raw, moved) in raw.iter_mut().zip(&moved) {
        if let Some(moved) = moved {
            *raw = moved.as_raw_fd();
        }
    }
    let mut plan = Plan {
        program: program.as_ptr(),
        arguments: arguments.as_ptr(),
        streams: raw,
        error: 0,
    };
    let mut stack = vec![0_u8; STACK];
    let top = stack.as_mut_ptr_range().end;
    let top = top.wrapping_sub(top.addr() % 16);
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_NEWPID | libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;

    // No handler of this process may run in the new one, whose memory is this one's.
    let before = block_signals();
    // SAFETY: this thread waits until the new process has executed its program or ended (CLONE_VFORK), so that the plan, the
    // stack and what they refer to outlive its use of them; `execute` touches nothing else. The stack grows down from
    // `top`, and the pidfd is where CLONE_PIDFD wants it.
    let pid = unsafe { libc::clone(execute, top.cast(), flags, (&raw mut plan).cast(), &raw mut pidfd) };
    let failed = io::Error::last_os_error();
    restore_signals(&before);
    let Ok(pid @ 1..) = u32::try_from(pid) else {
        return Err(failed);
    };
    // SAFETY: the kernel has just made the descriptor for us alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    // SAFETY: the plan is a live local variable; another process has written it, which the compiler need not know.
    let error = unsafe { (&raw const plan.error).read_volatile() };
    if error != 0 {
        // It has ended. Fails only if somebody else reaps all children.
        // SAFETY: no status is written.
        unsafe { libc::waitpid(pid.cast_signed(), ptr::null_mut(), 0) };
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(Spawned { pid, pidfd })
}

/// A duplicate of a stream with a number that is no standard stream's, if it has one of those.
fn move_up(stream: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    if stream.as_raw_fd() > libc::STDERR_FILENO {
        return Ok(None);
    }
    // SAFETY: no memory is involved.
    let raw = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us alone.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) }))
}

fn block_signals() -> libc::sigset_t {
    // SAFETY: zeroes are a valid signal set, and both sets are live local variables.
    unsafe {
        let (mut all, mut before) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: the set is live.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

/// The new process, on its own stack, in the caller's memory. Only system calls from here on.
extern "C" fn execute(plan: *mut c_void) -> libc::c_int {
    let plan: *mut Plan = plan.cast();
    let environment: [*const c_char; 1] = [ptr::null()];
    // SAFETY: the plan is the caller's, who waits. All strings are NUL-terminated and all arrays end with a null.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        let mut default: libc::sigaction = mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=LAST_SIGNAL {
            // Fails for those that can't be changed.
            libc::sigaction(signal, &raw const default, ptr::null_mut());
        }
        for (to, from) in (0..).zip((*plan).streams) {
            if libc::dup2(from, to) < 0 {
                return give_up(plan);
            }
        }
        if libc::chdir(c"/".as_ptr()) < 0 {
            return give_up(plan);
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve((*plan).program, (*plan).arguments, environment.as_ptr());
    }
    give_up(plan)
}

fn give_up(plan: *mut Plan) -> libc::c_int {
    let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: as in `execute`; nothing of the caller's is unwound or run.
    unsafe {
        (&raw mut (*plan).error).write_volatile(error);
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, pipe},
        os::fd::AsFd,
    };

    use super::*;

    fn shell(script: &str) -> (Spawned, String) {
        let null = File::open("/dev/null").unwrap();
        let (mut output, writer) = pipe().unwrap();
        let arguments = [c"sh".to_owned(), c"-c".to_owned(), CString::new(script).unwrap()];
        let streams = [null.as_fd(), writer.as_fd(), writer.as_fd()];
        let spawned = spawn(c"/bin/sh", &arguments, streams).expect("these tests need root");
        drop(writer);
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        let mut status = 0;
        // SAFETY: the status is a live local variable.
        unsafe { libc::waitpid(spawned.pid.cast_signed(), &raw mut status, 0) };
        assert_eq!(status, 0, "{said}");
        (spawned, said)
    }

    #[test]
    fn the_process_is_the_first_of_its_own_with_nothing_inherited() {
        let (_, said) = shell("echo $$ \"$PWD\" \"$HOME\"; trap; kill -0 2 2>/dev/null || echo alone");
        assert_eq!(said, "1 / \nalone\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let null = File::open("/dev/null").unwrap();
        let error = spawn(c"/nonexistent", &[c"x".to_owned()], [null.as_fd(); 3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
