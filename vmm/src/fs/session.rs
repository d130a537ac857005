//! The active device: takes requests from the queues, relays them to the file server, returns the answers.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use sealock_protocol::{
    relay::{MAX_IN_FLIGHT, MAX_MESSAGE},
    seqpacket::{Error, SeqPacket},
};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vmm_sys_util::{epoll::EventSet, eventfd::EventFd};

use super::{
    device::REQUEST_QUEUE_SIZE,
    files::{Files, Refused},
    pool::{Done, Job, Pool},
    segments::Segments,
    transfer::{Direction, Transfer, answer_error},
    wire::{
        self, BATCH_FORGET, CREATE, DESTROY, FORGET, IN_HEADER, INIT, INTERRUPT, InHeader, OPEN, OUT_HEADER,
        OutHeader, READ, RELEASE, TRANSFER_IN, TransferIn, WRITE,
    },
};
use crate::virtio::device::{ActivateError, Activation, ActiveQueue, Memory};

/// The queue of requests without an answer.
const HIPRIO: usize = 0;
/// Both queues.
const QUEUES: usize = 2;

/// Event data: the kick of a queue has its index.
const RELAY: u32 = 2;
const POOL: u32 = 3;

/// Transfers that wait for a disk at most. The number of chains does not bound them: a hostile driver makes one chain
/// available many times.
const MAX_JOBS: usize = REQUEST_QUEUE_SIZE as usize;

/// One connection between a driver and the file server.
pub struct Session {
    memory: Memory,
    queues: Vec<Served>,
    server: SeqPacket,
    /// The file server is there.
    alive: bool,
    /// What the event loop watches the socket for.
    watched: Option<EventSet>,
    in_flight: HashMap<u64, InFlight>,
    files: Files,
    pool: Pool,
    pool_event: EventFd,
    jobs: usize,
    /// The request that is being sent. It stays here while the socket takes no more.
    request: Vec<u8>,
    /// How much of `request` waits to be sent, and by which unique.
    unsent: Option<(usize, Option<u64>)>,
    answer: Vec<u8>,
}

struct Served {
    active: ActiveQueue,
    /// The driver does not keep to the rules: the queue is left alone.
    broken: bool,
    /// There may be chains that were not taken.
    waiting: bool,
    /// Chains were used that the driver has not been told of.
    used: bool,
}

/// A request that the file server works on.
struct InFlight {
    opcode: u32,
    node: u64,
    /// The chain that waits for the answer; none for the device's own requests.
    chain: Option<(usize, u16, Segments)>,
}

