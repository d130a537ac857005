//! The timeline of a start: named steps in one clock.

use serde::{Deserialize, Serialize};

/// A step of a start and when it was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// What was reached: a short name in snake case, prefixed by the process it happened in (`vmm_exec`, `agent_hello`).
    pub step: String,
    /// The host's `CLOCK_MONOTONIC`, in nanoseconds.
    pub ns: u64,
}

impl Mark {
    /// Marks `step` as reached now.
    #[must_use]
    pub fn now(step: &str) -> Self {
        Self {
            step: step.to_owned(),
            ns: monotonic_ns(),
        }
    }
}

/// The host's `CLOCK_MONOTONIC` in nanoseconds: the same for every process of a host, unlike [`std::time::Instant`]
/// it can be sent from one to another.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds since the guest's or host's boot, `CLOCK_BOOTTIME`.
#[must_use]
pub fn boottime_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that outlives the call; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}
