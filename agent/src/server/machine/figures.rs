//! What the kernel says of its memory. A figure that is missing counts as zero.

use std::{fs, io};

use crate::init::CGROUPS;

const PAGE: u64 = 4096;

/// The guest's memory as a whole, from `/proc/meminfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Total {
    /// What the kernel manages, in KiB.
    pub total_kib: u64,
    /// What is free.
    pub free_kib: u64,
    /// What is free or could be made so.
    pub available_kib: u64,
}

impl Total {
    /// As of now.
    pub fn read() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        Ok(Self {
            total_kib: figure(&text, "MemTotal:"),
            free_kib: figure(&text, "MemFree:"),
            available_kib: figure(&text, "MemAvailable:"),
        })
    }
}

/// What the containers use of it, from their common cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All they use, in KiB.
    pub current_kib: u64,
    /// The part of it that the kernel could do without: copies of files, and caches of names.
    pub reclaimable_kib: u64,
    /// How much of what it did do without it needed again at once, in KiB, since the start.
    pub refaulted_kib: u64,
    /// How many of their processes have been killed for want of memory.
    pub oom_kills: u64,
}

impl Usage {
    /// As of now.
    pub fn read() -> io::Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("{CGROUPS}/{file}"));
        Ok(Self::parse(
            &read("memory.current")?,
            &read("memory.stat")?,
            &read("memory.events")?,
        ))
    }

    fn parse(current: &str, stat: &str, events: &str) -> Self {
        let kib = |key| figure(stat, key) / 1024;
        Self {
            current_kib: current.trim().parse::<u64>().unwrap_or(0) / 1024,
            reclaimable_kib: ["active_file", "inactive_file", "slab_reclaimable"]
                .map(kib)
                .iter()
                .sum(),
            refaulted_kib: figure(stat, "workingset_activate_file").saturating_mul(PAGE) / 1024,
            oom_kills: figure(events, "oom_kill"),
        }
    }
}

/// The number in the line that begins with `key`.
pub fn figure(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
        })
        .next()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let text = "MemTotal:  2048 kB\nMemFree:\nMemFree:  x kB\nfile 4096\nactive_file 8192\n";
        assert_eq!(figure(text, "MemTotal:"), 2048);
        assert_eq!(figure(text, "MemFree:"), 0);
        assert_eq!(figure(text, "file"), 4096);
        assert_eq!(figure(text, "nothing"), 0);
    }

    #[test]
    fn what_can_be_reclaimed_are_files_and_names_but_not_tmpfs() {
        let stat = "anon 1048576\nfile 12345678\nshmem 2097152\ninactive_anon 3145728\nactive_anon 0\n\
                    inactive_file 1048576\nactive_file 524288\nslab_reclaimable 524288\nworkingset_activate_file 3\n";
        assert_eq!(
            Usage::parse("5242880\n", stat, "oom 9\noom_kill 2\n"),
            Usage {
                current_kib: 5120,
                reclaimable_kib: 2048,
                refaulted_kib: 12,
                oom_kills: 2,
            }
        );
    }

    #[test]
    fn this_kernels_figures_are_read() {
        let total = Total::read().unwrap();
        assert!(total.total_kib > total.free_kib && total.free_kib > 0);
    }
}
