//! `hooks`, run.

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    process::exit,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchdir, setsid},
};

use super::failure::{Doing, Failure, c_string, text};
use crate::{
    linux::process::{close_all_but, fork},
    oci::{Hook, Hooks, Status},
};

/// How much of a failed hook's output is told.
const MAX_OUTPUT: u64 = 512;

/// Runs the `createContainer` hooks: in the container's namespaces, and with the container's root as theirs, for it is there
/// that their programs are.
///
/// # Errors
/// The first one that fails.
pub fn create_container(hooks: &Hooks, root: BorrowedFd<'_>) -> Result<(), Failure> {
    let state = hooks.state(Status::Creating, std::process::id());
    hooks
        .create_container
        .iter()
        .try_for_each(|hook| run(hook, &state, Some(root)))
}

/// Runs the `startContainer` hooks: as the container's process, just before it executes its program.
///
/// # Errors
/// The first one that fails.
pub fn start_container(hooks: &Hooks) -> Result<(), Failure> {
    let state = hooks.state(Status::Created, std::process::id());
    hooks
        .start_container
        .iter()
        .try_for_each(|hook| run(hook, &state, None))
}

fn run(hook: &Hook, state: &[u8], root: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let doing = || format!("{}: running {}", hook.field, hook.path);
    let fail = |what: String| Failure::Refused(format!("{}: {} {what}", hook.field, hook.path));
    let file = || memfd_create(c"hook", MFdFlags::MFD_CLOEXEC).map(File::from);
    let mut input = file().doing(doing)?;
    input
        .write_all(state)
        .and_then(|()| input.rewind())
        .doing(doing)?;
    // A file, not a pipe: nobody has to read while the hook runs, and what it leaves running can't block.
    let mut output = file().doing(doing)?;
    let program = Program::of(hook)?;

    // The end of the hook, or of any other child, is then waited for with a deadline.
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    child_ended.thread_block().doing(doing)?;
    let child = fork().doing(doing)?;
    let Some(child) = child.map(Pid::from_raw) else {
        let Err(error) = program.execute(&input, &output, root);
        let _ = output.write_all(format!("can't be executed: {}", text(error)).as_bytes());
        exit(NOT_EXECUTED);
    };
    let ended = wait(child, hook.timeout, &child_ended);
    child_ended.thread_unblock().doing(doing)?;
    let ended = ended.doing(doing)?;
    let said = || {
        let mut bytes = Vec::new();
        let read = output
            .rewind()
            .and_then(|()| output.take(MAX_OUTPUT).read_to_end(&mut bytes));
        match read {
            Ok(_) if !bytes.is_empty() => format!(
                ": {}",
                String::from_utf8_lossy(&bytes).trim().replace('\n', " | ")
            ),
            _ => String::new(),
        }
    };
    match ended {
        Some(WaitStatus::Exited(_, 0)) => Ok(()),
        Some(WaitStatus::Exited(_, status)) => Err(fail(format!("ended with status {status}{}", said()))),
        Some(WaitStatus::Signaled(_, signal, _)) => Err(fail(format!("was ended by {signal}{}", said()))),
        _ => Err(fail(format!(
            "did not end within {} s{}",
            hook.timeout.unwrap_or_default(),
            said()
        ))),
    }
}

/// The status of a hook that could not be executed.
const NOT_EXECUTED: i32 = 127;

struct Program {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn of(hook: &Hook) -> Result<Self, Failure> {
        let all = |texts: &[String]| {
            texts
                .iter()
                .map(|text| c_string(text))
                .collect::<Result<Vec<_>, _>>()
        };
        let path = c_string(&hook.path)?;
        let mut args = all(&hook.args)?;
        if args.is_empty() {
            args.push(path.clone());
        }
        Ok(Self {
            path,
            args,
            env: all(&hook.env)?,
        })
    }

    fn execute(
        &self,
        input: &File,
        output: &File,
        root: Option<BorrowedFd<'_>>,
    ) -> Result<std::convert::Infallible, Errno> {
        setsid()?;
        SigSet::empty().thread_set_mask()?;
        if let Some(root) = root {
            fchdir(root)?;
            chroot(".")?;
            chdir("/")?;
        }
        dup2_stdin(input)?;
        dup2_stdout(output)?;
        dup2_stderr(output)?;
        close_all_but(&[0, 1, 2, output.as_fd().as_raw_fd()])
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        execve(&self.path, &self.args, &self.env)
    }
}

/// Waits for the child's end; `None` when it took too long and was killed, with its session.
fn wait(child: Pid, timeout: Option<u32>, child_ended: &SigSet) -> nix::Result<Option<WaitStatus>> {
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::StillAlive => {}
            ended => return Ok(Some(ended)),
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            // Of the session first: when its leader has not begun it yet there is none.
            let _ = kill(Pid::from_raw(-child.as_raw()), Signal::SIGKILL);
            let _ = kill(child, Signal::SIGKILL);
            waitpid(child, None)?;
            return Ok(None);
        }
        wait_for_signal(child_ended, left)?;
    }
}

fn wait_for_signal(set: &SigSet, left: Option<Duration>) -> nix::Result<()> {
    let time = left.map(|left| libc::timespec {
        // A 32-bit number of seconds, and less than a second of nanoseconds.
        tv_sec: left.as_secs() as libc::time_t,
        tv_nsec: left.subsec_nanos().into(),
    });
    let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the set and the time, if there is one, outlive the call; no information is asked for.
    let result = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), time) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<u32>) -> Hook {
        Hook {
            field: "hooks.startContainer[0]".to_owned(),
            path: "/bin/sh".to_owned(),
            args: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
            env: vec!["COLOUR=green".to_owned()],
            timeout,
        }
    }

    /// Runs in a process of its own, as containers do: with a single thread.
    fn alone(hook: &Hook) -> Result<(), String> {
        let file = memfd_create(c"result", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut result = File::from(file);
        let Some(child) = fork().unwrap() else {
            let message = run(hook, b"{\"id\":\"c1\"}", None)
                .map_or_else(|failure| failure.to_string(), |()| String::new());
            let _ = result.write_all(message.as_bytes());
            // SAFETY: ends the process at once, without the test harness's clean-up.
            unsafe { libc::_exit(0) };
        };
        waitpid(Pid::from_raw(child), None).unwrap();
        let mut message = String::new();
        result.rewind().unwrap();
        result.read_to_string(&mut message).unwrap();
        if message.is_empty() { Ok(()) } else { Err(message) }
    }

    #[test]
    fn a_hook_reads_the_state_and_has_no_other_environment() {
        alone(&hook(
            r#"read state; test "$state" = '{"id":"c1"}' && test "$COLOUR" = green && test -z "$HOME""#,
            None,
        ))
        .unwrap();
    }

    #[test]
    fn a_hook_that_fails_is_named_with_what_it_said() {
        assert_eq!(
            alone(&hook("echo no >&2; echo way; exit 3", Some(20))).unwrap_err(),
            "hooks.startContainer[0]: /bin/sh ended with status 3: no | way"
        );
        let missing = Hook {
            path: "/nonexistent".to_owned(),
            ..hook("", None)
        };
        assert_eq!(
            alone(&missing).unwrap_err(),
            "hooks.startContainer[0]: /nonexistent ended with status 127: can't be executed: no such file or directory"
        );
    }

    #[test]
    fn a_hook_that_hangs_is_ended_with_all_its_processes() {
        let error = alone(&hook("sleep 1000 & sleep 1000", Some(1))).unwrap_err();
        assert_eq!(error, "hooks.startContainer[0]: /bin/sh did not end within 1 s");
    }
}
