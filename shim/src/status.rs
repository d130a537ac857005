//! Errors as containerd understands them.

use std::time::SystemTime;

use containerd_shim_protos::{
    protobuf::{MessageField, well_known_types::timestamp::Timestamp},
    ttrpc::{self, Code, get_status},
};
use sealock_sandbox::{Error, Kind, error::line};

/// A pod's error as a status with its code.
#[must_use]
pub fn of(error: &Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::NotFound => Code::NOT_FOUND,
        Kind::AlreadyExists => Code::ALREADY_EXISTS,
        Kind::FailedPrecondition => Code::FAILED_PRECONDITION,
        Kind::InvalidArgument => Code::INVALID_ARGUMENT,
        // Not UNIMPLEMENTED: containerd 2 takes that for an older version of this service and asks again.
        Kind::Unimplemented => Code::INVALID_ARGUMENT,
        Kind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        Kind::Unavailable => Code::UNAVAILABLE,
        Kind::Internal => Code::INTERNAL,
    };
    refusal(code, line(error))
}

/// There is no such container or process.
#[must_use]
pub fn not_found(message: &str) -> ttrpc::Error {
    refusal(Code::NOT_FOUND, message)
}

/// Not in this state.
#[must_use]
pub fn failed_precondition(message: &str) -> ttrpc::Error {
    refusal(Code::FAILED_PRECONDITION, message)
}

/// The process that was to be signalled has ended.
#[must_use]
pub fn finished() -> ttrpc::Error {
    not_found("process already finished")
}

/// What came of a signal.
///
/// # Errors
/// It reached nobody.
pub fn signalled(result: Result<(), Error>) -> ttrpc::Result<()> {
    result.map_err(|error| match error.kind() {
        Kind::NotFound | Kind::Unavailable => finished(),
        _ => of(&error),
    })
}

/// Not in this version.
#[must_use]
pub fn unimplemented(what: &str) -> ttrpc::Error {
    refusal(Code::UNIMPLEMENTED, format!("{what} is not supported by Sealock"))
}

/// What an error says, without its code.
#[must_use]
pub fn words(error: &ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A moment for a message.
#[must_use]
pub fn timestamp(at: SystemTime) -> MessageField<Timestamp> {
    Some(Timestamp::from(at)).into()
}

/// A status.
#[must_use]
pub fn refusal(code: Code, message: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}
