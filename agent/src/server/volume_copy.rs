//! A copy of a small volume that changes as its original does, so that whoever watches the copy sees the events which the
//! original's changes had on the host.
//!
//! Kubernetes changes a ConfigMap, a Secret and the like by a new directory with all files, a symbolic link `..data` that is
//! renamed over the one before, and the removal of the directory before; the names that programs know are links through
//! `..data`. Made in this order, the changes are what they were: nobody sees half of them.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat,
            utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat},
};

/// The most bytes of a volume.
const MAX_BYTES: u64 = 8 << 20;

/// The most files, directories and links of a volume.
const MAX_ENTRIES: usize = 4096;

/// How deep a volume may be.
const MAX_DEPTH: u32 = 16;

/// What the copy's file system is made with: room for two generations of the largest volume.
pub const OPTIONS: [(&str, &str); 3] = [("mode", "755"), ("size", "32m"), ("nr_inodes", "16384")];

/// How often a volume that changes while it is copied is looked at again.
const ATTEMPTS: u32 = 8;

/// The link that Kubernetes exchanges.
const DATA: &str = "..data";

/// Makes the directory `to` as the one that `from` opens.
///
/// # Errors
/// The original is not there, holds what is neither a file nor a directory nor a symbolic link, is too large, or changes
/// without a pause.
pub fn refresh(from: impl Fn() -> io::Result<OwnedFd>, to: &OwnedFd) -> io::Result<()> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        let refreshed = from().and_then(|from| {
            let mut left = Left {
                bytes: MAX_BYTES,
                entries: MAX_ENTRIES,
            };
            refresh_directory(&from, to, MAX_DEPTH, &mut left)?;
            let status = fstat(&from)?;
            if !same_owner(&status, &fstat(to)?) {
                set_owner(to, ".", &status)?;
            }
            Ok(())
        });
        match refreshed {
            Err(error)
                if attempts > 0 && matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {}
            refreshed => return refreshed,
        }
    }
}

/// What may still be copied.
struct Left {
    bytes: u64,
    entries: usize,
}

type Entries = BTreeMap<OsString, FileStat>;

fn kind(status: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits())
}

fn entries(directory: &OwnedFd, left: &mut usize) -> io::Result<Entries> {
    let mut entries = Entries::new();
    for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
        *left = left.checked_sub(1).ok_or_else(too_large)?;
        let name = entry?.file_name();
        let status = fstatat(directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        entries.insert(name, status);
    }
    Ok(entries)
}

fn too_large() -> io::Error {
    io::Error::other(format!(
        "more than {MAX_BYTES} bytes, {MAX_ENTRIES} files or {MAX_DEPTH} levels"
    ))
}

fn open_directory(parent: &OwnedFd, name: &OsString) -> io::Result<OwnedFd> {
    let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name.as_os_str(), how, Mode::empty())?)
}

fn refresh_directory(from: &OwnedFd, to: &OwnedFd, depth: u32, left: &mut Left) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(too_large)?;
    let originals = entries(from, &mut left.entries)?;
    check_data(from, &originals)?;
    // Another generation of the copy is there, too.
    let mut copies = entries(to, &mut { 2 * MAX_ENTRIES })?;
    let mut links = Vec::new();
    for (name, original) in &originals {
        let copy = copies.remove(name);
        let kind_before = copy.as_ref().map(kind);
        if kind_before.is_some_and(|before| before != kind(original)) {
            remove(to, name, MAX_DEPTH)?;
        }
        let copy = copy.filter(|_| kind_before == Some(kind(original)));
        match kind(original) {
            SFlag::S_IFDIR => {
                if copy.is_none() {
                    mkdirat(to, name.as_os_str(), Mode::S_IRWXU)?;
                }
                refresh_directory(
                    &open_directory(from, name)?,
                    &open_directory(to, name)?,
                    depth,
                    left,
                )?;
                match copy {
                    None => {
                        set_owner(to, name, original)?;
                        set_times(to, name, original)?;
                    }
                    Some(copy) if !same_owner(original, &copy) => set_owner(to, name, original)?,
                    Some(_) => {}
                }
            }
            SFlag::S_IFREG => copy_file(from, to, name, copy.as_ref(), left)?,
            SFlag::S_IFLNK => links.push((name, original, copy.is_some())),
            _ => {
                return Err(io::Error::other(format!(
                    "{name:?} is neither a file nor a directory nor a symbolic link"
                )));
            }
        }
    }
    // What exists is exchanged before anything new leads through it.
    links.sort_by_key(|(_, _, exists)| !exists);
    for (name, original, exists) in links {
        copy_link(from, to, name, original, exists)?;
    }
    let is_directory = |status: &FileStat| kind(status) == SFlag::S_IFDIR;
    for directories in [false, true] {
        for name in copies
            .iter()
            .filter(|(_, status)| is_directory(status) == directories)
            .map(|(name, _)| name)
        {
            remove(to, name, MAX_DEPTH)?;
        }
    }
    Ok(())
}

