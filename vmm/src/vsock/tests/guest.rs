//! A guest with a driver, and the shim.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use event_manager::{EventManager, MutEventSubscriber, SubscriberId, SubscriberOps};
use sealock_protocol::{
    broker::{Answer, MAX_MESSAGE, Request},
    seqpacket::SeqPacket,
};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

use crate::{
    template::NotAtRest,
    virtio::{
        device::{Activation, ActiveQueue, DriverInterrupt, Memory, VirtioDevice},
        ring::{NEXT, Ring, WRITE},
    },
    vsock::{
        connection::{BUF_ALLOC, Ports},
        device::Vsock,
        muxer::Muxer,
        packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM},
    },
};

pub const CID: u64 = 3;
/// What the guest says that it can take.
pub const GUEST_BUF_ALLOC: u32 = 256 * 1024;

const MEMORY: usize = 32 << 20;
const RX_BUFFERS: u64 = 1 << 20;
const RX_LEN: u32 = 4096;
const RX_COUNT: u16 = 64;
const TX_BUFFERS: u64 = 8 << 20;
const TX_LEN: u64 = 80 * 1024;
const TX_COUNT: u16 = 64;

type Subscriber = Box<dyn MutEventSubscriber + Send>;

#[derive(Debug, PartialEq, Eq)]
pub struct Packet {
    pub header: Header,
    pub data: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::from_wire(self.header.op).unwrap()
    }
}

struct Interrupt(AtomicUsize);

impl DriverInterrupt for Interrupt {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

pub struct Guest {
    pub memory: Memory,
    pub rx: Ring,
    pub tx: Ring,
    kicks: [EventFd; 2],
    tx_free: Vec<u16>,
    manager: EventManager<Subscriber>,
    id: SubscriberId,
    device: Vsock,
    interrupt: Arc<Interrupt>,
    pub shim: Option<SeqPacket>,
    pub inbox: VecDeque<Packet>,
    /// Whether buffers that were used are made available again.
    pub refill: bool,
    next_port: u32,
}

impl Guest {
    pub fn new() -> Self {
        Self::with(true, true, Duration::from_secs(10))
    }

    /// `buffers`: whether the driver has made receive buffers available.
    pub fn with(event_index: bool, buffers: bool, patience: Duration) -> Self {
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let (shim, broker) = SeqPacket::pair().unwrap();
        // A test that waits for the shim in vain fails instead of hanging.
        nix::sys::socket::setsockopt(
            &shim,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(10, 0),
        )
        .unwrap();
        let rx = Ring::new(&memory, 0x1_0000, 128, event_index);
        let tx = Ring::new(&memory, 0x2_0000, 128, event_index);
        let mut device = Vsock::with_patience(broker, CID, patience).unwrap();
        let kicks = [(); 2].map(|()| EventFd::new(EFD_NONBLOCK).unwrap());
        let interrupt = Arc::new(Interrupt(AtomicUsize::new(0)));
        let subscriber = activate(&mut device, &memory, [&rx, &tx], &kicks, &interrupt, false);
        let mut manager = EventManager::new().unwrap();
        let id = manager.add_subscriber(subscriber);
        let mut guest = Self {
            memory,
            rx,
            tx,
            kicks,
            tx_free: (0..TX_COUNT).collect(),
            manager,
            id,
            device,
            interrupt,
            shim: Some(shim),
            inbox: VecDeque::new(),
            refill: true,
            next_port: 5000,
        };
        if buffers {
            guest.give_buffers();
        }
        guest.run();
        guest
    }

    /// Resets the device and sets it up again.
    pub fn reset(&mut self) {
        drop(self.manager.remove_subscriber(self.id).unwrap());
        self.device.reset();
        let event_index = true;
        self.memory
            .write_slice(&[0; 0x2_0000], GuestAddress(0x1_0000))
            .unwrap();
        self.rx = Ring::new(&self.memory, 0x1_0000, 128, event_index);
        self.tx = Ring::new(&self.memory, 0x2_0000, 128, event_index);
        self.tx_free = (0..TX_COUNT).collect();
        self.activate_again(false);
        self.give_buffers();
        self.run();
    }

    /// Goes on with another device, which has what this one has saved, and another shim.
    pub fn restore(&mut self) {
        drop(self.manager.remove_subscriber(self.id).unwrap());
        let saved = self.device.save().unwrap();
        let (shim, broker) = SeqPacket::pair().unwrap();
        self.device = Vsock::with_patience(broker, CID, Duration::from_secs(10)).unwrap();
        self.device.restore(&saved).unwrap();
        self.shim = Some(shim);
        self.activate_again(true);
        self.run();
    }

    fn activate_again(&mut self, restored: bool) {
        let rings = [&self.rx, &self.tx];
        let subscriber = activate(
            &mut self.device,
            &self.memory,
            rings,
            &self.kicks,
            &self.interrupt,
            restored,
        );
        self.id = self.manager.add_subscriber(subscriber);
    }

