//! Paths inside a container's root file system.
//!
//! The files there are the image's, and on volumes other containers change them meanwhile: a component may be a symbolic
//! link to anywhere, or become one. The kernel resolves every path with the container's root as the root
//! (openat2(2), `RESOLVE_IN_ROOT`), and what is done is done to the descriptor that this gave.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat},
    sys::stat::{Mode, SFlag, fstat, mkdirat, mknodat},
};

/// The most symbolic links that lead to a path which is to be created, as in the kernel's own resolution.
const MAX_LINKS: u32 = 40;

/// How often a resolution is begun again when files are renamed at the same time.
const MAX_ATTEMPTS: u32 = 128;

/// The root of a container's files.
#[derive(Debug)]
pub struct RootFs(OwnedFd);

#[derive(Clone, Copy)]
enum Missing {
    Directory,
    File,
}

impl RootFs {
    /// The file system below an open directory.
    pub fn new(root: OwnedFd) -> Self {
        Self(root)
    }

    /// The file or directory at `path`, opened with `O_PATH`.
    ///
    /// # Errors
    /// As openat2(2).
    pub fn resolve(&self, path: &str) -> nix::Result<OwnedFd> {
        self.open(path, ResolveFlag::empty())
    }

    /// The same, if no component is a symbolic link.
    ///
    /// # Errors
    /// As openat2(2); `ELOOP` at a symbolic link.
    pub fn resolve_without_links(&self, path: &str) -> nix::Result<OwnedFd> {
        self.open(path, ResolveFlag::RESOLVE_NO_SYMLINKS)
    }

    /// The directory at `path`; what of it is missing is created, also where symbolic links lead to.
    ///
    /// # Errors
    /// As openat2(2) and mkdirat(2).
    pub fn ensure_directory(&self, path: &str) -> nix::Result<OwnedFd> {
        self.ensure(path, Missing::Directory, &mut { MAX_LINKS })
    }

    /// The file at `path`; when missing an empty one is created, with the directories above it.
    ///
    /// # Errors
    /// As openat2(2), mkdirat(2) and mknodat(2).
    pub fn ensure_file(&self, path: &str) -> nix::Result<OwnedFd> {
        self.ensure(path, Missing::File, &mut { MAX_LINKS })
    }

    // The recursion is as deep as the path has components, and openat2 refuses paths longer than PATH_MAX.
    fn ensure(&self, path: &str, missing: Missing, links: &mut u32) -> nix::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::ENOENT) => {}
            found => return found,
        }
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        let directory = self.ensure(
            if parent.is_empty() { "/" } else { parent },
            Missing::Directory,
            links,
        )?;
        if matches!(name, "" | "." | "..") {
            return self.resolve(path);
        }
        let created = match missing {
            Missing::Directory => mkdirat(&directory, name, Mode::from_bits_truncate(0o755)),
            Missing::File => mknodat(
                &directory,
                name,
                SFlag::S_IFREG,
                Mode::from_bits_truncate(0o644),
                0,
            ),
        };
        match created {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error),
        }
        let node = child(&directory, name)?;
        if kind(&node)? != SFlag::S_IFLNK {
            return Ok(node);
        }
        // A symbolic link to what does not exist.
        *links = links.checked_sub(1).ok_or(Errno::ELOOP)?;
        let target = readlinkat(&directory, name)?;
        let target = target.to_str().ok_or(Errno::EILSEQ)?;
        if target.starts_with('/') {
            self.ensure(target, missing, links)
        } else {
            self.ensure(&format!("{parent}/{target}"), missing, links)
        }
    }

    fn open(&self, path: &str, further: ResolveFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS | further);
        let path = if path.is_empty() { "/" } else { path };
        for _ in 1..MAX_ATTEMPTS {
            match openat2(&self.0, path, how) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                result => return result,
            }
        }
        openat2(&self.0, path, how)
    }
}

impl AsFd for RootFs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The entry `name`, itself, of a directory.
///
/// # Errors
/// As openat2(2); `name` is more than a name.
pub fn child(directory: impl AsFd, name: &str) -> nix::Result<OwnedFd> {
    if name.contains('/') {
        return Err(Errno::EINVAL);
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH);
    openat2(directory, name, how)
}

/// The type of what a descriptor refers to.
///
/// # Errors
/// As fstat(2).
pub fn kind(of: impl AsFd) -> nix::Result<SFlag> {
    let mode = fstat(of)?.st_mode;
    Ok(SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits()))
}

