//! A JSON object that knows its place in the specification and whether everything in it was read.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Why a specification is not carried out. Every message names the field.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Larger than [`sealock_protocol::guest::MAX_SPEC`].
    #[error("the specification is larger than {0} bytes")]
    TooLarge(usize),
    /// Not JSON, or not an object.
    #[error("the specification is not a JSON object: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A field whose value can't be applied.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field's path, as `process.rlimits[0].type`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field, or a value of a field, that Sealock does not carry out. With the reason where there is more to say.
    #[error("{0}")]
    Unsupported(String),
}

impl SpecError {
    /// The value of `field` can't be applied.
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// `what`, a field or a value of a field, is not carried out.
    pub fn unsupported(what: impl AsRef<str>) -> Self {
        Self::Unsupported(format!("{} is not supported", what.as_ref()))
    }

    /// The value of `field` is not carried out, for a reason that says so.
    pub fn refused(field: impl AsRef<str>, reason: impl AsRef<str>) -> Self {
        Self::Unsupported(format!("{}: {}", field.as_ref(), reason.as_ref()))
    }
}

/// An object of the specification. Fields are taken out of it; [`Object::finish`] refuses what is left.
#[derive(Debug)]
pub struct Object {
    path: String,
    fields: Map<String, Value>,
}

impl Object {
    /// The whole specification.
    ///
    /// # Errors
    /// The bytes are not a JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Self, SpecError> {
        Self::parse_at("", bytes)
    }

    /// An object that stands alone but whose place in the specification is `path`.
    ///
    /// # Errors
    /// As [`Object::parse`].
    pub fn parse_at(path: &str, bytes: &[u8]) -> Result<Self, SpecError> {
        Ok(Self {
            path: path.to_owned(),
            fields: serde_json::from_slice(bytes).map_err(SpecError::Malformed)?,
        })
    }

    /// The path of the field `name` of this object.
    pub fn field(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// This object's own path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the field `name` is there and not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes the field `name`; `null` is the same as absent.
    ///
    /// # Errors
    /// The value is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, SpecError> {
        match self.fields.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| SpecError::invalid(self.field(name), error.to_string())),
        }
    }

    /// Takes the field `name` or the type's default.
    ///
    /// # Errors
    /// As [`Object::take`].
    pub fn take_or_default<T: DeserializeOwned + Default>(&mut self, name: &str) -> Result<T, SpecError> {
        Ok(self.take(name)?.unwrap_or_default())
    }

    /// Takes the text `name`, the empty text being the same as absent. The kernel's interfaces end a text at its first
    /// NUL, so none may contain one.
    ///
    /// # Errors
    /// The value is not a text, or has a NUL in it.
    pub fn take_text(&mut self, name: &str) -> Result<Option<String>, SpecError> {
        match self.take::<String>(name)? {
            Some(text) if text.contains('\0') => Err(SpecError::invalid(self.field(name), "contains a NUL")),
            Some(text) if text.is_empty() => Ok(None),
            other => Ok(other),
        }
    }

    /// Takes the list of texts `name`.
    ///
    /// # Errors
    /// The value is not a list of texts, or one of them has a NUL in it.
    pub fn take_texts(&mut self, name: &str) -> Result<Vec<String>, SpecError> {
        let texts: Vec<String> = self.take_or_default(name)?;
        match texts.iter().position(|text| text.contains('\0')) {
            Some(index) => Err(SpecError::invalid(
                format!("{}[{index}]", self.field(name)),
                "contains a NUL",
            )),
            None => Ok(texts),
        }
    }

    /// Takes the object `name`.
    ///
    /// # Errors
    /// The value is not an object.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, SpecError> {
        Ok(self.take(name)?.map(|fields| Self {
            path: self.field(name),
            fields,
        }))
    }

    /// Takes the list of objects `name`; none when it is absent.
    ///
    /// # Errors
    /// The value is not a list of objects.
    pub fn objects(&mut self, name: &str) -> Result<Vec<Self>, SpecError> {
        let items: Vec<Map<String, Value>> = self.take_or_default(name)?;
        let path = self.field(name);
        Ok(items
            .into_iter()
            .enumerate()
            .map(|(index, fields)| Self {
                path: format!("{path}[{index}]"),
                fields,
            })
            .collect())
    }

    /// Refuses the field `name` if it is set.
    ///
    /// # Errors
    /// [`SpecError::Unsupported`] with the reason.
    pub fn refuse(&mut self, name: &str, reason: &str) -> Result<(), SpecError> {
        match self.fields.remove(name) {
            Some(value) if is_set(&value) => Err(SpecError::Unsupported(format!(
                "{} is not supported: {reason}",
                self.field(name)
            ))),
            _ => Ok(()),
        }
    }

    /// Leaves the field `name` unread on purpose: it asks nothing of the guest.
    pub fn ignore(&mut self, name: &str) {
        self.fields.remove(name);
    }

    /// Refuses whatever is set and was not taken.
    ///
    /// # Errors
    /// [`SpecError::Unsupported`] with the first such field.
    pub fn finish(self) -> Result<(), SpecError> {
        match self.fields.iter().find(|(_, value)| is_set(value)) {
            Some((name, _)) => Err(SpecError::unsupported(self.field(name))),
            None => Ok(()),
        }
    }
}

/// Whether a value asks for anything: programs that write specifications leave empty values in them.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(is_set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_and_not_read_is_refused_by_its_path() {
        let mut spec = Object::parse(br#"{"linux":{"future":{"depth":[0]}}}"#).unwrap();
        let linux = spec.object("linux").unwrap().unwrap();
        assert_eq!(
            linux.finish().unwrap_err().to_string(),
            "linux.future is not supported"
        );
    }

    #[test]
    fn empty_values_ask_for_nothing() {
        let spec = Object::parse(br#"{"a":null,"b":false,"c":0,"d":"","e":[],"f":{"g":{"h":0}}}"#).unwrap();
        spec.finish().unwrap();
    }

    #[test]
    fn a_value_of_another_type_is_named() {
        let mut spec = Object::parse(br#"{"process":{"args":["a",7]}}"#).unwrap();
        let mut process = spec.object("process").unwrap().unwrap();
        let error = process.take_texts("args").unwrap_err().to_string();
        assert!(error.starts_with("process.args: "), "{error}");
    }

    #[test]
    fn a_text_with_a_nul_is_refused() {
        let mut spec = Object::parse(br#"{"list":["fine","a\u0000b"]}"#).unwrap();
        assert_eq!(
            spec.take_texts("list").unwrap_err().to_string(),
            "list[1]: contains a NUL"
        );
    }
}
