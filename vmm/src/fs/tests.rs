//! The device with a driver and a file server that follow a script.

#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use sealock_protocol::{
    relay::{MAX_IN_FLIGHT, MAX_MESSAGE},
    seqpacket::{Error, SeqPacket},
};
use virtio_queue::{
    Queue,
    desc::{RawDescriptor, split::Descriptor},
    mock::MockSplitQueue,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{
    FileSystem,
    wire::{self, CREATE, FORGET, OPEN, READ, RELEASE, WRITE, WRITE_CACHE},
};
use crate::virtio::device::{Activation, ActiveQueue, DriverInterrupt, VirtioDevice};

const GETATTR: u32 = 3;
const NODE: u64 = 5;
const HANDLE: u64 = 77;
const MEMORY: usize = 64 << 20;
const BUFFERS: u64 = 1 << 20;
const NEXT: u16 = 1;
const WRITABLE: u16 = 2;

struct Interrupts(AtomicUsize);

impl DriverInterrupt for Interrupts {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

type Mock<'m> = MockSplitQueue<'m, GuestMemoryMmap>;

/// A driver, a device and the file server's end of the relay.
struct Bench<'m> {
    memory: &'m GuestMemoryMmap,
    queues: [Mock<'m>; 2],
    /// The mock lays a long available ring over its used ring: these have the used rings apart.
    used: [Mock<'m>; 2],
    made: [u16; 2],
    seen: [u16; 2],
    descriptor: [u16; 2],
    buffer: u64,
    kicks: Vec<EventFd>,
    interrupts: Arc<Interrupts>,
    device: EventManager<Box<dyn MutEventSubscriber + Send>>,
    server: Option<SeqPacket>,
}

/// A chain that was made available: its head and where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sent {
    head: u16,
    answer: GuestAddress,
}

impl<'m> Bench<'m> {
    fn new(memory: &'m Arc<GuestMemoryMmap>) -> Self {
        let (ours, theirs) = SeqPacket::pair().unwrap();
        let mut device = FileSystem::new("share", ours).unwrap();
        let mut at = GuestAddress(0x1000);
        let mut create = |size| {
            let queue = Mock::create(&**memory, at, size);
            at = GuestAddress(at.raw_value() + 0x10000);
            queue
        };
        let queues = [64, 512].map(&mut create);
        let used = [64, 512].map(&mut create);
        let interrupts = Arc::new(Interrupts(AtomicUsize::new(0)));
        let kicks: Vec<EventFd> = (0..2)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap())
            .collect();
        let active = queues.iter().zip(&used).zip(&kicks).map(|((queue, used), kick)| {
            let mut queue = queue.create_queue::<Queue>().unwrap();
            queue.try_set_used_ring_address(used.used_addr()).unwrap();
            ActiveQueue {
                queue,
                kick: kick.try_clone().unwrap(),
                interrupt: interrupts.clone(),
            }
        });
        let activation = Activation {
            memory: Arc::clone(memory),
            features: 0,
            queues: active.collect(),
            config_interrupt: interrupts.clone(),
        };
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(device.activate(activation).unwrap().remove(0).subscriber);
        Self {
            memory,
            queues,
            used,
            made: [0; 2],
            seen: [0; 2],
            descriptor: [0; 2],
            buffer: BUFFERS,
            kicks,
            interrupts,
            device: events,
            server: Some(theirs),
        }
    }

    /// Makes a chain available: `parts` of a request, and room for an answer.
    fn submit_to(&mut self, index: usize, parts: &[&[u8]], rooms: &[u32]) -> Sent {
        let mut descriptors = Vec::new();
        let mut answer = None;
        for part in parts {
            self.memory.write_slice(part, GuestAddress(self.buffer)).unwrap();
            descriptors.push((self.buffer, u32::try_from(part.len()).unwrap(), 0));
            self.buffer += part.len() as u64;
        }
        for &room in rooms {
            answer.get_or_insert(GuestAddress(self.buffer));
            descriptors.push((self.buffer, room, WRITABLE));
            self.buffer += u64::from(room);
        }
        let head = self.submit_raw(index, &descriptors);
        Sent {
            head,
            answer: answer.unwrap_or(GuestAddress(0)),
        }
    }

    fn submit_raw(&mut self, index: usize, descriptors: &[(u64, u32, u16)]) -> u16 {
        let head = self.descriptor[index];
        for (count, &(address, length, flags)) in (1..).zip(descriptors) {
            let this = self.descriptor[index];
            let more = if count < descriptors.len() { NEXT } else { 0 };
            let descriptor = Descriptor::new(address, length, flags | more, this + 1);
            self.queues[index]
                .desc_table()
                .store(this, RawDescriptor::from(descriptor))
                .unwrap();
            self.descriptor[index] += 1;
        }
        self.make_available(index, head);
        head
    }

    fn make_available(&mut self, index: usize, head: u16) {
        let avail = self.queues[index].avail();
        avail
            .ring()
            .ref_at(usize::from(self.made[index]))
            .unwrap()
            .store(head.to_le());
        self.made[index] += 1;
        avail.idx().store(self.made[index].to_le());
        self.kicks[index].write(1).unwrap();
    }

    fn submit(&mut self, request: &[u8], room: u32) -> Sent {
        self.submit_to(1, &[request], &[room])
    }

    /// Lets the device handle what there is to be handled.
    fn settle(&mut self) {
        while self.device.run_with_timeout(0).unwrap() > 0 {}
    }

    /// The next used chain's head and length, waiting for it.
    fn used(&mut self, index: usize) -> (u16, u32) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.used[index].used().idx().load() == self.seen[index] {
            assert!(Instant::now() < deadline, "no chain was used");
            self.device.run_with_timeout(100).unwrap();
        }
        let element = self.used[index]
            .used()
            .ring()
            .ref_at(usize::from(self.seen[index]))
            .unwrap()
            .load();
        self.seen[index] += 1;
        (u16::try_from(element.id()).unwrap(), element.len())
    }

    fn nothing_used(&mut self, index: usize) -> bool {
        self.settle();
        self.used[index].used().idx().load() == self.seen[index]
    }

    /// The answer to a request, which has to be the next one used.
    fn answer(&mut self, sent: Sent) -> (i32, Vec<u8>) {
        let (head, length) = self.used(1);
        assert_eq!(head, sent.head);
        self.read_answer(sent, length)
    }

    fn read_answer(&self, sent: Sent, length: u32) -> (i32, Vec<u8>) {
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, sent.answer).unwrap();
        let header = wire::OutHeader::parse(bytes.first_chunk().unwrap());
        assert_eq!(header.length, length);
        (header.error, bytes.split_off(16))
    }

    fn error(&mut self, sent: Sent) -> i32 {
        let (error, payload) = self.answer(sent);
        assert!(payload.is_empty());
        -error
    }

    /// What the file server receives next.
    fn received(&mut self) -> Vec<u8> {
        self.settle();
        let mut buffer = vec![0; MAX_MESSAGE];
        let (message, files) = self.server.as_ref().unwrap().receive(&mut buffer).unwrap();
        assert!(files.is_empty());
        message.to_vec()
    }

    fn nothing_received(&mut self) -> bool {
        self.settle();
        let server = self.server.as_ref().unwrap();
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(server),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { libc::poll(&mut poll, 1, 0) == 0 }
    }

    fn reply(&self, message: &[u8], files: &[BorrowedFd<'_>]) {
        self.server.as_ref().unwrap().send(message, files).unwrap();
    }

    /// Has the file server open `file` for the guest.
    fn open(&mut self, file: &File) {
        let sent = self.submit(&request(OPEN, 1000, &[0; 8]), 32);
        assert_eq!(self.received(), request(OPEN, 1000, &[0; 8]));
        self.reply(&reply(1000, 0, &open_out(HANDLE)), &[file.as_fd()]);
        assert_eq!(self.answer(sent), (0, open_out(HANDLE)));
    }
}

