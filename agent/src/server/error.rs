//! Errors, as the host sees them.

use sealock_protocol::seqpacket;
use ttrpc::{Code, get_status};

use crate::{cgroup::CgroupError, container::Failure, link::Refusal, oci::SpecError};

/// Why a request is refused or failed. The message is for a user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container of that name.
    #[error("container not found")]
    NoContainer,
    /// No process of that name in the container.
    #[error("process not found")]
    NoProcess,
    /// No volume of that name in the guest.
    #[error("volume not found")]
    NoVolume,
    /// The container's process has ended.
    #[error("process already finished")]
    Finished,
    /// The name is taken.
    #[error("{0} already exists")]
    Exists(String),
    /// A request at the wrong time.
    #[error("{0}")]
    State(&'static str),
    /// An argument of the request itself.
    #[error("{0}")]
    Argument(String),
    /// The specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The specification's limits.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What only the container's process could find wrong with the specification, as a program that is not there.
    #[error("{0}")]
    Refused(String),
    /// The container's process could not be made ready.
    #[error("{0}")]
    Setup(String),
    /// Words with init or with a container's process.
    #[error("{doing}: {error}")]
    Link {
        /// What was being done.
        doing: &'static str,
        /// The socket's error.
        #[source]
        error: seqpacket::Error,
    },
    /// Something took longer than it may.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// The kernel refused something.
    #[error("{doing}: {error}")]
    System {
        /// What was being done.
        doing: String,
        /// Its answer.
        #[source]
        error: std::io::Error,
    },
}

impl Error {
    /// For `map_err`: the kernel refused what was being done.
    pub fn system<E: Into<std::io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |error| Self::System {
            doing,
            error: error.into(),
        }
    }

    /// Init could not create a process.
    pub fn not_created(refusal: Refusal) -> Self {
        let (doing, error) = match refusal {
            Refusal::Malformed => return Self::Setup("init does not understand the server".to_owned()),
            Refusal::Join(error) => ("joining the namespace in which the process begins", error),
            Refusal::Clone(error) => ("creating the process", error),
        };
        Self::system(doing)(std::io::Error::from_raw_os_error(error))
    }

    /// The same, with the field of the specification that it is about.
    pub fn within(self, field: &str) -> Self {
        match self {
            Self::System { doing, error } => Self::System {
                doing: format!("{field}: {doing}"),
                error,
            },
            other => other,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::NoContainer | Self::NoProcess | Self::NoVolume | Self::Finished => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State(_) => Code::FAILED_PRECONDITION,
            Self::Spec(SpecError::Unsupported(_)) => Code::UNIMPLEMENTED,
            Self::Argument(_)
            | Self::Spec(_)
            | Self::Refused(_)
            | Self::Cgroup(
                CgroupError::Limit { .. } | CgroupError::NoSuchFile { .. } | CgroupError::InUse { .. },
            ) => Code::INVALID_ARGUMENT,
            Self::Deadline(_) => Code::DEADLINE_EXCEEDED,
            Self::Cgroup(_) | Self::Setup(_) | Self::Link { .. } | Self::System { .. } => Code::INTERNAL,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::System { .. } => Self::Setup(failure.to_string()),
            Failure::Executable(_) | Failure::Refused(_) => Self::Refused(failure.to_string()),
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(get_status(error.code(), error))
    }
}
