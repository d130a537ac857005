//! Mounting on the host: what a snapshotter asks for, and directories of the host shown in another place.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags};

use crate::{error::Kind, id_map::IdMap, process::ProcessId};

/// A mount as containerd describes it (`containerd.types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The file system's type; `bind` for a part of another.
    pub fs_type: String,
    /// A device, a path, or a mere name.
    pub source: String,
    /// Where below the root file system.
    pub target: String,
    /// As in fstab(5).
    pub options: Vec<String>,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option that is not carried out.
    #[error("mount option {option:?} of {source_name} is not supported")]
    Option {
        /// The option.
        option: String,
        /// The mount's source.
        source_name: String,
    },
    /// A mount at a place of its own.
    #[error("a mount of {source_name} below the root file system (target {target:?}) is not supported")]
    Target {
        /// The target.
        target: String,
        /// The mount's source.
        source_name: String,
    },
    /// Options that don't fit a page.
    #[error("the mount options of {0} are longer than the kernel takes (4095 bytes)")]
    TooLong(String),
    /// The kernel refused.
    #[error("cannot {verb} {source_name} (type {fs_type}) at {}", target.display())]
    Refused {
        /// What was done.
        verb: &'static str,
        /// The mount's source.
        source_name: String,
        /// The file system's type.
        fs_type: String,
        /// Where.
        target: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Option { .. } | Self::Target { .. } | Self::TooLong(_) => Kind::Unimplemented,
            Self::Refused { .. } => Kind::Internal,
        }
    }
}

/// A mount's options, told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    bind: bool,
    recursive: bool,
    /// What is the file system's own.
    data: Vec<String>,
    /// Of a root file system, or of the layers that it is made of.
    id_map: Option<IdMap>,
}

/// Sets or clears flags.
enum Effect {
    Set(MsFlags),
    Clear(MsFlags),
}

/// The options of mount(8) that are the same for every file system.
fn effect(option: &str) -> Option<Effect> {
    Some(match option {
        "defaults" | "private" | "rprivate" => Effect::Set(MsFlags::empty()),
        "ro" => Effect::Set(MsFlags::MS_RDONLY),
        "rw" => Effect::Clear(MsFlags::MS_RDONLY),
        "nosuid" => Effect::Set(MsFlags::MS_NOSUID),
        "suid" => Effect::Clear(MsFlags::MS_NOSUID),
        "nodev" => Effect::Set(MsFlags::MS_NODEV),
        "dev" => Effect::Clear(MsFlags::MS_NODEV),
        "noexec" => Effect::Set(MsFlags::MS_NOEXEC),
        "exec" => Effect::Clear(MsFlags::MS_NOEXEC),
        "sync" => Effect::Set(MsFlags::MS_SYNCHRONOUS),
        "async" => Effect::Clear(MsFlags::MS_SYNCHRONOUS),
        "dirsync" => Effect::Set(MsFlags::MS_DIRSYNC),
        "mand" => Effect::Set(MsFlags::MS_MANDLOCK),
        "nomand" => Effect::Clear(MsFlags::MS_MANDLOCK),
        "noatime" => Effect::Set(MsFlags::MS_NOATIME),
        "atime" => Effect::Clear(MsFlags::MS_NOATIME),
        "nodiratime" => Effect::Set(MsFlags::MS_NODIRATIME),
        "diratime" => Effect::Clear(MsFlags::MS_NODIRATIME),
        "relatime" => Effect::Set(MsFlags::MS_RELATIME),
        "norelatime" => Effect::Clear(MsFlags::MS_RELATIME),
        "strictatime" => Effect::Set(MsFlags::MS_STRICTATIME),
        "nostrictatime" => Effect::Clear(MsFlags::MS_STRICTATIME),
        _ => return None,
    })
}

/// Options that mean something to mount(8) or containerd, not to the file system, and that are not carried out.
fn is_refused(option: &str) -> bool {
    matches!(
        option,
        "loop"
            | "remount"
            | "move"
            | "shared"
            | "rshared"
            | "slave"
            | "rslave"
            | "unbindable"
            | "runbindable"
    ) || ["loop=", "X-", "x-"]
        .iter()
        .any(|prefix| option.starts_with(prefix))
}

