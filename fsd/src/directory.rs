//! Listing a directory: `FUSE_READDIR` and `FUSE_READDIRPLUS`.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd},
};

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};

use crate::{handle::Handle, inode::Inode, share::Share};

/// `struct linux_dirent64` (getdents(2)) up to its name: inode number, offset, record length, type.
const RECORD_HEADER: usize = 19;

/// What one call reads at most and at least: room for one entry with the longest name.
const BUFFER: std::ops::RangeInclusive<usize> = 512..=32 * 1024;

/// An entry with attributes takes about this many times the room of one without.
const ATTRIBUTES_FACTOR: usize = 4;

/// Lists the entries of a directory from `offset` on, as many as `add` takes; it returns 0 when there is no more room.
///
/// # Errors
/// As lseek(2) and getdents(2); those of `add` if it fails on the first entry.
pub fn list(
    share: &Share,
    directory: &Inode,
    handle: &Handle,
    size: u32,
    offset: u64,
    add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
) -> io::Result<()> {
    let records = read(handle, size as usize, offset)?;
    for_each(&records, |record| {
        add(DirEntry {
            ino: share.number(directory, record.number),
            offset: record.next,
            type_: record.kind.into(),
            name: record.name.to_bytes(),
        })
    })
}

/// As [`list`], and tells the guest of each entry, which counts as a lookup.
///
/// # Errors
/// As [`list`].
pub fn list_with_attributes(
    share: &Share,
    directory: &Inode,
    handle: &Handle,
    size: u32,
    offset: u64,
    add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
) -> io::Result<()> {
    let records = read(handle, size as usize / ATTRIBUTES_FACTOR, offset)?;
    for_each(&records, |record| {
        // Node id 0 tells the guest of a name without saying what it is: for "." and "..", and for what can't be
        // looked up. What has just been unlinked is listed too, as it may be on any file system.
        let entry = match record.name.to_bytes() {
            b"." | b".." => Entry::default(),
            _ => share.find(directory, record.name).unwrap_or_default(),
        };
        let number = if entry.inode == 0 {
            share.number(directory, record.number)
        } else {
            entry.attr.st_ino
        };
        let listed = DirEntry {
            ino: number,
            offset: record.next,
            type_: record.kind.into(),
            name: record.name.to_bytes(),
        };
        let added = add(listed, entry);
        if entry.inode != 0 && !matches!(added, Ok(1..)) {
            share.forget_entry(&entry);
        }
        added
    })
}

struct Record<'b> {
    number: u64,
    next: u64,
    kind: u8,
    name: &'b CStr,
}

fn read(handle: &Handle, size: usize, offset: u64) -> io::Result<Vec<u8>> {
    let offset = offset
        .try_into()
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let mut buffer = vec![0_u8; size.clamp(*BUFFER.start(), *BUFFER.end())];
    let file = handle.as_fd().as_raw_fd();
    let _position = handle.hold_position();
    // SAFETY: no memory is involved.
    if unsafe { libc::lseek(file, offset, libc::SEEK_SET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the buffer is as long as said.
    let length = unsafe { libc::syscall(libc::SYS_getdents64, file, buffer.as_mut_ptr(), buffer.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Hands the records to `add` until it returns 0 or an error, which only counts if nothing was listed yet: the guest
/// asks for the rest again.
fn for_each(mut records: &[u8], mut add: impl FnMut(Record<'_>) -> io::Result<usize>) -> io::Result<()> {
    let mut first = true;
    while let Some(record) = parse(records) {
        let (record, rest) = record;
        match add(record) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if first => return Err(error),
            Err(_) => break,
        }
        first = false;
        records = rest;
    }
    Ok(())
}

fn parse(records: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let header = records.get(..RECORD_HEADER)?;
    let number = u64::from_ne_bytes(header[0..8].try_into().ok()?);
    let next = u64::from_ne_bytes(header[8..16].try_into().ok()?);
    let length = usize::from(u16::from_ne_bytes(header[16..18].try_into().ok()?));
    let name = CStr::from_bytes_until_nul(records.get(RECORD_HEADER..length)?).ok()?;
    Some((
        Record {
            number,
            next,
            kind: header[18],
            name,
        },
        &records[length..],
    ))
}
