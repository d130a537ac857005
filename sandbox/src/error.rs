//! What can go wrong with a pod, and what kind of wrong it is to a caller.

use std::{error::Error as StdError, fmt::Write, sync::Arc, time::Duration};

use crate::{
    agent, cgroup, check, config, hooks, launch, mount, network, share, size, spec, state, stdio, template,
};

/// What went wrong with a pod or a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is not usable.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The host lacks something.
    #[error(transparent)]
    Check(#[from] check::Error),
    /// The machine's size is not to be had.
    #[error(transparent)]
    Size(#[from] size::Error),
    /// The pod's state can't be kept.
    #[error(transparent)]
    State(#[from] state::Error),
    /// The pod's shared directory can't be set up.
    #[error(transparent)]
    Share(#[from] share::Error),
    /// The pod's network can't be attached.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// The container's specification can't be carried out.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// A standard stream can't be opened.
    #[error(transparent)]
    Stdio(#[from] stdio::Error),
    /// The pod's cgroup can't be made.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The machine can't be started.
    #[error(transparent)]
    Launch(#[from] launch::Error),
    /// The agent refused, or didn't answer.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// A template can't be made or kept.
    #[error(transparent)]
    Template(#[from] template::store::Error),
    /// The pod never came up; shared by all who wait for it.
    #[error("the pod did not start")]
    NotStarted(#[source] Arc<Error>),
    /// The pod has ended.
    #[error("the pod has ended: {0}")]
    Ended(String),
    /// The pod's files can't be made.
    #[error("cannot make the pod's files for /etc")]
    PodFiles(#[source] std::io::Error),
    /// There is no thread for a container.
    #[error("cannot have a thread stand for the container")]
    StandIn(#[source] std::io::Error),
    /// The machine can't have the size.
    #[error("cannot let the pod's machine grow: {0}")]
    Resize(String),
    /// The machine did not go away.
    #[error("the pod's processes are still there {} s after they were killed", .0.as_secs())]
    Undead(Duration),
    /// Something of the pod is left on the host.
    #[error("cannot clean up after the pod")]
    Cleanup(#[source] std::io::Error),
}

/// What an error means to a caller, whatever its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No such container.
    NotFound,
    /// There is one already.
    AlreadyExists,
    /// Not now.
    FailedPrecondition,
    /// Never with these arguments.
    InvalidArgument,
    /// Not by this version.
    Unimplemented,
    /// It took too long.
    DeadlineExceeded,
    /// The pod is gone.
    Unavailable,
    /// Anything else.
    Internal,
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Size(_) => Kind::InvalidArgument,
            Self::Cgroup(cgroup::Error::Spec(error)) => error.kind(),
            Self::Cgroup(cgroup::Error::NoHierarchy) => Kind::FailedPrecondition,
            Self::Cgroup(cgroup::Error::File { .. }) | Self::Hook(_) => Kind::Internal,
            Self::Spec(error) => error.kind(),
            Self::Stdio(error) => error.kind(),
            Self::Network(error) => error.kind(),
            Self::Mount(error) => error.kind(),
            Self::Share(error) => error.kind(),
            Self::State(error) => error.kind(),
            Self::Agent(error) => error.kind(),
            Self::Config(_) | Self::Check(_) => Kind::FailedPrecondition,
            Self::NotStarted(error) => error.kind(),
            Self::Ended(_) => Kind::Unavailable,
            Self::Template(_)
            | Self::Launch(_)
            | Self::PodFiles(_)
            | Self::StandIn(_)
            | Self::Resize(_)
            | Self::Undead(_)
            | Self::Cleanup(_) => Kind::Internal,
        }
    }
}

/// How much is told of one error, in characters: it may name a value that is as long as a specification can be.
const MAX_WORDS: usize = 1024;

/// An error and its causes in one line.
#[must_use]
pub fn line(error: &dyn StdError) -> String {
    let mut line = shortened(error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = shortened(error.to_string());
        if !line.ends_with(&text) {
            // Writing to a string doesn't fail.
            let _ = write!(line, ": {text}");
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}

fn shortened(mut words: String) -> String {
    if let Some((end, _)) = words.char_indices().nth(MAX_WORDS) {
        words.truncate(end);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let error = Error::Cleanup(std::io::Error::other("two\nlines"));
        assert_eq!(line(&error), "cannot clean up after the pod: two lines");
    }

    #[test]
    fn a_long_error_is_cut_and_its_cause_is_told() {
        let error = Error::Spec(spec::Error::Read {
            path: "ü".repeat(100_000).into(),
            source: std::io::Error::other("no reason"),
        });
        let line = line(&error);
        assert!(
            line.chars().count() < 2 * MAX_WORDS && line.ends_with("…: no reason"),
            "{line}"
        );
    }
}
