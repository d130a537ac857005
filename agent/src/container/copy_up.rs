//! The option `tmpcopyup`: a new tmpfs begins with a copy of the directory that it will cover.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat, symlinkat},
};

/// How deep directories may be nested: a file system that is deeper is one to exhaust the copier.
const MAX_DEPTH: u32 = 128;

/// Copies what is in one directory into another, which is empty: files, directories, symbolic links, FIFOs and device nodes
/// with their owners, modes and times. Nothing is followed out of the directory; sockets, which nobody could connect to, are
/// left out.
///
/// # Errors
/// A file can't be read or there is no room for it.
pub fn copy_up(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    copy_directory(from.as_fd(), to.as_fd(), MAX_DEPTH)
}

/// Gives one directory the other's owner, mode and times.
///
/// # Errors
/// The owner has no number here.
pub fn copy_attributes(from: impl AsFd, to: BorrowedFd<'_>) -> io::Result<()> {
    let status = fstat(from)?;
    fchownat(
        to,
        "",
        Some(Uid::from_raw(status.st_uid)),
        Some(Gid::from_raw(status.st_gid)),
        AtFlags::AT_EMPTY_PATH,
    )?;
    fchmod(to, mode(&status))?;
    set_times(to, ".", &status)
}

fn copy_directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
    let depth = depth.checked_sub(1).ok_or(Errno::ELOOP)?;
    let how = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::from_fd(openat(from, ".", how, Mode::empty())?)?;
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let node = beneath(from, name, OFlag::O_PATH | OFlag::O_NOFOLLOW)?;
        let status = fstat(&node)?;
        let kind = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let made = beneath(to, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                copy_directory(node.as_fd(), made.as_fd(), depth)?;
                copy_attributes(&node, made.as_fd())?;
                continue;
            }
            SFlag::S_IFREG => {
                let mut source = File::from(beneath(from, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW)?);
                let how = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let mut made = File::from(openat(to, name, how, Mode::S_IRUSR | Mode::S_IWUSR)?);
                io::copy(&mut source, &mut made)?;
                fchownat(
                    to,
                    name,
                    Some(Uid::from_raw(status.st_uid)),
                    Some(Gid::from_raw(status.st_gid)),
                    AtFlags::AT_SYMLINK_NOFOLLOW,
                )?;
                // After the owner, whose change takes set-user-id bits away.
                fchmod(&made, mode(&status))?;
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(from, name)?;
                symlinkat(target.as_os_str(), to, name)?;
                own(to, name, &status)?;
            }
            SFlag::S_IFIFO | SFlag::S_IFCHR | SFlag::S_IFBLK => {
                mknodat(to, name, kind, mode(&status), status.st_rdev)?;
                own(to, name, &status)?;
            }
            _ => continue,
        }
        set_times(to, name, &status)?;
    }
    Ok(())
}

fn beneath(directory: BorrowedFd<'_>, name: &std::ffi::CStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH);
    openat2(directory, name, how)
}

fn own(directory: BorrowedFd<'_>, name: &std::ffi::CStr, status: &FileStat) -> nix::Result<()> {
    fchownat(
        directory,
        name,
        Some(Uid::from_raw(status.st_uid)),
        Some(Gid::from_raw(status.st_gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
}

fn mode(status: &FileStat) -> Mode {
    Mode::from_bits_truncate(status.st_mode & 0o7777)
}

fn set_times<P: nix::NixPath + ?Sized>(
    directory: BorrowedFd<'_>,
    name: &P,
    status: &FileStat,
) -> io::Result<()> {
    utimensat(
        directory,
        name,
        &TimeSpec::new(status.st_atime, status.st_atime_nsec),
        &TimeSpec::new(status.st_mtime, status.st_mtime_nsec),
        UtimensatFlags::NoFollowSymlink,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
            net::UnixListener,
        },
    };

    use super::*;

    #[test]
    fn a_directory_is_copied_with_what_it_is_and_links_are_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let (from, to) = (top.path().join("from"), top.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(top.path().join("secret"), "secret").unwrap();
        fs::write(from.join("a/b/file"), "content").unwrap();
        fs::set_permissions(from.join("a/b/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        std::os::unix::fs::chown(from.join("a"), Some(7), Some(8)).unwrap();
        symlink("../../secret", from.join("a/link")).unwrap();
        nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR).unwrap();
        let _socket = UnixListener::bind(from.join("socket")).unwrap();
        copy_up(File::open(&from).unwrap(), File::open(&to).unwrap()).unwrap();
        assert_eq!(fs::read(to.join("a/b/file")).unwrap(), b"content");
        assert_eq!(fs::metadata(to.join("a/b/file")).unwrap().mode() & 0o7777, 0o4751);
        let (one, other) = (
            fs::metadata(from.join("a")).unwrap(),
            fs::metadata(to.join("a")).unwrap(),
        );
        assert_eq!(
            (one.uid(), one.gid(), one.mode(), one.mtime(), one.mtime_nsec()),
            (
                other.uid(),
                other.gid(),
                other.mode(),
                other.mtime(),
                other.mtime_nsec()
            )
        );
        assert_eq!(
            fs::read_link(to.join("a/link")).unwrap().to_str(),
            Some("../../secret")
        );
        assert!(fs::metadata(to.join("fifo")).unwrap().file_type().is_fifo());
        assert!(!to.join("socket").exists());
    }
}
