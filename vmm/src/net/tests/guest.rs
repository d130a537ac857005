//! A driver of the device, and the wire.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use sealock_protocol::control::NetConfig;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::{
    net::{Net, features::offered, header::LENGTH, link::Link, tap::Tap},
    virtio::{
        device::{Activation, ActiveQueue, DriverInterrupt, Memory, Part, VirtioDevice},
        ring::{NEXT, Ring, WRITE},
    },
};

pub const MEMORY: usize = 64 << 20;
const RX_BUFFERS: u64 = 1 << 20;
const TX_BUFFERS: u64 = 32 << 20;
pub const QUEUE: u16 = 256;

/// Counts interrupts.
#[derive(Default)]
pub struct Count(AtomicUsize);

impl Count {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl DriverInterrupt for Count {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn config(queue_pairs: u8) -> NetConfig {
    NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        queue_pairs,
        vhost: false,
        receive_limit: None,
        send_limit: None,
    }
}

/// Both ends of a wire: the tap's, and the one that the test has.
pub fn wire() -> (Tap, OwnedFd) {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK,
    )
    .unwrap();
    for end in [&ours, &theirs] {
        setsockopt(end, sockopt::SndBuf, &(1 << 20)).unwrap();
    }
    (Tap::stand_in(theirs), ours)
}

pub struct Guest {
    pub memory: Memory,
    pub rx: Ring,
    pub tx: Ring,
    pub control: Ring,
    kicks: Vec<EventFd>,
    next: u16,
    pub device: Net,
    pub link: Arc<Link>,
    pub interrupts: Arc<Count>,
    pub config_interrupts: Arc<Count>,
    manager: EventManager<Box<dyn MutEventSubscriber + Send>>,
}

impl Guest {
    /// A driver that takes all features of a device on a socket.
    pub fn new() -> (Self, OwnedFd) {
        Self::with(&config(1), offered(1, true))
    }

    pub fn with(config: &NetConfig, features: u64) -> (Self, OwnedFd) {
        let (tap, wire) = wire();
        let device = Net::with_taps(config, vec![Arc::new(tap)], true);
        (Self::of(device, features), wire)
    }

    /// A driver of `device` that takes `features`, and uses its first pair of queues.
    pub fn of(mut device: Net, features: u64) -> Self {
        let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let rx = Ring::new(&memory, 0x1_0000, QUEUE, true);
        let tx = Ring::new(&memory, 0x2_0000, QUEUE, true);
        let control = Ring::new(&memory, 0x3_0000, 64, true);
        let kicks: Vec<_> = (0..3).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let (interrupts, config_interrupts) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut queues: Vec<_> = [&rx, &tx]
            .into_iter()
            .zip(&kicks)
            .map(|(ring, kick)| active(ring.queue(), kick, &interrupts))
            .collect();
        let unused = device.queue_max_sizes().len() - 3;
        for number in 0..unused {
            // Set up, but left alone.
            let ring = Ring::new(&memory, 0x4_0000 + 0x1_0000 * number as u64, QUEUE, true);
            queues.push(active(
                ring.queue(),
                &EventFd::new(EFD_NONBLOCK).unwrap(),
                &interrupts,
            ));
        }
        queues.push(active(control.queue(), &kicks[2], &interrupts));
        let parts = device
            .activate(Activation {
                memory: memory.clone(),
                features,
                queues,
                config_interrupt: config_interrupts.clone(),
            })
            .unwrap();
        let mut manager = EventManager::new().unwrap();
        for Part { subscriber, .. } in parts {
            manager.add_subscriber(subscriber);
        }
        let mut guest = Self {
            link: device.link(),
            memory,
            rx,
            tx,
            control,
            kicks,
            next: 0,
            device,
            interrupts,
            config_interrupts,
            manager,
        };
        guest.settle();
        guest
    }

