//! What init gives a new process.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use sealock_protocol::{guest::MAX_SPEC, seqpacket::SeqPacket};
use serde::de::DeserializeOwned;

use super::failure::{Doing, Failure};
use crate::{link::Join, linux::process::close_all_but};

/// What the process is given.
#[derive(Debug)]
pub struct Descriptors {
    /// A file with the plan in JSON.
    pub plan: OwnedFd,
    /// Its end of the channel to the server.
    pub channel: OwnedFd,
    /// Standard input, output and error; without them it opens a terminal, or has none.
    pub stdio: Option<[OwnedFd; 3]>,
    /// Namespaces to join.
    pub join: Vec<(Join, OwnedFd)>,
}

/// [`Descriptors`] without the channel.
#[derive(Debug)]
pub struct Given {
    /// A file with the plan in JSON.
    pub plan: OwnedFd,
    /// Standard input, output and error.
    pub stdio: Option<[OwnedFd; 3]>,
    /// Namespaces to join.
    pub join: Vec<(Join, OwnedFd)>,
}

impl Descriptors {
    /// Closes every other descriptor: they are init's.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn close_others(&self) -> Result<(), Failure> {
        let mut keep: Vec<RawFd> = vec![0, 1, 2, self.plan.as_raw_fd(), self.channel.as_raw_fd()];
        keep.extend(self.stdio.iter().flatten().map(AsRawFd::as_raw_fd));
        keep.extend(self.join.iter().map(|(_, namespace)| namespace.as_raw_fd()));
        close_all_but(&keep).doing(|| "closing init's descriptors")
    }

    /// The channel apart: it is needed until the end.
    pub fn split(self) -> (Given, SeqPacket) {
        let given = Given {
            plan: self.plan,
            stdio: self.stdio,
            join: self.join,
        };
        (given, SeqPacket::from(self.channel))
    }
}

/// Reads a plan that the server has written.
///
/// # Errors
/// It is not one.
pub fn read_plan<T: DeserializeOwned>(plan: OwnedFd) -> Result<T, Failure> {
    let mut file = File::from(plan);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).doing(|| "reading the plan")?;
    // The plan holds little more than the specification did; its names are longer at most by a known factor.
    file.take(4 * MAX_SPEC as u64)
        .read_to_end(&mut bytes)
        .doing(|| "reading the plan")?;
    serde_json::from_slice(&bytes).map_err(|error| Failure::Refused(format!("reading the plan: {error}")))
}
