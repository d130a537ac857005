//! When to ask the host for memory, and what containers may use until it comes.
//!
//! The kernel kills a process as soon as an allocation finds no memory: it would not wait for the host. So all containers
//! together have a mark (`memory.high` of the cgroup above them) a little below what there is. Whoever crosses it is slowed
//! down, the more the further, and the kernel says so at once. The first, lower mark asks for memory, the second holds the
//! containers up until it is there. Where the machine can grow no further the marks give way to a limit (`memory.max`), so that
//! the kernel's choice whom to kill is among the containers.
//!
//! At that limit the kernel kills when nothing can be reclaimed. As long as programs run from files there is always something:
//! the very pages that they execute, which are read again at once. Containers that have used up their memory and do nothing but
//! wait for it are therefore at a standstill, and the largest process is killed.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use super::figures::{Total, Usage};
use crate::init::CGROUPS;

const MIB: u64 = 1024;

/// For what the kernel itself allocates at short notice, in KiB, beside a part of all memory.
const RESERVE: u64 = 8 * MIB;

/// The least that containers may use, in KiB, whatever the figures say.
const LEAST: u64 = 8 * MIB;

/// What the machine grows by at least, in MiB.
const STEP_MIB: u32 = 256;

/// Memory that was given up and needed again at once, in KiB since the last time it was looked at, from which on there is too
/// little for what containers do with files.
const REFAULTS: u64 = 4 * MIB;

/// How long containers may be at a standstill until one of them is ended for the others' sake.
const PATIENCE: Duration = Duration::from_secs(5);

/// Standstills further apart than this are not one. The kernel tells of one every second.
const PAUSE: Duration = Duration::from_millis(2500);

/// What containers may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Beyond this they are slowed down, in KiB.
    high: Option<u64>,
    /// Beyond this they are killed.
    max: Option<u64>,
}

impl Marks {
    /// Whatever there is.
    pub const NONE: Self = Self {
        high: None,
        max: None,
    };
}

/// Sets the containers' marks.
pub fn apply(marks: Marks) -> io::Result<()> {
    let value = |mark: Option<u64>| mark.map_or_else(|| "max".to_owned(), |kib| format!("{kib}K"));
    // One of them holds at any time.
    fs::write(format!("{CGROUPS}/memory.max"), value(marks.max))?;
    fs::write(format!("{CGROUPS}/memory.high"), value(marks.high))
}

/// Decides.
#[derive(Debug)]
pub struct Governor {
    boot_mib: u32,
    max_mib: u32,
    offered_mib: u32,
    wanted_mib: u32,
    /// At the start, before there was a container.
    boot: Total,
    total_kib: u64,
    refaulted_kib: u64,
    /// The first and the last time that the kernel told of this standstill.
    standstill: Option<(Instant, Instant)>,
    oom_kills: u64,
}

impl Governor {
    /// For a machine that has `boot_mib` and can have `max_mib`, as the host counts, of which the kernel says `boot`.
    pub fn new(boot_mib: u32, max_mib: u32, boot: Total) -> Self {
        Self {
            boot_mib,
            max_mib,
            offered_mib: boot_mib,
            wanted_mib: boot_mib,
            boot,
            total_kib: boot.total_kib,
            refaulted_kib: 0,
            standstill: None,
            oom_kills: 0,
        }
    }

    /// The host offers so much. When it is less than what was asked for, that is all there is.
    pub fn offered(&mut self, mib: u32) {
        if mib <= self.offered_mib {
            return;
        }
        self.offered_mib = mib;
        if mib < self.wanted_mib {
            self.max_mib = mib;
        }
        self.wanted_mib = self.wanted_mib.max(mib).min(self.max_mib.max(mib));
    }

    /// The kernel has so much. What has come has been offered: of the last of it the host may not say so.
    pub fn total(&mut self, kib: u64) {
        self.total_kib = kib.max(self.boot.total_kib);
        self.offered_mib = self.offered_mib.max(self.online_mib().min(self.max_mib));
    }

    /// What is online of what the host offers, as the host counts.
    pub fn online_mib(&self) -> u32 {
        let more = (self.total_kib - self.boot.total_kib) / MIB;
        u32::try_from(more).map_or(u32::MAX, |more| self.boot_mib.saturating_add(more))
    }

    /// What the machine should have.
    pub fn wanted_mib(&self) -> u32 {
        self.wanted_mib
    }

    /// Whether memory that the host offers is not online.
    pub fn waits_for_memory(&self) -> bool {
        self.online_mib() < self.offered_mib
    }

    /// What is offered doesn't come: there is no more than what has.
    pub fn give_up(&mut self) {
        self.offered_mib = self.online_mib();
        self.wanted_mib = self.offered_mib;
        self.max_mib = self.offered_mib;
    }

