//! Why a container's process could not be made ready.

use std::{ffi::CString, io};

use nix::errno::Errno;

use super::executable::ExecutableError;

/// Why a container's process could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused something.
    #[error("{doing}: {}", text(*error))]
    System {
        /// What was being done, to what.
        doing: String,
        /// Its answer.
        error: Errno,
    },
    /// A value that the plan should not have held, or that only the guest could find wrong.
    #[error("{0}")]
    Refused(String),
    /// The program can't be executed.
    #[error(transparent)]
    Executable(#[from] ExecutableError),
}

/// The kernel's errors in the words that container tools are used to.
pub fn text(error: Errno) -> String {
    error.desc().to_lowercase()
}

/// Says what was being done when a system call failed.
pub trait Doing<T> {
    /// # Errors
    /// The system call's error, with what `doing` says.
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::System {
            doing: doing().into(),
            error,
        })
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|error| Failure::System {
            doing: doing().into(),
            error: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        })
    }
}

/// A text as the kernel takes it.
///
/// # Errors
/// It has a NUL in it.
pub fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::Refused(format!("{text:?} contains a NUL")))
}
