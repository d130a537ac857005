//! The file server, asked by a hostile monitor. It is given an empty directory; what is above must stay as it was.
#![no_main]

use std::{cell::OnceCell, fs};

use arbitrary::{Arbitrary, Unstructured};
use sealock_fsd::{identity, jail, server::FileServer, share::Share};
use sealock_protocol::{relay::MAX_MESSAGE, seqpacket::SeqPacket};

/// A request: operation, node, user, and what comes after the header.
#[derive(Arbitrary, Debug)]
struct Request {
    operation: u8,
    node: u8,
    user: u8,
    body: Vec<u8>,
}

struct Stage {
    server: FileServer,
    directory: tempfile::TempDir,
    _monitor: SeqPacket,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let share = directory.path().join("share");
        fs::create_dir(&share).expect("it is empty");
        identity::keep_capabilities().expect("this needs root");
        let (monitor, server) = SeqPacket::pair().expect("there are descriptors left");
        let proc_fds = jail::host_proc().expect("/proc is mounted");
        let share = Share::open(&share, proc_fds).expect("it was just made");
        Self {
            server: FileServer::new(share, server).expect("the socket is large enough"),
            directory,
            _monitor: monitor,
        }
    }

    fn ask(&self, request: &Request) {
        let length = (40 + request.body.len()).min(MAX_MESSAGE);
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(u32::from(request.operation % 54).to_ne_bytes());
        message.extend(1_u64.to_ne_bytes());
        message.extend(u64::from(request.node).to_ne_bytes());
        message.extend(u32::from(request.user % 2 * 100).to_ne_bytes());
        message.extend([0; 12]);
        message.extend(&request.body);
        message.truncate(length);
        let mut answer = vec![0; MAX_MESSAGE];
        let (written, _) = self.server.answer(&mut message, &mut answer);
        assert!(written <= MAX_MESSAGE);
    }
}

thread_local! {
    static STAGE: OnceCell<Stage> = const { OnceCell::new() };
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    STAGE.with(|stage| {
        let stage = stage.get_or_init(Stage::new);
        let mut bytes = Unstructured::new(data);
        while let Ok(request) = Request::arbitrary(&mut bytes) {
            stage.ask(&request);
            if bytes.is_empty() {
                break;
            }
        }
        let above = fs::read_dir(stage.directory.path()).expect("it is there");
        assert_eq!(above.count(), 1, "something was made above the share");
    });
});
