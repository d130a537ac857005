//! `process`: the program, and what it starts with.

use sealock_protocol::guest::MAX_SPEC;
use serde::{Deserialize, Serialize};

use super::{
    capabilities::Capabilities,
    object::{Object, SpecError},
    rlimits::Rlimit,
    terminal::TerminalSize,
    user::User,
};

/// The container's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments; at least one.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The directory to start in, absolute.
    pub cwd: String,
    /// Who it is.
    pub user: User,
    /// What it may do.
    pub capabilities: Capabilities,
    /// What it may use.
    pub rlimits: Vec<Rlimit>,
    /// Whether execve(2) never gives it more rights.
    pub no_new_privileges: bool,
    /// The size of its terminal, if its standard streams are one.
    pub terminal: Option<TerminalSize>,
    /// -1000 to 1000; `None` leaves the guest's.
    pub oom_score_adj: Option<i16>,
}

impl Process {
    /// Reads `process` of a whole specification.
    ///
    /// # Errors
    /// The field that can't be applied.
    pub fn parse(spec: &mut Object) -> Result<Self, SpecError> {
        Self::read(
            spec.object("process")?
                .ok_or_else(|| SpecError::invalid("process", "is missing"))?,
        )
    }

    /// Reads a `process` object that stands alone, as that of a process which joins a container.
    ///
    /// # Errors
    /// The field that can't be applied.
    pub fn parse_alone(process: &[u8]) -> Result<Self, SpecError> {
        if process.len() > MAX_SPEC {
            return Err(SpecError::TooLarge(MAX_SPEC));
        }
        Self::read(Object::parse_at("process", process)?)
    }

    fn read(mut process: Object) -> Result<Self, SpecError> {
        let args = process.take_texts("args")?;
        if args.first().is_none_or(String::is_empty) {
            return Err(SpecError::invalid(process.field("args"), "names no program"));
        }
        let env = process.take_texts("env")?;
        if let Some(index) = env
            .iter()
            .position(|entry| !entry.contains('=') || entry.starts_with('='))
        {
            return Err(SpecError::invalid(
                format!("{}[{index}]", process.field("env")),
                "is not of the form NAME=value",
            ));
        }
        let cwd = process.take_text("cwd")?.unwrap_or_default();
        if !cwd.starts_with('/') {
            return Err(SpecError::invalid(
                process.field("cwd"),
                format!("{cwd:?} is not an absolute path"),
            ));
        }
        let oom_score_adj: Option<i16> = process.take("oomScoreAdj")?;
        if oom_score_adj.is_some_and(|score| !(-1000..=1000).contains(&score)) {
            return Err(SpecError::invalid(
                process.field("oomScoreAdj"),
                "is not between -1000 and 1000",
            ));
        }
        let parsed = Self {
            args,
            env,
            cwd,
            user: User::parse(&mut process)?,
            capabilities: Capabilities::parse(&mut process)?,
            rlimits: Rlimit::parse_all(&mut process)?,
            no_new_privileges: process.take_or_default("noNewPrivileges")?,
            terminal: TerminalSize::parse(&mut process)?,
            oom_score_adj,
        };
        process.finish()?;
        Ok(parsed)
    }
}
