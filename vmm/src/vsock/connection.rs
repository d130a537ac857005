//! One stream between a port of the guest and a descriptor of the host.

use std::{collections::VecDeque, net::Shutdown, time::Instant};

use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;

use super::{
    packet::{Header, Op, Pieces, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM},
    stream::{Moved, Stream},
};

/// What the guest may send on one connection before it is written to the descriptor, in bytes (virtio 1.2, 5.10.6.3):
/// the most that is ever buffered for one.
pub const BUF_ALLOC: u32 = 256 * 1024;

/// The most that is read from a descriptor for one packet, in bytes, whatever the guest would take.
const MAX_PAYLOAD: u32 = 64 * 1024;

/// The two ends of a connection; its name while the guest knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest wants it, the shim has not decided.
    Requested,
    /// It was established in another process; the shim has yet to say what is behind it in this one.
    Restored,
    /// The shim wants it under this name, the guest has not answered.
    Dialing(u64),
    /// Data goes both ways, as far as the stream does.
    Established,
    /// All was said, the stream is closed; the guest has yet to confirm.
    Closing,
    /// The guest has forgotten the connection, but what it sent before that is still to be written.
    Draining,
}

/// What is to become of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Fate {
    /// It goes on.
    Keep,
    /// It ends and the guest is told.
    Reset,
    /// It ends and the guest knows, or doesn't care.
    Forget,
}

/// Packets that the guest is to get, apart from payload: as flags, so that a guest which takes none costs nothing.
#[derive(Debug, Default)]
struct Due {
    open: Option<Op>,
    credit_update: bool,
    credit_request: bool,
    shutdown: u32,
}

/// A connection on which nothing is under way: what each side has counted (virtio 1.2, 5.10.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuietConnection {
    /// Its two ends.
    pub ports: Ports,
    received: u32,
    told: u32,
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    /// Its two ends.
    pub ports: Ports,
    /// The host's end: there from the answer on until the end is decided.
    pub stream: Option<Stream>,
    /// When the wait of this phase is over.
    pub deadline: Option<Instant>,
    phase: Phase,
    due: Due,
    /// What the guest has sent and the stream has not taken, at most [`BUF_ALLOC`].
    buffer: VecDeque<u8>,
    /// Bytes that came from the guest, that were written out of them, and of which the guest was told so; modulo 2³².
    received: u32,
    forwarded: u32,
    told: u32,
    /// Bytes that went to the guest; its buffer's size and what it has taken out; modulo 2³².
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    /// Whether the guest was asked for credit since it last had some.
    asked: bool,
    /// The directions that the guest has given up, and those that it was told are.
    guest_shutdown: u32,
    announced: u32,
    /// Nothing more comes from the stream.
    read_done: bool,
    /// Nothing more goes to the stream.
    write_done: bool,
}

impl Connection {
    fn new(ports: Ports, phase: Phase, deadline: Instant) -> Self {
        Self {
            ports,
            stream: None,
            deadline: Some(deadline),
            phase,
            due: Due::default(),
            buffer: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            asked: false,
            guest_shutdown: 0,
            announced: 0,
            read_done: false,
            write_done: false,
        }
    }

    /// The guest wants it: `header` is that of its request.
    pub fn requested(ports: Ports, header: &Header, deadline: Instant) -> Self {
        let mut connection = Self::new(ports, Phase::Requested, deadline);
        connection.take_credit(header);
        connection
    }

    /// It goes on from where another process has left it, when the shim has said with what.
    pub fn restored(quiet: &QuietConnection, deadline: Instant) -> Self {
        let mut connection = Self::new(quiet.ports, Phase::Restored, deadline);
        connection.received = quiet.received;
        connection.forwarded = quiet.received;
        connection.told = quiet.told;
        connection.sent = quiet.sent;
        connection.guest_buf_alloc = quiet.guest_buf_alloc;
        connection.guest_fwd_cnt = quiet.guest_fwd_cnt;
        connection
    }

    /// What is left to know of it when everything has been handed over, and neither side has begun to end it.
    pub fn quiet(&self) -> Option<QuietConnection> {
        let over = self.guest_shutdown != 0 || self.announced != 0 || self.read_done || self.write_done;
        let under_way = self.has_control() || !self.buffer.is_empty() || self.forwarded != self.received;
        (self.phase == Phase::Established && !over && !under_way).then_some(QuietConnection {
            ports: self.ports,
            received: self.received,
            told: self.told,
            sent: self.sent,
            guest_buf_alloc: self.guest_buf_alloc,
            guest_fwd_cnt: self.guest_fwd_cnt,
        })
    }

    /// The shim wants it under the name `dial`.
    pub fn dialing(ports: Ports, dial: u64, stream: Stream, deadline: Instant) -> Self {
        let mut connection = Self::new(ports, Phase::Dialing(dial), deadline);
        connection.due.open = Some(Op::Request);
        connection.stream = Some(stream);
        connection
    }

