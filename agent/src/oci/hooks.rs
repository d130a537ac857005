//! `hooks` of the two kinds that run in the guest: `createContainer` and `startContainer`. The others run on the host, and
//! the host has taken them out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::object::{Object, SpecError};

/// A program to be run at a point of the container's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Its place in the specification, for messages.
    pub field: String,
    /// The program, absolute.
    pub path: String,
    /// Its arguments, the name it is called by being the first; empty for `path` alone.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<String>,
    /// How many seconds it may take; at least one.
    pub timeout: Option<u32>,
}

/// The hooks, and what they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Run in the container's namespaces before its root becomes the process's.
    pub create_container: Vec<Hook>,
    /// Run in the container just before its program.
    pub start_container: Vec<Hook>,
    /// `ociVersion`.
    pub oci_version: String,
    /// The container's identifier.
    pub id: String,
    /// The container's directory in the guest.
    pub bundle: String,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// A state of the container's life (runtime.md, "State") in which hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `createContainer`
    Creating,
    /// `startContainer`
    Created,
}

impl Hooks {
    /// Reads `hooks`; the rest is told to them.
    ///
    /// # Errors
    /// A hook that can't be run.
    pub fn parse(
        spec: &mut Object,
        oci_version: &str,
        bundle: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, SpecError> {
        let Some(mut hooks) = spec.object("hooks")? else {
            return Ok(Self::default());
        };
        let create_container = parse_all(&mut hooks, "createContainer")?;
        let start_container = parse_all(&mut hooks, "startContainer")?;
        hooks.finish()?;
        if create_container.is_empty() && start_container.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self {
            create_container,
            start_container,
            oci_version: oci_version.to_owned(),
            id: bundle.rsplit('/').next().unwrap_or_default().to_owned(),
            bundle: bundle.to_owned(),
            annotations,
        })
    }

    /// The state that a hook reads from its standard input (runtime.md, "State"). `pid` is the container's process as the hook
    /// itself sees it.
    pub fn state(&self, status: Status, pid: u32) -> Vec<u8> {
        let status = match status {
            Status::Creating => "creating",
            Status::Created => "created",
        };
        json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status,
            "pid": pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
        .to_string()
        .into_bytes()
    }
}

fn parse_all(hooks: &mut Object, name: &str) -> Result<Vec<Hook>, SpecError> {
    hooks.objects(name)?.into_iter().map(parse).collect()
}

fn parse(mut hook: Object) -> Result<Hook, SpecError> {
    let path = hook.take_text("path")?.unwrap_or_default();
    if !path.starts_with('/') {
        return Err(SpecError::invalid(
            hook.field("path"),
            format!("{path:?} is not an absolute path"),
        ));
    }
    let parsed = Hook {
        field: hook.path().to_owned(),
        path,
        args: hook.take_texts("args")?,
        env: hook.take_texts("env")?,
        timeout: hook.take("timeout")?,
    };
    if parsed.timeout == Some(0) {
        return Err(SpecError::invalid(
            hook.field("timeout"),
            "is not at least a second",
        ));
    }
    hook.finish()?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(hooks: &str) -> Result<Hooks, SpecError> {
        let mut spec = Object::parse(format!(r#"{{"hooks":{hooks}}}"#).as_bytes()).unwrap();
        Hooks::parse(&mut spec, "1.2.0", "/run/share/c1", BTreeMap::new())
    }

    #[test]
    fn the_guests_hooks_are_read_and_told_the_state() {
        let hooks = parse(
            r#"{"createContainer":[{"path":"/bin/a"}],
                "startContainer":[{"path":"/bin/b","args":["b","-x"],"env":["A=1"],"timeout":3}]}"#,
        )
        .unwrap();
        assert_eq!(hooks.start_container[0].timeout, Some(3));
        let state: serde_json::Value = serde_json::from_slice(&hooks.state(Status::Creating, 7)).unwrap();
        assert_eq!(state["status"], "creating");
        assert_eq!(state["id"], "c1");
        assert_eq!(state["pid"], 7);
    }

    #[test]
    fn hooks_that_cannot_be_run_are_named() {
        for (hooks, message) in [
            (
                r#"{"startContainer":[{"path":"b"}]}"#,
                r#"hooks.startContainer[0].path: "b" is not an absolute path"#,
            ),
            (
                r#"{"createContainer":[{"path":"/b","timeout":0}]}"#,
                "hooks.createContainer[0].timeout: is not at least a second",
            ),
            (
                r#"{"poststop":[{"path":"/b"}]}"#,
                "hooks.poststop is not supported",
            ),
        ] {
            assert_eq!(parse(hooks).unwrap_err().to_string(), message);
        }
    }
}