fn request(opcode: u32, unique: u64, arguments: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(40 + arguments.len()).unwrap().to_ne_bytes());
    bytes.extend(opcode.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(NODE.to_ne_bytes());
    bytes.extend([0; 16]);
    bytes.extend(arguments);
    bytes
}

fn reply(unique: u64, error: i32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(u32::try_from(16 + payload.len()).unwrap().to_ne_bytes());
    bytes.extend(error.to_ne_bytes());
    bytes.extend(unique.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

fn open_out(handle: u64) -> Vec<u8> {
    let mut bytes = handle.to_ne_bytes().to_vec();
    bytes.extend([0; 8]);
    bytes
}

fn transfer_in(handle: u64, offset: u64, size: u32, fuse_flags: u32, file_flags: i32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(handle.to_ne_bytes());
    bytes.extend(offset.to_ne_bytes());
    bytes.extend(size.to_ne_bytes());
    bytes.extend(fuse_flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(file_flags.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes
}

fn write_request(unique: u64, offset: u64, data: &[u8], fuse_flags: u32, file_flags: i32) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap();
    let mut arguments = transfer_in(HANDLE, offset, size, fuse_flags, file_flags);
    arguments.extend(data);
    request(WRITE, unique, &arguments)
}

fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn reads_and_writes_go_to_the_donated_file_without_the_file_server() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let file = file_of(b"0123456789");
    bench.open(&file);

    // The data of a write and of a read in several pieces.
    let write = write_request(1, 4, b"abcdefgh", 0, 0);
    let sent = bench.submit_to(
        1,
        &[&write[..40], &write[40..80], &write[80..83], &write[83..]],
        &[24],
    );
    assert_eq!(bench.answer(sent), (0, vec![8, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(content(&file), b"0123abcdefgh");

    let read = request(READ, 2, &transfer_in(HANDLE, 2, 6, 0, 0));
    let sent = bench.submit_to(1, &[&read], &[16, 1, 3, 2]);
    assert_eq!(bench.answer(sent), (0, b"23abcd".to_vec()));
    assert!(bench.nothing_received());
    assert!(bench.interrupts.0.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_read_at_the_end_of_the_file_is_short() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.open(&file_of(b"0123456789"));
    for (offset, expected) in [(7, &b"789"[..]), (10, b""), (i64::MAX as u64 - 64, b"")] {
        let sent = bench.submit(&request(READ, 1, &transfer_in(HANDLE, offset, 64, 0, 0)), 80);
        assert_eq!(bench.answer(sent), (0, expected.to_vec()), "{offset}");
    }
}

#[test]
fn a_transfer_that_has_to_wait_is_done_all_the_same() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let file = file_of(b"");
    bench.open(&file);
    let sent = bench.submit(&write_request(1, 0, b"synchronous", 0, libc::O_SYNC), 24);
    assert_eq!(bench.answer(sent), (0, vec![11, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(content(&file), b"synchronous");
    // More than there are threads, at once.
    let requests: Vec<Sent> = (0..32)
        .map(|n| bench.submit(&write_request(n, 11 + n, b"x", 0, libc::O_DSYNC), 24))
        .collect();
    let mut heads: Vec<u16> = requests.iter().map(|_| bench.used(1).0).collect();
    heads.sort_unstable();
    assert_eq!(heads, requests.iter().map(|sent| sent.head).collect::<Vec<_>>());
    assert_eq!(content(&file).len(), 11 + 32);
}

#[test]
fn appending_goes_to_the_end_and_pages_go_to_where_they_belong() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let file = file_of(b"0123456789");
    bench.open(&file);
    let sent = bench.submit(&write_request(1, 0, b"end", 0, libc::O_APPEND), 24);
    assert_eq!(bench.answer(sent).0, 0);
    let sent = bench.submit(&write_request(2, 0, b"page", WRITE_CACHE, libc::O_APPEND), 24);
    assert_eq!(bench.answer(sent).0, 0);
    assert_eq!(content(&file), b"page456789end");
}

#[test]
fn absurd_numbers_are_refused() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let file = file_of(b"0123456789");
    bench.open(&file);
    let cases = [
        // Larger than the room for it.
        (transfer_in(HANDLE, 0, 65, 0, 0), libc::EINVAL),
        (transfer_in(HANDLE, 0, u32::MAX, 0, 0), libc::EINVAL),
        // Offsets that are negative to the kernel, or whose end is.
        (transfer_in(HANDLE, u64::MAX, 64, 0, 0), libc::EINVAL),
        (transfer_in(HANDLE, i64::MAX as u64 + 1, 0, 0, 0), libc::EINVAL),
        (transfer_in(HANDLE, i64::MAX as u64, 64, 0, 0), libc::EINVAL),
        (transfer_in(HANDLE + 1, 0, 64, 0, 0), libc::EBADF),
    ];
    for (arguments, errno) in cases {
        let sent = bench.submit(&request(READ, 1, &arguments), 80);
        assert_eq!(bench.error(sent), errno, "{arguments:?}");
    }
    // Arguments that are not there.
    let sent = bench.submit(&request(READ, 1, &[0; 8]), 80);
    assert_eq!(bench.error(sent), libc::EINVAL);
    // A write of more, or of less, than comes with it.
    for size in [3_u32, 5, u32::MAX] {
        let mut arguments = transfer_in(HANDLE, 0, size, 0, 0);
        arguments.extend(b"data");
        let sent = bench.submit(&request(WRITE, 1, &arguments), 24);
        assert_eq!(bench.error(sent), libc::EINVAL, "{size}");
    }
    // A header that lies about the length.
    let mut lie = request(GETATTR, 1, &[0; 16]);
    lie[0] += 1;
    let sent = bench.submit(&lie, 120);
    assert_eq!(bench.error(sent), libc::EINVAL);
    // Another node's handle.
    let mut other = request(READ, 1, &transfer_in(HANDLE, 0, 4, 0, 0));
    other[16] += 1;
    let sent = bench.submit(&other, 80);
    assert_eq!(bench.error(sent), libc::EBADF);
    // A request that no message holds.
    let sent = bench.submit(&request(GETATTR, 1, &vec![0; MAX_MESSAGE]), 120);
    assert_eq!(bench.error(sent), libc::EIO);
    assert_eq!(content(&file), b"0123456789");
    assert!(bench.nothing_received());
}

#[test]
fn descriptors_outside_guest_memory_harm_nobody() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.open(&file_of(b"0123456789"));
    let read = request(READ, 1, &transfer_in(HANDLE, 0, 64, 0, 0));
    bench.memory.write_slice(&read, GuestAddress(0x80000)).unwrap();
    let length = u32::try_from(read.len()).unwrap();
    for bad in [MEMORY as u64, u64::MAX - 8, MEMORY as u64 - 8] {
        // The payload goes nowhere; the header has a place.
        let answer = 0x90000;
        let head = bench.submit_raw(
            1,
            &[(0x80000, length, 0), (answer, 16, WRITABLE), (bad, 64, WRITABLE)],
        );
        let sent = Sent {
            head,
            answer: GuestAddress(answer),
        };
        assert_eq!(bench.error(sent), libc::EFAULT);
        // Nothing has a place.
        let head = bench.submit_raw(1, &[(0x80000, length, 0), (bad, 80, WRITABLE)]);
        assert_eq!(bench.used(1), (head, 0));
        let head = bench.submit_raw(1, &[(bad, length, 0), (answer, 80, WRITABLE)]);
        assert_eq!(bench.used(1), (head, 0));
    }
    // No answer is possible.
    let head = bench.submit_raw(1, &[(0x80000, length, 0)]);
    assert_eq!(bench.used(1), (head, 0));
    let getattr = request(GETATTR, 1, &[0; 16]);
    let sent = bench.submit(&getattr, 15);
    assert_eq!(bench.used(1), (sent.head, 0));
    assert!(bench.nothing_received());
}

#[test]
fn a_chain_without_end_is_used_unanswered() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let looped = Descriptor::new(0x80000, 40, NEXT, 500);
    bench.queues[1]
        .desc_table()
        .store(500, RawDescriptor::from(looped))
        .unwrap();
    bench.make_available(1, 500);
    assert_eq!(bench.used(1), (500, 0));
}

#[test]
fn a_broken_ring_is_left_alone() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    // More chains than the queue has room for.
    bench.queues[1].avail().idx().store(30_000_u16.to_le());
    bench.kicks[1].write(1).unwrap();
    assert!(bench.nothing_used(1));
    // The other queue goes on.
    let sent = bench.submit_to(0, &[&request(FORGET, 1, &[0; 8])], &[]);
    assert_eq!(bench.used(0), (sent.head, 0));
}

#[test]
fn answers_come_in_any_order() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let sent = [1, 2, 3].map(|unique| bench.submit(&request(GETATTR, unique, &[0; 16]), 120));
    for unique in [1, 2, 3] {
        assert_eq!(bench.received(), request(GETATTR, unique, &[0; 16]));
    }
    for unique in [3_u64, 1, 2] {
        bench.reply(&reply(unique, 0, &[u8::try_from(unique).unwrap(); 104]), &[]);
        let sent = sent[usize::try_from(unique).unwrap() - 1];
        assert_eq!(bench.answer(sent), (0, vec![u8::try_from(unique).unwrap(); 104]));
    }
}

#[test]
fn requests_without_an_answer_are_used_at_once() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let forget = request(FORGET, 9, &[1; 8]);
    let sent = bench.submit_to(0, &[&forget], &[]);
    assert_eq!(bench.used(0), (sent.head, 0));
    assert_eq!(bench.received(), forget);
}

#[test]
fn a_request_under_way_cannot_be_taken_over() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let first = bench.submit(&request(GETATTR, 1, &[0; 16]), 120);
    let second = bench.submit(&request(GETATTR, 1, &[1; 16]), 120);
    assert_eq!(bench.error(second), libc::EINVAL);
    assert_eq!(bench.received(), request(GETATTR, 1, &[0; 16]));
    assert!(bench.nothing_received());
    bench.reply(&reply(1, -libc::ENOENT, &[]), &[]);
    assert_eq!(bench.error(first), libc::ENOENT);
}