    /// Where it is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Begins to carry data between guest and `stream`. The guest is told if it was the one to ask.
    pub fn establish(&mut self, stream: Stream) {
        self.due.open = (self.phase == Phase::Requested).then_some(Op::Response);
        self.read_done = !stream.is_source();
        self.write_done = !stream.is_sink();
        self.stream = Some(stream);
        self.phase = Phase::Established;
        self.deadline = None;
    }

    /// Learns from any packet of the guest's how much it can take.
    pub fn take_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_fwd_cnt = header.fwd_cnt;
        if self.credit() > 0 {
            self.asked = false;
        }
    }

    /// How many bytes the guest can take (virtio 1.2, 5.10.6.3). A guest that counts wrong has none.
    fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(in_flight)
    }

    /// Acts upon a packet of the guest's for this connection, any but a reset.
    pub fn receive(&mut self, op: Op, header: &Header, payload: &Pieces<'_>) -> Fate {
        self.take_credit(header);
        match (self.phase, op) {
            (_, Op::CreditUpdate) => Fate::Keep,
            (_, Op::CreditRequest) => {
                self.due.credit_update = true;
                Fate::Keep
            }
            (Phase::Established | Phase::Closing, Op::ReadWrite) => self.receive_data(payload),
            (Phase::Established | Phase::Closing, Op::Shutdown) => self.receive_shutdown(header.flags),
            // A second request for the same ports, data before the connection, and the like.
            _ => Fate::Reset,
        }
    }

    fn receive_data(&mut self, payload: &Pieces<'_>) -> Fate {
        let Ok(len) = u32::try_from(payload.len()) else {
            return Fate::Reset;
        };
        let unwritten = self.received.wrapping_sub(self.forwarded);
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || len > BUF_ALLOC.saturating_sub(unwritten) {
            return Fate::Reset;
        }
        if len == 0 {
            return Fate::Keep;
        }
        self.received = self.received.wrapping_add(len);
        let stream = match &mut self.stream {
            Some(stream) if !stream.is_sink() => return Fate::Reset,
            Some(stream) if !self.write_done => stream,
            _ => return self.discard(),
        };
        let mut written = 0;
        if self.buffer.is_empty() && stream.writable() {
            match stream.write_from(payload) {
                Moved::Bytes(bytes) => written = bytes,
                Moved::WouldBlock => {}
                Moved::End | Moved::Failed => return self.write_failed(),
            }
        }
        self.forward(written);
        if written < payload.len() {
            let mut rest = vec![0; payload.len() - written];
            payload.after(written).copy_to(&mut rest);
            self.buffer.extend(rest);
        }
        self.drain()
    }

    /// What the guest sent before it heard that nobody takes it.
    fn discard(&mut self) -> Fate {
        self.forwarded = self.received;
        self.update_credit();
        Fate::Keep
    }

    fn receive_shutdown(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 && !self.read_done {
            self.read_done = true;
            if let Some(stream) = &self.stream {
                stream.shut_down(Shutdown::Read);
            }
        }
        self.progress()
    }

    /// Acts upon events of the stream.
    pub fn events(&mut self, events: EventSet) -> Fate {
        let Some(stream) = &mut self.stream else {
            return Fate::Keep;
        };
        stream.note(events);
        // Otherwise the end is met by reading, behind the data that is left.
        if stream.hung_up() && self.read_done {
            return self.write_failed();
        }
        match self.drain() {
            Fate::Keep => self.progress(),
            end => end,
        }
    }

    /// Writes what is buffered, as far as the stream takes it.
    fn drain(&mut self) -> Fate {
        while let Some(stream) = self.stream.as_mut().filter(|stream| stream.writable()) {
            let (one, other) = self.buffer.as_slices();
            if one.is_empty() {
                break;
            }
            match stream.write([one, other]) {
                Moved::Bytes(bytes) => {
                    self.buffer.drain(..bytes);
                    self.forward(bytes);
                }
                Moved::WouldBlock => break,
                Moved::End | Moved::Failed => return self.write_failed(),
            }
        }
        if self.buffer.is_empty() {
            // Most connections never need one: the memory is not kept.
            self.buffer = VecDeque::new();
            if self.phase == Phase::Draining {
                return Fate::Forget;
            }
        }
        self.update_credit();
        Fate::Keep
    }

    fn forward(&mut self, bytes: usize) {
        // Exact: no more is ever written than was received, in u32.
        self.forwarded = self
            .forwarded
            .wrapping_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Tells the guest of room when it believes that little is left; not for every few bytes a slow reader takes.
    fn update_credit(&mut self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return;
        }
        let free = BUF_ALLOC.saturating_sub(self.received.wrapping_sub(self.told));
        let news = self.forwarded.wrapping_sub(self.told);
        if free < BUF_ALLOC / 2 && (news >= BUF_ALLOC / 8 || (news > 0 && self.buffer.is_empty())) {
            self.due.credit_update = true;
        }
    }

    /// The stream takes nothing any more.
    fn write_failed(&mut self) -> Fate {
        self.buffer = VecDeque::new();
        self.forwarded = self.received;
        self.write_done = true;
        if self.phase == Phase::Draining {
            return Fate::Forget;
        }
        if self.read_done {
            return Fate::Reset;
        }
        // What the other side wrote before it went is still for the guest.
        self.due.shutdown |= SHUTDOWN_RECEIVE;
        Fate::Keep
    }

    /// Ends directions, and the connection, once nothing is left to be moved.
    fn progress(&mut self) -> Fate {
        if !self.buffer.is_empty() {
            return Fate::Keep;
        }
        // The answer to a complete shutdown (virtio 1.2, 5.10.6.5), only given when all has been written.
        if self.guest_shutdown == SHUTDOWN_BOTH {
            return Fate::Reset;
        }
        if self.phase != Phase::Established {
            return Fate::Keep;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.write_done {
            self.write_done = true;
            if let Some(stream) = &self.stream {
                stream.shut_down(Shutdown::Write);
            }
        }
        if self.read_done && self.write_done {
            self.phase = Phase::Closing;
            self.due.shutdown = SHUTDOWN_BOTH;
        }
        Fate::Keep
    }

    /// Whether a buffer of the guest's could be filled now.
    pub fn wants_buffer(&self) -> bool {
        self.has_control() || (self.wants_to_read() && (self.credit() > 0 || !self.asked))
    }

    fn wants_to_read(&self) -> bool {
        let readable = self.stream.as_ref().is_some_and(Stream::readable);
        self.phase == Phase::Established && readable && !self.read_done
    }

    /// The next packet for the guest, its payload already in `room`, if there is one.
    pub fn next_packet(&mut self, room: &Pieces<'_>) -> (Option<Header>, Fate) {
        if !self.has_control() && self.wants_to_read() {
            match self.read(room) {
                Ok(None) => {}
                Ok(header) => return (header, Fate::Keep),
                Err(fate) => return (None, fate),
            }
        }
        (self.next_control(), Fate::Keep)
    }

    fn has_control(&self) -> bool {
        let due = &self.due;
        due.open.is_some() || due.credit_update || due.credit_request || due.shutdown != 0
    }

    fn next_control(&mut self) -> Option<Header> {
        let (op, flags) = if let Some(op) = self.due.open.take() {
            (op, 0)
        } else if std::mem::take(&mut self.due.credit_update) {
            (Op::CreditUpdate, 0)
        } else if std::mem::take(&mut self.due.credit_request) {
            (Op::CreditRequest, 0)
        } else if self.due.shutdown != 0 {
            self.announced |= std::mem::take(&mut self.due.shutdown);
            (Op::Shutdown, self.announced)
        } else {
            return None;
        };
        Some(self.header(op, flags, 0))
    }

    /// Reads from the stream what the guest has credit for; without credit, or at the end, a control packet is due.
    fn read(&mut self, room: &Pieces<'_>) -> Result<Option<Header>, Fate> {
        let credit = self.credit();
        if credit == 0 {
            self.due.credit_request = !std::mem::replace(&mut self.asked, true);
            return Ok(None);
        }
        let Some(stream) = &mut self.stream else {
            return Ok(None);
        };
        let limit = usize::try_from(credit.min(MAX_PAYLOAD)).unwrap_or(usize::MAX);
        match stream.read_into(&room.first(limit)) {
            Moved::Bytes(bytes) => {
                // Exact: bounded by the credit.
                let len = u32::try_from(bytes).unwrap_or(u32::MAX);
                self.sent = self.sent.wrapping_add(len);
                Ok(Some(self.header(Op::ReadWrite, 0, len)))
            }
            Moved::WouldBlock => Ok(None),
            Moved::End => {
                self.read_done = true;
                self.due.shutdown |= SHUTDOWN_SEND;
                if stream.hung_up() {
                    self.buffer = VecDeque::new();
                    self.forwarded = self.received;
                    self.write_done = true;
                }
                match self.progress() {
                    Fate::Keep => Ok(None),
                    end => Err(end),
                }
            }
            Moved::Failed => Err(Fate::Reset),
        }
    }

    fn header(&mut self, op: Op, flags: u32, len: u32) -> Header {
        self.told = self.forwarded;
        self.due.credit_update = false;
        Header {
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op: op.to_wire(),
            flags,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    /// What becomes of the connection when its wait has been in vain.
    pub fn expire(&self) -> Fate {
        match self.due.open {
            // The guest took no buffer in all that time: it has nothing to be told.
            Some(Op::Request) => Fate::Forget,
            _ => Fate::Reset,
        }
    }

    /// Goes on for the sake of what is buffered, after the guest has forgotten the connection; false if nothing is.
    pub fn drain_on(&mut self) -> bool {
        if self.buffer.is_empty() || self.phase == Phase::Draining || self.stream.is_none() {
            return false;
        }
        self.phase = Phase::Draining;
        self.due = Due::default();
        self.read_done = true;
        true
    }
}
