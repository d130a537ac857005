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
mod network;
mod oci;
mod oci_mounts;
mod oci_resources;
mod recovery;
mod rootfs;
mod stats;
mod streams;
mod templates;
mod terminal;
mod volumes;

use std::{
    process::Output,
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use sealock_tests::{cni, ctr, host::Leavings};

/// A test's hold on the host: alone while it lasts, and what it made is gone when it ends well.
struct Host {
    before: Leavings,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    fn take() -> Self {
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
            _alone: alone,
        }
    }

    /// To be called last: nothing may be left.
    fn assert_clean(self) {
        self.before.assert_gone();
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