#[test]
fn what_is_no_answer_becomes_an_error() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    // To nothing that was asked.
    bench.reply(&reply(99, 0, &[]), &[]);
    bench.reply(b"short", &[]);
    let mut long = reply(1, 0, &[0; 8]);
    long[0] += 1;
    let mut positive = reply(1, libc::EIO, &[]);
    positive[8] = 1;
    let answers = [
        // More than the guest has room for.
        reply(1, 0, &[0; 105]),
        // More than a message may have.
        reply(1, 0, &vec![0; MAX_MESSAGE]),
        // A length that is not its own, errors that are none, an error with more behind it.
        long,
        positive,
        reply(1, -5000, &[]),
        reply(1, i32::MIN, &[]),
        reply(1, -libc::EIO, &[0; 8]),
    ];
    for answer in answers {
        let sent = bench.submit(&request(GETATTR, 1, &[0; 16]), 120);
        bench.received();
        bench.reply(&answer, &[]);
        assert_eq!(bench.error(sent), libc::EIO);
    }
}

#[test]
fn only_one_regular_file_is_taken_for_an_open_file() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let (pipe, _writer) = std::io::pipe().unwrap();
    let file = file_of(b"");
    let device = File::open("/dev/zero").unwrap();
    let refused: [&[BorrowedFd<'_>]; 4] = [
        &[],
        &[pipe.as_fd()],
        &[device.as_fd()],
        &[file.as_fd(), file.as_fd()],
    ];
    for files in refused {
        let sent = bench.submit(&request(OPEN, 1, &[0; 8]), 32);
        bench.received();
        bench.reply(&reply(1, 0, &open_out(HANDLE)), files);
        assert_eq!(bench.error(sent), libc::EIO);
        // The guest will not release what it believes was not opened.
        let release = bench.received();
        assert_eq!(release[4..8], RELEASE.to_ne_bytes());
        assert_eq!(release[16..24], NODE.to_ne_bytes());
        assert_eq!(release[40..48], HANDLE.to_ne_bytes());
        let unique = u64::from_ne_bytes(release[8..16].try_into().unwrap());
        bench.reply(&reply(unique, 0, &[]), &[]);
        let sent = bench.submit(&request(READ, 2, &transfer_in(HANDLE, 0, 4, 0, 0)), 20);
        assert_eq!(bench.error(sent), libc::EBADF);
    }
    // A failed one that brings a descriptor, and another request's answer that does.
    let sent = bench.submit(&request(OPEN, 1, &[0; 8]), 32);
    bench.received();
    bench.reply(&reply(1, -libc::EPERM, &[]), &[file.as_fd()]);
    assert_eq!(bench.error(sent), libc::EPERM);
    let sent = bench.submit(&request(GETATTR, 1, &[0; 16]), 120);
    bench.received();
    bench.reply(&reply(1, 0, &[0; 104]), &[file.as_fd()]);
    assert_eq!(bench.answer(sent).0, 0);
}

