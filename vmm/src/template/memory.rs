//! The guest's memory as a file.
//!
//! The file has the memory's bytes at the same offsets, the regions one after the other; what is zero is not in it. A restored
//! machine maps what is there copy-on-write, and anonymous memory elsewhere: a page of a hole of the file would be allocated in
//! the file with the first touch, even by a private mapping.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::VcpuFd;
use sealock_protocol::control::WorkingSet;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

use super::Mismatch;

const PAGE: u64 = 4096;

/// Zeroes up to this many bytes between two pages go into the file with them: a mapping costs more than they do.
const GAP: u64 = 64 * 1024;

/// The most extents.
const MAX_EXTENTS: usize = 8192;

/// What is looked at at once, in bytes.
const STEP: usize = 2 << 20;

/// A part of the memory that is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The offset in the file, in bytes: a multiple of the page.
    pub offset: u64,
    /// In bytes: whole pages.
    pub length: u64,
}

/// Writes what the first `regions` regions of `memory` hold, which nothing changes meanwhile. Returns what is in the file.
///
/// # Errors
/// The file can't be written.
pub fn save(memory: &GuestMemoryMmap, regions: usize, file: &File) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut base = 0;
    for region in memory.iter().take(regions) {
        let length = region.len();
        let mut found = Vec::new();
        let mut buffer = vec![0; STEP];
        let mut at = 0;
        while at < length {
            let size = (length - at).min(STEP as u64);
            // At most STEP.
            let chunk = &mut buffer[..size as usize];
            if resident(region.as_ptr().wrapping_add(at as usize), chunk.len())? {
                region
                    .read_slice(chunk, MemoryRegionAddress(at))
                    .map_err(io::Error::other)?;
                for (page, bytes) in (0..).zip(chunk.chunks(PAGE as usize)) {
                    if bytes.iter().any(|byte| *byte != 0) {
                        note(&mut found, at + page * PAGE);
                    }
                }
            }
            at += size;
        }
        for extent in found {
            write(region, extent, base, file)?;
            extents.push(Extent {
                offset: base + extent.offset,
                ..extent
            });
        }
        base += length;
    }
    file.set_len(base)?;
    if extents.len() > MAX_EXTENTS {
        return Err(io::Error::other("the memory is too scattered"));
    }
    Ok(extents)
}

