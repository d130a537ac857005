//! The device: queues and events.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use sealock_protocol::seqpacket::SeqPacket;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{QueueOwnedT, QueueT};

use super::{
    connection::QuietConnection,
    muxer::Muxer,
    packet::{Blank, Received},
};
use crate::{
    template::{Mismatch, NotAtRest},
    virtio::device::{ActivateError, Activation, ActiveQueue, Broken, Memory, Part, VirtioDevice},
};

/// The queues (virtio 1.2, 5.10.2): for packets to the guest, from the guest, and for events.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, 5.10.3).
const F_STREAM: u64 = 1 << 0;

/// Chains of one queue handled before other devices have their turn.
const CHAINS_AT_ONCE: usize = 64;

/// How long the shim and the guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// virtio-vsock, stream sockets only (virtio 1.2, 5.10).
///
/// It makes no system call in the thread that activates it: everything it needs it has from the start.
pub struct Vsock {
    guest_cid: u64,
    muxer: Arc<Mutex<Muxer>>,
}

impl Vsock {
    /// The device of the guest with the context id `guest_cid`. The shim is at the other end of `broker`; when it
    /// closes that, connections stay and no new ones are made.
    ///
    /// # Errors
    /// The host has no descriptors left, or the socket can't be made non-blocking.
    pub fn new(broker: SeqPacket, guest_cid: u64) -> io::Result<Self> {
        Self::with_patience(broker, guest_cid, PATIENCE)
    }

    pub(super) fn with_patience(broker: SeqPacket, guest_cid: u64, patience: Duration) -> io::Result<Self> {
        let muxer = Muxer::new(broker, guest_cid, patience)?;
        Ok(Self {
            guest_cid,
            muxer: Arc::new(Mutex::new(muxer)),
        })
    }

    #[cfg(test)]
    pub(super) fn muxer(&self) -> Arc<Mutex<Muxer>> {
        Arc::clone(&self.muxer)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let cid = self.guest_cid.to_le_bytes();
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(cid.len());
        for (to, from) in data.iter_mut().zip(&cid[start..]) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Part>, ActivateError> {
        let mut queues = activation.queues.into_iter().enumerate();
        let mut next = |expected: usize, needed: bool| match queues.next() {
            Some((index, queue)) if index == expected && (queue.queue.ready() || !needed) => Ok(queue),
            _ => Err(ActivateError::QueueNotEnabled(expected)),
        };
        let receive = next(RECEIVE, true)?;
        let transmit = next(TRANSMIT, true)?;
        // Events would tell that all connections are gone: a restored machine keeps its own.
        let _event = next(EVENT, false)?;
        Ok(vec![Part::shared(Active {
            memory: activation.memory,
            receive,
            transmit,
            receive_broken: false,
            transmit_broken: false,
            transmit_waits: false,
            muxer: Arc::clone(&self.muxer),
        })])
    }

    fn reset(&mut self) {
        lock(&self.muxer).clear();
    }

    fn save(&self) -> Result<Vec<u8>, NotAtRest> {
        let failed = |what: &str| NotAtRest(format!("vsock {what}"));
        let connections = lock(&self.muxer).save().map_err(failed)?;
        postcard::to_allocvec(&connections).map_err(|error| failed(&error.to_string()))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Mismatch> {
        let connections: Vec<QuietConnection> =
            postcard::from_bytes(state).map_err(|_| Mismatch::Damaged("its connections make no sense"))?;
        lock(&self.muxer).restore(&connections);
        Ok(())
    }
}

/// The device while a driver uses it.
struct Active {
    memory: Memory,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// The driver has made nonsense of a queue: it is not looked at again.
    receive_broken: bool,
    transmit_broken: bool,
    /// The transmit queue may hold packets that have not been looked at.
    transmit_waits: bool,
    muxer: Arc<Mutex<Muxer>>,
}

impl Active {
    /// Serves both queues, each for one turn.
    fn serve(&mut self) {
        let muxer = Arc::clone(&self.muxer);
        let mut muxer = lock(&muxer);
        if self.transmit_waits {
            self.serve_transmit(&mut muxer);
        }
        muxer.finish();
        self.serve_receive(&mut muxer);
        muxer.finish();
        // Either the turn was over or the guest had left too many answers lying and has now taken some.
        if self.transmit_waits && muxer.takes_packets() {
            self.transmit.come_back();
        }
    }

    /// Handles the packets that the guest has sent.
    fn serve_transmit(&mut self, muxer: &mut Muxer) {
        let memory = Arc::clone(&self.memory);
        let mut used = false;
        for _ in 0..CHAINS_AT_ONCE {
            if self.transmit_broken || !muxer.takes_packets() {
                break;
            }
            match self.transmit.next_chain(&memory) {
                Ok(Some(chain)) => {
                    let head = chain.head_index();
                    // One that is no packet is dropped.
                    if let Ok(packet) = Received::from_chain(&memory, chain) {
                        muxer.receive(&packet);
                    }
                    self.transmit_broken = self.transmit.queue.add_used(&*memory, head, 0).is_err();
                    used = true;
                }
                Ok(None) => {
                    self.transmit_waits = false;
                    break;
                }
                Err(Broken) => self.transmit_broken = true,
            }
        }
        self.transmit_waits &= !self.transmit_broken;
        if used {
            self.transmit.notify_driver(&memory);
        }
    }

    /// Fills the buffers of the guest with what there is for it.
    fn serve_receive(&mut self, muxer: &mut Muxer) {
        let memory = Arc::clone(&self.memory);
        let mut used = false;
        let mut turns = CHAINS_AT_ONCE;
        while muxer.wants_buffer() && !self.receive_broken {
            if turns == 0 {
                self.receive.come_back();
                break;
            }
            turns -= 1;
            let chain = match self.receive.next_chain(&memory) {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(Broken) => {
                    self.receive_broken = true;
                    break;
                }
            };
            let head = chain.head_index();
            let queue = &mut self.receive.queue;
            let len = match Blank::from_chain(&memory, chain) {
                Ok(blank) => match muxer.fill(&blank.payload) {
                    Some(header) => blank.finish(&header),
                    None => {
                        queue.go_to_previous_position();
                        break;
                    }
                },
                // Of no use for any packet: given back empty.
                Err(_) => 0,
            };
            self.receive_broken = queue.add_used(&*memory, head, len).is_err();
            used = true;
        }
        if used {
            self.receive.notify_driver(&memory);
        }
    }
}

impl MutEventSubscriber for Active {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let muxer = Arc::clone(&self.muxer);
        for fd in [
            self.receive.kick.as_raw_fd(),
            self.transmit.kick.as_raw_fd(),
            lock(&muxer).as_raw_fd(),
        ] {
            // A descriptor of ours that epoll knows how to poll: only memory can be lacking.
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                eprintln!("vsock: cannot watch descriptor {fd}: {error}");
            }
        }
        lock(&self.muxer).reconnect();
        // Whatever became available before, in another process even.
        self.transmit_waits = true;
        self.transmit.come_back();
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.transmit.kick.as_raw_fd() {
            // Fails only if there is nothing to be read.
            let _ = self.transmit.kick.read();
            self.transmit_waits = true;
        } else if fd == self.receive.kick.as_raw_fd() {
            let _ = self.receive.kick.read();
        } else {
            lock(&self.muxer).poll();
        }
        self.serve();
    }
}

fn lock(muxer: &Mutex<Muxer>) -> MutexGuard<'_, Muxer> {
    // A panic elsewhere ends the process; whatever it left is dropped.
    muxer.lock().unwrap_or_else(PoisonError::into_inner)
}