#[test]
fn a_created_file_is_known_by_the_node_in_the_answer() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let mut entry_and_open = vec![0; 128];
    entry_and_open[..8].copy_from_slice(&(NODE + 1).to_ne_bytes());
    entry_and_open.extend(open_out(HANDLE));
    let sent = bench.submit(&request(CREATE, 1, b"0123456789abcdefname\0"), 160);
    bench.received();
    bench.reply(&reply(1, 0, &entry_and_open), &[file_of(b"made").as_fd()]);
    assert_eq!(bench.answer(sent), (0, entry_and_open));
    let mut read = request(READ, 2, &transfer_in(HANDLE, 0, 4, 0, 0));
    read[16..24].copy_from_slice(&(NODE + 1).to_ne_bytes());
    let sent = bench.submit(&read, 20);
    assert_eq!(bench.answer(sent), (0, b"made".to_vec()));
}

#[test]
fn a_released_file_is_closed() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let (file, path) = tempfile::NamedTempFile::new().unwrap().keep().unwrap();
    std::fs::remove_file(path).unwrap();
    bench.open(&file);
    let mut arguments = HANDLE.to_ne_bytes().to_vec();
    arguments.extend([0; 16]);
    let release = request(RELEASE, 3, &arguments);
    let sent = bench.submit(&release, 16);
    assert_eq!(bench.received(), release);
    bench.reply(&reply(3, 0, &[]), &[]);
    assert_eq!(bench.answer(sent), (0, vec![]));
    let sent = bench.submit(&request(READ, 4, &transfer_in(HANDLE, 0, 4, 0, 0)), 20);
    assert_eq!(bench.error(sent), libc::EBADF);
}