    fn at_the_top(&self) -> bool {
        self.offered_mib >= self.max_mib && !self.waits_for_memory()
    }

    /// What containers can use, in KiB: all but what was in use before there were any, the descriptors of what has come since
    /// (64 bytes for a page), and the reserve.
    fn usable(&self) -> u64 {
        let own = self.boot.total_kib.saturating_sub(self.boot.free_kib);
        let descriptors = (self.total_kib - self.boot.total_kib) / 64;
        let reserve = RESERVE + self.total_kib / 64;
        self.total_kib
            .saturating_sub(own + descriptors + reserve)
            .max(LEAST)
    }

    /// The mark that asks for memory.
    fn low_mark(&self) -> u64 {
        self.usable() / 8 * 7
    }

    /// What containers may use now.
    pub fn marks(&self) -> Marks {
        if self.at_the_top() {
            return Marks {
                high: None,
                max: Some(self.usable()),
            };
        }
        let asked = self.wanted_mib > self.online_mib();
        Marks {
            high: Some(if asked { self.usable() } else { self.low_mark() }),
            max: None,
        }
    }

    /// Containers have crossed their mark, or (`stalled`) wait for memory for a good part of their time.
    pub fn pressed(&mut self, usage: Usage, stalled: bool) {
        let refaulted = usage.refaulted_kib.saturating_sub(self.refaulted_kib);
        if stalled {
            self.refaulted_kib = usage.refaulted_kib;
        }
        // There is an answer to wait for.
        if self.wanted_mib > self.online_mib() {
            return;
        }
        let needed = usage.current_kib.saturating_sub(usage.reclaimable_kib);
        // Copies of files alone are no reason, unless they are in use.
        if needed >= self.low_mark() / 4 * 3 || stalled && refaulted >= REFAULTS {
            let step = STEP_MIB.max(self.offered_mib / 2);
            self.wanted_mib = self.offered_mib.saturating_add(step).min(self.max_mib);
        }
    }
}

impl Governor {
    /// All that the containers did for half of a second was to wait for memory. Whether it is time to end one of them.
    pub fn stood_still(&mut self, usage: Usage, available_kib: u64, now: Instant) -> bool {
        // Memory will come; or a container has reached a limit of its own, and that is between it and the kernel.
        let full = self
            .marks()
            .max
            .is_some_and(|max| usage.current_kib >= max - max / 16 || available_kib <= self.total_kib / 8);
        // Whoever has just been killed may still be giving back what it had.
        let killed = std::mem::replace(&mut self.oom_kills, usage.oom_kills) != usage.oom_kills;
        if !full || killed {
            self.standstill = None;
            return false;
        }
        let first = match self.standstill {
            Some((first, last)) if now.duration_since(last) <= PAUSE => first,
            _ => now,
        };
        let over = now.duration_since(first) >= PATIENCE;
        self.standstill = (!over).then_some((first, now));
        over
    }
}