    pub fn save(&mut self) -> Result<Vec<u8>, NotAtRest> {
        self.device.save()
    }

    pub fn muxer(&self) -> Arc<Mutex<Muxer>> {
        self.device.muxer()
    }

    pub fn interrupts(&self) -> usize {
        self.interrupt.0.load(Ordering::Relaxed)
    }

    pub fn connections(&self) -> usize {
        self.muxer().lock().unwrap().connections()
    }

    pub fn give_buffers(&mut self) {
        for slot in 0..RX_COUNT {
            self.give_buffer(slot);
        }
    }

    fn give_buffer(&mut self, slot: u16) {
        let address = RX_BUFFERS + u64::from(slot) * u64::from(RX_LEN);
        self.rx.describe(slot, address, RX_LEN, WRITE, 0);
        if self.rx.publish(slot) {
            self.kicks[0].write(1).unwrap();
        }
    }

    /// Lets the device do all it can without anything else happening; it must come to rest.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let events = self.manager.run_with_timeout(0).unwrap();
            self.collect();
            if events == 0 {
                return;
            }
        }
        panic!("the device spins");
    }

    /// As [`Guest::run`], with what was used left in the queues.
    pub fn drive(&mut self) {
        while self.manager.run_with_timeout(0).unwrap() > 0 {}
    }

    /// As [`Guest::run`], until there is a packet.
    pub fn wait_for_packet(&mut self) {
        let give_up = Instant::now() + Duration::from_secs(10);
        while self.inbox.is_empty() && Instant::now() < give_up {
            self.wait();
        }
    }

    /// As [`Guest::run`], after something has happened.
    pub fn wait(&mut self) {
        self.manager.run_with_timeout(10_000).unwrap();
        self.run();
    }

    fn collect(&mut self) {
        while let Some((slot, len)) = self.rx.take_used() {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            let address = RX_BUFFERS + u64::from(slot) * u64::from(RX_LEN);
            self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            let header = parse(&bytes[..HEADER_LEN]);
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            let data = bytes.split_off(HEADER_LEN);
            assert_eq!(header.len, u32::try_from(data.len()).unwrap());
            self.inbox.push_back(Packet { header, data });
            if self.refill {
                self.give_buffer(slot);
            }
        }
        while let Some((head, _)) = self.tx.take_used() {
            self.tx_free.push(head / 2);
        }
    }

    /// Sends a packet and lets the device handle it.
    pub fn send(&mut self, header: Header, data: &[u8]) {
        self.post(header, data);
        self.run();
    }

    /// Makes a packet available, and kicks if the device asked for that.
    pub fn post(&mut self, header: Header, data: &[u8]) {
        let header = Header {
            len: u32::try_from(data.len()).unwrap(),
            ..header
        };
        self.post_raw(header, data, u32::try_from(data.len()).unwrap());
    }

    /// As [`Guest::post`], with a header that may lie and a buffer of `room` bytes behind it.
    pub fn post_raw(&mut self, header: Header, data: &[u8], room: u32) {
        let Some(slot) = self.tx_free.pop() else {
            panic!("no free transmit buffer");
        };
        let address = TX_BUFFERS + u64::from(slot) * TX_LEN;
        self.memory
            .write_slice(&emit(&header), GuestAddress(address))
            .unwrap();
        self.memory.write_slice(data, GuestAddress(address + 44)).unwrap();
        // Alternating between the two layouts of Linux.
        if slot % 2 == 0 {
            self.tx.describe(slot * 2, address, 44 + room, 0, 0);
        } else {
            self.tx.describe(slot * 2, address, 44, NEXT, slot * 2 + 1);
            self.tx.describe(slot * 2 + 1, address + 44, room, 0, 0);
        }
        self.publish(slot * 2);
    }

    /// Makes a chain that was described by hand available.
    pub fn publish(&mut self, head: u16) {
        if self.tx.publish(head) {
            self.kicks[1].write(1).unwrap();
        }
    }

    pub fn kick_transmit(&self) {
        self.kicks[1].write(1).unwrap();
    }

    pub fn kick_receive(&self) {
        self.kicks[0].write(1).unwrap();
    }

    pub fn tx_slots(&self) -> usize {
        self.tx_free.len()
    }

    /// The next packet that came.
    #[track_caller]
    pub fn take(&mut self) -> Packet {
        self.inbox.pop_front().expect("a packet from the device")
    }

    /// The next packet that came, which is this one.
    #[track_caller]
    pub fn expect(&mut self, op: Op, ports: Ports) -> Packet {
        let packet = self.take();
        assert_eq!(
            (packet.op(), packet.header.src_port, packet.header.dst_port),
            (op, ports.host, ports.guest)
        );
        packet
    }

    #[track_caller]
    pub fn expect_shutdown(&mut self, flags: u32, ports: Ports) {
        assert_eq!(self.expect(Op::Shutdown, ports).header.flags, flags);
    }

    #[track_caller]
    pub fn expect_nothing(&self) {
        assert_eq!(self.inbox, []);
    }

    /// Ports for a new connection to `host`.
    pub fn ports(&mut self, host: u32) -> Ports {
        self.next_port += 1;
        Ports {
            host,
            guest: self.next_port,
        }
    }

    /// What the shim was asked next.
    #[track_caller]
    pub fn asked(&mut self) -> Request {
        let (request, fds) = self.shim.as_ref().unwrap().receive_json(MAX_MESSAGE).unwrap();
        assert!(fds.is_empty());
        request
    }

    /// The connection the shim is asked for, if it is asked for one.
    pub fn asked_now(&mut self) -> Option<u64> {
        let fd = self.shim.as_ref().unwrap().as_raw_fd();
        let epoll = Epoll::new().unwrap();
        epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))
            .unwrap();
        let ready = epoll.wait(0, &mut [EpollEvent::default()]).unwrap();
        match (ready > 0).then(|| self.asked())? {
            Request::Connect { id, .. } => Some(id),
            other => panic!("{other:?}"),
        }
    }

    /// The shim says this.
    pub fn answer(&mut self, answer: &Answer, fd: Option<OwnedFd>) {
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        self.shim.as_ref().unwrap().send_json(answer, &fds).unwrap();
        drop(fd);
        self.run();
    }

    /// Connects to `port` of the host, behind which is `fd`.
    #[track_caller]
    pub fn connect(&mut self, port: u32, fd: impl Into<OwnedFd>) -> Ports {
        let ports = self.ports(port);
        self.send(packet(Op::Request, ports), &[]);
        let Request::Connect { id, port: asked } = self.asked() else {
            panic!("not asked for a connection");
        };
        assert_eq!(asked, port);
        self.answer(&Answer::Accept { id }, Some(fd.into()));
        let response = self.expect(Op::Response, ports);
        assert_eq!(
            (response.header.buf_alloc, response.header.fwd_cnt),
            (BUF_ALLOC, 0)
        );
        ports
    }
}