/// Whether any page of the range has been touched.
fn resident(start: *mut u8, length: usize) -> io::Result<bool> {
    let mut pages = vec![0_u8; length.div_ceil(PAGE as usize)];
    // SAFETY: mincore only looks at the mapping, and there is a byte for each of its pages.
    match unsafe { libc::mincore(start.cast(), length, pages.as_mut_ptr()) } {
        0 => Ok(pages.iter().any(|page| page & 1 != 0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Adds the page at `offset`, which lies behind all others.
fn note(extents: &mut Vec<Extent>, offset: u64) {
    match extents.last_mut() {
        Some(last) if offset - (last.offset + last.length) <= GAP => {
            last.length = offset + PAGE - last.offset;
        }
        _ => extents.push(Extent { offset, length: PAGE }),
    }
}

fn write(region: &impl GuestMemoryRegion, extent: Extent, base: u64, file: &File) -> io::Result<()> {
    let mut buffer = vec![0; STEP];
    let mut done = 0;
    while done < extent.length {
        // At most STEP.
        let chunk = &mut buffer[..(extent.length - done).min(STEP as u64) as usize];
        let at = extent.offset + done;
        region
            .read_slice(chunk, MemoryRegionAddress(at))
            .map_err(io::Error::other)?;
        file.write_all_at(chunk, base + at)?;
        done += chunk.len() as u64;
    }
    Ok(())
}

/// Puts the file's pages in place of the first `regions` regions' anonymous ones, copy-on-write.
///
/// # Errors
/// The extents are not such as [`save`] returns, or not of this memory or file.
pub fn map(
    memory: &GuestMemoryMmap,
    regions: usize,
    file: &File,
    extents: &[Extent],
) -> Result<(), Mismatch> {
    let failed = |what| move |source| Mismatch::File { what, source };
    let size = file
        .metadata()
        .map_err(failed("look at the memory's file"))?
        .len();
    check(extents, size)?;
    let total: u64 = memory.iter().take(regions).map(GuestMemoryRegion::len).sum();
    if size != total {
        return Err(Mismatch::Other("amount of memory"));
    }
    let mut base = 0;
    let mut rest = extents;
    for region in memory.iter().take(regions) {
        let end = base + region.len();
        let here = rest.iter().take_while(|extent| extent.offset < end).count();
        let (mine, others) = rest.split_at(here);
        rest = others;
        for extent in mine {
            if extent.offset + extent.length > end {
                return Err(Mismatch::Damaged("a part of the memory lies across a hole"));
            }
            let host = region
                .get_host_address(MemoryRegionAddress(extent.offset - base))
                .map_err(|_| Mismatch::Damaged("a part of the memory lies outside of it"))?;
            replace(host, extent, file).map_err(failed("map the memory's file"))?;
        }
        base = end;
    }
    Ok(())
}

/// Has the pages at hand that a restored machine is going to touch, in the process and in KVM, as far as the kernel can do that: what
/// it can't comes when the guest runs into it.
pub fn warm(memory: &GuestMemoryMmap, regions: usize, vcpu: &VcpuFd, set: &WorkingSet) {
    if !set.is_bounded() {
        return;
    }
    // Linux 6.10 and later map pages into the guest without an exit.
    let mut can_map = true;
    for (ranges, advice) in [
        (&set.written, libc::MADV_POPULATE_WRITE),
        (&set.read, libc::MADV_POPULATE_READ),
    ] {
        for &(first, count) in ranges {
            let (offset, length) = (u64::from(first) * PAGE, u64::from(count) * PAGE);
            let Some((host, guest)) = locate(memory, regions, offset, length) else {
                continue;
            };
            // SAFETY: the range lies within one region of the guest's memory, whose contents this doesn't change. At most
            // MAX_WORKING_PAGES pages.
            unsafe { libc::madvise(host.cast(), length as usize, advice) };
            can_map = can_map && pre_fault(vcpu, guest, length);
        }
    }
}

/// Where a range of the file is in the process and in the guest, if it lies within one region.
fn locate(memory: &GuestMemoryMmap, regions: usize, offset: u64, length: u64) -> Option<(*mut u8, u64)> {
    let mut base = 0;
    for region in memory.iter().take(regions) {
        let end = base + region.len();
        if (base..end).contains(&offset) {
            let within = offset - base;
            let fits = within.checked_add(length)? <= region.len();
            let host = region.get_host_address(MemoryRegionAddress(within)).ok()?;
            return fits.then_some((host, region.start_addr().0 + within));
        }
        base = end;
    }
    None
}

mod request {
    use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
    use vmm_sys_util::ioctl_iowr_nr;

    ioctl_iowr_nr!(KVM_PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);
}

/// Returns whether the kernel can do it.
fn pre_fault(vcpu: &VcpuFd, guest: u64, length: u64) -> bool {
    let mut range = kvm_pre_fault_memory {
        gpa: guest,
        size: length,
        ..Default::default()
    };
    while range.size > 0 {
        let before = range.size;
        // SAFETY: KVM reads and writes the structure, which outlives the call.
        let result = unsafe { ioctl_with_mut_ref(vcpu, request::KVM_PRE_FAULT_MEMORY(), &mut range) };
        if result != 0 || range.size >= before {
            return result == 0;
        }
    }
    true
}

/// Ascending, not touching each other, whole pages, within the file.
fn check(extents: &[Extent], size: u64) -> Result<(), Mismatch> {
    const WRONG: Mismatch = Mismatch::Damaged("its memory's parts are none");
    if extents.len() > MAX_EXTENTS {
        return Err(WRONG);
    }
    let mut end = 0;
    for extent in extents {
        let after = extent.offset.checked_add(extent.length).ok_or(WRONG)?;
        let whole = extent.offset.is_multiple_of(PAGE) && extent.length.is_multiple_of(PAGE);
        if !whole || extent.length == 0 || extent.offset < end || after > size {
            return Err(WRONG);
        }
        end = after;
    }
    Ok(())
}

fn replace(host: *mut u8, extent: &Extent, file: &File) -> io::Result<()> {
    let (Ok(length), Ok(offset)) = (usize::try_from(extent.length), i64::try_from(extent.offset)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range lies within one region of the guest's memory, as the caller has checked, which is a private mapping that
    // nothing has looked at yet; the new mapping is of the same kind, and as large. Whoever could shorten the file is root.
    let mapped = unsafe { libc::mmap(host.cast(), length, protection, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 8 << 20),
            (GuestAddress(1 << 32), 1 << 20),
            (GuestAddress(1 << 33), 1 << 20),
        ])
        .unwrap()
    }

    fn filled() -> GuestMemoryMmap {
        let memory = memory();
        for address in [0x3000, 0x5000, 0x20_0000, 0x7f_f000, 1 << 32, 1 << 33] {
            memory.write_slice(&[7; 100], GuestAddress(address)).unwrap();
        }
        memory
    }

    #[test]
    fn what_is_zero_is_not_in_the_file() {
        let file = tempfile::tempfile().unwrap();
        let extents = save(&filled(), 2, &file).unwrap();
        let parts: Vec<_> = extents
            .iter()
            .map(|extent| (extent.offset, extent.length))
            .collect();
        assert_eq!(
            parts,
            [
                (0x3000, 0x3000),
                (0x20_0000, 0x1000),
                (0x7f_f000, 0x1000),
                (0x80_0000, 0x1000)
            ]
        );
        assert_eq!(file.metadata().unwrap().len(), 9 << 20);
    }

    #[test]
    fn two_machines_share_what_they_do_not_change() {
        let file = tempfile::tempfile().unwrap();
        let extents = save(&filled(), 2, &file).unwrap();
        let (one, other) = (memory(), memory());
        for memory in [&one, &other] {
            map(memory, 2, &file, &extents).unwrap();
        }
        let read = |memory: &GuestMemoryMmap, address| memory.read_obj::<u8>(GuestAddress(address)).unwrap();
        one.write_obj(9_u8, GuestAddress(0x3000)).unwrap();
        assert_eq!(read(&one, 0x3000), 9);
        assert_eq!(read(&other, 0x3000), 7);
        for address in [0x3001, 0x5000, 0x20_0000, 0x7f_f000, 1 << 32] {
            assert_eq!((read(&one, address), read(&other, address)), (7, 7));
        }
        assert_eq!(read(&one, 0x4000), 0);
        assert_eq!(read(&one, 1 << 33), 0, "what comes later is not in the template");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0x3000).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn parts_that_are_none_are_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(9 << 20).unwrap();
        let bad: &[&[(u64, u64)]] = &[
            &[(1, 4096)],
            &[(0, 4095)],
            &[(0, 0)],
            &[(4096, 4096), (0, 4096)],
            &[(0, 8192), (4096, 4096)],
            &[(9 << 20, 4096)],
            &[(0, (9 << 20) + 4096)],
            &[(!4095, 8192)],
            // Across the end of a region.
            &[((8 << 20) - 4096, 8192)],
        ];
        for parts in bad {
            let extents: Vec<_> = parts
                .iter()
                .map(|&(offset, length)| Extent { offset, length })
                .collect();
            assert!(
                matches!(map(&memory(), 2, &file, &extents), Err(Mismatch::Damaged(_))),
                "{parts:?}"
            );
        }
    }

    #[test]
    fn a_file_of_another_size_is_not_this_memorys() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        assert!(matches!(map(&memory(), 2, &file, &[]), Err(Mismatch::Other(_))));
    }
}
