//! What is measured side by side.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use sealock_tests::ctr::Runtime;

/// A way to start a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sealock, from a template.
    Restored,
    /// Sealock, booted.
    Cold,
    /// The reference.
    Runc,
}

/// The configuration of the lab's host, which has none.
const CONFIGURATION: &str = "/etc/sealock/config.toml";

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Restored, Self::Cold, Self::Runc];

    /// Has containers that start from now on do so in this way; the first time for [`Kind::Restored`] see [`make_template`].
    pub fn prepare(self) -> Result<()> {
        templates(self == Self::Restored)
    }

    pub fn runtime(self) -> Runtime {
        match self {
            Self::Runc => Runtime::Runc,
            _ => Runtime::Sealock,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Restored => "sealock, restored",
            Self::Cold => "sealock, booted",
            Self::Runc => "runc",
        }
    }
}

fn templates(on: bool) -> Result<()> {
    fs::create_dir_all("/etc/sealock")?;
    let value = if on { "node" } else { "off" };
    // Many machines at once on emulated processors take long.
    let configuration = format!("templates = \"{value}\"\nagent_timeout_ms = 180000\n");
    fs::write(CONFIGURATION, configuration).context("cannot configure Sealock")
}

/// Makes the usual template.
pub fn make_template() -> Result<()> {
    templates(true)?;
    let made = Command::new("sealock").args(["template", "create"]).output()?;
    ensure!(
        made.status.success(),
        "no template: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(())
}
