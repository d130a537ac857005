//! Code in somebody else's process: has a thread of it make system calls, as whoever has taken the process over would.

use std::{fs, io, os::unix::fs::FileExt, path::Path, ptr};

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What it returned; an error is its number, negative.
    Returned(i64),
    /// The process was ended by this signal.
    Killed(i32),
}

/// A thread that was taken over. When dropped, it goes on where it was.
#[derive(Debug)]
pub struct Intruder {
    thread: libc::pid_t,
    before: libc::user_regs_struct,
    /// Where there is an instruction `syscall`.
    instruction: u64,
    alive: bool,
}

impl Intruder {
    /// Takes over the thread of process `pid` whose name is `name`, by ptrace(2). Needs root.
    ///
    /// # Panics
    /// There is none, or it can't be had.
    #[must_use]
    pub fn in_thread(pid: u32, name: &str) -> Self {
        let thread = fs::read_dir(format!("/proc/{pid}/task"))
            .expect("the process is there")
            .map(|entry| entry.expect("its threads are listed").path())
            .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name))
            .unwrap_or_else(|| panic!("process {pid} has no thread {name}"));
        let thread: libc::pid_t = thread
            .file_name()
            .and_then(|number| number.to_str()?.parse().ok())
            .expect("threads are numbers");
        let instruction = find_instruction(pid).expect("the program makes system calls");
        // SAFETY: no memory is involved.
        unsafe {
            assert!(
                libc::ptrace(libc::PTRACE_SEIZE, thread, 0_usize, 0_usize) == 0,
                "{}",
                last()
            );
            assert!(
                libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0_usize, 0_usize) == 0,
                "{}",
                last()
            );
        }
        let mut intruder = Self {
            thread,
            // SAFETY: zeroes are valid registers.
            before: unsafe { std::mem::zeroed() },
            instruction,
            alive: true,
        };
        assert!(intruder.wait().is_ok(), "the thread ended");
        intruder.before = intruder.registers();
        intruder
    }

    /// Makes the thread call the kernel. Strings for its arguments can be left with [`Intruder::leave`].
    ///
    /// # Panics
    /// The process is gone.
    pub fn call(&mut self, number: libc::c_long, arguments: [u64; 6]) -> Outcome {
        let mut registers = self.before;
        registers.rip = self.instruction;
        registers.rax = number.cast_unsigned();
        // So that the kernel doesn't take it for the call that was interrupted.
        registers.orig_rax = u64::MAX;
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ] = arguments;
        self.set(&registers);
        loop {
            // SAFETY: no memory is involved.
            let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.thread, 0_usize, 0_usize) };
            assert!(stepped == 0, "{}", last());
            match self.wait() {
                Err(signal) => {
                    self.alive = false;
                    return Outcome::Killed(signal);
                }
                Ok(libc::SIGTRAP) => return Outcome::Returned(self.registers().rax.cast_signed()),
                // A signal of its own.
                Ok(_) => {}
            }
        }
    }

    /// Puts a string with its final zero on the thread's stack, below what is in use, and returns its address.
    ///
    /// # Panics
    /// It is too long.
    pub fn leave(&self, text: &str) -> u64 {
        let address = self.before.rsp - 4096;
        let bytes = [text.as_bytes(), &[0]].concat();
        assert!(bytes.len() < 2048);
        fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/mem", self.thread))
            .and_then(|memory| memory.write_all_at(&bytes, address))
            .expect("the stack can be written");
        address
    }

    /// The signal that it stopped with; an error: the one that ended it.
    fn wait(&self) -> Result<i32, i32> {
        let mut status = 0;
        // SAFETY: the status is a live local variable.
        let waited = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        assert_eq!(waited, self.thread, "{}", last());
        if libc::WIFSTOPPED(status) {
            Ok(libc::WSTOPSIG(status))
        } else if libc::WIFSIGNALED(status) {
            Err(libc::WTERMSIG(status))
        } else {
            Err(0)
        }
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: zeroes are valid registers, which the kernel overwrites.
        unsafe {
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            let got = libc::ptrace(
                libc::PTRACE_GETREGS,
                self.thread,
                ptr::null_mut::<u8>(),
                &raw mut registers,
            );
            assert!(got == 0, "{}", last());
            registers
        }
    }

    fn set(&self, registers: &libc::user_regs_struct) {
        // SAFETY: the kernel only reads.
        let set = unsafe {
            libc::ptrace(
                libc::PTRACE_SETREGS,
                self.thread,
                ptr::null_mut::<u8>(),
                ptr::from_ref(registers),
            )
        };
        assert!(set == 0, "{}", last());
    }
}

impl Drop for Intruder {
    fn drop(&mut self) {
        if self.alive {
            self.set(&self.before);
            // SAFETY: no memory is involved.
            unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, 0_usize, 0_usize) };
        }
    }
}

fn last() -> io::Error {
    io::Error::last_os_error()
}

/// The address of an instruction `syscall` in the program's own code.
fn find_instruction(pid: u32) -> Option<u64> {
    let process = Path::new("/proc").join(pid.to_string());
    let maps = fs::read_to_string(process.join("maps")).ok()?;
    let memory = fs::File::open(process.join("mem")).ok()?;
    maps.lines()
        .filter(|line| line.contains(" r-xp "))
        .find_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap_or(0));
            let mut code = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
            memory.read_exact_at(&mut code, start).ok()?;
            let at = code.windows(2).position(|bytes| bytes == [0x0f, 0x05])?;
            Some(start + at as u64)
        })
}
