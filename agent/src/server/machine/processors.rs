//! CPUs: the guest boots with one of those that its machine has.

use std::{fs, io, path::Path};

const DIRECTORY: &str = "/sys/devices/system/cpu";

/// A CPU that stays offline.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses.
    #[error("bringing CPU {number} online: {error}")]
    Online {
        /// Its number.
        number: u32,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
}

/// Brings CPUs online until `count` of them are. It blocks: each CPU takes a millisecond or so.
///
/// # Errors
/// There are not as many, or one doesn't start.
pub fn bring_online(count: u32) -> Result<(), Error> {
    bring_online_in(Path::new(DIRECTORY), count)
}

fn bring_online_in(directory: &Path, count: u32) -> Result<(), Error> {
    // The first can't be taken offline and has no such file.
    for number in 1..count {
        let file = directory.join(format!("cpu{number}/online"));
        let online = || match fs::read(&file)?.first() {
            Some(b'0') => fs::write(&file, "1"),
            _ => Ok(()),
        };
        online().map_err(|error| Error::Online { number, error })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_come_online_in_order_and_only_as_many_as_are_wanted() {
        let top = tempfile::tempdir().unwrap();
        for number in 0..4 {
            fs::create_dir(top.path().join(format!("cpu{number}"))).unwrap();
        }
        let file = |number| top.path().join(format!("cpu{number}/online"));
        for (number, state) in [(1, "1\n"), (2, "0\n"), (3, "0\n")] {
            fs::write(file(number), state).unwrap();
        }
        bring_online_in(top.path(), 3).unwrap();
        let states: Vec<_> = (1..4)
            .map(|number| fs::read_to_string(file(number)).unwrap())
            .collect();
        assert_eq!(states, ["1\n", "1", "0\n"]);
        let error = bring_online_in(top.path(), 5).unwrap_err().to_string();
        assert!(error.starts_with("bringing CPU 4 online: "), "{error}");
    }
}
