//! The directory that a pod's guest sees: `<container>/rootfs` and `<container>/mounts/<number>`, all of them mounts.
//!
//! The directory itself is read-only to the file server, and so to the guest: only what is mounted in it can be written.

use std::{
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use nix::sys::{
    stat::{SFlag, fstat},
    statfs::fstatfs,
};

use crate::{
    cleanup,
    error::Kind,
    mount::{self, Allow, Request},
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
    /// A volume's source can't be opened.
    #[error("cannot open {}", path.display())]
    Volume {
        /// Its path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A volume that no guest gets.
    #[error("{} is {what}: it is not shared with a microVM", path.display())]
    Refused {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
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
            Self::NoRootfs(_) | Self::Rootfs { .. } | Self::Volume { .. } => Kind::InvalidArgument,
            Self::Refused { .. } => Kind::Unimplemented,
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
        Ok(Self { path, below })
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
            volumes: 0,
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
    volumes: usize,
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
            read_only: false,
            recursive: true,
        };
        mount::bind(source.as_fd(), &target, allow).map_err(failed)
    }

    /// Shares a file or directory of the host and returns its path for the guest, relative to the shared directory.
    ///
    /// # Errors
    /// It isn't there, or isn't shared with guests, or the mount fails.
    pub fn add_volume(&mut self, path: &Path, allow: Allow) -> Result<String, Error> {
        let failed = |source| Error::Volume {
            path: path.to_owned(),
            source,
        };
        // From here on it is this very file or directory, whatever becomes of its name.
        let source = mount::open_path(path).map_err(failed)?;
        let is_directory = check_volume(path, &source)?;
        let mounts = self.below.join("mounts");
        let number = self.volumes.to_string();
        let place = mounts.join(&number);
        if self.volumes == 0 {
            directory(&mounts).map_err(failed)?;
        }
        if is_directory {
            directory(&place).map_err(failed)?;
        } else {
            fs::File::create_new(&place).map_err(failed)?;
        }
        self.volumes += 1;
        mount::bind(source.as_fd(), &self.path.join("mounts").join(&number), allow).map_err(failed)?;
        Ok(format!("{}/mounts/{number}", self.name))
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

/// File systems that show the host's kernel, not files (statfs(2)).
const KERNEL_FILE_SYSTEMS: [(i64, &str); 11] = [
    (0x9fa0, "the host's procfs"),
    (0x6265_6572, "the host's sysfs"),
    (0x6367_7270, "the host's cgroup file system"),
    (0x0027_e0eb, "the host's cgroup file system"),
    (0x1cd1, "the host's devpts"),
    (0x1980_0202, "the host's message queues"),
    (0x6462_6720, "the host's debugfs"),
    (0x7472_6163, "the host's tracefs"),
    (0x7363_6673, "the host's securityfs"),
    (0xcafe_4a11, "the host's BPF file system"),
    (0x6265_6570, "the host's configfs"),
];

/// Whether it is a directory; else a regular file.
fn check_volume(path: &Path, source: &OwnedFd) -> Result<bool, Error> {
    let refused = |what| Error::Refused {
        path: path.to_owned(),
        what,
    };
    let failed = |source: io::Error| Error::Volume {
        path: path.to_owned(),
        source,
    };
    let magic = fstatfs(source)
        .map_err(|error| failed(error.into()))?
        .filesystem_type()
        .0;
    if let Some((_, what)) = KERNEL_FILE_SYSTEMS.iter().find(|(number, _)| *number == magic) {
        return Err(refused(what));
    }
    // What was opened, not what it was called.
    let real = fs::read_link(format!("/proc/self/fd/{}", source.as_raw_fd())).map_err(failed)?;
    if real == Path::new("/") {
        return Err(refused("the host's whole root"));
    }
    for (directory, what) in [
        ("/dev", "in the host's /dev"),
        ("/proc", "in the host's /proc"),
        ("/sys", "in the host's /sys"),
    ] {
        if real.starts_with(directory) {
            return Err(refused(what));
        }
    }
    let file_type = fs::File::from(source.try_clone().map_err(failed)?)
        .metadata()
        .map_err(failed)?;
    match SFlag::from_bits_truncate(file_type.mode() & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Ok(true),
        SFlag::S_IFREG => Ok(false),
        SFlag::S_IFSOCK => Err(refused("a socket")),
        SFlag::S_IFIFO => Err(refused("a FIFO")),
        _ => Err(refused("a device")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const WRITABLE: Allow = Allow {
        read_only: false,
        recursive: true,
    };

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

    #[test]
    fn files_and_directories_become_volumes() {
        let scratch = Scratch::new();
        let file = scratch.top.path().join("hosts");
        fs::write(&file, "127.0.0.1").unwrap();
        let mut container = scratch.share.add("c1").unwrap();
        let read_only = Allow {
            read_only: true,
            ..WRITABLE
        };
        assert_eq!(container.add_volume(&file, read_only).unwrap(), "c1/mounts/0");
        let directory = scratch.top.path().join("data");
        fs::create_dir(&directory).unwrap();
        assert_eq!(container.add_volume(&directory, WRITABLE).unwrap(), "c1/mounts/1");
        let shown = scratch.share.path().join("c1/mounts/0");
        assert_eq!(fs::read_to_string(&shown).unwrap(), "127.0.0.1");
        assert!(fs::write(shown, "").is_err());
        fs::write(scratch.share.path().join("c1/mounts/1/new"), "").unwrap();
        drop(container);
        assert!(directory.join("new").exists());
        assert_eq!(fs::read_dir(scratch.share.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_the_hosts_alone_is_refused_by_name() {
        let scratch = Scratch::new();
        let mut container = scratch.share.add("c1").unwrap();
        let link = scratch.top.path().join("innocent");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        let socket = scratch.top.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (Path::new("/proc"), "procfs"),
            (Path::new("/sys"), "sysfs"),
            (Path::new("/dev"), "/dev"),
            (Path::new("/dev/null"), "/dev"),
            (Path::new("/"), "whole root"),
            (&link, "procfs"),
            (&socket, "a socket"),
        ] {
            let error = container.add_volume(path, WRITABLE).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            let line = error.to_string();
            assert!(
                line.contains(what) && line.contains(path.to_str().unwrap()),
                "{line}"
            );
        }
        let missing = container
            .add_volume(Path::new("/nonexistent/volume"), WRITABLE)
            .unwrap_err();
        assert_eq!(missing.kind(), Kind::InvalidArgument);
    }
}
