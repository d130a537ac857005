//! A path below the root of the file share.

use serde::{Deserialize, Serialize};

use super::object::SpecError;

/// A relative path without `.`, `..` or empty components: it cannot lead out of the directory it is resolved in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SharePath(String);

impl SharePath {
    /// Checks the value of `field`.
    ///
    /// # Errors
    /// The path is absolute, empty, or has a component that is not a plain name.
    pub fn parse(field: &str, path: String) -> Result<Self, SpecError> {
        Self::try_from(path).map_err(|reason| SpecError::invalid(field, reason))
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its directory; empty for one directly below the share.
    pub fn parent(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(parent, _)| parent)
    }
}

impl TryFrom<String> for SharePath {
    type Error = String;

    fn try_from(path: String) -> Result<Self, String> {
        let plain = !path.contains('\0')
            && path
                .split('/')
                .all(|component| !matches!(component, "" | "." | ".."));
        if plain {
            Ok(Self(path))
        } else {
            Err(format!("{path:?} is not a relative path below the file share"))
        }
    }
}

impl From<SharePath> for String {
    fn from(path: SharePath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_are_below_the_share() {
        SharePath::parse("root.path", "c1/rootfs".to_owned()).unwrap();
        SharePath::parse("root.path", "..data".to_owned()).unwrap();
        for path in [
            "",
            "/",
            "/etc",
            "..",
            "a/../../b",
            "a/..",
            "./a",
            "a//b",
            "a/",
            "a\0b",
        ] {
            SharePath::parse("root.path", path.to_owned()).expect_err(path);
        }
    }
}
