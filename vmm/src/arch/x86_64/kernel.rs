//! The guest kernel's ELF image.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use linux_loader::{
    elf::{self, Elf64_Ehdr, Elf64_Phdr},
    loader::{Elf, KernelLoader},
};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::layout;

/// Why a file is not a kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not what it should be.
    #[error(
        "the guest kernel is not a whole ELF file ({0}): reinstall Sealock or set `kernel` in its configuration"
    )]
    NotElf(&'static str),
    /// It cannot be read.
    #[error("cannot read the guest kernel")]
    Read(#[source] std::io::Error),
    /// It was checked and could not be loaded nevertheless.
    #[error("cannot load the guest kernel")]
    Load(#[source] linux_loader::loader::Error),
}

/// More program headers than any kernel has.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// More notes than any kernel has, in bytes.
const MAX_NOTES: u64 = 64 * 1024;

/// A kernel image that has been checked: every segment lies within the file and within the addresses that are mapped
/// when it is entered.
#[derive(Debug)]
pub struct Kernel {
    file: File,
    end: u64,
}

impl Kernel {
    /// Checks the headers of an uncompressed 64-bit `vmlinux`.
    ///
    /// # Errors
    /// [`Error::NotElf`] says what is wrong with it.
    pub fn new(mut file: File) -> Result<Self, Error> {
        let length = file.metadata().map_err(Error::Read)?.len();
        let mut header = Elf64_Ehdr::default();
        read_header(&mut file, 0, header.as_mut_slice())?;
        if header.e_ident[..4] != *b"\x7fELF" {
            return Err(Error::NotElf("it does not begin with the ELF magic number"));
        }
        // ELFCLASS64, ELFDATA2LSB.
        if header.e_ident[4] != 2 || header.e_ident[5] != 1 || u32::from(header.e_machine) != EM_X86_64 {
            return Err(Error::NotElf("it is not for x86-64"));
        }
        if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>()
            || header.e_phnum == 0
            || header.e_phnum > MAX_PROGRAM_HEADERS
        {
            return Err(Error::NotElf("its program headers are malformed"));
        }
        let mut end = 0;
        for index in 0..u64::from(header.e_phnum) {
            let mut segment = Elf64_Phdr::default();
            let offset = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
            read_header(&mut file, offset.unwrap_or(u64::MAX), segment.as_mut_slice())?;
            end = end.max(segment_end(&segment, length)?);
        }
        if end == 0 {
            return Err(Error::NotElf("it has nothing to load"));
        }
        if header.e_entry < layout::HIGH_RAM || header.e_entry >= end {
            return Err(Error::NotElf("its entry lies outside of it"));
        }
        Ok(Self { file, end })
    }

    /// The end of the memory the kernel occupies when it is entered, as a guest physical address.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Loads the kernel, which must fit `memory` ([`Kernel::end`]), and returns its 64-bit entry.
    ///
    /// # Errors
    /// The file changed since it was checked, or cannot be read.
    pub fn load(mut self, memory: &GuestMemoryMmap) -> Result<GuestAddress, Error> {
        let loaded = Elf::load(memory, None, &mut self.file, Some(GuestAddress(layout::HIGH_RAM)));
        Ok(loaded.map_err(Error::Load)?.kernel_load)
    }
}

/// `e_machine` of x86-64.
const EM_X86_64: u32 = 62;

fn read_header(file: &mut File, offset: u64, header: &mut [u8]) -> Result<(), Error> {
    file.seek(SeekFrom::Start(offset))
        .and_then(|_| file.read_exact(header))
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::NotElf("it ends within its headers"),
            std::io::ErrorKind::InvalidInput => Error::NotElf("its program headers are malformed"),
            _ => Error::Read(error),
        })
}

/// Checks one segment and returns where it ends in memory; 0 when nothing of it is loaded.
fn segment_end(segment: &Elf64_Phdr, file_length: u64) -> Result<u64, Error> {
    let in_file = segment.p_offset.checked_add(segment.p_filesz);
    match segment.p_type {
        // The loader reads notes, to look for a PVH entry.
        elf::PT_LOAD | elf::PT_NOTE if in_file.is_none_or(|end| end > file_length) => {
            Err(Error::NotElf("it ends within a segment"))
        }
        elf::PT_NOTE if segment.p_filesz > MAX_NOTES => Err(Error::NotElf("its notes are malformed")),
        elf::PT_LOAD => {
            let end = segment.p_paddr.checked_add(segment.p_memsz.max(segment.p_filesz));
            match end {
                Some(end) if segment.p_paddr >= layout::HIGH_RAM && end <= layout::IDENTITY_MAPPED => Ok(end),
                _ => Err(Error::NotElf("a segment lies outside of 1 MiB to 1 GiB")),
            }
        }
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF header, one segment of `filesz` bytes at `paddr`, and its bytes.
    fn image(paddr: u64, filesz: u64, memsz: u64) -> Vec<u8> {
        let mut header = Elf64_Ehdr {
            e_machine: 62,
            e_entry: paddr,
            e_phoff: 64,
            e_phentsize: 56,
            e_phnum: 1,
            ..Default::default()
        };
        header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let segment = Elf64_Phdr {
            p_type: elf::PT_LOAD,
            p_offset: 120,
            p_paddr: paddr,
            p_filesz: filesz,
            p_memsz: memsz,
            ..Default::default()
        };
        let mut bytes = header.as_slice().to_vec();
        bytes.extend_from_slice(segment.as_slice());
        bytes.extend(std::iter::repeat_n(0x90, usize::try_from(filesz).unwrap()));
        bytes
    }

    fn check(bytes: &[u8]) -> Result<Kernel, Error> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Kernel::new(file)
    }

    fn complaint(bytes: &[u8]) -> String {
        check(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_kernel_is_loaded_where_it_says() {
        let kernel = check(&image(0x20_0000, 300, 5000)).unwrap();
        assert_eq!(kernel.end(), 0x20_0000 + 5000);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        assert_eq!(kernel.load(&memory).unwrap(), GuestAddress(0x20_0000));
        let last: u8 = vm_memory::Bytes::read_obj(&memory, GuestAddress(0x20_0000 + 299)).unwrap();
        assert_eq!(last, 0x90);
    }

    #[test]
    fn what_is_not_a_kernel_is_named() {
        assert!(complaint(b"").contains("ends within its headers"));
        assert!(complaint(&[b'x'; 200]).contains("magic"));
        let mut other = image(0x20_0000, 8, 8);
        other[18] = 183;
        assert!(complaint(&other).contains("x86-64"));
    }

    #[test]
    fn a_truncated_kernel_is_refused() {
        let whole = image(0x20_0000, 300, 300);
        assert!(complaint(&whole[..100]).contains("ends within its headers"));
        assert!(complaint(&whole[..whole.len() - 1]).contains("ends within a segment"));
    }

    #[test]
    fn a_segment_that_wraps_or_covers_the_boot_structures_is_refused() {
        for image in [
            image(0x1000, 8, 8),
            image(0x20_0000, 8, u64::MAX),
            image(u64::MAX - 4, 8, 8),
            image((1 << 30) - 4, 8, 8),
        ] {
            assert!(complaint(&image).contains("outside of 1 MiB to 1 GiB"));
        }
        let mut far = image(0x20_0000, 8, 8);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(check(&far).is_err());
    }
}