/// Whether a descriptor refers to a directory.
///
/// # Errors
/// As fstat(2).
pub fn is_directory(of: impl AsFd) -> nix::Result<bool> {
    Ok(kind(of)? == SFlag::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt, symlink},
        path::{Path, PathBuf},
    };

    use tempfile::TempDir;

    use super::*;

    /// A directory `root` with a neighbour `outside` that nothing may reach.
    struct Hostile {
        directory: TempDir,
        rootfs: RootFs,
    }

    impl Hostile {
        fn new() -> Self {
            let directory = TempDir::new().unwrap();
            fs::create_dir(directory.path().join("root")).unwrap();
            fs::create_dir(directory.path().join("outside")).unwrap();
            fs::write(directory.path().join("outside/secret"), "").unwrap();
            let rootfs = RootFs::new(File::open(directory.path().join("root")).unwrap().into());
            Self { directory, rootfs }
        }

        fn root(&self, path: &str) -> PathBuf {
            self.directory.path().join("root").join(path)
        }

        fn outside(&self) -> PathBuf {
            self.directory.path().join("outside")
        }

        fn untouched(&self) {
            let names: Vec<_> = fs::read_dir(self.outside())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(names, ["secret"]);
        }
    }

    fn same(fd: &OwnedFd, path: &Path) -> bool {
        let (one, other) = (fstat(fd).unwrap(), fs::metadata(path).unwrap());
        (one.st_dev, one.st_ino) == (other.dev(), other.ino())
    }

    #[test]
    fn missing_directories_are_created_below_the_root() {
        let hostile = Hostile::new();
        let made = hostile.rootfs.ensure_directory("/a/b/./c/").unwrap();
        assert!(same(&made, &hostile.root("a/b/c")));
        let again = hostile.rootfs.ensure_directory("a/b/c").unwrap();
        assert!(same(&again, &hostile.root("a/b/c")));
    }

    #[test]
    fn a_missing_file_is_created_and_an_existing_one_left_alone() {
        let hostile = Hostile::new();
        let made = hostile.rootfs.ensure_file("/etc/resolv.conf").unwrap();
        assert!(same(&made, &hostile.root("etc/resolv.conf")));
        fs::write(hostile.root("etc/resolv.conf"), "kept").unwrap();
        hostile.rootfs.ensure_file("/etc/resolv.conf").unwrap();
        assert_eq!(
            fs::read_to_string(hostile.root("etc/resolv.conf")).unwrap(),
            "kept"
        );
    }

    #[test]
    fn absolute_links_stay_in_the_root() {
        let hostile = Hostile::new();
        symlink(hostile.outside(), hostile.root("link")).unwrap();
        hostile.rootfs.ensure_directory("/link/new").unwrap();
        hostile.untouched();
        let inside = hostile.outside();
        assert!(
            hostile
                .root(inside.strip_prefix("/").unwrap().to_str().unwrap())
                .join("new")
                .is_dir()
        );
    }

    #[test]
    fn relative_links_and_dots_stay_in_the_root() {
        let hostile = Hostile::new();
        symlink("../../../outside", hostile.root("link")).unwrap();
        assert_eq!(hostile.rootfs.resolve("/link/secret").unwrap_err(), Errno::ENOENT);
        assert_eq!(
            hostile.rootfs.resolve("/../outside/secret").unwrap_err(),
            Errno::ENOENT
        );
        hostile.rootfs.ensure_directory("/link/../../x").unwrap();
        hostile.rootfs.ensure_file("/../../outside/secret").unwrap();
        hostile.untouched();
        assert!(hostile.root("outside/secret").is_file());
        assert!(hostile.root("x").is_dir());
    }

    #[test]
    fn a_dangling_link_is_followed_inside_the_root() {
        let hostile = Hostile::new();
        fs::create_dir(hostile.root("etc")).unwrap();
        symlink("../run/resolve/stub.conf", hostile.root("etc/resolv.conf")).unwrap();
        let made = hostile.rootfs.ensure_file("/etc/resolv.conf").unwrap();
        assert!(same(&made, &hostile.root("run/resolve/stub.conf")));
    }

    #[test]
    fn loops_end() {
        let hostile = Hostile::new();
        symlink("b", hostile.root("a")).unwrap();
        symlink("a", hostile.root("b")).unwrap();
        assert_eq!(hostile.rootfs.ensure_directory("/a/x").unwrap_err(), Errno::ELOOP);
        symlink("grow/grow", hostile.root("grow")).unwrap();
        assert_eq!(
            hostile.rootfs.ensure_directory("/grow").unwrap_err(),
            Errno::ELOOP
        );
    }

    #[test]
    fn a_file_is_no_directory() {
        let hostile = Hostile::new();
        fs::write(hostile.root("file"), "").unwrap();
        assert_eq!(
            hostile.rootfs.ensure_directory("/file/x").unwrap_err(),
            Errno::ENOTDIR
        );
    }

    #[test]
    fn links_are_refused_where_none_may_be() {
        let hostile = Hostile::new();
        fs::create_dir(hostile.root("real")).unwrap();
        symlink("real", hostile.root("proc")).unwrap();
        assert_eq!(
            hostile.rootfs.resolve_without_links("/proc").unwrap_err(),
            Errno::ELOOP
        );
    }

    #[test]
    fn an_endless_path_is_refused_before_it_is_walked() {
        let hostile = Hostile::new();
        assert_eq!(
            hostile
                .rootfs
                .ensure_directory(&"/d".repeat(100_000))
                .unwrap_err(),
            Errno::ENAMETOOLONG
        );
    }
}