impl Options {
    fn parse(request: &Request) -> Result<Self, Error> {
        let mut options = Self {
            flags: MsFlags::empty(),
            bind: request.fs_type == "bind",
            recursive: false,
            data: Vec::new(),
            id_map: None,
        };
        let refused = |option: &str| Error::Option {
            option: option.to_owned(),
            source_name: request.source.clone(),
        };
        let (mut users, mut groups) = ("", "");
        for option in &request.options {
            match (option.as_str(), effect(option)) {
                (_, Some(Effect::Set(flags))) => options.flags |= flags,
                (_, Some(Effect::Clear(flags))) => options.flags &= !flags,
                ("bind", _) => options.bind = true,
                ("rbind", _) => {
                    options.bind = true;
                    options.recursive = true;
                }
                (option, _) if is_refused(option) => return Err(refused(option)),
                ("", _) => {}
                (map, _) if map.starts_with("uidmap=") => users = map,
                (map, _) if map.starts_with("gidmap=") => groups = map,
                _ => options.data.push(option.clone()),
            }
        }
        if let (true, Some(option)) = (options.bind, options.data.first()) {
            return Err(refused(option));
        }
        if !(users.is_empty() && groups.is_empty()) {
            let [of_users, of_groups] = [users, groups].map(|map| map.split_once('=').unwrap_or_default().1);
            options.id_map = IdMap::of_options(of_users, of_groups);
            let possible = options.bind || request.fs_type == "overlay";
            if options.id_map.is_none() || !possible {
                return Err(refused(if users.is_empty() { groups } else { users }));
            }
        }
        Ok(options)
    }
}

/// What a mount allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Allow {
    /// Whether writing is refused.
    pub read_only: bool,
    /// Whether it is refused in the mounts below, too, whatever those say themselves.
    pub read_only_below: bool,
    /// Whether mounts below come along.
    pub recursive: bool,
    /// Whether what is mounted below on the host later appears, too.
    pub slave: bool,
    /// Who is who.
    pub id_map: Option<IdMap>,
    /// Whether that holds in the mounts below, too.
    pub id_map_below: bool,
}

/// Mounts `request` at the directory `target`. Neither devices nor set-user-id files mean anything to the host there.
///
/// # Errors
/// What is asked for is not supported, or the kernel refuses.
pub fn mount(request: &Request, target: &Path) -> Result<(), Error> {
    if !request.target.is_empty() && request.target != "/" {
        return Err(Error::Target {
            target: request.target.clone(),
            source_name: request.source.clone(),
        });
    }
    let options = Options::parse(request)?;
    let refused = |verb, source| Error::Refused {
        verb,
        source_name: request.source.clone(),
        fs_type: request.fs_type.clone(),
        target: target.to_owned(),
        source,
    };
    if options.bind {
        let source = open_path(Path::new(&request.source)).map_err(|error| refused("open", error))?;
        let allow = Allow {
            read_only: options.flags.contains(MsFlags::MS_RDONLY),
            // Nothing in a root file system is anybody else's to write.
            read_only_below: options.flags.contains(MsFlags::MS_RDONLY),
            recursive: options.recursive,
            slave: false,
            id_map: options.id_map,
            id_map_below: true,
        };
        return bind(source.as_fd(), target, &allow).map_err(|error| refused("bind", error));
    }
    let flags = options.flags | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    if let Some(map) = &options.id_map {
        let made = mapped_overlay(request, options.data, flags, map, target);
        return made.map_err(|error| refused("map the ids of", error));
    }
    // Alive until the mount is made: the options may refer to it.
    let (data, _directory) = join(options.data).ok_or_else(|| Error::TooLong(request.source.clone()))?;
    nix::mount::mount(
        Some(request.source.as_str()),
        target,
        Some(request.fs_type.as_str()),
        flags,
        Some(data.as_str()),
    )
    .map_err(|error| refused("mount", error.into()))
}