/// The link leads to what was seen: otherwise the volume has changed meanwhile.
fn check_data(directory: &OwnedFd, entries: &Entries) -> io::Result<()> {
    let is_link = entries
        .get(OsString::from(DATA).as_os_str())
        .is_some_and(|status| kind(status) == SFlag::S_IFLNK);
    if is_link && !entries.contains_key(&readlinkat(directory, DATA)?) {
        return Err(Errno::ENOENT.into());
    }
    Ok(())
}

/// A file that exists is written anew in its place, as its original was.
fn copy_file(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &OsString,
    copy: Option<&FileStat>,
    left: &mut Left,
) -> io::Result<()> {
    // Not the name's status: the file may have been exchanged.
    let how = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let source = openat(from, name.as_os_str(), how, Mode::empty())?;
    let original = fstat(&source)?;
    if kind(&original) != SFlag::S_IFREG {
        return Err(Errno::ENOENT.into());
    }
    let size = u64::try_from(original.st_size).unwrap_or(u64::MAX);
    left.bytes = left.bytes.checked_sub(size).ok_or_else(too_large)?;
    let same_content = |copy: &&FileStat| {
        (copy.st_size, copy.st_mtime, copy.st_mtime_nsec)
            == (original.st_size, original.st_mtime, original.st_mtime_nsec)
    };
    if copy.filter(same_content).is_none() {
        let how = match copy {
            Some(_) => OFlag::O_TRUNC,
            None => OFlag::O_CREAT | OFlag::O_EXCL,
        };
        let how = how | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut target = File::from(openat(to, name.as_os_str(), how, Mode::S_IRUSR | Mode::S_IWUSR)?);
        // One that grows meanwhile will be looked at again.
        io::copy(&mut File::from(source).take(size), &mut target)?;
        drop(target);
        set_owner(to, name, &original)?;
        set_times(to, name, &original)?;
    } else if copy.is_some_and(|copy| !same_owner(&original, copy)) {
        set_owner(to, name, &original)?;
    }
    Ok(())
}

/// A link that exists is exchanged by a rename.
fn copy_link(
    from: &OwnedFd,
    to: &OwnedFd,
    name: &OsString,
    original: &FileStat,
    exists: bool,
) -> io::Result<()> {
    let target = readlinkat(from, name.as_os_str())?;
    if exists && readlinkat(to, name.as_os_str())? == target {
        return Ok(());
    }
    let own = |name: &OsString| -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(original.st_uid), Gid::from_raw(original.st_gid));
        fchownat(
            to,
            name.as_os_str(),
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        Ok(())
    };
    if !exists {
        symlinkat(target.as_os_str(), to, name.as_os_str())?;
        return own(name);
    }
    let mut temporary = name.clone();
    temporary.push("_tmp");
    match unlinkat(to, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    symlinkat(target.as_os_str(), to, temporary.as_os_str())?;
    own(&temporary)?;
    Ok(renameat(to, temporary.as_os_str(), to, name.as_os_str())?)
}

fn same_owner(one: &FileStat, other: &FileStat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
}