    /// Lets the device handle everything there is to be handled; not for ever.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device is never done");
    }

    /// Lets the device run until `done`.
    pub fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < deadline, "it never came");
            self.manager.run_with_timeout(20).unwrap();
        }
    }

    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Makes `count` receive buffers of `size` bytes available.
    pub fn give_buffers(&mut self, count: u16, size: u32) {
        let mut kick = false;
        for index in 0..count {
            self.rx.describe(index, buffer(index), size, WRITE, 0);
            kick |= self.rx.publish(index);
        }
        if kick {
            self.kick(0);
        }
        self.settle();
    }

    /// Makes a buffer that was used available again.
    pub fn give_back(&mut self, index: u16) {
        if self.rx.publish(index) {
            self.kick(0);
        }
        self.settle();
    }

    /// The next packet: its header and its frame. Its buffers are not given back.
    pub fn received(&mut self) -> Option<([u8; LENGTH], Vec<u8>)> {
        let mut bytes = Vec::new();
        let mut left = 1;
        while left > 0 {
            let used = self.rx.take_used();
            let Some((index, length)) = used else {
                assert!(bytes.is_empty(), "a packet is used as a whole");
                return None;
            };
            let mut part = vec![0; length as usize];
            self.memory
                .read_slice(&mut part, GuestAddress(buffer(index)))
                .unwrap();
            if bytes.is_empty() {
                left = u16::from_le_bytes([part[10], part[11]]);
            }
            bytes.extend(part);
            left -= 1;
        }
        let frame = bytes.split_off(LENGTH);
        Some((bytes.try_into().unwrap(), frame))
    }

    /// Sends a chain of buffers that hold `parts`.
    pub fn send_parts(&mut self, parts: &[&[u8]]) -> u16 {
        let head = self.next;
        let mut address = TX_BUFFERS + u64::from(head) * 0x2_0000;
        for (number, part) in parts.iter().enumerate() {
            self.memory.write_slice(part, GuestAddress(address)).unwrap();
            let more = number + 1 < parts.len();
            let index = self.next;
            self.next = (self.next + 1) % QUEUE;
            let flags = if more { NEXT } else { 0 };
            let length = u32::try_from(part.len()).unwrap();
            self.tx.describe(index, address, length, flags, self.next);
            address += part.len() as u64;
        }
        self.publish(head);
        head
    }

    /// Makes the chain at `head` of the transmit queue available.
    pub fn publish(&mut self, head: u16) {
        if self.tx.publish(head) {
            self.kick(1);
        }
        self.settle();
    }

    pub fn send(&mut self, header: &[u8; LENGTH], frame: &[u8]) -> u16 {
        self.send_parts(&[header, frame])
    }

    /// Sends a command and returns the answer, if there is one.
    pub fn command(&mut self, parts: &[&[u8]]) -> Option<u8> {
        const ANSWER: u64 = 0xf_0000;
        const COMMAND: u64 = 0xe_0000;
        self.memory.write_obj(0xee_u8, GuestAddress(ANSWER)).unwrap();
        let mut address = COMMAND;
        let mut index = 0;
        for part in parts {
            self.memory.write_slice(part, GuestAddress(address)).unwrap();
            self.control
                .describe(index, address, part.len() as u32, NEXT, index + 1);
            address += part.len() as u64;
            index += 1;
        }
        self.control.describe(index, ANSWER, 1, WRITE, 0);
        if self.control.publish(0) {
            self.kick(2);
        }
        self.settle();
        let (head, length) = self.control.take_used()?;
        assert_eq!((head, length), (0, 1));
        Some(self.memory.read_obj(GuestAddress(ANSWER)).unwrap())
    }
}

pub fn active(queue: virtio_queue::Queue, kick: &EventFd, interrupt: &Arc<Count>) -> ActiveQueue {
    ActiveQueue {
        queue,
        kick: kick.try_clone().unwrap(),
        interrupt: interrupt.clone(),
    }
}

/// Where receive buffer `index` is.
pub fn buffer(index: u16) -> u64 {
    RX_BUFFERS + u64::from(index) * 0x1_0000
}

/// A frame of `length` bytes that can be told from others.
pub fn frame(number: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|place| (place as u8).wrapping_mul(31).wrapping_add(number))
        .collect()
}

/// Puts a packet on the wire: with a header, as a tap has it.
pub fn put(wire: &OwnedFd, frame: &[u8]) {
    let bytes = [&[0; LENGTH], frame].concat();
    assert_eq!(
        send(wire.as_raw_fd(), &bytes, MsgFlags::empty()).unwrap(),
        bytes.len()
    );
}

/// The next packet on the wire.
pub fn get(wire: &OwnedFd) -> Option<([u8; LENGTH], Vec<u8>)> {
    let mut bytes = vec![0; 0x2_0000];
    let length = recv(wire.as_raw_fd(), &mut bytes, MsgFlags::empty()).ok()?;
    bytes.truncate(length);
    let frame = bytes.split_off(LENGTH);
    Some((bytes.try_into().unwrap(), frame))
}