/// Mounts an overlay of layers whose ids are mapped: the upper one has the container's own already. The mapped layers are mounted
/// in a mount namespace that is gone afterwards: the overlay has them without.
fn mapped_overlay(
    request: &Request,
    mut data: Vec<String>,
    flags: MsFlags,
    map: &IdMap,
    target: &Path,
) -> io::Result<()> {
    let namespace = map.namespace()?;
    let lower = data.iter_mut().find(|option| option.starts_with("lowerdir="));
    let lower = lower.ok_or_else(|| io::Error::other("there is no lowerdir"))?;
    let layers: Vec<String> = lower["lowerdir=".len()..].split(':').map(str::to_owned).collect();
    if lower.contains('\\') || !layers.iter().all(|layer| layer.starts_with('/')) {
        return Err(io::Error::other(
            "lowerdir: not a list of absolute paths without escapes",
        ));
    }
    let numbers: Vec<String> = (0..layers.len()).map(|number| number.to_string()).collect();
    *lower = format!("lowerdir={}", numbers.join(":"));
    let data = data.join(",");
    let make = || -> io::Result<OwnedFd> {
        const MERGED: &str = "merged";
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        nix::mount::mount(
            Some("tmpfs"),
            target,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=700"),
        )?;
        // Relative names are short: the options have to fit a page.
        nix::unistd::chdir(target)?;
        for (layer, number) in layers.iter().zip(&numbers) {
            let layer = clone_tree(open_path(Path::new(layer))?.as_fd(), false)?;
            map_ids(layer.as_fd(), &namespace, false)?;
            std::fs::create_dir(number)?;
            attach(layer.as_fd(), Path::new(number))?;
        }
        std::fs::create_dir(MERGED)?;
        let (source, kind) = (Some(request.source.as_str()), Some("overlay"));
        nix::mount::mount(source, MERGED, kind, flags, Some(data.as_str()))?;
        clone_tree(open_path(Path::new(MERGED))?.as_fd(), false)
    };
    attach(on_a_thread(make)?.as_fd(), target)
}

/// The most that mount(2) takes, without the final zero.
const MAX_DATA: usize = 4095;

/// Joins a file system's options. Where there are too many layers for one page, what their paths have in common is opened
/// and named by its descriptor's number, which is shorter.
fn join(mut data: Vec<String>) -> Option<(String, Option<OwnedFd>)> {
    let joined = data.join(",");
    if joined.len() <= MAX_DATA {
        return Some((joined, None));
    }
    let lower = data.iter_mut().find(|option| option.starts_with("lowerdir="))?;
    let layers: Vec<&Path> = lower
        .strip_prefix("lowerdir=")?
        .split(':')
        .map(Path::new)
        .collect();
    if lower.contains('\\') || !layers.iter().all(|layer| layer.is_absolute()) {
        return None;
    }
    let mut common = layers.first()?.parent()?;
    while !layers.iter().all(|layer| layer.starts_with(common)) {
        common = common.parent()?;
    }
    let directory = open_path(common).ok()?;
    let prefix = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let shortened: Option<Vec<String>> = layers
        .iter()
        .map(|layer| Some(format!("{prefix}/{}", layer.strip_prefix(common).ok()?.to_str()?)))
        .collect();
    *lower = format!("lowerdir={}", shortened?.join(":"));
    let joined = data.join(",");
    (joined.len() <= MAX_DATA).then_some((joined, Some(directory)))
}

/// Opens a path for what it names only: nothing happens to a device or FIFO.
///
/// # Errors
/// It isn't there.
pub fn open_path(path: &Path) -> io::Result<OwnedFd> {
    // The access mode means nothing with O_PATH, the standard library insists on one.
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    Ok(file.into())
}

/// Shows what `source` names at `target` too, which is of the same type. Nothing that is mounted there propagates to where
/// `source` is.
///
/// # Errors
/// The kernel refuses; it is older than 5.12.
pub fn bind(source: BorrowedFd<'_>, target: &Path, allow: &Allow) -> io::Result<()> {
    attach(tree(source, allow)?.as_fd(), target)
}

/// The same in the mount namespace of another process, as which it resolves `target`: nothing is mounted in this one.
///
/// # Errors
/// The process is gone, or the kernel refuses.
pub fn bind_in(process: ProcessId, source: BorrowedFd<'_>, target: &Path, allow: &Allow) -> io::Result<()> {
    let tree = tree(source, allow)?;
    within(process, || attach(tree.as_fd(), target))
}

