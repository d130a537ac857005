//! Landlock (landlock(7)): no way out by name, whatever the process's user could otherwise reach. Kernels without it, or with less
//! of it, take nothing from the other layers.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError, Scope,
};

use crate::Error;

/// The version whose rights are given up, as far as the kernel knows them.
const VERSION: ABI = ABI::V6;

/// Gives up every path, TCP port, abstract socket and signal, for good. Descriptors that are open stay what they are.
///
/// # Errors
/// The kernel has Landlock, and refuses.
pub fn renounce_everything() -> Result<(), Error> {
    restrict(true)
}

/// As [`renounce_everything`], but for paths.
///
/// # Errors
/// As there.
pub fn renounce_all_but_files() -> Result<(), Error> {
    restrict(false)
}

fn restrict(files: bool) -> Result<(), Error> {
    let attempt = || -> Result<(), RulesetError> {
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        if files {
            ruleset = ruleset.handle_access(AccessFs::from_all(VERSION))?;
        }
        ruleset
            .handle_access(AccessNet::from_all(VERSION))?
            .scope(Scope::from_all(VERSION))?
            .create()?
            .restrict_self()?;
        Ok(())
    };
    attempt().map_err(|error| Error {
        what: "confine the process with Landlock",
        source: io::Error::other(error),
    })
}
