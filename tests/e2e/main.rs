//! Sealock as containerd's users see it: every promise that needs a real machine, run in the lab by `scripts/test`.
//!
//! The tests change the host's configuration and look at everything on it: they run one at a time.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cgroup;
mod events;
mod exec;
mod exit_status;
mod failures;
mod files;
mod growth;
mod hooks;
mod isolation;
mod jail;
mod kills;
mod lifecycle;
mod many;
mod mutation;
mod network;
mod oci;
mod oci_mounts;
mod oci_resources;
mod recovery;
mod rootfs;
mod scarce;
mod stats;
mod streams;
mod templates;
mod terminal;
mod trace;
mod volumes;

use std::{
    io::{self, Write},
    process::{Command, Output},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use sealock_tests::{cni, ctr, host::Leavings};

/// A test's hold on the host: alone while it lasts, and what it made is gone when it ends well.
struct Host {
    before: Leavings,
    _deadline: Deadline,
    _alone: MutexGuard<'static, ()>,
}

/// Ends the whole program when a test takes so long that it will never end, and says what there is on the host then.
/// Dropped, it lets the test be.
struct Deadline(#[expect(dead_code, reason = "what matters is its end")] Sender<()>);

impl Deadline {
    /// Many times what all but the longest tests take.
    const AFTER: Duration = Duration::from_secs(240);
    /// None that the test harness has.
    const STATUS: i32 = 75;

    fn new(after: Duration) -> Self {
        let (alive, ended) = channel();
        thread::spawn(move || Self::watch(&ended, after));
        Self(alive)
    }

    fn watch(ended: &Receiver<()>, after: Duration) {
        if ended.recv_timeout(after) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        // Not by eprintln!, which keeps it until the test has ended.
        let told = format!("\nthe test does not end\n{}\n", of_the_host());
        let _ = io::stderr().write_all(told.as_bytes());
        std::process::exit(Self::STATUS);
    }
}

/// Processes, memory, what the kernel said and what the shims have logged of late.
fn of_the_host() -> String {
    let mut told = String::from("\non the host there is:\n");
    for [program, arguments] in [
        [
            "ps",
            "-ww --ppid 2 -p 2 --deselect -o pid,ppid,stat,time,wchan:24,args --forest",
        ],
        ["free", "-m"],
        ["sh", "-c dmesg|tail"],
        ["tail", "-n 60 /var/log/containerd.log"],
    ] {
        // What can't be told isn't.
        if let Ok(output) = Command::new(program).args(arguments.split(' ')).output() {
            told += &text(&output.stdout);
        }
    }
    told
}

/// Ends what a failed test has left running: those after it are to find what they expect.
fn end_containers() {
    for id in text(&ctr::ctr(&["container", "ls", "-q"]).stdout).lines() {
        ctr::delete(id);
    }
}

impl Host {
    fn take() -> Self {
        Self::take_for(Deadline::AFTER)
    }

    /// For a test that may take so long.
    fn take_for(time: Duration) -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // What containerd and the runtimes make once for all containers is there from the first on.
        static FIRST: Once = Once::new();
        FIRST.call_once(|| {
            ctr::import_busybox();
            // The directory of named network namespaces becomes a mount with the first.
            drop(cni::Namespace::new("first"));
            for runtime in [ctr::Runtime::Runc, ctr::Runtime::Sealock] {
                let output = ctr::Run::busybox(runtime, &["true"]).output();
                assert!(output.status.success(), "{}", story(&output));
            }
        });
        Self {
            before: Leavings::now(),
            _deadline: Deadline::new(time),
            _alone: alone,
        }
    }

    /// To be called last: nothing may be left.
    fn assert_clean(self) {
        self.before.assert_gone();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", of_the_host());
            end_containers();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a failed `ctr` is told by: status and streams.
fn story(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    )
}
