//! The guest's initramfs: a cpio archive in the "newc" format, uncompressed.

use std::{fs::File, io, os::unix::fs::FileExt};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Why a file is not an initramfs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what it should be.
    #[error(
        "the initramfs is not a whole cpio archive ({0}): reinstall Sealock or set `initramfs` in its configuration"
    )]
    NotCpio(&'static str),
    /// It cannot be read.
    #[error("cannot read the initramfs")]
    Read(#[source] io::Error),
    /// It was checked and could not be loaded nevertheless.
    #[error("cannot load the initramfs")]
    Load(#[source] vm_memory::GuestMemoryError),
}

/// How every entry begins.
const MAGIC: &[u8] = b"070701";
/// The name of the last entry.
const TRAILER: &[u8] = b"TRAILER!!!";
/// Archives are padded to blocks after the trailer; the largest block in use is 64 KiB.
const TRAILER_WITHIN: u64 = 64 * 1024;
/// An archive of 1 GiB is none that anyone meant to boot.
const MAX_SIZE: u64 = 1 << 30;

/// An initramfs whose beginning and end have been seen.
#[derive(Debug)]
pub struct Initramfs {
    file: File,
    size: u64,
}

impl Initramfs {
    /// Looks for the archive's first magic number and its trailer: a copy that was cut short has none.
    ///
    /// # Errors
    /// [`Error::NotCpio`] says what is missing.
    pub fn new(file: File) -> Result<Self, Error> {
        let size = file.metadata().map_err(Error::Read)?.len();
        if size == 0 {
            return Err(Error::NotCpio("it is empty"));
        }
        if size > MAX_SIZE {
            return Err(Error::NotCpio("it is larger than 1 GiB"));
        }
        let mut magic = [0; MAGIC.len()];
        let beginning = file.read_exact_at(&mut magic, 0);
        if beginning.is_err() || magic != MAGIC {
            return Err(Error::NotCpio(
                "it does not begin with an entry in the newc format",
            ));
        }
        let tail_size = size.min(TRAILER_WITHIN);
        // Bounded by TRAILER_WITHIN.
        let mut tail = vec![0; usize::try_from(tail_size).unwrap_or(0)];
        file.read_exact_at(&mut tail, size - tail_size)
            .map_err(Error::Read)?;
        // Zeroes pad the archive: what remains ends with the trailer's name.
        let end = tail
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        if !tail[..end].ends_with(TRAILER) {
            return Err(Error::NotCpio(
                "its trailer is missing, so its end has been cut off",
            ));
        }
        Ok(Self { file, size })
    }

    /// The archive's size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the archive into the guest's memory.
    ///
    /// # Errors
    /// It doesn't fit there, or the file changed since it was checked.
    pub fn load(mut self, memory: &GuestMemoryMmap, address: GuestAddress) -> Result<(), Error> {
        // At most MAX_SIZE.
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        memory
            .read_exact_volatile_from(address, &mut self.file, size)
            .map_err(Error::Load)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn archive(padding: usize) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&[b'0'; 104]);
        bytes.extend_from_slice(b"TRAILER!!!\0");
        bytes.resize(bytes.len() + padding, 0);
        bytes
    }

    fn check(bytes: &[u8]) -> Result<Initramfs, Error> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        Initramfs::new(file)
    }

    #[test]
    fn a_whole_archive_is_loaded() {
        for padding in [0, 3, 512, 60_000] {
            let bytes = archive(padding);
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let archive = check(&bytes).unwrap();
            assert_eq!(archive.size(), bytes.len() as u64);
            archive.load(&memory, GuestAddress(4096)).unwrap();
            let mut read = vec![0; bytes.len()];
            memory.read_slice(&mut read, GuestAddress(4096)).unwrap();
            assert_eq!(read, bytes);
        }
    }

    #[test]
    fn an_empty_or_foreign_file_is_refused() {
        assert!(check(b"").unwrap_err().to_string().contains("empty"));
        assert!(check(b"0707").unwrap_err().to_string().contains("newc"));
        assert!(
            check(&[0x1f, 0x8b, 8, 0, 0, 0, 0])
                .unwrap_err()
                .to_string()
                .contains("newc")
        );
    }

    #[test]
    fn an_archive_cut_short_is_refused() {
        let whole = archive(0);
        let cut = check(&whole[..whole.len() - 4]).unwrap_err();
        assert!(cut.to_string().contains("cut off"));
    }
}
