//! What is special to a machine that is restored from a template: before it is saved, and after.

use std::{
    arch::x86_64::_rdtsc,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
};

use nix::time::{ClockId, clock_settime};
use sealock_protocol::agent::Clock;

use super::error::Error;

/// Lets go of what would be in the template for nothing: clean caches, and memory in pieces too small to be reported to the host
/// as free.
///
/// # Errors
/// The kernel refuses.
pub fn rest() -> Result<(), Error> {
    fs::write("/proc/sys/vm/drop_caches", "3").map_err(Error::system("dropping caches"))?;
    fs::write("/proc/sys/vm/compact_memory", "1").map_err(Error::system("compacting memory"))
}

/// Takes the random bytes out of the entropy device's driver that it has fetched ahead: all machines of a template have the same.
/// The kernel's own generator has been reseeded by then.
///
/// # Errors
/// The device can't be read.
pub fn forget_entropy() -> Result<(), Error> {
    let system = Error::system::<io::Error>;
    let mut device = match File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/hwrng")
    {
        Ok(device) => device,
        // The kernel has none, and so nothing fetched.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("opening the entropy device")(error)),
    };
    // More than the driver (64 bytes) and the kernel above it (as much) keep.
    let mut bytes = [0; 128];
    match device.read(&mut bytes) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => Ok(()),
        Err(error) => Err(system("reading the entropy device")(error)),
    }
}

/// How often the wall clock is set, until nothing has come in between: the host may have let this processor wait just then.
const ATTEMPTS: usize = 10;

/// How long setting the wall clock takes at most when nothing comes in between, in nanoseconds.
const UNDISTURBED_NS: u64 = 200_000;

/// Sets the wall clock.
///
/// # Errors
/// The kernel refuses.
pub fn set_clock(clock: &Clock) -> Result<(), Error> {
    // SAFETY: every 64-bit processor has the instruction, and Linux leaves it to programs.
    let now = || realtime_ns(clock, unsafe { _rdtsc() });
    for _ in 0..ATTEMPTS {
        let begun = now();
        let time = i64::try_from(begun).unwrap_or(i64::MAX);
        let time = libc::timespec {
            tv_sec: time / 1_000_000_000,
            tv_nsec: time % 1_000_000_000,
        };
        clock_settime(ClockId::CLOCK_REALTIME, time.into()).map_err(Error::system("setting the clock"))?;
        if now().saturating_sub(begun) < UNDISTURBED_NS {
            break;
        }
    }
    Ok(())
}

/// What time it is when the time stamp counter has the value `tsc`, in nanoseconds since 1970.
fn realtime_ns(clock: &Clock, tsc: u64) -> u64 {
    let ticks = tsc.saturating_sub(clock.tsc);
    // Kilohertz are ticks a millisecond.
    let passed = match clock.tsc_khz {
        0 => 0,
        khz => u128::from(ticks) * 1_000_000 / u128::from(khz),
    };
    clock
        .realtime_ns
        .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_goes_on_with_the_counter() {
        let mut clock = Clock::new();
        clock.realtime_ns = 1_800_000_000_000_000_000;
        clock.tsc = 5_000_000_000;
        clock.tsc_khz = 2_500_000;
        let at = |tsc| realtime_ns(&clock, tsc) - clock.realtime_ns;
        assert_eq!(at(5_000_000_000), 0);
        assert_eq!(at(5_000_002_500), 1_000);
        assert_eq!(at(5_000_000_000 + 2_500_000_000 * 3600), 3_600_000_000_000);
        assert_eq!(at(4), 0, "a counter that has not got there yet");
    }

    #[test]
    fn without_a_frequency_the_time_is_what_the_host_said() {
        let mut clock = Clock::new();
        clock.realtime_ns = 7;
        assert_eq!(realtime_ns(&clock, u64::MAX), 7);
        clock.tsc_khz = 1;
        assert_eq!(realtime_ns(&clock, u64::MAX), u64::MAX);
    }
}
