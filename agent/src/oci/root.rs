//! `root` and `linux.rootfsPropagation`.

use serde::{Deserialize, Serialize};

use super::{
    mount_options::Propagation,
    object::{Object, SpecError},
    share_path::SharePath,
};

/// The container's root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Where it is in the share.
    pub path: SharePath,
    /// Whether its own mount is read-only; mounts below are as they say.
    pub read_only: bool,
    /// `linux.rootfsPropagation`.
    pub propagation: Option<Propagation>,
}

impl Root {
    /// Reads `root`, and `rootfsPropagation` from `linux`.
    ///
    /// # Errors
    /// The root is missing or not below the share; an unknown propagation.
    pub fn parse(spec: &mut Object, linux: &mut Object) -> Result<Self, SpecError> {
        let mut root = spec
            .object("root")?
            .ok_or_else(|| SpecError::invalid("root", "is missing"))?;
        let path: String = root.take_or_default("path")?;
        let path = SharePath::parse(&root.field("path"), path)?;
        let read_only = root.take_or_default("readonly")?;
        root.finish()?;
        let propagation = linux
            .take_text("rootfsPropagation")?
            .map(|word| {
                Propagation::parse(&word).ok_or_else(|| {
                    SpecError::invalid(
                        linux.field("rootfsPropagation"),
                        format!("no such propagation: {word:?}"),
                    )
                })
            })
            .transpose()?;
        Ok(Self {
            path,
            read_only,
            propagation,
        })
    }
}