/// Undoes [`bind_in`]. It's no error when the process is gone, and its namespace with it.
///
/// # Errors
/// Nothing is mounted there, or the kernel refuses.
pub fn unbind_in(process: ProcessId, target: &Path) -> io::Result<()> {
    let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH;
    match within(process, || Ok(nix::mount::umount2(target, flags)?)) {
        Err(error) if [Some(libc::ESRCH), Some(libc::ENOENT)].contains(&error.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// What `source` names, to be mounted somewhere.
fn tree(source: BorrowedFd<'_>, allow: &Allow) -> io::Result<OwnedFd> {
    let tree = clone_tree(source, allow.recursive)?;
    if let Some(map) = &allow.id_map {
        map_ids(tree.as_fd(), &map.namespace()?, allow.id_map_below)?;
    }
    let always = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let read_only = |wanted| if wanted { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let propagation = if allow.slave {
        libc::MS_SLAVE
    } else {
        libc::MS_PRIVATE
    };
    let attributes = Attributes {
        set: always | read_only(allow.read_only_below),
        propagation,
        ..Attributes::default()
    };
    set_attributes(tree.as_fd(), attributes, true)?;
    let attributes = Attributes {
        set: read_only(allow.read_only),
        ..Attributes::default()
    };
    set_attributes(tree.as_fd(), attributes, false)?;
    Ok(tree)
}

/// Lets the mount at `target` be written, not those below it.
///
/// # Errors
/// Nothing is mounted there, or the kernel refuses.
pub fn make_writable(target: &Path) -> io::Result<()> {
    let attributes = Attributes {
        clear: libc::MOUNT_ATTR_RDONLY,
        ..Attributes::default()
    };
    set_attributes(open_path(target)?.as_fd(), attributes, false)
}

/// [`make_writable`] in the mount namespace of another process, as which it resolves `target`.
///
/// # Errors
/// The process is gone, nothing is mounted there, or the kernel refuses.
pub fn make_writable_in(process: ProcessId, target: &Path) -> io::Result<()> {
    within(process, || make_writable(target))
}

/// Does `work` in the mount namespace of another process.
fn within<T: Send>(process: ProcessId, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(format!("/proc/{}/ns/mnt", process.pid))?;
    if !process.is_alive() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    on_a_thread(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNS)?;
        work()
    })
}

/// A namespace is entered for good.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(work);
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | (libc::AT_EMPTY_PATH | recursive) as u32;
    // SAFETY: the descriptor is open, the path is an empty C string, the flags a number.
    let raw = unsafe { libc::syscall(libc::SYS_open_tree, source.as_raw_fd(), c"".as_ptr(), flags) };
    match i32::try_from(raw) {
        // SAFETY: the kernel has just made the descriptor for us alone.
        Ok(raw) if raw >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        _ => Err(last_error("open_tree")),
    }
}

/// What mount_setattr(2) changes.
#[derive(Clone, Copy, Debug, Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: libc::c_ulong,
    /// With [`libc::MOUNT_ATTR_IDMAP`] the user namespace's descriptor.
    user_namespace: u64,
}

fn map_ids(tree: BorrowedFd<'_>, namespace: &OwnedFd, recursive: bool) -> io::Result<()> {
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_IDMAP,
        // Descriptors are never negative.
        user_namespace: namespace.as_raw_fd() as u64,
        ..Attributes::default()
    };
    set_attributes(tree, attributes, recursive)
}

fn set_attributes(tree: BorrowedFd<'_>, change: Attributes, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: change.user_namespace,
    };
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path is an empty C string, `attributes` outlives the call and its size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(last_error("mount_setattr"))
    }
}

fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = CString::new(target.as_os_str().as_bytes())?;
    // SAFETY: the descriptor is open, both paths are C strings that outlive the call. The target's last component isn't
    // followed if it is a symbolic link.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(last_error("move_mount"))
    }
}

fn last_error(call: &str) -> io::Error {
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOSYS) {
        io::Error::new(
            error.kind(),
            format!("{call}: the host's kernel is older than Linux 5.12"),
        )
    } else {
        error
    }
}

