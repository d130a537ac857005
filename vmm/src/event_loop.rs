//! The threads that devices run on: one shared event loop, and one each for devices whose system calls can block.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};
use sealock_protocol::control::ExitReason;

use crate::{ending::Ending, thread::Thread, virtio::device::EventLoop};

/// What an event loop serves.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The stack of a thread that serves devices, in bytes.
const STACK: usize = 256 * 1024;

/// The event loops of a machine.
pub struct EventLoops {
    /// Started with its first device, so that no thread exists before the process has confined itself.
    shared: OnceLock<Loop>,
    ending: Ending,
}

/// An active device on its loop.
pub struct Running {
    subscriber: SubscriberId,
    /// A loop of the device's own.
    own: Option<Loop>,
}

impl EventLoops {
    /// The loops of the machine that `ending` belongs to: a loop that fails ends it.
    #[must_use]
    pub fn new(ending: Ending) -> Self {
        Self {
            shared: OnceLock::new(),
            ending,
        }
    }

    /// Starts the shared loop, which otherwise happens with the first device.
    ///
    /// # Errors
    /// The host has no descriptors or threads left.
    pub fn start(&self) -> io::Result<()> {
        self.shared().map(drop)
    }

    fn shared(&self) -> io::Result<&Loop> {
        if let Some(shared) = self.shared.get() {
            return Ok(shared);
        }
        let new = Loop::spawn(Thread::Devices, self.ending.clone())?;
        if let Err(other) = self.shared.set(new) {
            other.stop();
        }
        self.shared.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Puts a device on the loop it asks for. Not to be called from a device.
    ///
    /// # Errors
    /// The host has no descriptors or threads left.
    pub fn add(&self, kind: EventLoop, subscriber: Subscriber) -> io::Result<Running> {
        match kind {
            EventLoop::Shared => Ok(Running {
                subscriber: self.shared()?.add(subscriber)?,
                own: None,
            }),
            EventLoop::Own(thread) => {
                let own = self.shared()?.spawn_other(thread, self.ending.clone())?;
                Ok(Running {
                    subscriber: own.add(subscriber)?,
                    own: Some(own),
                })
            }
        }
    }

    /// Takes a device off its loop and drops it; when this returns, it no longer runs. Not to be called from a device.
    pub fn remove(&self, running: Running) {
        match running.own {
            Some(own) => own.stop(),
            None => {
                if let Some(shared) = self.shared.get() {
                    shared.remove(running.subscriber);
                }
            }
        }
    }
}

/// Why a loop wasn't started.
#[derive(Debug)]
enum NotSpawned {
    /// The host has no descriptors or threads left.
    Host(io::Error),
    /// The loop that was to do it is gone.
    Loop(event_manager::Error),
}

impl From<event_manager::Error> for NotSpawned {
    fn from(error: event_manager::Error) -> Self {
        Self::Loop(error)
    }
}

struct Loop {
    endpoint: RemoteEndpoint<Subscriber>,
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Loop {
    fn spawn(kind: Thread, ending: Ending) -> io::Result<Self> {
        let mut manager = EventManager::<Subscriber>::new().map_err(io::Error::other)?;
        let endpoint = manager.remote_endpoint();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = thread::Builder::new()
            .name(kind.name().to_owned())
            .stack_size(STACK)
            .spawn(move || {
                kind.confine();
                while !stop.load(Ordering::Acquire) {
                    if let Err(error) = manager.run() {
                        ending.end(ExitReason::Host, format!("an event loop failed: {error}"));
                        return;
                    }
                }
            })?;
        Ok(Self {
            endpoint,
            stopping,
            thread,
        })
    }

    /// Starts another loop from this one's thread: the thread that asks, a virtual CPU's, has no right to.
    fn spawn_other(&self, kind: Thread, ending: Ending) -> io::Result<Self> {
        let spawned: Result<Self, NotSpawned> = self
            .endpoint
            .call_blocking(move |_| Self::spawn(kind, ending).map_err(NotSpawned::Host));
        spawned.map_err(|error| match error {
            NotSpawned::Host(error) => error,
            NotSpawned::Loop(error) => io::Error::other(error),
        })
    }

    fn add(&self, subscriber: Subscriber) -> io::Result<SubscriberId> {
        self.endpoint
            .call_blocking(|loops| Ok::<_, event_manager::Error>(loops.add_subscriber(subscriber)))
            .map_err(io::Error::other)
    }

    fn remove(&self, subscriber: SubscriberId) {
        // Fails when the loop has ended: then the device runs no longer.
        let removed = self
            .endpoint
            .call_blocking(move |loops| loops.remove_subscriber(subscriber));
        drop(removed);
    }

    fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        // Fails when the loop has ended already.
        let _ = self.endpoint.kick();
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    struct Device {
        kick: EventFd,
        thread: Sender<String>,
    }

    impl MutEventSubscriber for Device {
        fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
            self.kick.read().unwrap();
            self.thread
                .send(thread::current().name().unwrap().to_owned())
                .unwrap();
        }

        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.kick, EventSet::IN)).unwrap();
        }
    }

    fn device() -> (Subscriber, EventFd, Receiver<String>) {
        let kick = EventFd::new(0).unwrap();
        let (thread, names) = channel();
        let device = Device {
            kick: kick.try_clone().unwrap(),
            thread,
        };
        (Box::new(device), kick, names)
    }

    #[test]
    fn devices_run_on_the_loop_they_ask_for_until_removed() {
        let loops = EventLoops::new(Ending::new().unwrap());
        for (kind, name) in [
            (EventLoop::Shared, "devices"),
            (EventLoop::Own(Thread::Net), "net"),
        ] {
            let (device, kick, names) = device();
            let running = loops.add(kind, device).unwrap();
            kick.write(1).unwrap();
            assert_eq!(names.recv().unwrap(), name);
            loops.remove(running);
            kick.write(1).unwrap();
            assert!(names.recv().is_err(), "the device has been dropped");
        }
    }
}