/// Has the kernel kill the largest process, as it does when memory runs out: counted, and reported, as that.
pub fn kill_largest() -> io::Result<()> {
    // Documentation/admin-guide/sysrq.rst.
    fs::write("/proc/sysrq-trigger", "f")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 MiB, of which the kernel manages 50 and uses 12; it can have 1 GiB.
    fn governor() -> Governor {
        let boot = Total {
            total_kib: 50 * MIB,
            free_kib: 38 * MIB,
            available_kib: 38 * MIB,
        };
        Governor::new(64, 1088, boot)
    }

    fn used(mib: u64) -> Usage {
        Usage {
            current_kib: mib * MIB,
            ..Usage::default()
        }
    }

    #[test]
    fn memory_is_asked_for_before_it_is_used_up_and_held_until_it_comes() {
        let mut governor = governor();
        let first = governor.marks().high.unwrap();
        assert!(first < 38 * MIB, "{first}");
        governor.pressed(used(25), false);
        assert_eq!(governor.wanted_mib(), 64 + 256);
        let second = governor.marks().high.unwrap();
        assert!(first < second && second < 38 * MIB, "{second}");
        governor.pressed(used(30), false);
        assert_eq!(governor.wanted_mib(), 320, "it is asked for once");

        governor.offered(320);
        assert!(governor.waits_for_memory());
        governor.total((50 + 128) * MIB);
        let third = governor.marks().high.unwrap();
        assert!(
            third > second + 120 * MIB,
            "what has come may be used at once: {third}"
        );
        governor.total((50 + 256) * MIB);
        assert!(!governor.waits_for_memory());
        assert_eq!(governor.online_mib(), 320);
        assert!(governor.marks().high.unwrap() > second);
    }

    #[test]
    fn at_its_largest_the_machine_leaves_it_to_the_kernel_whom_to_kill() {
        let mut governor = governor();
        while governor.wanted_mib() < 1088 {
            governor.pressed(used(10_000), false);
            governor.offered(governor.wanted_mib());
            governor.total((50 + u64::from(governor.wanted_mib()) - 64) * MIB);
        }
        let marks = governor.marks();
        assert_eq!(marks.high, None);
        let max = marks.max.unwrap();
        assert!(max < (50 + 1024 - 12) * MIB && max > 1000 * MIB, "{max}");
        governor.pressed(used(10_000), true);
        assert_eq!(governor.wanted_mib(), 1088);
    }

    #[test]
    fn a_machine_is_at_its_largest_when_all_has_come_whether_the_host_says_so_or_not() {
        let boot = Total {
            total_kib: 50 * MIB,
            free_kib: 38 * MIB,
            available_kib: 38 * MIB,
        };
        let mut governor = Governor::new(64, 192, boot);
        governor.pressed(used(30), false);
        assert_eq!(governor.wanted_mib(), 192);
        governor.total((50 + 128) * MIB);
        assert!(governor.marks().high.is_none() && governor.marks().max.is_some());
    }

    #[test]
    fn a_host_that_has_less_is_taken_at_its_word() {
        let mut governor = governor();
        governor.pressed(used(30), false);
        governor.offered(192);
        assert_eq!(governor.wanted_mib(), 192);
        governor.total((50 + 128) * MIB);
        assert!(governor.marks().high.is_none() && governor.marks().max.is_some());
    }

    #[test]
    fn memory_that_does_not_come_is_not_waited_for_for_ever() {
        let mut governor = governor();
        governor.pressed(used(30), false);
        governor.offered(320);
        governor.total((50 + 128) * MIB);
        governor.give_up();
        assert!(!governor.waits_for_memory());
        assert_eq!(governor.wanted_mib(), 192);
        assert!(governor.marks().max.is_some());
    }

    #[test]
    fn copies_of_files_grow_the_machine_only_when_they_are_in_use() {
        let mut governor = governor();
        let mut files = Usage {
            current_kib: 26 * MIB,
            reclaimable_kib: 20 * MIB,
            ..Usage::default()
        };
        governor.pressed(files, false);
        governor.pressed(files, true);
        assert_eq!(governor.wanted_mib(), 64);
        files.refaulted_kib = 3 * MIB;
        governor.pressed(files, true);
        assert_eq!(governor.wanted_mib(), 64, "a few are not many");
        files.refaulted_kib = 8 * MIB;
        governor.pressed(files, true);
        assert_eq!(governor.wanted_mib(), 320);
    }

    #[test]
    fn memory_that_the_host_gives_for_limits_moves_the_mark() {
        let mut governor = governor();
        let before = governor.marks().high.unwrap();
        governor.offered(576);
        assert!(governor.waits_for_memory());
        governor.total((50 + 512) * MIB);
        assert!(governor.marks().high.unwrap() > before + 400 * MIB);
        assert_eq!(governor.wanted_mib(), 576);
    }

    #[test]
    fn only_who_stands_still_at_the_bound_for_long_is_killed() {
        let mut governor = governor();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let enough = 40 * MIB;
        for second in 0..20 {
            assert!(!governor.stood_still(used(35), 0, after(second)), "it can grow");
        }
        governor.pressed(used(30), false);
        governor.offered(64 + 128);
        governor.total((50 + 128) * MIB);
        let full = Usage {
            current_kib: governor.marks().max.unwrap() - 100,
            ..Usage::default()
        };
        for second in 20..40 {
            assert!(
                !governor.stood_still(used(60), enough, after(second)),
                "there is memory"
            );
            assert!(
                !governor.stood_still(full, enough, after(2 * second)),
                "with pauses"
            );
            assert!(!governor.stood_still(used(60), enough, after(2 * second + 1)));
        }
        let mut kills = |usage, available, seconds: std::ops::Range<u64>| -> Vec<_> {
            seconds
                .filter(|&second| governor.stood_still(usage, available, after(second)))
                .collect()
        };
        assert_eq!(kills(full, enough, 100..112), [105, 111]);
        assert_eq!(kills(used(60), 5 * MIB, 200..206), [205]);
        let after_a_kill = Usage { oom_kills: 1, ..full };
        assert!(kills(full, enough, 300..303).is_empty());
        assert!(kills(after_a_kill, enough, 303..309).is_empty());
        assert_eq!(kills(after_a_kill, enough, 309..310), [309]);
    }

    #[test]
    fn there_is_always_room_for_something() {
        let boot = Total {
            total_kib: 10 * MIB,
            free_kib: 0,
            available_kib: 0,
        };
        let governor = Governor::new(64, 128, boot);
        assert_eq!(governor.marks().high, Some(7 * MIB));
    }
}
