//! `process.terminal` and `process.consoleSize`.

use serde::{Deserialize, Serialize};

use super::object::{Object, SpecError};

/// A terminal's size in characters; zero for one that programs are to find out by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

impl TerminalSize {
    /// Reads both fields; `None` without a terminal, whatever size one would have.
    ///
    /// # Errors
    /// A size that no terminal has.
    pub fn parse(process: &mut Object) -> Result<Option<Self>, SpecError> {
        let terminal: bool = process.take_or_default("terminal")?;
        if !terminal {
            process.ignore("consoleSize");
            return Ok(None);
        }
        let Some(mut size) = process.object("consoleSize")? else {
            return Ok(Some(Self::default()));
        };
        let parsed = Self {
            rows: size.take_or_default("height")?,
            columns: size.take_or_default("width")?,
        };
        size.finish()?;
        Ok(Some(parsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(process: &str) -> Result<Option<TerminalSize>, SpecError> {
        TerminalSize::parse(&mut Object::parse_at("process", process.as_bytes()).unwrap())
    }

    #[test]
    fn a_size_counts_with_a_terminal_only() {
        let size = TerminalSize {
            rows: 50,
            columns: 132,
        };
        assert_eq!(
            parse(r#"{"terminal":true,"consoleSize":{"height":50,"width":132}}"#).unwrap(),
            Some(size)
        );
        assert_eq!(
            parse(r#"{"terminal":true}"#).unwrap(),
            Some(TerminalSize::default())
        );
        assert_eq!(
            parse(r#"{"consoleSize":{"height":50,"width":132}}"#).unwrap(),
            None
        );
        let error = parse(r#"{"terminal":true,"consoleSize":{"height":65536,"width":1}}"#).unwrap_err();
        assert!(
            error.to_string().starts_with("process.consoleSize.height: "),
            "{error}"
        );
    }
}
