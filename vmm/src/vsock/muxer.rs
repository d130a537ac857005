//! All connections: who a packet is for, and whose turn it is.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    ops::Bound,
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

use sealock_protocol::{broker::Answer, seqpacket::SeqPacket};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{
    broker::Broker,
    connection::{Connection, Fate, Phase, Ports, QuietConnection},
    deadline::Deadlines,
    packet::{HOST_CID, Header, Op, Pieces, Received, TYPE_STREAM},
    stream::Stream,
};

/// The most connections at once, counting those that only live on until their data is written. With their buffers
/// full they take 256 MiB; an idle one takes a few hundred bytes.
pub const MAX_CONNECTIONS: usize = 1024;

/// Resets that wait for a buffer of the guest's before it is not listened to any more: the additional resources of
/// virtio 1.2, 5.10.6.1.
const MAX_RESETS: usize = 256;

/// Events handled before other devices have their turn.
const EVENTS_AT_ONCE: usize = 64;

/// Messages of the shim's handled before others have their turn.
const ANSWERS_AT_ONCE: usize = 32;

/// Tokens of the poll set that are no connection's serial number.
const BROKER: u64 = 0;
const TIMER: u64 = 1;
const FIRST_SERIAL: u64 = 2;

/// Ports of the host's that are given to connections it makes: none that it listens on.
const FIRST_OWN_PORT: u32 = 0x4000_0000;
const LAST_OWN_PORT: u32 = 0x7fff_ffff;

/// The connections of one guest, and the host's descriptors they end at.
pub struct Muxer {
    guest_cid: u64,
    patience: Duration,
    broker: Broker,
    /// The events that the broker's descriptor is registered for.
    broker_events: EventSet,
    /// Everything of the host's, in a poll set of its own: descriptors come and go without the event loop.
    epoll: Epoll,
    deadlines: Deadlines,
    next_serial: u64,
    next_port: u32,
    /// By serial number, which is never used twice: an event or an answer that comes late meets no other connection.
    connections: BTreeMap<u64, Connection>,
    /// Those the guest knows of.
    by_ports: BTreeMap<Ports, u64>,
    /// Those that could fill a buffer of the guest's, and whose turn was last.
    ready: BTreeSet<u64>,
    turn: u64,
    /// Resets to be sent, with the type of socket.
    resets: VecDeque<(Ports, u16)>,
}

impl Muxer {
    /// No connections yet. Waits for an answer, of the shim's or of the guest's, end after `patience`.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new(socket: SeqPacket, guest_cid: u64, patience: Duration) -> io::Result<Self> {
        let broker = Broker::new(socket)?;
        let deadlines = Deadlines::new()?;
        let epoll = Epoll::new()?;
        for (fd, token) in [(broker.as_raw_fd(), BROKER), (deadlines.as_raw_fd(), TIMER)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        Ok(Self {
            guest_cid,
            patience,
            broker,
            broker_events: EventSet::IN,
            epoll,
            deadlines,
            next_serial: FIRST_SERIAL,
            next_port: FIRST_OWN_PORT,
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: BTreeSet::new(),
            turn: 0,
            resets: VecDeque::new(),
        })
    }

    /// How many connections there are.
    #[cfg(test)]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many resets wait to be sent.
    #[cfg(test)]
    pub fn resets(&self) -> usize {
        self.resets.len()
    }

    /// Whether another packet of the guest's may be handled: not while it leaves the answers lying.
    pub fn takes_packets(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether a buffer of the guest's could be filled.
    pub fn wants_buffer(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Ends all connections without a word: the driver has reset the device.
    pub fn clear(&mut self) {
        for serial in self.connections.keys().copied().collect::<Vec<_>>() {
            self.remove(serial);
        }
        self.resets.clear();
        self.finish();
    }

    /// What is left to know of the connections when nothing is under way; the device has stopped serving.
    ///
    /// # Errors
    /// Something is under way, in one line.
    pub fn save(&self) -> Result<Vec<QuietConnection>, &'static str> {
        if !self.resets.is_empty() {
            return Err("has answers that the guest has not taken");
        }
        let quiet = self.connections.values().map(Connection::quiet);
        quiet
            .collect::<Option<_>>()
            .ok_or("has a connection that is not at rest")
    }

    /// Takes connections over from where another process has left them. The shim is asked for each by the port of the host's.
    pub fn restore(&mut self, connections: &[QuietConnection]) {
        for quiet in connections.iter().take(MAX_CONNECTIONS) {
            let serial = self.take_serial();
            let deadline = Instant::now() + self.patience;
            self.insert(serial, Connection::restored(quiet, deadline));
        }
    }

    /// Asks the shim for what is behind the connections that have been restored.
    pub fn reconnect(&mut self) {
        let restored = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.phase() == Phase::Restored);
        let ports: Vec<_> = restored
            .map(|(serial, connection)| (*serial, connection.ports.host))
            .collect();
        for (serial, port) in ports {
            if !self.broker.ask(serial, port) {
                self.settle(serial, Fate::Reset);
            }
        }
    }

