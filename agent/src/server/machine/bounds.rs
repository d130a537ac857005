//! Bounds of the kernel's that it derives from the memory at boot: they are to fit the memory that there may be.
//!
//! Each but the last is what the kernel would have chosen itself with that much memory, and raised only.

use std::{fs, io, path::Path};

use crate::init::log;

const PAGE: u64 = 4096;

/// The files below `/proc/sys` and what to write there for `most` bytes of memory.
fn bounds(most: u64) -> [(&'static str, Vec<u64>); 8] {
    // kernel/fork.c: an eighth of memory in stacks of 16 KiB.
    let threads = most / (8 * 16 * 1024);
    // net/ipv4/tcp.c, udp.c: three quarters of it, it, and twice the first.
    let buffers = |limit: u64| vec![limit / 4 * 3, limit, limit / 4 * 6];
    [
        ("kernel/threads-max", vec![threads]),
        // fs/file_table.c: a tenth of memory, a KiB for each.
        ("fs/file-max", vec![most / 1024 / 10]),
        // fs/notify/inotify: a hundredth, 1280 bytes for each.
        (
            "fs/inotify/max_user_watches",
            vec![(most / 100 / 1280).clamp(8192, 1 << 20)],
        ),
        // fs/eventpoll.c: a twenty-fifth, some 184 bytes for each.
        ("fs/epoll/max_user_watches", vec![most / 25 / 184]),
        ("net/ipv4/tcp_mem", buffers((most / PAGE / 16).max(128))),
        ("net/ipv4/udp_mem", buffers((most / PAGE / 8).max(128))),
        // net/netfilter/nf_conntrack_core.c: of a table of 1/16384 of memory, in pointers.
        (
            "net/netfilter/nf_conntrack_max",
            vec![(most / 16_384).clamp(1024, 262_144)],
        ),
        // mm/util.c: by default an allocation of more than all memory is refused, and all is what there is so far. 1: none is.
        ("vm/overcommit_memory", vec![1]),
    ]
}

/// Raises the bounds to what fits `most` bytes of memory.
pub fn raise(most: u64) {
    for (file, values) in bounds(most) {
        if let Err(error) = raise_one(&Path::new("/proc/sys").join(file), &values) {
            log(&format!("raising {file}: {error}"));
        }
    }
}

/// Free pages that each CPU keeps for itself are not free to be reported to the host: by default it is up to an eighth of all
/// memory, after a program that used much has ended, and is given up over half a minute.
pub fn keep_few_pages_per_cpu() {
    // Documentation/admin-guide/sysctl/vm.rst: the part of all memory that they may be together.
    if let Err(error) = fs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "512") {
        log(&format!("limiting the pages that each CPU keeps: {error}"));
    }
}

fn raise_one(file: &Path, values: &[u64]) -> io::Result<()> {
    let text = match fs::read_to_string(file) {
        // A kernel without it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    let now = text
        .split_ascii_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    if now.is_some_and(|now: u64| values.first().is_none_or(|&value| now >= value)) {
        return Ok(());
    }
    let words: Vec<_> = values.iter().map(ToString::to_string).collect();
    fs::write(file, words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_raised_and_never_lowered() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let after = |before: &str, values: &[u64]| {
            fs::write(file.path(), before).unwrap();
            raise_one(file.path(), values).unwrap();
            fs::read_to_string(file.path()).unwrap()
        };
        assert_eq!(after("100\n", &[200]), "200");
        assert_eq!(after("300\n", &[200]), "300\n");
        assert_eq!(after("18446744073709551615\n", &[200]), "18446744073709551615\n");
        assert_eq!(after("1\t2\t3\n", &[10, 20, 30]), "10 20 30");
        raise_one(Path::new("/nonexistent"), &[1]).unwrap();
    }

    #[test]
    fn a_machine_that_may_have_a_gibibyte_may_have_its_threads() {
        let of = |file: &str| {
            let bounds = bounds(1 << 30);
            bounds.iter().find(|(name, _)| *name == file).unwrap().1.clone()
        };
        assert_eq!(of("kernel/threads-max"), [8192]);
        assert_eq!(of("net/ipv4/tcp_mem"), [12_288, 16_384, 24_576]);
    }
}