/// Owner, group and mode.
fn set_owner(directory: impl AsFd, name: impl AsRef<std::ffi::OsStr>, like: &FileStat) -> io::Result<()> {
    let name = name.as_ref();
    fchownat(
        &directory,
        name,
        Some(Uid::from_raw(like.st_uid)),
        Some(Gid::from_raw(like.st_gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    // Nobody else can have made it a link: the copy is the agent's.
    let mode = Mode::from_bits_truncate(like.st_mode);
    Ok(fchmodat(&directory, name, mode, FchmodatFlags::FollowSymlink)?)
}

fn set_times(directory: impl AsFd, name: &OsString, like: &FileStat) -> io::Result<()> {
    let accessed = TimeSpec::new(like.st_atime, like.st_atime_nsec);
    let modified = TimeSpec::new(like.st_mtime, like.st_mtime_nsec);
    Ok(utimensat(
        &directory,
        name.as_os_str(),
        &accessed,
        &modified,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

fn remove(directory: &OwnedFd, name: &OsString, depth: u32) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or_else(too_large)?;
    match unlinkat(directory, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR) => {}
        removed => return Ok(removed?),
    }
    let inside = open_directory(directory, name)?;
    for name in entries(&inside, &mut { 2 * MAX_ENTRIES })?.keys() {
        remove(&inside, name, depth)?;
    }
    Ok(unlinkat(directory, name.as_os_str(), UnlinkatFlags::RemoveDir)?)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    use nix::{
        sys::inotify::{AddWatchFlags, InitFlags, Inotify},
        unistd::mkfifo,
    };
    use tempfile::TempDir;

    use super::*;

    /// An original and its copy.
    struct Volume {
        original: TempDir,
        copy: TempDir,
    }

    impl Volume {
        fn new() -> Self {
            Self {
                original: TempDir::new().unwrap(),
                copy: TempDir::new().unwrap(),
            }
        }

        fn refresh(&self) -> io::Result<()> {
            let from = || Ok(File::open(self.original.path())?.into());
            refresh(from, &File::open(self.copy.path())?.into())
        }

        /// As Kubernetes writes a volume: `generation` is the new directory's name.
        fn write(&self, generation: &str, files: &[(&str, &str)]) {
            let top = self.original.path();
            let before = fs::read_link(top.join(DATA)).ok();
            fs::create_dir(top.join(generation)).unwrap();
            for (name, content) in files {
                fs::write(top.join(generation).join(name), content).unwrap();
            }
            symlink(generation, top.join("..data_tmp")).unwrap();
            fs::rename(top.join("..data_tmp"), top.join(DATA)).unwrap();
            for (name, _) in files {
                let _ = symlink(Path::new(DATA).join(name), top.join(name));
            }
            if let Some(before) = before {
                fs::remove_dir_all(top.join(before)).unwrap();
            }
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.copy.path().join(name)).unwrap()
        }
    }

    fn events(inotify: &Inotify) -> Vec<(AddWatchFlags, String)> {
        inotify
            .read_events()
            .unwrap_or_default()
            .into_iter()
            .map(|event| {
                let name = event.name.unwrap_or_default().to_string_lossy().into_owned();
                (event.mask & !AddWatchFlags::IN_ISDIR, name)
            })
            .collect()
    }

    #[test]
    fn an_update_comes_with_the_events_that_it_had() {
        let volume = Volume::new();
        volume.write("..1", &[("key", "one"), ("gone", "x")]);
        volume.refresh().unwrap();
        assert_eq!(volume.read("key"), "one");
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let mask = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        inotify.add_watch(volume.copy.path(), mask).unwrap();

        fs::remove_file(volume.original.path().join("gone")).unwrap();
        volume.write("..2", &[("key", "two"), ("new", "y")]);
        volume.refresh().unwrap();
        assert_eq!(
            (volume.read("key"), volume.read("new")),
            ("two".into(), "y".into())
        );
        let event = |mask, name: &str| (mask, name.to_owned());
        assert_eq!(
            events(&inotify),
            [
                event(AddWatchFlags::IN_CREATE, "..2"),
                event(AddWatchFlags::IN_CREATE, "..data_tmp"),
                event(AddWatchFlags::IN_MOVED_FROM, "..data_tmp"),
                event(AddWatchFlags::IN_MOVED_TO, DATA),
                event(AddWatchFlags::IN_CREATE, "new"),
                event(AddWatchFlags::IN_DELETE, "gone"),
                event(AddWatchFlags::IN_DELETE, "..1"),
            ]
        );
        // What has not changed is not touched.
        volume.refresh().unwrap();
        assert_eq!(events(&inotify), []);
    }

    #[test]
    fn a_plain_file_is_written_in_its_place() {
        let volume = Volume::new();
        let (original, copy) = (volume.original.path().join("a/f"), volume.copy.path().join("a/f"));
        fs::create_dir(original.parent().unwrap()).unwrap();
        fs::write(&original, "long content").unwrap();
        volume.refresh().unwrap();
        let inode = fs::metadata(&copy).unwrap().ino();
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        inotify.add_watch(&copy, AddWatchFlags::IN_MODIFY).unwrap();
        fs::write(&original, "short").unwrap();
        volume.refresh().unwrap();
        assert_eq!(volume.read("a/f"), "short");
        assert_eq!(fs::metadata(&copy).unwrap().ino(), inode);
        assert_eq!(events(&inotify)[0].0, AddWatchFlags::IN_MODIFY);
    }

    #[test]
    fn owners_modes_and_times_are_kept() {
        let volume = Volume::new();
        let (original, copy) = (volume.original.path().join("f"), volume.copy.path().join("f"));
        fs::write(&original, "x").unwrap();
        std::os::unix::fs::chown(&original, Some(1000), Some(2000)).unwrap();
        fs::set_permissions(&original, fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(volume.original.path(), fs::Permissions::from_mode(0o2755)).unwrap();
        let facts = |path: &Path| {
            let status = fs::metadata(path).unwrap();
            let times = (status.mtime(), status.mtime_nsec());
            (status.mode(), status.uid(), status.gid(), times)
        };
        volume.refresh().unwrap();
        assert_eq!(facts(&copy), facts(&original));
        assert_eq!(
            fs::metadata(volume.copy.path()).unwrap().mode(),
            fs::metadata(volume.original.path()).unwrap().mode()
        );
        fs::set_permissions(&original, fs::Permissions::from_mode(0o400)).unwrap();
        volume.refresh().unwrap();
        assert_eq!(facts(&copy), facts(&original));
    }

    #[test]
    fn links_are_copied_and_never_followed() {
        let volume = Volume::new();
        let outside = TempDir::new().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        symlink(outside.path(), volume.original.path().join("link")).unwrap();
        volume.refresh().unwrap();
        assert_eq!(
            fs::read_link(volume.copy.path().join("link")).unwrap(),
            outside.path()
        );
        // A directory takes the link's place: it is filled, not what the link led to.
        fs::remove_file(volume.original.path().join("link")).unwrap();
        fs::create_dir(volume.original.path().join("link")).unwrap();
        fs::write(volume.original.path().join("link/f"), "").unwrap();
        volume.refresh().unwrap();
        assert!(!outside.path().join("f").exists() && outside.path().join("secret").exists());
        assert_eq!(volume.read("link/f"), "");
    }

    #[test]
    fn what_is_no_small_volume_is_refused() {
        let volume = Volume::new();
        mkfifo(&volume.original.path().join("pipe"), Mode::S_IRWXU).unwrap();
        assert!(
            volume
                .refresh()
                .unwrap_err()
                .to_string()
                .contains("\"pipe\" is neither")
        );
        let volume = Volume::new();
        let large = File::create(volume.original.path().join("large")).unwrap();
        large.set_len(MAX_BYTES + 1).unwrap();
        assert!(volume.refresh().unwrap_err().to_string().starts_with("more than"));
        let volume = Volume::new();
        fs::create_dir_all(volume.original.path().join("d/".repeat(17))).unwrap();
        assert!(volume.refresh().unwrap_err().to_string().starts_with("more than"));
        let volume = Volume::new();
        fs::remove_dir(volume.original.path()).unwrap();
        assert_eq!(volume.refresh().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
