//! The virtual CPUs: a thread for each, which runs the guest and handles what KVM can't.

use std::{
    cell::Cell,
    io,
    ptr::null_mut,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use sealock_protocol::control::ExitReason;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    arch::x86_64::ports::Ports, coalesced::CoalescedWrites, ending::Ending, pci::bus::Bus, thread::Thread,
};

/// The stack of a vCPU's thread, in bytes.
const STACK: usize = 256 * 1024;

/// What the vCPUs reach outside of RAM.
pub struct Surroundings {
    /// The ports.
    pub ports: Ports,
    /// Writes to ports that come before any exit.
    pub coalesced: CoalescedWrites,
    /// The memory of PCI functions.
    pub pci: Arc<Bus>,
    /// To be told when the guest ends.
    pub ending: Ending,
    /// The vCPUs are to leave the guest for good, each between two instructions.
    pub pausing: AtomicBool,
}

/// The running vCPUs.
pub struct Vcpus {
    surroundings: Arc<Surroundings>,
    threads: Vec<JoinHandle<VcpuFd>>,
    /// Set when the guest may run.
    released: Arc<OnceLock<()>>,
    /// Held by every thread.
    running: Sender<()>,
    /// Closed when the last thread has ended.
    done: Receiver<()>,
}

impl Vcpus {
    /// None yet.
    ///
    /// # Errors
    /// The host refuses the signal that stops them.
    pub fn new(surroundings: Arc<Surroundings>) -> io::Result<Self> {
        register_signal_handler(SIGRTMIN(), leave_guest)?;
        let (running, done) = channel();
        Ok(Self {
            surroundings,
            threads: Vec::new(),
            released: Arc::default(),
            running,
            done,
        })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Lets the guest run.
    pub fn release(&self) {
        // Once is enough.
        let _ = self.released.set(());
    }

    /// Runs one more, once the guest may run.
    ///
    /// # Errors
    /// The host has no threads left.
    pub fn add(&mut self, vcpu: VcpuFd) -> io::Result<()> {
        let index = self.count();
        let surroundings = self.surroundings.clone();
        let released = self.released.clone();
        let running = self.running.clone();
        let thread = thread::Builder::new()
            .name(format!("{}{index}", Thread::Vcpu.name()))
            .stack_size(STACK)
            .spawn(move || {
                Thread::Vcpu.confine();
                released.wait();
                let vcpu = run(vcpu, index, &surroundings);
                drop(running);
                vcpu
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Stops the vCPUs between two instructions, for good, and hands them over in their order.
    pub fn pause(&mut self) -> Vec<VcpuFd> {
        self.surroundings.pausing.store(true, Ordering::Release);
        let threads = std::mem::take(&mut self.threads);
        for thread in &threads {
            // Fails only for a number that is no signal.
            let _ = thread.kill(SIGRTMIN());
        }
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    }

    /// Waits for the vCPUs to stop, at most as long as `patience`, after the machine's [`Ending`] has been told.
    pub fn stop(self, patience: Duration) {
        for thread in &self.threads {
            // Fails only for a number that is no signal.
            let _ = thread.kill(SIGRTMIN());
        }
        drop(self.running);
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.done.recv_timeout(left) {
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
                Ok(()) => {}
            }
        }
    }
}

thread_local! {
    /// What this thread shares with KVM, for the signal handler.
    static SHARED: Cell<*mut kvm_run> = const { Cell::new(null_mut()) };
}

/// Makes KVM_RUN return, now or as soon as it is called. Nothing is lost between looking whether the machine has ended
/// and entering the guest.
extern "C" fn leave_guest(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let shared = SHARED.get();
    if !shared.is_null() {
        // SAFETY: not null means that this thread's vCPU, which unmaps it, still exists (see `run`). KVM reads the byte
        // with every entry.
        unsafe { (&raw mut (*shared).immediate_exit).write_volatile(1) };
    }
}

/// What follows from an exit.
enum Next {
    Continue,
    /// It was not the guest's: whatever the guest had begun has been completed.
    Interrupted,
    End(ExitReason),
    Fail(String),
}

fn run(mut vcpu: VcpuFd, index: usize, surroundings: &Surroundings) -> VcpuFd {
    SHARED.set(vcpu.get_kvm_run());
    while surroundings.ending.reason().is_none() {
        let pausing = surroundings.pausing.load(Ordering::Acquire);
        if pausing {
            // An access that the last exit was for is only completed by entering KVM again (its api.rst, 5).
            vcpu.set_kvm_immediate_exit(1);
        }
        match step(&mut vcpu, surroundings) {
            Next::Interrupted if pausing => break,
            Next::Continue | Next::Interrupted => {}
            Next::End(reason) => surroundings.ending.end(reason, ""),
            Next::Fail(what) => {
                let rip = vcpu.get_regs().map_or(0, |registers| registers.rip);
                let detail = format!("virtual CPU {index} cannot go on at {rip:#x}: {what}");
                surroundings.ending.end(ExitReason::Host, detail);
            }
        }
    }
    SHARED.set(null_mut());
    vcpu
}

fn step(vcpu: &mut VcpuFd, surroundings: &Surroundings) -> Next {
    let exit = vcpu.run();
    surroundings
        .coalesced
        .carry_out(|port, data| surroundings.ports.write(port, data));
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => surroundings.ports.read(port, data),
        Ok(VcpuExit::IoOut(port, data)) => surroundings.ports.write(port, data),
        Ok(VcpuExit::MmioRead(address, data)) => surroundings.pci.read_memory(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => surroundings.pci.write_memory(address, data),
        Ok(VcpuExit::Intr) => {}
        Ok(VcpuExit::Shutdown) => return Next::End(ExitReason::TripleFault),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Next::End(ExitReason::Poweroff),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Next::End(ExitReason::Reboot),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => return Next::End(ExitReason::Panic),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return Next::Fail(format!(
                "the processor refused to enter the guest (reason {reason:#x}, CPU {cpu})"
            ));
        }
        Ok(VcpuExit::InternalError) => {
            // SAFETY: KVM has filled in this member of the union, as the exit reason says.
            let error = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
            return Next::Fail(format!("KVM's internal error {error}"));
        }
        Ok(other) => return Next::Fail(format!("KVM's exit {other:?}")),
        Err(error) => match error.errno() {
            // Signalled to stop, which the caller looks for.
            libc::EINTR => {
                vcpu.set_kvm_immediate_exit(0);
                return Next::Interrupted;
            }
            // A processor that waits to be started was woken up.
            libc::EAGAIN => {}
            _ => return Next::Fail(format!("KVM_RUN: {error}")),
        },
    }
    Next::Continue
}