    /// Handles one packet of the guest's.
    pub fn receive(&mut self, packet: &Received<'_>) {
        let header = &packet.header;
        // Not from this guest, or for another machine, which there isn't.
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let op = Op::from_wire(header.op);
        if header.kind != TYPE_STREAM {
            if op != Some(Op::Reset) {
                self.resets.push_back((ports, header.kind));
            }
            return;
        }
        match (self.by_ports.get(&ports).copied(), op) {
            (None, Some(Op::Reset)) => {}
            (None, Some(Op::Request)) => self.connect(ports, header),
            (None, _) => self.resets.push_back((ports, TYPE_STREAM)),
            (Some(serial), Some(Op::Reset)) => self.settle(serial, Fate::Forget),
            (Some(serial), None) => self.settle(serial, Fate::Reset),
            (Some(serial), Some(op)) => {
                let Some(connection) = self.connections.get_mut(&serial) else {
                    return;
                };
                let fate = match (connection.phase(), op) {
                    (Phase::Dialing(dial), Op::Response) => {
                        connection.take_credit(header);
                        self.dialed(serial, dial)
                    }
                    _ => connection.receive(op, header, &packet.payload),
                };
                self.settle(serial, fate);
            }
        }
    }

    /// The guest asks for a connection.
    fn connect(&mut self, ports: Ports, header: &Header) {
        let serial = self.take_serial();
        if self.connections.len() >= MAX_CONNECTIONS || !self.broker.ask(serial, ports.host) {
            self.resets.push_back((ports, TYPE_STREAM));
            return;
        }
        let deadline = Instant::now() + self.patience;
        self.insert(serial, Connection::requested(ports, header, deadline));
    }

    /// The guest has accepted what the shim asked for.
    fn dialed(&mut self, serial: u64, dial: u64) -> Fate {
        let stream = self.connections.get_mut(&serial).and_then(|c| c.stream.take());
        let connected = stream.is_some_and(|stream| self.attach(serial, stream));
        if connected {
            self.broker.dialed(dial, true);
            Fate::Keep
        } else {
            Fate::Reset
        }
    }

    /// Gives the connection its stream.
    fn attach(&mut self, serial: u64, mut stream: Stream) -> bool {
        let Some(connection) = self.connections.get_mut(&serial) else {
            return false;
        };
        if let Some(deadline) = connection.deadline {
            self.deadlines.remove(deadline, serial);
        }
        if stream.watch(&self.epoll, serial).is_err() {
            return false;
        }
        connection.establish(stream);
        true
    }

    fn take_serial(&mut self) -> u64 {
        let serial = self.next_serial;
        // Would take centuries to wrap.
        self.next_serial = serial.wrapping_add(1).max(FIRST_SERIAL);
        serial
    }

    fn insert(&mut self, serial: u64, connection: Connection) {
        if let Some(deadline) = connection.deadline {
            self.deadlines.insert(deadline, serial);
        }
        self.by_ports.insert(connection.ports, serial);
        self.connections.insert(serial, connection);
    }

    /// Carries out what was decided about a connection.
    fn settle(&mut self, serial: u64, fate: Fate) {
        let Some(connection) = self.connections.get_mut(&serial) else {
            return;
        };
        if fate == Fate::Keep {
            if connection.phase() == Phase::Closing {
                // Before the guest hears of it, so that it may take the end for a proof that all is written.
                if let Some(mut stream) = connection.stream.take() {
                    stream.unwatch(&self.epoll);
                    let deadline = Instant::now() + self.patience;
                    connection.deadline = Some(deadline);
                    self.deadlines.insert(deadline, serial);
                }
            }
            if connection.wants_buffer() {
                self.ready.insert(serial);
            } else {
                self.ready.remove(&serial);
            }
            return;
        }
        if fate == Fate::Reset {
            self.resets.push_back((connection.ports, TYPE_STREAM));
        }
        if connection.drain_on() {
            self.by_ports.remove(&connection.ports);
            self.ready.remove(&serial);
        } else {
            self.remove(serial);
        }
    }

    fn remove(&mut self, serial: u64) {
        let Some(mut connection) = self.connections.remove(&serial) else {
            return;
        };
        if self.by_ports.get(&connection.ports) == Some(&serial) {
            self.by_ports.remove(&connection.ports);
        }
        self.ready.remove(&serial);
        if let Some(deadline) = connection.deadline {
            self.deadlines.remove(deadline, serial);
        }
        if let Some(stream) = &mut connection.stream {
            stream.unwatch(&self.epoll);
        }
        if let Phase::Dialing(dial) = connection.phase() {
            self.broker.dialed(dial, false);
        }
    }

