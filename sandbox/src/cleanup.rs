//! Undoing what a pod left in its state directory: mounts first, then empty directories and mount points.
//!
//! Nothing here follows a symbolic link, and nothing with contents is removed below a pod's own files: a mount that
//! could not be undone keeps a tenant's files safe.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

/// How deep a pod's directory is at most: `share/<container>/mounts/<number>`.
const MAX_DEPTH: usize = 6;

/// Unmounts everything mounted at `directory` or below.
///
/// # Errors
/// A mount is still there afterwards.
pub fn unmount_below(directory: &Path) -> io::Result<()> {
    let mounted = mounts_below(directory)?;
    let mut last = Ok(());
    for mount_point in mounted.iter().rev() {
        let undone = match umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody still has a file open there: it disappears from the tree now and for good when that ends.
            Err(nix::Error::EBUSY) => umount2(mount_point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH),
            other => other,
        };
        match undone {
            // Gone along with another.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => last = Err(at(mount_point, "unmount", error.into())),
        }
    }
    if mounted.is_empty() {
        return Ok(());
    }
    match mounts_below(directory)?.first() {
        None => Ok(()),
        Some(left) => last.and(Err(io::Error::other(format!(
            "{} is still mounted",
            left.display()
        )))),
    }
}

/// Removes a pod's directory, from which everything has been unmounted. It's no error when there is none.
///
/// # Errors
/// Something is in it that the host side didn't put there.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at(directory, "look at", error)),
        Ok(metadata) => remove_directory(directory, metadata.dev(), 0),
    }
}

fn remove_directory(directory: &Path, device: u64, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(directory).map_err(|error| at(directory, "list", error))? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path).map_err(|error| at(&path, "look at", error))?;
        if metadata.dev() != device || depth >= MAX_DEPTH {
            return Err(at(&path, "remove", io::Error::other("it is not the pod's")));
        }
        if metadata.is_dir() {
            remove_directory(&path, device, depth + 1)?;
        } else if metadata.is_file() && (depth == 0 || metadata.len() == 0) {
            fs::remove_file(&path).map_err(|error| at(&path, "remove", error))?;
        } else {
            return Err(at(&path, "remove", io::Error::other("it has contents")));
        }
    }
    fs::remove_dir(directory).map_err(|error| at(directory, "remove", error))
}

fn at(path: &Path, verb: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {verb} {}: {error}", path.display()))
}

/// The mount points at and below `directory` in the order in which they were mounted.
pub(crate) fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|mount_point| mount_point.starts_with(directory))
        .collect())
}

/// Undoes the octal escapes of proc(5)'s mountinfo.
pub(crate) fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| OsStr::from_bytes(digits).to_str())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(code) = code {
            plain.push(code);
            rest = &tail[3..];
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::mount::{MsFlags, mount};

    use super::*;

    fn bind(from: &Path, to: &Path) {
        mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("these tests need root");
    }

    #[test]
    fn mountinfos_escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134c\011"), OsStr::from_bytes(b"/a b\\c\t"));
        assert_eq!(unescape(br"/a\04"), OsStr::from_bytes(br"/a\04"));
    }

    #[test]
    fn a_half_made_directory_is_undone_completely_and_volumes_survive() {
        let top = tempfile::tempdir().unwrap();
        let volume = top.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("precious"), "data").unwrap();
        let pod = top.path().join("pod with space");
        let inner = pod.join("share/c1/mounts/0");
        fs::create_dir_all(&inner).unwrap();
        fs::write(pod.join("pod.json"), "{}").unwrap();
        bind(&pod.join("share"), &pod.join("share"));
        bind(&volume, &inner);
        bind(&volume, &inner);

        unmount_below(&pod).unwrap();
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
        assert_eq!(fs::read_to_string(volume.join("precious")).unwrap(), "data");
        unmount_below(&pod).unwrap();
        remove_tree(&pod).unwrap();
    }

    #[test]
    fn a_busy_mount_is_detached() {
        let top = tempfile::tempdir().unwrap();
        let volume = top.path().join("volume");
        let pod = top.path().join("pod");
        let inner = pod.join("share");
        fs::create_dir(&volume).unwrap();
        fs::create_dir_all(&inner).unwrap();
        bind(&volume, &inner);
        let held = fs::File::create(inner.join("open")).unwrap();
        unmount_below(&pod).unwrap();
        assert!(mounts_below(&pod).unwrap().is_empty());
        drop(held);
    }

    #[test]
    fn contents_are_never_removed() {
        let top = tempfile::tempdir().unwrap();
        let pod = top.path().join("pod");
        fs::create_dir_all(pod.join("share/c1/rootfs")).unwrap();
        fs::write(pod.join("share/c1/rootfs/precious"), "data").unwrap();
        assert!(remove_tree(&pod).is_err());
        assert!(pod.join("share/c1/rootfs/precious").exists());
    }

    #[test]
    fn links_are_not_followed() {
        let top = tempfile::tempdir().unwrap();
        let outside = top.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("empty"), "").unwrap();
        let pod = top.path().join("pod");
        fs::create_dir_all(pod.join("share")).unwrap();
        symlink(&outside, pod.join("share/link")).unwrap();
        assert!(remove_tree(&pod).is_err());
        assert!(outside.join("empty").exists());
    }
}
