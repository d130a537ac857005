//! The command line as containerd writes it: long options with one dash, as is the custom in Go.

use std::{ffi::OsString, path::PathBuf};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the pod's shim, or find it.
    Start,
    /// Clean up after a crashed shim.
    Delete,
    /// Make a template; the shim itself asks for that.
    Template,
    /// Describe the runtime.
    Info,
    /// Print the version.
    Version,
}

/// The command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Args {
    /// What to do.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's socket.
    pub address: String,
    /// The container's identifier.
    pub id: String,
    /// The bundle, where it isn't the working directory.
    pub bundle: Option<PathBuf>,
    /// Whether to log everything.
    pub debug: bool,
}

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// An option this program doesn't have.
    #[error("unknown option {0}")]
    Unknown(String),
    /// An option without its value.
    #[error("option -{0} needs a value")]
    Value(String),
    /// A required option is missing.
    #[error("option -{0} is missing or empty")]
    Missing(&'static str),
    /// Neither `start` nor `delete`.
    #[error("expected start or delete{0}: this program is run by containerd")]
    Action(String),
    /// An argument that isn't text.
    #[error("{0:?} is not valid UTF-8")]
    Encoding(OsString),
}

impl Args {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// They aren't what containerd passes.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut args = Self {
            action: Action::Start,
            namespace: String::new(),
            address: String::new(),
            id: String::new(),
            bundle: None,
            debug: false,
        };
        let mut action = None;
        let mut arguments = arguments
            .into_iter()
            .map(|argument| argument.into_string().map_err(Error::Encoding));
        while let Some(argument) = arguments.next().transpose()? {
            let Some(option) = argument.strip_prefix('-') else {
                action = Some(argument);
                break;
            };
            let option = option.strip_prefix('-').unwrap_or(option);
            let (name, inline) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            let mut value = || match inline.clone() {
                Some(value) => Ok(value),
                None => arguments
                    .next()
                    .transpose()?
                    .ok_or_else(|| Error::Value(name.to_owned())),
            };
            match name {
                "namespace" => args.namespace = value()?,
                "address" => args.address = value()?,
                "id" => args.id = value()?,
                "bundle" => args.bundle = Some(PathBuf::from(value()?)),
                // Events go to containerd's socket, and the address is this program's to choose.
                "publish-binary" | "socket" => drop(value()?),
                "debug" => args.debug = inline.as_deref() != Some("false"),
                "v" | "version" => {
                    args.action = Action::Version;
                    return Ok(args);
                }
                "info" => {
                    args.action = Action::Info;
                    return Ok(args);
                }
                _ => return Err(Error::Unknown(argument)),
            }
        }
        args.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some("template") => Action::Template,
            Some(other) => return Err(Error::Action(format!(", not {other:?}"))),
            None => return Err(Error::Action(String::new())),
        };
        if args.action == Action::Template {
            return Ok(args);
        }
        for (name, value) in [("namespace", &args.namespace), ("id", &args.id)] {
            if value.is_empty() {
                return Err(Error::Missing(name));
            }
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Error> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_own_command_line_is_understood() {
        let args = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1 \
             -debug start",
        )
        .unwrap();
        assert_eq!(args.action, Action::Start);
        assert_eq!((args.namespace.as_str(), args.id.as_str()), ("k8s.io", "c1"));
        assert_eq!(args.address, "/run/containerd/containerd.sock");
        assert!(args.debug);
        let args = parse("-namespace n -id c1 -bundle /run/b delete").unwrap();
        assert_eq!(
            (args.action, args.bundle),
            (Action::Delete, Some(PathBuf::from("/run/b")))
        );
    }

    #[test]
    fn two_dashes_and_equals_signs_do_too() {
        let args = parse("--namespace=n --id=a=b --debug=false start").unwrap();
        assert_eq!(
            (args.namespace.as_str(), args.id.as_str(), args.debug),
            ("n", "a=b", false)
        );
    }

    #[test]
    fn information_needs_nothing_else() {
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("template").unwrap().action, Action::Template);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            parse("-nonsense start"),
            Err(Error::Unknown("-nonsense".to_owned()))
        );
        assert_eq!(parse("-namespace n -id"), Err(Error::Value("id".to_owned())));
        assert_eq!(parse("-id c1 start"), Err(Error::Missing("namespace")));
        assert_eq!(parse("-namespace n start"), Err(Error::Missing("id")));
        assert!(matches!(parse("-namespace n -id c1 stop"), Err(Error::Action(_))));
        assert!(matches!(parse("-namespace n -id c1"), Err(Error::Action(_))));
    }
}
