//! `linux.maskedPaths` and `linux.readonlyPaths`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// An absolute path inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootedPath(String);

impl RootedPath {
    /// Reads a list of them.
    ///
    /// # Errors
    /// One is not absolute.
    pub fn parse_all(linux: &mut Object, name: &str) -> Result<Vec<Self>, SpecError> {
        linux
            .take_texts(name)?
            .into_iter()
            .enumerate()
            .map(|(index, path)| {
                if path.starts_with('/') {
                    Ok(Self(path))
                } else {
                    Err(SpecError::invalid(
                        format!("{}[{index}]", linux.field(name)),
                        format!("{path:?} is not an absolute path"),
                    ))
                }
            })
            .collect()
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
