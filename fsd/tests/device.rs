//! The VMM's device and the file server together: what a guest kernel sees of them.

#![allow(clippy::unwrap_used)]

mod guest;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use guest::{
    CREATE, GETATTR, INIT, LOOKUP, OPEN, RELEASE, ROOT, UNLINK, attributes, found, text, u32_at, u64_at,
    words,
};
use sealock_fsd::{identity, jail, server::FileServer, share::Share};
use sealock_protocol::seqpacket::SeqPacket;
use sealock_vmm::{
    fs::FileSystem,
    virtio::device::{Activation, ActiveQueue, DriverInterrupt, VirtioDevice},
};
use virtio_queue::{
    Queue,
    desc::{RawDescriptor, split::Descriptor},
    mock::MockSplitQueue,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const READ: u32 = 15;
const WRITE: u32 = 16;
const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x80_0000;
const PAGE: usize = 4096;

struct NoInterrupt;

impl DriverInterrupt for NoInterrupt {
    fn trigger(&self) {}
}

struct Machine<'m> {
    memory: &'m GuestMemoryMmap,
    requests: MockSplitQueue<'m, GuestMemoryMmap>,
    made: u16,
    kick: EventFd,
    device: EventManager<Box<dyn MutEventSubscriber + Send>>,
    server: JoinHandle<std::io::Result<()>>,
}

impl<'m> Machine<'m> {
    fn new(memory: &'m Arc<GuestMemoryMmap>, share: PathBuf) -> Self {
        let (ours, theirs) = SeqPacket::pair().unwrap();
        let server = thread::spawn(move || {
            identity::keep_capabilities().unwrap();
            FileServer::new(Share::open(&share, jail::host_proc().unwrap())?, theirs)?.run()
        });
        let mut device = FileSystem::new("share", ours).unwrap();
        let hiprio = MockSplitQueue::create(&**memory, GuestAddress(0x1000), 16);
        let requests = MockSplitQueue::create(&**memory, GuestAddress(0x10000), 512);
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let queues = [&hiprio, &requests].map(|queue| ActiveQueue {
            queue: queue.create_queue::<Queue>().unwrap(),
            kick: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            interrupt: Arc::new(NoInterrupt),
        });
        let mut queues = Vec::from(queues);
        queues[1].kick = kick.try_clone().unwrap();
        let activation = Activation {
            memory: Arc::clone(memory),
            features: 0,
            queues,
            config_interrupt: Arc::new(NoInterrupt),
        };
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(device.activate(activation).unwrap().remove(0).subscriber);
        Self {
            memory,
            requests,
            made: 0,
            kick,
            device: events,
            server,
        }
    }

