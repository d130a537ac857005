//! The threads for transfers that have to wait for a disk.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use vmm_sys_util::eventfd::EventFd;

use super::transfer::Transfer;
use crate::{thread::Thread, virtio::device::Memory};

/// Transfers that wait at once.
const MAX_THREADS: usize = 4;

/// A thread without work ends after this long.
const IDLE: Duration = Duration::from_secs(10);

/// What a thread's frames need.
const STACK: usize = 64 * 1024;

/// A transfer, and the chain that is used when it is done.
#[derive(Debug)]
pub struct Job {
    pub queue: usize,
    pub head: u16,
    pub transfer: Transfer,
}

/// A chain to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub queue: usize,
    pub head: u16,
    /// How many bytes were written to it.
    pub length: u32,
}

/// Threads, started when there is work for them.
#[derive(Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    memory: Memory,
    state: Mutex<State>,
    work: Condvar,
    /// Readable when something is done.
    event: EventFd,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl Pool {
    /// No threads yet. `event` becomes readable when something is done.
    pub fn new(memory: Memory, event: EventFd) -> Self {
        Self(Arc::new(Shared {
            memory,
            state: Mutex::default(),
            work: Condvar::new(),
            event,
        }))
    }

    /// Hands a job over. If no thread can be started to do it, it is done here.
    pub fn submit(&self, job: Job) {
        let mut state = self.0.state();
        state.jobs.push_back(job);
        if state.jobs.len() > state.idle && state.threads < MAX_THREADS {
            match start(&self.0) {
                Ok(()) => state.threads += 1,
                Err(_) if state.threads > 0 => {}
                Err(_) => {
                    let job = state.jobs.pop_back();
                    drop(state);
                    if let Some(job) = job {
                        self.0.run(job);
                    }
                    return;
                }
            }
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Takes what is done since the last time.
    pub fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.0.state().done)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.ended = true;
        state.jobs.clear();
        drop(state);
        self.0.work.notify_all();
    }
}

fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(Thread::FsIo.name().into())
        .stack_size(STACK)
        .spawn(move || {
            Thread::FsIo.confine();
            shared.work();
        })?;
    Ok(())
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                self.run(job);
                state = self.state();
                continue;
            }
            if state.ended {
                break;
            }
            state.idle += 1;
            let (back, waited) = self
                .work
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                break;
            }
        }
        state.threads -= 1;
    }

    fn run(&self, job: Job) {
        let length = job.transfer.finish(&self.memory);
        self.state().done.push(Done {
            queue: job.queue,
            head: job.head,
            length,
        });
        // Fails only if the counter is full, and then it is readable.
        let _ = self.event.write(1);
    }
}