fn activate(
    device: &mut Vsock,
    memory: &Memory,
    rings: [&Ring; 2],
    kicks: &[EventFd; 2],
    interrupt: &Arc<Interrupt>,
    resumed: bool,
) -> Subscriber {
    let event = Ring::new(memory, 0x3_0000, 16, true);
    let kicks = [&kicks[0], &kicks[1], &EventFd::new(EFD_NONBLOCK).unwrap()].map(|k| k.try_clone().unwrap());
    let queues = [rings[0], rings[1], &event]
        .into_iter()
        .zip(kicks)
        .map(|(ring, kick)| {
            let mut queue = ring.queue();
            if resumed {
                let used = queue.used_idx(memory.as_ref(), Ordering::Acquire).unwrap();
                queue.set_next_avail(used.0);
                queue.set_next_used(used.0);
            }
            ActiveQueue {
                queue,
                kick,
                interrupt: interrupt.clone(),
            }
        })
        .collect();
    let features = device.features();
    device
        .activate(Activation {
            memory: memory.clone(),
            features,
            queues,
            config_interrupt: interrupt.clone(),
        })
        .unwrap()
        .remove(0)
        .subscriber
}

/// A packet's header as an honest guest sends it.
pub fn packet(op: Op, ports: Ports) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: ports.guest,
        dst_port: ports.host,
        len: 0,
        kind: TYPE_STREAM,
        op: op.to_wire(),
        flags: 0,
        buf_alloc: GUEST_BUF_ALLOC,
        fwd_cnt: 0,
    }
}

pub fn shutdown(flags: u32, ports: Ports) -> Header {
    Header {
        flags,
        ..packet(Op::Shutdown, ports)
    }
}

/// Bytes that are not the same anywhere else.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn emit(header: &Header) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN);
    bytes.extend(header.src_cid.to_le_bytes());
    bytes.extend(header.dst_cid.to_le_bytes());
    bytes.extend(header.src_port.to_le_bytes());
    bytes.extend(header.dst_port.to_le_bytes());
    bytes.extend(header.len.to_le_bytes());
    bytes.extend(header.kind.to_le_bytes());
    bytes.extend(header.op.to_le_bytes());
    bytes.extend(header.flags.to_le_bytes());
    bytes.extend(header.buf_alloc.to_le_bytes());
    bytes.extend(header.fwd_cnt.to_le_bytes());
    bytes
}

fn parse(bytes: &[u8]) -> Header {
    let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    Header {
        src_cid: u64_at(0),
        dst_cid: u64_at(8),
        src_port: u32_at(16),
        dst_port: u32_at(20),
        len: u32_at(24),
        kind: u16_at(28),
        op: u16_at(30),
        flags: u32_at(32),
        buf_alloc: u32_at(36),
        fwd_cnt: u32_at(40),
    }
}