    /// Asks, in pieces of a page each, and waits for the answer.
    fn ask(&mut self, opcode: u32, node: u64, arguments: &[&[u8]], room: usize) -> (i32, Vec<u8>) {
        let arguments = arguments.concat();
        let unique = u64::from(self.made) * 2 + 2;
        let mut message = words(&[u32::try_from(40 + arguments.len()).unwrap(), opcode]);
        message.extend(unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        message.extend([0; 16]);
        message.extend(arguments);
        self.memory.write_slice(&message, GuestAddress(REQUEST)).unwrap();
        let room = 16 + room;
        let pieces = |at: u64, length: usize, flags: u16| {
            (0..length).step_by(PAGE).map(move |from| {
                let length = u32::try_from(PAGE.min(length - from)).unwrap();
                (at + from as u64, length, flags)
            })
        };
        let chain: Vec<_> = pieces(REQUEST, message.len(), 0)
            .chain(pieces(ANSWER, room, 2))
            .collect();
        for (index, &(address, length, flags)) in (0_u16..).zip(&chain) {
            let more = u16::from(usize::from(index) + 1 < chain.len());
            let descriptor = Descriptor::new(address, length, flags | more, index + 1);
            self.requests
                .desc_table()
                .store(index, RawDescriptor::from(descriptor))
                .unwrap();
        }
        self.requests
            .avail()
            .ring()
            .ref_at(usize::from(self.made))
            .unwrap()
            .store(0);
        self.made += 1;
        self.requests.avail().idx().store(self.made);
        self.kick.write(1).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.requests.used().idx().load() != self.made {
            assert!(Instant::now() < deadline, "operation {opcode} was not answered");
            self.device.run_with_timeout(100).unwrap();
        }
        let length = self
            .requests
            .used()
            .ring()
            .ref_at(usize::from(self.made - 1))
            .unwrap()
            .load()
            .len();
        let mut answer = vec![0; length as usize];
        self.memory.read_slice(&mut answer, GuestAddress(ANSWER)).unwrap();
        assert_eq!(u32_at(&answer, 0), length);
        assert_eq!(u64_at(&answer, 8), unique);
        (-u32_at(&answer, 4).cast_signed(), answer.split_off(16))
    }

    fn done(&mut self, opcode: u32, node: u64, arguments: &[&[u8]], room: usize) -> Vec<u8> {
        let (error, payload) = self.ask(opcode, node, arguments, room);
        assert_eq!(error, 0, "operation {opcode}");
        payload
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> u32 {
        let size = u32::try_from(data.len()).unwrap();
        let arguments = [
            &handle.to_ne_bytes()[..],
            &offset.to_ne_bytes(),
            &size.to_ne_bytes(),
            &[0; 20],
        ];
        u32_at(&self.done(WRITE, node, &[&arguments.concat(), data], 8), 0)
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Vec<u8> {
        let arguments = [
            &handle.to_ne_bytes()[..],
            &offset.to_ne_bytes(),
            &size.to_ne_bytes(),
            &[0; 20],
        ];
        self.done(READ, node, &arguments, size as usize)
    }
}

fn memory() -> Arc<GuestMemoryMmap> {
    // Two regions: pieces of a buffer may lie in both.
    let ranges = [
        (GuestAddress(0), 0x88_0800),
        (GuestAddress(0x88_0800), 0x100_0000),
    ];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

#[test]
fn what_the_guest_writes_is_on_the_host_and_comes_back() {
    let share = tempfile::tempdir().unwrap();
    let memory = memory();
    let mut guest = Machine::new(&memory, share.path().into());
    guest.done(INIT, 0, &[&words(&[7, 41, 1 << 17, u32::MAX]), &[0; 48]], 64);
    let create = words(&[libc::O_RDWR.cast_unsigned(), 0o100_644, 0, 0]);
    let made = guest.done(CREATE, ROOT, &[&create, &text("file")], 144);
    let (node, handle) = (found(&made).node, u64_at(&made, 128));

    let data: Vec<u8> = (0..(1_u32 << 20) + 321)
        .map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap())
        .collect();
    let (first, rest) = data.split_at(1 << 20);
    assert_eq!(guest.write(node, handle, 0, first), 1 << 20);
    assert_eq!(guest.write(node, handle, 1 << 20, rest), 321);
    let status = attributes(&guest.done(GETATTR, node, &[&[0; 16]], 104)[16..]);
    assert_eq!(status.size, data.len() as u64);
    assert!(
        fs::read(share.path().join("file")).unwrap() == data,
        "what was written differs"
    );
    assert!(
        guest.read(node, handle, 0, 1 << 20) == first,
        "what was read differs"
    );
    assert_eq!(guest.read(node, handle, 1 << 20, 1 << 20), rest);

    // The name goes, the file stays until it is closed.
    guest.done(UNLINK, ROOT, &[&text("file")], 0);
    assert_eq!(guest.read(node, handle, 5, 7), data[5..12]);
    guest.done(RELEASE, node, &[&handle.to_ne_bytes(), &[0; 16]], 0);
    let arguments = [&handle.to_ne_bytes()[..], &[0; 8], &7_u32.to_ne_bytes(), &[0; 20]];
    assert_eq!(guest.ask(READ, node, &arguments, 7).0, libc::EBADF);
    assert_eq!(guest.ask(LOOKUP, ROOT, &[&text("file")], 128).0, libc::ENOENT);

    let Machine { device, server, .. } = guest;
    drop(device);
    server.join().unwrap().unwrap();
}

#[test]
fn a_file_opened_to_read_cannot_be_written() {
    let share = tempfile::tempdir().unwrap();
    fs::write(share.path().join("file"), b"content").unwrap();
    let memory = memory();
    let mut guest = Machine::new(&memory, share.path().into());
    let file = found(&guest.done(LOOKUP, ROOT, &[&text("file")], 128)).node;
    let handle = u64_at(&guest.done(OPEN, file, &[&[0; 8]], 16), 0);
    assert_eq!(guest.read(file, handle, 0, 100), b"content");
    let arguments = [&handle.to_ne_bytes()[..], &[0; 8], &4_u32.to_ne_bytes(), &[0; 20]].concat();
    assert_eq!(guest.ask(WRITE, file, &[&arguments, b"evil"], 8).0, libc::EBADF);
    assert_eq!(fs::metadata(share.path().join("file")).unwrap().size(), 7);
    assert_eq!(fs::read(share.path().join("file")).unwrap(), b"content");
}
