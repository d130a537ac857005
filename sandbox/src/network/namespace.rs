//! The pod's network namespace on the host.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use sealock_netlink::namespace;
use serde_json::Value;

use super::Error;

/// A network namespace, kept from going away while this lives, as a process in it would.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// The one that a specification names. None when it asks for a new one, in which there is nothing but the loopback
    /// interface, or for none at all, which is for others to refuse.
    ///
    /// # Errors
    /// It isn't one, or it is the host's own.
    pub fn of(spec: &Value) -> Result<Option<Self>, Error> {
        let namespaces = spec
            .pointer("/linux/namespaces")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for (index, entry) in namespaces.enumerate() {
            if entry.get("type").and_then(Value::as_str) != Some("network") {
                continue;
            }
            let field = format!("linux.namespaces[{index}].path");
            return match entry.get("path") {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(path)) if path.is_empty() => Ok(None),
                Some(Value::String(path)) if path.starts_with('/') => {
                    Self::open(Path::new(path), &field).map(Some)
                }
                Some(_) => Err(Error::Invalid {
                    field,
                    problem: "not an absolute path",
                }),
            };
        }
        Ok(None)
    }

    /// Opens the namespace at `path`; `field` is what names it in errors.
    ///
    /// # Errors
    /// It isn't one, or it is the host's own.
    pub fn open(path: &Path, field: &str) -> Result<Self, Error> {
        let failed = |source| Error::Namespace {
            field: field.to_owned(),
            path: path.to_owned(),
            source,
        };
        // What is there may be anything: nothing is waited for.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(failed)?;
        let this = file.metadata().map_err(failed)?;
        let own = fs::metadata("/proc/self/ns/net").map_err(failed)?;
        // Not to be seen by everyone; where it is not, containerd's is the host's.
        let first = fs::metadata("/proc/1/ns/net").ok();
        for host in [Some(own), first].into_iter().flatten() {
            if (host.dev(), host.ino()) == (this.dev(), this.ino()) {
                return Err(Error::Host {
                    field: field.to_owned(),
                    path: path.to_owned(),
                });
            }
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Another hold on the same namespace.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            path: self.path.clone(),
        })
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does `work` in it, on a thread that ends with it, and waits.
    ///
    /// # Errors
    /// It can't be entered.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        namespace::within(self.file.as_fd(), work)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(entry: Value) -> Result<Option<Namespace>, Error> {
        Namespace::of(&json!({"linux": {"namespaces": [{"type": "pid"}, entry]}}))
    }

    #[test]
    fn a_new_namespace_costs_nothing() {
        for entry in [
            json!({"type": "network"}),
            json!({"type": "network", "path": ""}),
            json!({"type": "network", "path": null}),
            json!({"type": "ipc", "path": "/nonexistent"}),
        ] {
            assert!(of(entry).unwrap().is_none());
        }
    }

    #[test]
    fn the_hosts_own_is_refused_by_name() {
        let error = of(json!({"type": "network", "path": "/proc/self/ns/net"})).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("linux.namespaces[1].path: /proc/self/ns/net is the host's own network"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        for path in ["/nonexistent", "relative", "../x"] {
            let error = of(json!({"type": "network", "path": path})).unwrap_err();
            assert!(
                error.to_string().starts_with("linux.namespaces[1].path: "),
                "{error}"
            );
        }
        let other = of(json!({"type": "network", "path": "/proc/self/ns/uts"})).unwrap();
        assert!(other.unwrap().within(|| ()).is_err());
    }
}
