//! Memory of processes, as the kernel accounts it.

use std::fs;

use anyhow::{Context, Result};

/// A process's memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    /// Proportional set size: pages shared with others count by share.
    pub pss: u64,
    /// The part of it in mappings of at least [`GUEST_MAPPING`], or of a template, which is mapped in pieces.
    pub pss_of_guest: u64,
    /// What nobody else has.
    pub private: u64,
}

/// A mapping this large, in KiB, is a guest's memory: nothing else of the VMM comes near.
pub const GUEST_MAPPING: u64 = 32 * 1024;

/// Reads a process's footprint.
///
/// # Errors
/// The process is gone, or `/proc` does not have what it should.
pub fn footprint(pid: u32) -> Result<Footprint> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut sum = Footprint::default();
    let mut size = 0;
    let mut template = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some(range) if range.contains('-') => template = line.contains("/.templates/"),
            Some("Size:") => size = kib(words.next())?,
            Some("Pss:") => {
                let pss = kib(words.next())?;
                sum.pss += pss;
                if size >= GUEST_MAPPING || template {
                    sum.pss_of_guest += pss;
                }
            }
            Some("Private_Clean:" | "Private_Dirty:") => sum.private += kib(words.next())?,
            _ => {}
        }
    }
    Ok(sum)
}

/// Memory that the host could give to a new program, in KiB, after its caches have been dropped.
///
/// # Errors
/// Not root, or `/proc` does not have what it should.
pub fn available_without_caches() -> Result<u64> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the host's caches")?;
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemFree:"))
        .context("/proc/meminfo has no MemFree")?;
    kib(line.split_ascii_whitespace().next())
}

fn kib(word: Option<&str>) -> Result<u64> {
    word.context("a figure is missing")?
        .parse()
        .context("not a figure")
}
