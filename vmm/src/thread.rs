//! The kinds of threads, and the system calls that each is left with.
//!
//! They are listed in `vmm/filters`, with the reason where it isn't plain. What a thread starts has no more than itself: the main
//! thread starts virtual CPUs and the devices' thread, that one those of single devices, and the file system's its workers.

use sealock_jail::filter::Filter;
use sealock_protocol::control::ExitReason;

use crate::chain;

mod filters {
    include!(concat!(env!("OUT_DIR"), "/filters.rs"));
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Speaks with the shim, makes what is plugged in.
    Main,
    /// Runs the guest.
    Vcpu,
    /// Serves the devices that don't have a thread of their own.
    Devices,
    /// Serves a pair of a network device's queues.
    Net,
    /// Gives memory back to the host.
    Balloon,
    /// Serves the file system.
    Fs,
    /// Reads and writes files, where that has to wait for a disk.
    FsIo,
}

impl Thread {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Main,
        Self::Vcpu,
        Self::Devices,
        Self::Net,
        Self::Balloon,
        Self::Fs,
        Self::FsIo,
    ];

    /// What it is called; virtual CPUs have their number after it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "sealock-vmm",
            Self::Vcpu => "vcpu",
            Self::Devices => "devices",
            Self::Net => "net",
            Self::Balloon => "balloon",
            Self::Fs => "fs",
            Self::FsIo => "fs-io",
        }
    }

    /// What it may ask of the kernel.
    #[must_use]
    pub const fn filter(self) -> Filter {
        match self {
            Self::Main => filters::MAIN,
            Self::Vcpu => filters::VCPU,
            Self::Devices => filters::DEVICES,
            Self::Net => filters::NET,
            Self::Balloon => filters::BALLOON,
            Self::Fs => filters::FS,
            Self::FsIo => filters::FS_IO,
        }
    }

    /// Confines the calling thread for good, before it does anything for the guest. A process that can't confine a thread ends.
    pub fn confine(self) {
        // The threads of unit tests are the test program's, which does much else.
        if cfg!(test) {
            return;
        }
        if let Err(error) = self.filter().install() {
            eprintln!("sealock-vmm: {}: {}", self.name(), chain(&error));
            std::process::exit(ExitReason::Host.status());
        }
    }
}