/// Mounts `directory` on itself, read-only, so that what is mounted below it from now on reaches copies of this mount
/// namespace that were made after this, and nobody else.
///
/// # Errors
/// The kernel refuses.
pub fn make_stage(directory: &Path) -> io::Result<()> {
    let source = open_path(directory)?;
    let tree = clone_tree(source.as_fd(), false)?;
    // Private while it is attached: what it is attached to may be shared with others.
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        propagation: libc::MS_PRIVATE,
        ..Attributes::default()
    };
    set_attributes(tree.as_fd(), attributes, true)?;
    attach(tree.as_fd(), directory)?;
    nix::mount::mount(
        None::<&str>,
        directory,
        None::<&str>,
        MsFlags::MS_SHARED,
        None::<&str>,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn request(fs_type: &str, options: &[&str]) -> Request {
        Request {
            fs_type: fs_type.to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn flags_and_a_file_systems_own_options_are_told_apart() {
        let options = Options::parse(&request(
            "overlay",
            &[
                "nosuid",
                "ro",
                "noatime",
                "index=off",
                "upperdir=/u",
                "lowerdir=/a:/b",
            ],
        ))
        .unwrap();
        assert_eq!(
            options.flags,
            MsFlags::MS_NOSUID | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME
        );
        assert_eq!(options.data, ["index=off", "upperdir=/u", "lowerdir=/a:/b"]);
        assert!(!options.bind);
    }

    #[test]
    fn the_last_of_two_contrary_options_counts() {
        assert_eq!(
            Options::parse(&request("ext4", &["ro", "rw"])).unwrap().flags,
            MsFlags::empty()
        );
        assert_eq!(
            Options::parse(&request("ext4", &["rw", "ro"])).unwrap().flags,
            MsFlags::MS_RDONLY
        );
    }

    #[test]
    fn binds_are_recognized_by_type_and_by_option() {
        assert!(Options::parse(&request("bind", &["ro"])).unwrap().bind);
        let options = Options::parse(&request("", &["rbind", "rprivate"])).unwrap();
        assert!(options.bind && options.recursive && options.data.is_empty());
    }

    #[test]
    fn options_that_are_not_carried_out_are_refused_by_name() {
        for option in [
            "loop",
            "remount",
            "rshared",
            "uidmap=0:1:1",
            "gidmap=0:1:1",
            "X-containerd.mkfs.fs=ext4",
        ] {
            let error = Options::parse(&request("ext4", &[option])).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().contains(option), "{error}");
        }
        let error = Options::parse(&request("bind", &["size=1"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("size=1"), "{error}");
        let mut below = request("ext4", &[]);
        below.target = "/data".to_owned();
        let error = mount(&below, Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("\"/data\""), "{error}");
    }

    #[test]
    fn more_layers_than_a_page_holds_are_mounted() {
        let top = tempfile::tempdir().unwrap();
        let long = top
            .path()
            .join("a-long-directory-name-as-snapshotters-have-them".repeat(2));
        let layers: Vec<String> = (0..60)
            .map(|layer| {
                let path = long.join(layer.to_string()).join("fs");
                fs::create_dir_all(&path).unwrap();
                fs::write(path.join(format!("file-{layer}")), "").unwrap();
                path.to_str().unwrap().to_owned()
            })
            .collect();
        let option = format!("lowerdir={}", layers.join(":"));
        assert!(option.len() > MAX_DATA);
        let target = top.path().join("rootfs");
        fs::create_dir(&target).unwrap();
        match mount(&request("overlay", &[&option]), &target) {
            Ok(()) => {
                assert_eq!(fs::read_dir(&target).unwrap().count(), 60);
                nix::mount::umount(&target).unwrap();
            }
            // The machine that this is tested on may have a kernel without overlayfs; the options were within bounds then.
            Err(Error::Refused { source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(libc::ENODEV), "{source}")
            }
            Err(error) => panic!("{error}"),
        }
        let (joined, directory) = join(vec!["ro".to_owned(), option]).unwrap();
        assert!(joined.len() <= MAX_DATA && directory.is_some());
    }

    #[test]
    fn options_beyond_help_are_told() {
        assert!(join(vec!["x".repeat(5000)]).is_none());
    }

    #[test]
    fn a_read_only_bind_refuses_writes_below_only_where_asked_to() {
        let top = tempfile::tempdir().unwrap();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        fs::create_dir_all(from.join("below")).unwrap();
        fs::create_dir(&to).unwrap();
        let volume = Request {
            fs_type: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            ..Request::default()
        };
        mount(&volume, &from.join("below")).expect("these tests need root");
        let source = open_path(&from).unwrap();
        for read_only_below in [true, false] {
            let allow = Allow {
                read_only: true,
                read_only_below,
                recursive: true,
                ..Allow::default()
            };
            bind(source.as_fd(), &to, &allow).unwrap();
            for (path, refused) in [("file", true), ("below/file", read_only_below)] {
                let written = fs::write(to.join(path), "");
                let error = written.err().and_then(|error| error.raw_os_error());
                assert_eq!(error, refused.then_some(libc::EROFS), "{path}");
                fs::write(from.join(path), "").unwrap();
            }
        }
        crate::cleanup::unmount_below(top.path()).unwrap();
    }

    #[test]
    fn a_link_in_the_targets_place_is_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let elsewhere = top.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let link = top.path().join("link");
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let source = open_path(top.path()).unwrap();
        assert!(bind(source.as_fd(), &link, &Allow::default()).is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }
}
