//! A guest kernel's side of the relay: requests as it sends them (linux/fuse.h).

#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use std::{
    ffi::CString,
    fs::{self, File},
    os::fd::OwnedFd,
    path::PathBuf,
    thread::{self, JoinHandle},
};

use sealock_fsd::{identity, jail, server::FileServer, share::Share};
use sealock_protocol::{
    relay::MAX_MESSAGE,
    seqpacket::{Error, SeqPacket},
};
use tempfile::TempDir;

pub const ROOT: u64 = 1;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const RELEASEDIR: u32 = 29;
pub const CREATE: u32 = 35;
pub const DESTROY: u32 = 38;
pub const FALLOCATE: u32 = 43;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;

/// A served directory inside a directory that is not.
pub struct Guest {
    pub outside: TempDir,
    pub socket: Option<SeqPacket>,
    pub server: Option<JoinHandle<std::io::Result<()>>>,
    pub unique: u64,
    pub user: (u32, u32),
}

pub struct Answer {
    pub error: i32,
    pub payload: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

/// What can be told from `struct fuse_entry_out`.
#[derive(Debug, PartialEq)]
pub struct Found {
    pub node: u64,
    pub valid: u64,
    pub attributes: Attributes,
}

/// What can be told from `struct fuse_attr`.
#[derive(Debug, PartialEq)]
pub struct Attributes {
    pub size: u64,
    pub mode: u32,
    pub links: u32,
    pub user: u32,
    pub group: u32,
    pub device: u32,
}

impl Guest {
    /// A guest of a file server in this process, which is not confined.
    pub fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        let share = outside.path().join("share");
        fs::create_dir(&share).unwrap();
        let (ours, theirs) = SeqPacket::pair().unwrap();
        let share = Share::open(&share, jail::host_proc().unwrap()).unwrap();
        let server = thread::spawn(move || {
            identity::keep_capabilities().unwrap();
            FileServer::new(share, theirs)?.run()
        });
        Self {
            outside,
            socket: Some(ours),
            server: Some(server),
            unique: 0,
            user: (0, 0),
        }
    }

    /// A guest of whatever is at the other end of `socket`.
    pub fn of(socket: SeqPacket, outside: TempDir) -> Self {
        Self {
            outside,
            socket: Some(socket),
            server: None,
            unique: 0,
            user: (0, 0),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.outside.path().join("share").join(name)
    }

    pub fn send(&mut self, opcode: u32, node: u64, arguments: &[&[u8]]) {
        self.try_send(opcode, node, arguments).unwrap();
    }

    pub fn try_send(&mut self, opcode: u32, node: u64, arguments: &[&[u8]]) -> Result<(), Error> {
        self.unique += 2;
        let length = 40 + arguments.iter().map(|part| part.len()).sum::<usize>();
        let mut message = Vec::new();
        message.extend(u32::try_from(length).unwrap().to_ne_bytes());
        message.extend(opcode.to_ne_bytes());
        message.extend(self.unique.to_ne_bytes());
        message.extend(node.to_ne_bytes());
        message.extend(self.user.0.to_ne_bytes());
        message.extend(self.user.1.to_ne_bytes());
        message.extend([0; 8]);
        for part in arguments {
            message.extend(*part);
        }
        self.socket.as_ref().unwrap().send(&message, &[])
    }

    pub fn receive(&self) -> Answer {
        let mut buffer = vec![0; MAX_MESSAGE];
        let (message, files) = self.socket.as_ref().unwrap().receive(&mut buffer).unwrap();
        assert_eq!(u32_at(message, 0) as usize, message.len());
        assert_eq!(u64_at(message, 8), self.unique);
        Answer {
            error: -u32_at(message, 4).cast_signed(),
            payload: message[16..].to_vec(),
            files,
        }
    }

    pub fn ask(&mut self, opcode: u32, node: u64, arguments: &[&[u8]]) -> Answer {
        self.send(opcode, node, arguments);
        self.receive()
    }

    pub fn done(&mut self, opcode: u32, node: u64, arguments: &[&[u8]]) -> Vec<u8> {
        let answer = self.ask(opcode, node, arguments);
        assert_eq!(answer.error, 0, "operation {opcode}");
        assert!(answer.files.is_empty());
        answer.payload
    }

    pub fn fails(&mut self, opcode: u32, node: u64, arguments: &[&[u8]]) -> i32 {
        let answer = self.ask(opcode, node, arguments);
        assert_ne!(answer.error, 0, "operation {opcode}");
        assert!(answer.files.is_empty() && answer.payload.is_empty());
        answer.error
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Found {
        found(&self.done(LOOKUP, parent, &[&text(name)]))
    }

    pub fn attributes(&mut self, node: u64) -> Attributes {
        attributes(&self.done(GETATTR, node, &[&[0; 16]])[16..])
    }

    pub fn open(&mut self, node: u64, flags: i32) -> (u64, File) {
        let mut answer = self.ask(OPEN, node, &[&words(&[flags.cast_unsigned(), 0])]);
        assert_eq!(answer.error, 0);
        assert_eq!(answer.files.len(), 1);
        (u64_at(&answer.payload, 0), File::from(answer.files.remove(0)))
    }

    pub fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> (Found, u64, File) {
        let arguments = words(&[flags.cast_unsigned(), mode, 0, 0]);
        let mut answer = self.ask(CREATE, parent, &[&arguments, &text(name)]);
        assert_eq!(answer.error, 0);
        assert_eq!(answer.files.len(), 1);
        let handle = u64_at(&answer.payload, 128);
        (found(&answer.payload), handle, File::from(answer.files.remove(0)))
    }

    pub fn release(&mut self, node: u64, handle: u64) {
        assert!(
            self.done(RELEASE, node, &[&handle.to_ne_bytes(), &[0; 16]])
                .is_empty()
        );
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.socket.take());
        let ended = self.server.take().map(JoinHandle::join);
        if let (Some(ended), false) = (ended, thread::panicking()) {
            ended.unwrap().unwrap();
        }
    }
}

pub fn text(name: &str) -> Vec<u8> {
    CString::new(name).unwrap().into_bytes_with_nul()
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn found(entry: &[u8]) -> Found {
    Found {
        node: u64_at(entry, 0),
        valid: u64_at(entry, 16),
        attributes: attributes(&entry[40..]),
    }
}

pub fn attributes(attr: &[u8]) -> Attributes {
    Attributes {
        size: u64_at(attr, 8),
        mode: u32_at(attr, 60),
        links: u32_at(attr, 64),
        user: u32_at(attr, 68),
        group: u32_at(attr, 72),
        device: u32_at(attr, 76),
    }
}

/// `struct fuse_setattr_in`.
#[derive(Default)]
pub struct Change {
    pub valid: u32,
    pub handle: u64,
    pub size: u64,
    pub mtime: u64,
    pub mode: u32,
    pub user: u32,
    pub group: u32,
}

impl Change {
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = words(&[self.valid, 0]);
        for field in [self.handle, self.size, 0, 0, self.mtime, 0] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(words(&[0, 0, 0, self.mode, 0, self.user, self.group, 0]));
        bytes
    }
}

pub const MODE: u32 = 1;
pub const USER: u32 = 1 << 1;
pub const GROUP: u32 = 1 << 2;
pub const SIZE: u32 = 1 << 3;
pub const MTIME: u32 = 1 << 5;
pub const BY_HANDLE: u32 = 1 << 6;
pub const KILL_SUIDGID: u32 = 1 << 11;
