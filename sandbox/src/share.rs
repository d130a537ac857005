//! The directory that a pod's guest sees: `<container>/rootfs`, and `.volumes/<number>` ([`crate::volume`]), all of them
//! mounts.
//!
//! The directory itself is read-only to the file server, and so to the guest: only what is mounted in it can be written.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::stat::{SFlag, fstat};

use crate::{
    cleanup,
    error::Kind,
    mount::{self, Allow, Request},
    volume::{
        self,
        source::Source,
        table::{Lease, Volumes},
    },
};

/// Why something can't be shared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory can't be set up.
    #[error("cannot {verb} {}", path.display())]
    SetUp {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The container is there already.
    #[error("container {0} exists already")]
    Exists(String),
    /// There is no root file system.
    #[error("root.path: {} is not a directory", .0.display())]
    NoRootfs(PathBuf),
    /// The root file system can't be opened.
    #[error("root.path: cannot open {}", path.display())]
    Rootfs {
        /// Where it should be.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] mount::Error),
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::SetUp { .. } => Kind::Internal,
            Self::Exists(_) => Kind::AlreadyExists,
            Self::NoRootfs(_) | Self::Rootfs { .. } => Kind::InvalidArgument,
            Self::Mount(error) => error.kind(),
        }
    }
}

/// A pod's shared directory.
#[derive(Debug)]
pub struct Share {
    path: PathBuf,
    /// The same directory below its read-only mount, to make mount points in.
    below: OwnedFd,
    volumes: Arc<Volumes>,
}

impl Share {
    /// Makes the empty directory `path` a shared one. [`crate::state::PodDir`] undoes it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(path: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::SetUp {
            verb: "set up the shared directory",
            path: path.clone(),
            source,
        };
        let below = mount::open_path(&path).map_err(failed)?;
        mount::make_stage(&path).map_err(failed)?;
        let volumes = Volumes::new(path.clone(), below.try_clone().map_err(failed)?);
        Ok(Self {
            path,
            below,
            volumes: Arc::new(volumes),
        })
    }

    /// The pod's volumes.
    #[must_use]
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the place for a container, whose name has been checked.
    ///
    /// # Errors
    /// It exists, or the file system refuses.
    pub fn add(&self, container: &str) -> Result<ContainerShare, Error> {
        let below = PathBuf::from(format!("/proc/self/fd/{}", self.below.as_raw_fd())).join(container);
        match directory(&below) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Exists(container.to_owned()));
            }
            Err(source) => {
                return Err(Error::SetUp {
                    verb: "create",
                    path: self.path.join(container),
                    source,
                });
            }
        }
        Ok(ContainerShare {
            path: self.path.join(container),
            name: container.to_owned(),
            below,
            volumes: Arc::clone(&self.volumes),
            held: Vec::new(),
            present: true,
        })
    }
}

fn directory(path: &Path) -> io::Result<()> {
    // The guest's root may be any user inside, and looks at it as itself.
    fs::DirBuilder::new().mode(0o755).create(path)
}

/// A container's part of the shared directory, undone when this is dropped.
#[derive(Debug)]
pub struct ContainerShare {
    path: PathBuf,
    name: String,
    below: PathBuf,
    volumes: Arc<Volumes>,
    held: Vec<Lease>,
    present: bool,
}

impl ContainerShare {
    /// Mounts the container's root file system: what the snapshotter asks for, or else the directory `root`.
    ///
    /// # Errors
    /// There is none, or a mount fails.
    pub fn mount_rootfs(&self, mounts: &[Request], root: &Path) -> Result<(), Error> {
        let target = self.path.join("rootfs");
        directory(&self.below.join("rootfs")).map_err(|source| Error::SetUp {
            verb: "create",
            path: target.clone(),
            source,
        })?;
        for request in mounts {
            mount::mount(request, &target)?;
        }
        if !mounts.is_empty() {
            return Ok(());
        }
        let failed = |source| Error::Rootfs {
            path: root.to_owned(),
            source,
        };
        let source = mount::open_path(root).map_err(failed)?;
        let kind = fstat(&source).map_err(|error| failed(error.into()))?.st_mode & SFlag::S_IFMT.bits();
        if kind != SFlag::S_IFDIR.bits() {
            return Err(Error::NoRootfs(root.to_owned()));
        }
        let allow = Allow {
            recursive: true,
            ..Allow::default()
        };
        mount::bind(source.as_fd(), &target, &allow).map_err(failed)
    }

