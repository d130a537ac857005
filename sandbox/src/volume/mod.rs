//! A container's bind mounts: what each becomes for a guest.
//!
//! [`bind`] reads them in the specification, opens what they name ([`source`]), and decides ([`kind`]): most are shared by
//! the file server, each source once for the whole pod ([`table`]); memory is the guest's own; small volumes of
//! Kubernetes' ([`kubelet`]) are copied into the guest and refreshed when they change ([`watch`]); and what is the kernel's
//! is the guest's kernel's. `docs/volumes.md` is the user's view of this.

pub mod bind;
pub mod kind;
pub mod kubelet;
pub mod source;
pub mod table;
pub mod watch;

use std::{io, path::PathBuf};

use crate::error::Kind;

/// Why a bind mount can't be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its source can't be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The source.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Its source can't be mounted where the guest sees it.
    #[error("cannot share {}", path.display())]
    Share {
        /// The source.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A source that no guest gets.
    #[error("{} is {what}: it is not shared with a microVM", path.display())]
    Refused {
        /// The source.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open { .. } => Kind::InvalidArgument,
            Self::Share { .. } => Kind::Internal,
            Self::Refused { .. } => Kind::Unimplemented,
        }
    }
}
