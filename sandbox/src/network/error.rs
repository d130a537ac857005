//! What can be wrong with a pod's network.

use std::{io, path::PathBuf};

use sealock_netlink::Error as NetlinkError;

use crate::error::Kind;

/// What is wrong with a pod's network.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The specification's entry makes no sense.
    #[error("{field}: {problem}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The namespace can't be entered.
    #[error("{field}: cannot enter the network namespace {}", path.display())]
    Namespace {
        /// The field.
        field: String,
        /// Its value.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It is the host's own.
    #[error(
        "{field}: {} is the host's own network, which is not given to a microVM (hostNetwork is not supported)",
        path.display()
    )]
    Host {
        /// The field.
        field: String,
        /// Its value.
        path: PathBuf,
    },
    /// Something in the namespace can't be made again in the guest.
    #[error("the pod's network: {0} is not supported")]
    Unsupported(String),
    /// Another pod has it.
    #[error(
        "interface {interface} of the network namespace is in use by another pod: {tap} is there already; each pod \
         needs a network namespace of its own"
    )]
    InUse {
        /// The interface.
        interface: String,
        /// The other pod's tap.
        tap: String,
    },
    /// The kernel refuses.
    #[error("the pod's network: cannot {doing}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// The reason.
        #[source]
        source: NetlinkError,
    },
    /// A device of the host's can't be used.
    #[error("the pod's network: cannot {doing}")]
    Device {
        /// What was being done.
        doing: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// An annotation that can't be met.
    #[error("annotation {name}: {value:?} is not a number of at least {least}")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// The least that makes sense.
        least: u64,
    },
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } | Self::Namespace { .. } | Self::Annotation { .. } => Kind::InvalidArgument,
            Self::Host { .. } | Self::Unsupported(_) => Kind::Unimplemented,
            Self::InUse { .. } => Kind::FailedPrecondition,
            Self::Kernel { .. } | Self::Device { .. } => Kind::Internal,
        }
    }
}

/// For `map_err`: the kernel refused what was being done.
pub(super) fn kernel(doing: impl Into<String>) -> impl FnOnce(NetlinkError) -> Error {
    let doing = doing.into();
    move |source| Error::Kernel { doing, source }
}

/// For `map_err`: a device did.
pub(super) fn device<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Error {
    let doing = doing.into();
    move |source| Error::Device {
        doing,
        source: source.into(),
    }
}