    /// Puts the next packet for the guest into a buffer of its: the payload into `room`, the header is returned.
    pub fn fill(&mut self, room: &Pieces<'_>) -> Option<Header> {
        loop {
            if let Some((ports, kind)) = self.resets.pop_front() {
                return Some(self.address(Header {
                    src_port: ports.host,
                    dst_port: ports.guest,
                    kind,
                    op: Op::Reset.to_wire(),
                    ..Header::default()
                }));
            }
            let serial = self.next_turn()?;
            // Settling puts it back if it has more; either it filled the buffer or it has no more.
            self.ready.remove(&serial);
            let Some(connection) = self.connections.get_mut(&serial) else {
                continue;
            };
            let (header, fate) = connection.next_packet(room);
            self.settle(serial, fate);
            if let Some(header) = header {
                return Some(self.address(header));
            }
            self.ready.remove(&serial);
        }
    }

    /// The ready connections take turns.
    fn next_turn(&mut self) -> Option<u64> {
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let next = self
            .ready
            .range(after)
            .next()
            .or_else(|| self.ready.first())
            .copied()?;
        self.turn = next;
        Some(next)
    }

    fn address(&self, header: Header) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            ..header
        }
    }

    /// Handles events of the host's descriptors, those of one turn.
    pub fn poll(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS_AT_ONCE];
        // Interrupted, or never: the event loop will call again.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                BROKER => self.hear_broker(),
                TIMER => self.expire(),
                serial => {
                    if let Some(connection) = self.connections.get_mut(&serial) {
                        let fate = connection.events(event.event_set());
                        self.settle(serial, fate);
                    }
                }
            }
        }
    }

    /// To be called after each turn: sets the timer and what the broker's descriptor is polled for.
    pub fn finish(&mut self) {
        self.deadlines.arm();
        for serial in self.broker.abandoned() {
            self.settle(serial, Fate::Reset);
        }
        let events = match (self.broker.is_open(), self.broker.has_backlog()) {
            (false, _) => EventSet::empty(),
            (true, false) => EventSet::IN,
            (true, true) => EventSet::OUT,
        };
        if events != self.broker_events {
            let operation = if events.is_empty() {
                ControlOperation::Delete
            } else {
                ControlOperation::Modify
            };
            // Fails only for a descriptor that is not registered, and a closed one isn't opened again.
            let _ = self.epoll.ctl(
                operation,
                self.broker.as_raw_fd(),
                EpollEvent::new(events, BROKER),
            );
            self.broker_events = events;
        }
    }

    fn hear_broker(&mut self) {
        self.broker.flush();
        for _ in 0..ANSWERS_AT_ONCE {
            let Some((answer, fd)) = self.broker.receive() else {
                return;
            };
            let stream = fd.map(Stream::new).and_then(Result::ok);
            match answer {
                Answer::Accept { id } => {
                    let waits = self
                        .connections
                        .get(&id)
                        .is_some_and(|c| matches!(c.phase(), Phase::Requested | Phase::Restored));
                    if waits {
                        let accepted = stream.is_some_and(|stream| self.attach(id, stream));
                        self.settle(id, if accepted { Fate::Keep } else { Fate::Reset });
                    }
                }
                Answer::Refuse { id } => self.settle(id, Fate::Reset),
                Answer::Dial { id, port } => self.dial(id, port, stream),
            }
        }
    }

    /// The shim asks for a connection.
    fn dial(&mut self, id: u64, port: u32, stream: Option<Stream>) {
        let free = self.connections.len() < MAX_CONNECTIONS;
        let Some(stream) = stream.filter(|_| free) else {
            self.broker.dialed(id, false);
            return;
        };
        let serial = self.take_serial();
        let ports = self.take_port(port);
        let deadline = Instant::now() + self.patience;
        self.insert(serial, Connection::dialing(ports, id, stream, deadline));
        self.settle(serial, Fate::Keep);
    }

    /// A pair of ports not in use: found among as many as there can be connections, and one.
    fn take_port(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = if host >= LAST_OWN_PORT {
                FIRST_OWN_PORT
            } else {
                host + 1
            };
            let ports = Ports { host, guest };
            if !self.by_ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn expire(&mut self) {
        self.deadlines.rang();
        while let Some(serial) = self.deadlines.expired() {
            if let Some(fate) = self.connections.get(&serial).map(Connection::expire) {
                self.settle(serial, fate);
            }
        }
    }
}

impl AsRawFd for Muxer {
    /// Readable when [`Muxer::poll`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