impl Session {
    pub fn new(activation: Activation, server: SeqPacket) -> Result<Self, ActivateError> {
        for index in 0..QUEUES {
            if !activation
                .queues
                .get(index)
                .is_some_and(|active| active.queue.ready())
            {
                return Err(ActivateError::QueueNotEnabled(index));
            }
        }
        let failed = |source| ActivateError::Host {
            what: "make an event",
            source,
        };
        let pool_event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed)?;
        let pool = Pool::new(activation.memory.clone(), pool_event.try_clone().map_err(failed)?);
        let served = |active| Served {
            active,
            broken: false,
            waiting: false,
            used: false,
        };
        Ok(Self {
            memory: activation.memory,
            queues: activation.queues.into_iter().take(QUEUES).map(served).collect(),
            server,
            alive: true,
            watched: None,
            in_flight: HashMap::new(),
            files: Files::default(),
            pool,
            pool_event,
            jobs: 0,
            request: vec![0; MAX_MESSAGE],
            unsent: None,
            answer: vec![0; MAX_MESSAGE],
        })
    }

    /// Whether there is room for what the next chain of a queue may ask for.
    fn has_room(&self, index: usize) -> bool {
        let unanswered = index != HIPRIO && self.in_flight.len() >= MAX_IN_FLIGHT;
        self.unsent.is_none() && !unanswered && self.jobs < MAX_JOBS
    }

    fn serve(&mut self, index: usize) {
        let mut budget = self.queues[index].active.queue.size();
        self.queues[index].waiting = false;
        while !self.queues[index].broken {
            if self.queues[index]
                .active
                .queue
                .disable_notification(&*self.memory)
                .is_err()
            {
                self.queues[index].broken = true;
                break;
            }
            loop {
                if !self.has_room(index) {
                    self.queues[index].waiting = true;
                    return;
                }
                if budget == 0 {
                    // The driver may add chains as fast as they are used: let the other events have their turn.
                    let _ = self.queues[index].active.kick.write(1);
                    return;
                }
                let Some(chain) = self.next_chain(index) else {
                    break;
                };
                budget -= 1;
                self.take(index, chain);
            }
            if self.queues[index].broken {
                break;
            }
            match self.queues[index].active.queue.enable_notification(&*self.memory) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => self.queues[index].broken = true,
            }
        }
    }

    fn next_chain(&mut self, index: usize) -> Option<DescriptorChain<Memory>> {
        let served = &mut self.queues[index];
        if served.broken {
            return None;
        }
        match served.active.queue.iter(self.memory.clone()) {
            Ok(mut chains) => chains.next(),
            Err(_) => {
                served.broken = true;
                None
            }
        }
    }

    fn use_chain(&mut self, index: usize, head: u16, length: u32) {
        let served = &mut self.queues[index];
        match served.active.queue.add_used(&*self.memory, head, length) {
            Ok(()) => served.used = true,
            Err(_) => served.broken = true,
        }
    }

    fn refuse(&mut self, index: usize, head: u16, answer: &Segments, unique: u64, errno: i32) {
        let length = answer_error(&self.memory, answer, unique, errno);
        self.use_chain(index, head, length);
    }

    fn take(&mut self, index: usize, chain: DescriptorChain<Memory>) {
        let head = chain.head_index();
        let mut header = [0; IN_HEADER];
        let parts =
            Segments::of_chain(chain).filter(|(request, _)| request.read(&self.memory, &mut header).is_ok());
        let Some((request, answer)) = parts else {
            // Nothing that could be answered.
            return self.use_chain(index, head, 0);
        };
        let header = InHeader::parse(&header);
        let silent = matches!(header.opcode, FORGET | BATCH_FORGET | INTERRUPT);
        if header.length as usize != request.len() {
            let answer = if silent { Segments::default() } else { answer };
            return self.refuse(index, head, &answer, header.unique, libc::EINVAL);
        }
        match header.opcode {
            FORGET | BATCH_FORGET | INTERRUPT => {
                if self.gather(&request).is_ok() {
                    self.send(request.len(), None);
                }
                self.use_chain(index, head, 0);
            }
            READ => self.transfer(Direction::Read, index, head, header, request, answer),
            WRITE => self.transfer(Direction::Write, index, head, header, request, answer),
            _ => self.relay(index, head, header, &request, answer),
        }
    }

    fn transfer(
        &mut self,
        direction: Direction,
        queue: usize,
        head: u16,
        header: InHeader,
        request: Segments,
        answer: Segments,
    ) {
        if !self.alive {
            return self.refuse(queue, head, &answer, header.unique, libc::EIO);
        }
        let mut arguments = [0; TRANSFER_IN];
        if request.read_at(&self.memory, IN_HEADER, &mut arguments).is_err() {
            return self.refuse(queue, head, &answer, header.unique, libc::EINVAL);
        }
        let arguments = TransferIn::parse(&arguments);
        let Some(file) = self.files.get(header.node, arguments.handle) else {
            return self.refuse(queue, head, &answer, header.unique, libc::EBADF);
        };
        let mut transfer = match Transfer::new(direction, file, header.unique, arguments, request, answer) {
            Ok(transfer) => transfer,
            Err((errno, answer)) => return self.refuse(queue, head, &answer, header.unique, errno),
        };
        match transfer.try_now(&self.memory) {
            Some(length) => self.use_chain(queue, head, length),
            None => {
                self.jobs += 1;
                self.pool.submit(Job {
                    queue,
                    head,
                    transfer,
                });
            }
        }
    }

    fn relay(&mut self, index: usize, head: u16, header: InHeader, request: &Segments, answer: Segments) {
        if answer.len() < OUT_HEADER {
            return self.use_chain(index, head, 0);
        }
        if !self.alive {
            return self.refuse(index, head, &answer, header.unique, libc::EIO);
        }
        if self.in_flight.contains_key(&header.unique) {
            return self.refuse(index, head, &answer, header.unique, libc::EINVAL);
        }
        if self.gather(request).is_err() {
            return self.refuse(index, head, &answer, header.unique, libc::EIO);
        }
        match header.opcode {
            RELEASE => {
                if let Some(handle) = wire::released_handle(&self.request[..request.len()]) {
                    self.files.remove(header.node, handle);
                }
            }
            // A new mount, or the end of one: the file server forgets too.
            INIT | DESTROY => self.files.clear(),
            _ => {}
        }
        let chain = Some((index, head, answer));
        let waiting = InFlight {
            opcode: header.opcode,
            node: header.node,
            chain,
        };
        self.in_flight.insert(header.unique, waiting);
        self.send(request.len(), Some(header.unique));
    }

    /// Copies a request to where it is sent from. Once, so that it cannot change after it was looked at.
    fn gather(&mut self, request: &Segments) -> Result<(), ()> {
        let room = self.request.get_mut(..request.len()).ok_or(())?;
        request.read(&self.memory, room).map_err(|_| ())
    }

    fn send(&mut self, length: usize, unique: Option<u64>) {
        if !self.alive {
            return;
        }
        match self.server.send(&self.request[..length], &[]) {
            Ok(()) => {}
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.unsent = Some((length, unique));
            }
            Err(Error::Io(_)) => {
                // No memory for it, or larger than the host's socket buffers may be.
                if let Some(unique) = unique {
                    self.fail(unique, libc::EIO);
                }
            }
            Err(_) => self.lose_server(),
        }
    }

    fn send_rest(&mut self) {
        if let Some((length, unique)) = self.unsent.take() {
            self.send(length, unique);
        }
    }

    fn receive(&mut self) {
        // More than can be under way; the event loop comes back for the rest.
        for _ in 0..=MAX_IN_FLIGHT {
            if !self.alive {
                return;
            }
            // So that what is left of an earlier answer is not taken for this one's header.
            self.answer[..OUT_HEADER].fill(0);
            match self.server.receive(&mut self.answer) {
                Ok((answer, files)) => {
                    let length = answer.len();
                    self.answered(length, files);
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(Error::Io(_) | Error::Closed) => self.lose_server(),
                // Too long, or with more descriptors than this process can have: its beginning was received.
                Err(Error::TooLarge(_)) => self.fail(self.answer_header().unique, libc::EIO),
                Err(Error::TooManyDescriptors(_) | Error::Malformed(_)) => {
                    self.release_unopened(libc::EMFILE);
                }
            }
        }
    }

    fn answer_header(&self) -> OutHeader {
        let header: &[u8; OUT_HEADER] = self.answer.first_chunk().expect("longer than a header");
        OutHeader::parse(header)
    }

    fn answered(&mut self, length: usize, mut files: Vec<OwnedFd>) {
        let header = self.answer_header();
        let Some(waiting) = self.in_flight.get(&header.unique) else {
            return;
        };
        let room = waiting
            .chain
            .as_ref()
            .map_or(MAX_MESSAGE, |(_, _, answer)| answer.len());
        if !header.is_valid(length) || length > room {
            return self.fail(header.unique, libc::EIO);
        }
        if header.error == 0 && matches!(waiting.opcode, OPEN | CREATE) {
            let opened = wire::opened(waiting.opcode, waiting.node, &self.answer[..length]);
            let taken = match (opened, files.pop(), files.is_empty()) {
                (Some((node, handle)), Some(file), true) => self.files.insert(node, handle, file),
                _ => Err(Refused(libc::EIO)),
            };
            if let Err(Refused(errno)) = taken {
                return self.release_unopened(errno);
            }
        }
        let Some(InFlight {
            chain: Some((index, head, answer)),
            ..
        }) = self.in_flight.remove(&header.unique)
        else {
            return;
        };
        let written = answer.write(&self.memory, &self.answer[..length]).is_ok();
        // The length is at most MAX_MESSAGE.
        let used = if written {
            u32::try_from(length).unwrap_or(0)
        } else {
            0
        };
        self.use_chain(index, head, used);
    }

    /// The file server has opened a file that the device cannot take: the guest gets an error, and so will not
    /// release it.
    fn release_unopened(&mut self, errno: i32) {
        let header = self.answer_header();
        let Some(waiting) = self.in_flight.get(&header.unique) else {
            return;
        };
        let opened = wire::opened(waiting.opcode, waiting.node, &self.answer);
        self.fail(header.unique, errno);
        let Some((node, handle)) = opened else { return };
        // No driver counts as far as this.
        let unique = (0..=u64::MAX)
            .rev()
            .find(|unique| !self.in_flight.contains_key(unique));
        let Some(Entry::Vacant(free)) = unique.map(|unique| self.in_flight.entry(unique)) else {
            return;
        };
        let request = wire::release(*free.key(), node, handle);
        // If it can't be sent now, the file server keeps the file open until the guest unmounts.
        if self.server.send(&request, &[]).is_ok() {
            free.insert(InFlight {
                opcode: RELEASE,
                node,
                chain: None,
            });
        }
    }

    fn fail(&mut self, unique: u64, errno: i32) {
        if let Some(InFlight {
            chain: Some((index, head, answer)),
            ..
        }) = self.in_flight.remove(&unique)
        {
            self.refuse(index, head, &answer, unique, errno);
        }
    }

    /// The file server is gone: nothing under way will be answered, and nothing later.
    fn lose_server(&mut self) {
        self.alive = false;
        self.unsent = None;
        self.files.clear();
        let lost: Vec<u64> = self.in_flight.keys().copied().collect();
        for unique in lost {
            self.fail(unique, libc::EIO);
        }
    }

    fn finish_jobs(&mut self) {
        // Nothing to be read is as good.
        let _ = self.pool_event.read();
        for Done { queue, head, length } in self.pool.take_done() {
            self.jobs -= 1;
            self.use_chain(queue, head, length);
        }
    }

    /// Serves the queues that had to wait, tells the driver of used chains, and has the socket watched for what there
    /// is to wait for.
    fn settle(&mut self, ops: &mut EventOps<'_>) {
        for index in 0..self.queues.len() {
            if self.queues[index].waiting && self.has_room(index) {
                self.serve(index);
            }
        }
        for served in &mut self.queues {
            if std::mem::take(&mut served.used) {
                served.active.notify_driver(&self.memory);
            }
        }
        let wanted = match (self.alive, self.unsent.is_some()) {
            (false, _) => None,
            (true, false) => Some(EventSet::IN),
            (true, true) => Some(EventSet::IN | EventSet::OUT),
        };
        if wanted == self.watched {
            return;
        }
        let events = |set| Events::with_data(&self.server, RELAY, set);
        let changed = match (self.watched, wanted) {
            (None, Some(set)) => ops.add(events(set)),
            (Some(_), Some(set)) => ops.modify(events(set)),
            (_, None) => ops.remove(Events::empty(&self.server)),
        };
        self.watched = wanted;
        if changed.is_err() && self.alive {
            // Without being woken, answers would never be seen.
            self.lose_server();
            self.watched = None;
            for served in &mut self.queues {
                served.active.notify_driver(&self.memory);
            }
        }
    }
}

impl MutEventSubscriber for Session {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let kicks = self
            .queues
            .iter()
            .zip(0_u32..)
            .map(|(served, index)| (&served.active.kick, index));
        for (event, data) in kicks.chain([(&self.pool_event, POOL)]) {
            if ops.add(Events::with_data(event, data, EventSet::IN)).is_err() {
                // Nothing can be served without being woken; the guest's requests stay unanswered.
                return;
            }
        }
        // What was made available before the device was ready, or before a template was saved.
        for index in 0..self.queues.len() {
            self.serve(index);
        }
        self.settle(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            RELAY => {
                let set = events.event_set();
                if set.contains(EventSet::OUT) {
                    self.send_rest();
                }
                self.receive();
            }
            POOL => self.finish_jobs(),
            index => {
                if let Some(served) = self.queues.get(index as usize) {
                    // Nothing to be read is as good.
                    let _ = served.active.kick.read();
                    self.serve(index as usize);
                }
            }
        }
        self.settle(ops);
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Session")
            .field("server", &self.server.as_raw_fd())
            .field("alive", &self.alive)
            .field("in_flight", &self.in_flight.len())
            .finish_non_exhaustive()
    }
}
