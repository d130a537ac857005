//! The socket of a pod's shim: where containerd and the pod's other containers find it.

use std::{
    fmt, fs, io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Component, Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// Where containerd expects the sockets of shims.
const DIRECTORY: &str = "/run/containerd/s";

/// The address of a pod's shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

/// A shim's socket, taken or found taken.
#[derive(Debug)]
pub enum Taken {
    /// By us, now.
    New(UnixListener),
    /// By a shim that answers.
    Before,
}

impl Address {
    /// The address for a pod, as containerd's own shims form it: a hash of containerd's socket, the namespace and the pod.
    #[must_use]
    pub fn of(containerd: &str, namespace: &str, pod: &str) -> Self {
        let mut joined = PathBuf::new();
        for component in Path::new(containerd).join(namespace).join(pod).components() {
            match component {
                Component::CurDir => {}
                Component::ParentDir => drop(joined.pop()),
                other => joined.push(other),
            }
        }
        let hash = Sha256::digest(joined.to_string_lossy().as_bytes());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(Path::new(DIRECTORY).join(hex))
    }

    /// The address in a bundle's `address` file, which only ever names a socket among the shims'.
    #[must_use]
    pub fn of_bundle(bundle: &Path) -> Option<Self> {
        let text = fs::read_to_string(bundle.join("address")).ok()?;
        let path = PathBuf::from(text.trim().strip_prefix("unix://")?);
        let name = path.file_name()?.to_str()?;
        let fit = path.parent() == Some(Path::new(DIRECTORY))
            && name.len() == 64
            && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        fit.then_some(Self(path))
    }

    /// Listens here, unless a shim already does.
    ///
    /// # Errors
    /// The socket can't be made.
    pub fn take(&self) -> io::Result<Taken> {
        if let Some(parent) = self.0.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        }
        // Made under another name, then given this one: nobody ever finds a socket here that doesn't listen yet.
        let draft = self.0.with_extension(std::process::id().to_string());
        remove(&draft)?;
        let listener = UnixListener::bind(&draft)?;
        let taken =
            fs::set_permissions(&draft, fs::Permissions::from_mode(0o600)).and_then(|()| self.claim(&draft));
        remove(&draft)?;
        Ok(if taken? {
            Taken::New(listener)
        } else {
            Taken::Before
        })
    }

    fn claim(&self, draft: &Path) -> io::Result<bool> {
        for _ in 0..3 {
            match fs::hard_link(draft, &self.0) {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
            if self.answers() {
                return Ok(false);
            }
            // A crashed shim's.
            remove(&self.0)?;
        }
        Err(io::Error::other(format!(
            "{} keeps coming back",
            self.0.display()
        )))
    }

    /// Whether a shim listens here.
    #[must_use]
    pub fn answers(&self) -> bool {
        UnixStream::connect(&self.0).is_ok()
    }

    /// Removes the socket.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_what_containerds_own_shims_have() {
        let address = Address::of("/run/containerd/containerd.sock", "default", "t1").to_string();
        // printf %s /run/containerd/containerd.sock/default/t1 | sha256sum
        assert_eq!(
            address,
            "unix:///run/containerd/s/df6a0c5cd2e9a1a16d9a3f2447365d9fc6021bc1d3d9a4caa2f5b2c4f773758f"
        );
        assert_eq!(
            Address::of("/run/./containerd//containerd.sock", "default", "t1").to_string(),
            address
        );
        assert_ne!(
            Address::of("/run/containerd/containerd.sock", "default", "t2").to_string(),
            address
        );
    }

    #[test]
    fn a_socket_is_taken_once_and_again_after_a_crash() {
        let top = tempfile::tempdir().unwrap();
        let address = Address(top.path().join("s/socket"));
        let Taken::New(listener) = address.take().unwrap() else {
            panic!("taken before");
        };
        assert!(address.answers());
        assert!(matches!(address.take().unwrap(), Taken::Before));
        drop(listener);
        assert!(!address.answers());
        assert!(matches!(address.take().unwrap(), Taken::New(_)));
        address.remove().unwrap();
        address.remove().unwrap();
        assert_eq!(fs::read_dir(top.path().join("s")).unwrap().count(), 0);
    }

    #[test]
    fn a_bundle_cannot_name_another_file() {
        let bundle = tempfile::tempdir().unwrap();
        let hash = "0".repeat(64);
        for (text, fit) in [
            (format!("unix:///run/containerd/s/{hash}"), true),
            (format!("unix:///run/containerd/{hash}"), false),
            (format!("unix:///run/containerd/s/../{hash}"), false),
            ("unix:///etc/passwd".to_owned(), false),
        ] {
            fs::write(bundle.path().join("address"), &text).unwrap();
            assert_eq!(Address::of_bundle(bundle.path()).is_some(), fit, "{text}");
        }
    }
}