    /// Shares a file or directory of the host for as long as the container is there, and returns its path for the guest,
    /// relative to the shared directory.
    ///
    /// # Errors
    /// The mount fails.
    pub fn add_volume(&mut self, source: &Source, allow: &Allow) -> Result<String, volume::Error> {
        let lease = self
            .volumes
            .share(source, allow)
            .map_err(|error| volume::Error::Share {
                path: source.path.clone(),
                source: error,
            })?;
        let path = lease.path();
        self.held.push(lease);
        Ok(path)
    }

    /// Shares a volume that the guest copies, until the pod's end. `None` when it can't be watched for changes.
    ///
    /// # Errors
    /// The mount fails.
    pub fn copy_volume(&mut self, source: &Source) -> Result<Option<String>, volume::Error> {
        self.volumes.copy(source).map_err(|error| volume::Error::Share {
            path: source.path.clone(),
            source: error,
        })
    }

    /// Unmounts and removes the container's part.
    ///
    /// # Errors
    /// Something is left.
    pub fn remove(&mut self) -> io::Result<()> {
        if self.present {
            cleanup::unmount_below(&self.path)?;
            cleanup::remove_tree(&self.below)?;
            self.present = false;
        }
        for lease in self.held.drain(..) {
            lease.release()?;
        }
        Ok(())
    }
}

impl Drop for ContainerShare {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(container = %self.name, error = %error, "cannot clean up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch {
        share: Share,
        top: tempfile::TempDir,
    }

    impl Scratch {
        fn new() -> Self {
            let top = tempfile::tempdir().unwrap();
            let path = top.path().join("share");
            fs::create_dir(&path).unwrap();
            let share = Share::create(path).expect("these tests need root");
            Self { share, top }
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            cleanup::unmount_below(self.top.path()).unwrap();
        }
    }

    #[test]
    fn a_rootfs_directory_is_shown_and_undone() {
        let scratch = Scratch::new();
        let root = scratch.top.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "here").unwrap();
        let mut container = scratch.share.add("c1").unwrap();
        container.mount_rootfs(&[], &root).unwrap();
        let shown = scratch.share.path().join("c1/rootfs/file");
        assert_eq!(fs::read_to_string(&shown).unwrap(), "here");
        fs::write(shown, "written").unwrap();
        container.remove().unwrap();
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "written");
        assert_eq!(fs::read_dir(scratch.share.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_directory_itself_cannot_be_written() {
        let scratch = Scratch::new();
        let container = scratch.share.add("c1").unwrap();
        for place in ["", "c1"] {
            let error = fs::write(scratch.share.path().join(place).join("litter"), "").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        }
        drop(container);
    }

    #[test]
    fn a_missing_rootfs_and_one_that_is_a_file_are_told() {
        let scratch = Scratch::new();
        let container = scratch.share.add("c1").unwrap();
        let missing = scratch.top.path().join("missing");
        let line = crate::error::line(&container.mount_rootfs(&[], &missing).unwrap_err());
        assert!(
            line.contains("root.path") && line.contains("No such file"),
            "{line}"
        );
        drop(container);
        let container = scratch.share.add("c1").unwrap();
        fs::write(&missing, "").unwrap();
        let error = container.mount_rootfs(&[], &missing).unwrap_err();
        assert!(matches!(error, Error::NoRootfs(_)), "{error}");
    }

    #[test]
    fn a_container_is_there_once() {
        let scratch = Scratch::new();
        let _container = scratch.share.add("c1").unwrap();
        assert!(matches!(scratch.share.add("c1"), Err(Error::Exists(_))));
    }
}
