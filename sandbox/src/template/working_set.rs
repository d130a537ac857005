//! What a restored machine touches until its first container runs: nearly the same in all of a template.
//!
//! Each page that a guest touches first is an exit from the guest, and a copy if it writes. Done together before it runs, most of
//! that is saved. Which pages they are, the first restored machine shows: its pages are looked at, from outside, when its first
//! container has been started. What a tenant could do to that is bounded: it is a hint, to pages that are everybody's anyway.

use std::{
    fs::{self, File},
    io,
    os::{linux::fs::MetadataExt, unix::fs::FileExt},
};

use sealock_protocol::control::{MAX_WORKING_PAGES, MAX_WORKING_RANGES, WorkingSet};

use super::Shape;

const PAGE: u64 = 4096;

/// Where the memory below the hole for devices ends; what lies beyond is not looked at.
const LOW_MEMORY: u64 = 3 << 30;

/// Pages between two ranges that are counted in.
const GAP: u64 = 1;

/// The size of an entry of proc(5)'s `pagemap`, which has these bits (pagemap.rst).
const ENTRY: usize = 8;
const PRESENT: u64 = 1 << 63;
const FILE: u64 = 1 << 61;

/// What the machine of the monitor `pid` has touched, which maps `memory`.
///
/// # Errors
/// The monitor is gone, or has touched too much.
pub fn of(pid: u32, memory: &File, shape: Shape) -> io::Result<WorkingSet> {
    let base = base(&fs::read_to_string(format!("/proc/{pid}/maps"))?, memory)?;
    let pages = (u64::from(shape.memory_mib) << 20).min(LOW_MEMORY) / PAGE;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut set = WorkingSet::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut page = 0;
    while page < pages {
        let wanted = buffer
            .len()
            .min(usize::try_from(pages - page).unwrap_or(usize::MAX) * ENTRY);
        pagemap.read_exact_at(&mut buffer[..wanted], (base / PAGE + page) * ENTRY as u64)?;
        for entry in buffer[..wanted].chunks_exact(ENTRY) {
            let mut bytes = [0; ENTRY];
            bytes.copy_from_slice(entry);
            let entry = u64::from_ne_bytes(bytes);
            if entry & PRESENT != 0 {
                let ranges = if entry & FILE == 0 {
                    &mut set.written
                } else {
                    &mut set.read
                };
                note(ranges, page)?;
            }
            page += 1;
        }
    }
    if set.is_bounded() {
        Ok(set)
    } else {
        Err(too_much())
    }
}

fn too_much() -> io::Error {
    io::Error::other(format!(
        "more than {MAX_WORKING_PAGES} pages or {MAX_WORKING_RANGES} ranges have been touched"
    ))
}

/// Adds a page behind all others.
fn note(ranges: &mut Vec<(u32, u32)>, page: u64) -> io::Result<()> {
    let number = u32::try_from(page).map_err(io::Error::other)?;
    let full = ranges.len() >= MAX_WORKING_RANGES;
    match ranges.last_mut() {
        Some((first, count)) if page <= u64::from(*first) + u64::from(*count) + GAP => {
            *count = number + 1 - *first;
        }
        _ if full => return Err(too_much()),
        _ => ranges.push((number, 1)),
    }
    Ok(())
}

/// The address in the monitor at which the memory begins.
fn base(maps: &str, memory: &File) -> io::Result<u64> {
    let metadata = memory.metadata()?;
    let device = metadata.st_dev();
    let device = format!("{:02x}:{:02x}", libc::major(device), libc::minor(device));
    let inode = metadata.st_ino().to_string();
    let found = maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (range, _, offset) = (fields.next()?, fields.next()?, fields.next()?);
        let here = fields.next()? == device && fields.next()? == inode;
        let (start, _) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        here.then_some(number(start)?.checked_sub(number(offset)?)?)
    });
    found.ok_or_else(|| io::Error::other("the machine does not map the template"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn ranges_take_in_what_is_next_to_them() {
        let mut ranges = Vec::new();
        for page in [3, 4, 6, 9, 10] {
            note(&mut ranges, page).unwrap();
        }
        assert_eq!(ranges, [(3, 4), (9, 2)]);
    }

    #[test]
    fn what_was_written_and_read_of_a_mapping_is_told_apart() {
        const PAGES: usize = 256;
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = File::create_new(directory.path().join("memory")).unwrap();
        file.write_all_at(&vec![1; PAGES * 4096], 0).unwrap();
        // SAFETY: a new private mapping of a file that nothing shortens.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGES * 4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let page = |number: usize| memory.cast::<u8>().wrapping_add(number * 4096);
        // SAFETY: within the mapping.
        unsafe {
            page(8).write_volatile(2);
            page(200).write_volatile(2);
            page(100).read_volatile();
        }
        let shape = Shape {
            memory_mib: 1,
            max_memory_mib: 1,
            max_vcpus: 1,
        };
        let reopened = File::open(directory.path().join("memory")).unwrap();
        let set = of(std::process::id(), &reopened, shape).unwrap();
        assert_eq!(set.written, [(8, 1), (200, 1)]);
        // The kernel maps what is around a page that is read, too.
        assert!(
            set.read
                .iter()
                .any(|&(first, count)| (first..first + count).contains(&100))
        );
        // SAFETY: nothing points into it any more.
        unsafe { libc::munmap(memory, PAGES * 4096) };
    }

    #[test]
    fn a_machine_without_the_template_has_shown_nothing() {
        let file = tempfile::tempfile().unwrap();
        assert!(base("7f00-7f10 rw-p 00000000 00:01 1 /x\nnonsense", &file).is_err());
    }
}