#[test]
fn a_dead_file_server_fails_what_is_under_way_and_what_comes_later() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    bench.open(&file_of(b"0123456789"));
    let sent = bench.submit(&request(GETATTR, 1, &[0; 16]), 120);
    bench.received();
    bench.server = None;
    assert_eq!(bench.error(sent), libc::EIO);
    let sent = bench.submit(&request(GETATTR, 2, &[0; 16]), 120);
    assert_eq!(bench.error(sent), libc::EIO);
    let sent = bench.submit(&request(READ, 3, &transfer_in(HANDLE, 0, 4, 0, 0)), 20);
    assert_eq!(bench.error(sent), libc::EIO);
    let sent = bench.submit_to(0, &[&request(FORGET, 4, &[0; 8])], &[]);
    assert_eq!(bench.used(0), (sent.head, 0));
    // Nor does the event loop turn for nothing.
    assert_eq!(bench.device.run_with_timeout(0).unwrap(), 0);
}

#[test]
fn no_more_than_the_agreed_number_is_under_way() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    // One answer's room serves all: nobody reads them.
    let getattr = |unique| request(GETATTR, unique, &[0; 16]);
    let total = u64::try_from(MAX_IN_FLIGHT).unwrap() + 4;
    let heads: Vec<u16> = (0..total / 2)
        .map(|unique| bench.submit(&getattr(unique), 120).head)
        .collect();
    let mut received = Vec::new();
    for _ in &heads {
        received.push(bench.received());
    }
    // The descriptor table is used up: the chains go round.
    for unique in total / 2..total {
        let index = usize::try_from(unique - total / 2).unwrap();
        let address = bench.queues[1].desc_table().load(heads[index]).unwrap();
        let address = Descriptor::from(address).addr();
        bench.memory.write_slice(&getattr(unique), address).unwrap();
        bench.make_available(1, heads[index]);
    }
    while !bench.nothing_received() {
        received.push(bench.received());
    }
    assert_eq!(received.len(), MAX_IN_FLIGHT);
    // What has no answer is not held up.
    let sent = bench.submit_to(0, &[&request(FORGET, 9999, &[0; 8])], &[]);
    assert_eq!(bench.used(0), (sent.head, 0));
    assert_eq!(bench.received()[8..16], 9999_u64.to_ne_bytes());
    bench.reply(&reply(7, -libc::ENOENT, &[]), &[]);
    bench.used(1);
    received.push(bench.received());
    assert!(bench.nothing_received());
    for unique in (0..total).filter(|&unique| unique != 7) {
        bench.reply(&reply(unique, -libc::ENOENT, &[]), &[]);
        bench.used(1);
        while !bench.nothing_received() {
            received.push(bench.received());
        }
    }
    let expected: Vec<Vec<u8>> = (0..total).map(getattr).collect();
    assert_eq!(received, expected);
}

#[test]
fn a_slow_file_server_gets_everything_in_the_end() {
    let memory = memory();
    let mut bench = Bench::new(&memory);
    let large = |unique: u64| request(GETATTR, unique, &vec![u8::try_from(unique).unwrap(); 100_000]);
    for unique in 0..40 {
        bench.submit(&large(unique), 120);
    }
    // More than any socket buffer holds.
    bench.settle();
    for unique in 0..40 {
        assert_eq!(bench.received(), large(unique));
    }
    assert!(bench.nothing_received());
    for unique in 0..40 {
        bench.reply(&reply(unique, -libc::ENOENT, &[]), &[]);
        bench.used(1);
    }
    let server = bench.server.as_ref().unwrap();
    assert!(!matches!(server.send(&[], &[]), Err(Error::Closed)));
}
