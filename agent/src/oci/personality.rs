//! `linux.personality`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// The execution domain (personality(2)): what kind of machine programs are told they run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Personality {
    /// The machine's own.
    Linux,
    /// Its 32-bit predecessor.
    Linux32,
}

impl Personality {
    /// Reads `linux.personality`.
    ///
    /// # Errors
    /// An unknown domain, or flags, of which the specification knows none.
    pub fn parse(linux: &mut Object) -> Result<Option<Self>, SpecError> {
        let Some(mut object) = linux.object("personality")? else {
            return Ok(None);
        };
        let domain = object.take_text("domain")?.unwrap_or_default();
        let parsed = match domain.as_str() {
            "LINUX" => Self::Linux,
            "LINUX32" => Self::Linux32,
            _ => {
                return Err(SpecError::invalid(
                    object.field("domain"),
                    format!("no such domain: {domain:?}"),
                ));
            }
        };
        object.finish()?;
        Ok(Some(parsed))
    }

    /// `PER_*`
    pub fn number(self) -> libc::c_ulong {
        match self {
            Self::Linux => 0,
            Self::Linux32 => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_known_by_name_and_flags_are_refused() {
        let parse = |text: &str| {
            Personality::parse(&mut Object::parse(format!(r#"{{"personality":{text}}}"#).as_bytes()).unwrap())
        };
        assert_eq!(
            parse(r#"{"domain":"LINUX32"}"#).unwrap(),
            Some(Personality::Linux32)
        );
        for (text, message) in [
            (
                r#"{"domain":"BSD"}"#,
                r#"personality.domain: no such domain: "BSD""#,
            ),
            (
                r#"{"domain":"LINUX","flags":["X"]}"#,
                "personality.flags is not supported",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }
}
