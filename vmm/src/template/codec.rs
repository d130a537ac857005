//! The state's file: a header of fixed size, then the state.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | [`MAGIC`] |
//! | 4 | [`FORMAT`], little-endian |
//! | 4 | the length of the rest, little-endian, at most [`MAX_STATE`] |
//! | 32 | SHA-256 of the rest |
//! | | [`MachineState`] in postcard's encoding |

use std::{
    fs::File,
    io::{self, Read, Write},
};

use sha2::{Digest, Sha256};

use super::{Mismatch, state::MachineState};

/// What the file begins with.
const MAGIC: [u8; 8] = *b"SEALOCKT";

/// Changes whenever the encoding of anything in [`MachineState`] does.
pub const FORMAT: u32 = 1;

/// The largest state, in bytes.
pub const MAX_STATE: usize = 256 * 1024;

const HEADER: usize = 48;

/// Writes `state`.
///
/// # Errors
/// The file can't be written, or the state is too large.
pub fn write(file: &mut File, state: &MachineState) -> io::Result<()> {
    let body = postcard::to_allocvec(state).map_err(io::Error::other)?;
    if body.len() > MAX_STATE {
        return Err(io::Error::other(format!(
            "the state has {} bytes, more than {MAX_STATE}",
            body.len()
        )));
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    // At most MAX_STATE.
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&Sha256::digest(&body));
    bytes.extend_from_slice(&body);
    file.write_all(&bytes)
}

/// Reads a state from the beginning of `file`.
///
/// # Errors
/// It isn't one of this format, or not whole.
pub fn read(file: &File) -> Result<MachineState, Mismatch> {
    let mut bytes = Vec::new();
    file.take((HEADER + MAX_STATE + 1) as u64)
        .read_to_end(&mut bytes)
        .map_err(|source| Mismatch::File {
            what: "read the state",
            source,
        })?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<MachineState, Mismatch> {
    let (header, body) = bytes
        .split_at_checked(HEADER)
        .ok_or(Mismatch::Damaged("it is too short"))?;
    let number = |at: usize| {
        let mut four = [0; 4];
        four.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(four)
    };
    if header[..8] != MAGIC {
        return Err(Mismatch::Damaged("it does not begin as one"));
    }
    if number(8) != FORMAT {
        return Err(Mismatch::Format {
            given: number(8),
            expected: FORMAT,
        });
    }
    if usize::try_from(number(12)) != Ok(body.len()) {
        return Err(Mismatch::Damaged("it is not as long as it says"));
    }
    if header[16..] != *Sha256::digest(body) {
        return Err(Mismatch::Damaged("its checksum is another one"));
    }
    match postcard::take_from_bytes(body) {
        Ok((state, [])) => Ok(state),
        _ => Err(Mismatch::Damaged("it makes no sense")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};

    use super::*;
    use crate::template::tests::state;

    fn written() -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, &state()).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, &state()).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let read = read(&file).unwrap();
        assert_eq!(read.shape, state().shape);
        assert_eq!(read.functions.len(), state().functions.len());
    }

    #[test]
    fn a_state_cut_short_anywhere_is_damaged() {
        let bytes = written();
        for length in (0..HEADER + 64).chain([bytes.len() - 1]) {
            assert!(
                matches!(parse(&bytes[..length]), Err(Mismatch::Damaged(_))),
                "{length}"
            );
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(parse(&longer), Err(Mismatch::Damaged(_))));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let bytes = written();
        for place in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 4;
            assert!(parse(&damaged).is_err(), "{place}");
        }
    }

    #[test]
    fn another_format_is_named() {
        let mut bytes = written();
        bytes[8] += 1;
        let error = parse(&bytes).unwrap_err();
        assert_eq!(error.to_string(), "the state has format 2, this is 1");
    }

    #[test]
    fn nonsense_with_a_right_checksum_is_refused() {
        let mut bytes = written();
        bytes.truncate(HEADER + 100);
        bytes[12..16].copy_from_slice(&100_u32.to_le_bytes());
        let sum = Sha256::digest(&bytes[HEADER..]);
        bytes[16..HEADER].copy_from_slice(&sum);
        assert!(matches!(
            parse(&bytes),
            Err(Mismatch::Damaged("it makes no sense"))
        ));
    }
}
