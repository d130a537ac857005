//! `process`: the program, and what it starts with.

use sealock_protocol::guest::MAX_SPEC;
use serde::{Deserialize, Serialize};

use super::{
    capabilities::Capabilities,
    cpu_list::ExecAffinity,
    object::{Object, SpecError},
    rlimits::Rlimit,
    scheduler::{IoPriority, Scheduler},
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
    /// How it is scheduled; `None` as init is.
    pub scheduler: Option<Scheduler>,
    /// Its place among those that wait for block devices.
    pub io_priority: Option<IoPriority>,
    /// Where it runs, if it joins a container.
    pub exec_affinity: ExecAffinity,
    /// What of the specification can't be granted although nothing fails for it, in words for a log.
    pub warnings: Vec<String>,
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
        let mut warnings = Vec::new();
        check_labels(&mut process, &mut warnings)?;
        let parsed = Self {
            args,
            env,
            cwd,
            user: User::parse(&mut process)?,
            capabilities: Capabilities::parse(&mut process, &mut warnings)?,
            rlimits: Rlimit::parse_all(&mut process)?,
            no_new_privileges: process.take_or_default("noNewPrivileges")?,
            terminal: TerminalSize::parse(&mut process)?,
            oom_score_adj,
            scheduler: Scheduler::parse(&mut process)?,
            io_priority: IoPriority::parse(&mut process)?,
            exec_affinity: ExecAffinity::parse(&mut process)?,
            warnings,
        };
        process.finish()?;
        Ok(parsed)
    }
}

/// The profiles that container engines ask for by themselves wherever the host has AppArmor. They keep a container away from
/// the kernel of its host, which is what the microVM does.
const ENGINES_PROFILES: [&str; 4] = [
    "unconfined",
    "cri-containerd.apparmor.d",
    "docker-default",
    "nerdctl-default",
];

/// The guest has no AppArmor and no SELinux. A profile that somebody has chosen would be missed.
fn check_labels(process: &mut Object, warnings: &mut Vec<String>) -> Result<(), SpecError> {
    if let Some(profile) = process.take_text("apparmorProfile")? {
        let field = process.field("apparmorProfile");
        if !ENGINES_PROFILES.contains(&profile.as_str()) {
            return Err(SpecError::refused(
                field,
                format!("{profile:?} can't be applied: the guest has no AppArmor"),
            ));
        }
        if profile != "unconfined" {
            warnings.push(format!(
                "{field}: {profile:?} is not applied: the microVM stands for it"
            ));
        }
    }
    process.refuse("selinuxLabel", "the guest has no SELinux")
}
