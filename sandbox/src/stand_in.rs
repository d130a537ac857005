//! What stands for a container on the host.
//!
//! Container engines name a container by the number of its first process, and one container's namespace by a path of that
//! process's (`kubectl debug --target`: `/proc/NUMBER/ns/pid`). On the host there is no such process. So that containers of a
//! pod can be told apart all the same, each has a number of its own: that of a thread which only waits. The kernel gives the
//! number to nobody else while the thread is there, and `/proc` has a directory for it. To kill it is to kill the pod, as with
//! the monitor's number, which stands for the pod's first container.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

/// Room for a thread that calls two functions.
const STACK: usize = 64 << 10;

/// Those of a pod.
#[derive(Clone, Debug, Default)]
pub struct StandIns(Arc<Mutex<Vec<(u32, String)>>>);

impl StandIns {
    /// Starts one for `container`, which is known as its from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(&self, container: &str) -> io::Result<StandIn> {
        let mut stand_in = StandIn::start()?;
        self.list().push((stand_in.pid, container.to_owned()));
        stand_in.known_to = self.clone();
        Ok(stand_in)
    }

    /// The numbers, and the containers that they stand for.
    #[must_use]
    pub fn all(&self) -> Vec<(u32, String)> {
        self.list().clone()
    }

    fn list(&self) -> MutexGuard<'_, Vec<(u32, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that stands for a container. It ends when this is dropped.
#[derive(Debug)]
pub struct StandIn {
    pid: u32,
    known_to: StandIns,
    /// Nothing is ever sent; closed, it ends the thread.
    hold: Option<mpsc::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl StandIn {
    fn start() -> io::Result<Self> {
        let (hold, held) = mpsc::channel();
        let (tell, told) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("container".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let _ = tell.send(nix::unistd::gettid().as_raw());
                // Ends with an error, when the other end is gone.
                let _ = held.recv();
            })?;
        let pid = told
            .recv()
            .ok()
            .and_then(|pid| u32::try_from(pid).ok())
            .ok_or_else(|| io::Error::other("the thread for a container ended at once"))?;
        Ok(Self {
            pid,
            known_to: StandIns::default(),
            hold: Some(hold),
            thread: Some(thread),
        })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.known_to.list().retain(|(pid, _)| *pid != self.pid);
        drop(self.hold.take());
        if let Some(thread) = self.thread.take() {
            // Nothing in it panics.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn each_has_a_number_of_its_own_that_is_gone_with_it() {
        let all = StandIns::default();
        let (one, other) = (all.start("one").unwrap(), all.start("other").unwrap());
        assert_ne!(one.pid(), other.pid());
        let namespace = format!("/proc/{}/ns/pid", one.pid());
        assert_eq!(
            fs::read_link(&namespace).unwrap(),
            fs::read_link("/proc/self/ns/pid").unwrap()
        );
        drop(one);
        assert!(!Path::new(&namespace).exists());
        assert_eq!(all.all(), [(other.pid(), "other".to_owned())]);
    }
}
