//! Containers that do nothing, and what their processes take.

use anyhow::{Result, ensure};
use sealock_tests::{
    ctr::{self, Run, Runtime},
    host,
    memory::footprint,
};
use serde::Serialize;

/// A container that sleeps, until it is dropped. It has no client that would count.
pub struct Sleeper(Run);

impl Sleeper {
    pub fn start(runtime: Runtime) -> Result<Self> {
        let run = Run::busybox(runtime, &["sleep", "100000"]);
        let started = run.clone().flag(&["--detach"]).to_command().output()?;
        ensure!(
            started.status.success(),
            "the idle container did not start: {}",
            String::from_utf8_lossy(&started.stderr)
        );
        Ok(Self(run))
    }

    pub fn id(&self) -> &str {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        ctr::delete(self.id());
    }
}

/// Memory of all processes of a runtime in KiB: proportional set sizes, and what is nobody else's.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    pub shims: u64,
    pub vmms: u64,
    pub fsds: u64,
    /// What the container's own processes take, where the host has them.
    pub programs: u64,
    /// Guests' memory, which is a part of the monitors'.
    pub guests: u64,
    /// Of all of that, what is private to a process.
    pub private: u64,
}

impl Memory {
    /// What all idle containers of `runtime` take now.
    pub fn now(runtime: Runtime) -> Result<Self> {
        let mut memory = Self::default();
        let programs: &[&str] = match runtime {
            Runtime::Sealock => &["containerd-shim-sealock-v2", "sealock-vmm", "sealock-fsd"],
            Runtime::Runc => &["containerd-shim-runc-v2", "sleep"],
        };
        for program in programs {
            for pid in host::pids_of(program) {
                let footprint = footprint(pid)?;
                memory.private += footprint.private;
                memory.guests += footprint.pss_of_guest;
                let own = footprint.pss - footprint.pss_of_guest;
                match *program {
                    "sealock-vmm" => memory.vmms += own,
                    "sealock-fsd" => memory.fsds += own,
                    "sleep" => memory.programs += own,
                    _ => memory.shims += own,
                }
            }
        }
        Ok(memory)
    }

    /// All of it.
    pub fn pss(&self) -> u64 {
        self.shims + self.vmms + self.fsds + self.programs + self.guests
    }

    /// One of so many more than `before` takes.
    pub fn one_of(&self, more: u64, before: &Self) -> Self {
        let one = |now: u64, then: u64| now.saturating_sub(then) / more;
        Self {
            shims: one(self.shims, before.shims),
            vmms: one(self.vmms, before.vmms),
            fsds: one(self.fsds, before.fsds),
            programs: one(self.programs, before.programs),
            guests: one(self.guests, before.guests),
            private: one(self.private, before.private),
        }
    }
}
