//! What a source becomes: shared files, memory or a copy in the guest, something of the guest's kernel, or refused.

use std::{fs, io, path::Path};

use sealock_protocol::files::kernel_file_system;

use super::{
    Error,
    kubelet::{self, KubeletVolume},
    source::{FileType, Source},
};

/// What a bind mount becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The host's files, through the file server.
    Shared,
    /// A tmpfs of the guest's own, the same for all containers of the pod.
    Memory(Memory),
    /// A copy that the guest keeps in a tmpfs.
    Copied,
    /// A file system of the guest's kernel, of this type.
    FileSystem(&'static str),
    /// A device of the guest's kernel.
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
}

/// A tmpfs of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// By which the containers of the pod find the same one.
    pub name: String,
    /// The part that this mount shows; empty for all.
    pub subpath: String,
    /// What tmpfs(5) is mounted with.
    pub options: Vec<String>,
}

/// tmpfs's magic number (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

/// The name of the pod's `/dev/shm`.
const SHM: &str = "shm";

/// The most files and directories that a copied volume may have.
const MAX_COPIED_FILES: usize = 1024;

/// The most bytes that a copied volume may have: four times what a ConfigMap or Secret can hold.
const MAX_COPIED_BYTES: u64 = 4 << 20;

/// How deep a copied volume may be.
const MAX_COPIED_DEPTH: usize = 16;

/// Devices that the guest's kernel has as well, and that are nobody's in particular (the kernel's `devices.txt`).
const DEVICES: [(u32, u32); 9] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
];

/// Decides what `source`, mounted at `destination` in the container, becomes. `pod` is the pod's UID, where it is known:
/// volumes of other pods are files like any others.
///
/// # Errors
/// It is nothing that a guest gets.
pub fn of(source: &Source, destination: &str, read_only: bool, pod: Option<&str>) -> Result<Kind, Error> {
    if let Some(kind) = of_the_kernel(source)? {
        return Ok(kind);
    }
    match source.file_type() {
        FileType::Directory | FileType::Regular => {}
        FileType::Socket => {
            return Err(refused(
                source,
                "a socket, whose other end would be outside of the machine",
            ));
        }
        FileType::Fifo => {
            return Err(refused(
                source,
                "a FIFO, whose other end would be outside of the machine",
            ));
        }
        FileType::BlockDevice => return Err(refused(source, "a block device of the host")),
        FileType::CharacterDevice | FileType::Other => return Err(refused(source, "a device of the host")),
    }
    let unreadable = |error| Error::Open {
        path: source.path.clone(),
        source: error,
    };
    if let Some(memory) = memory(source, destination, pod).map_err(unreadable)? {
        return Ok(Kind::Memory(memory));
    }
    let volume = KubeletVolume::of(&source.real)
        .filter(|volume| volume.is_written_by_kubelet() && pod.is_none_or(|pod| pod == volume.pod));
    if read_only && volume.is_some() && source.file_type() == FileType::Directory {
        if is_small(&source.proc_path()).map_err(unreadable)? {
            return Ok(Kind::Copied);
        }
        tracing::warn!(
            volume = %source.path.display(),
            "larger than {MAX_COPIED_BYTES} bytes or {MAX_COPIED_FILES} files: shared, without events for its changes"
        );
    }
    Ok(Kind::Shared)
}

fn refused(source: &Source, what: &'static str) -> Error {
    Error::Refused {
        path: source.path.clone(),
        what,
    }
}

/// What the guest's kernel has itself.
fn of_the_kernel(source: &Source) -> Result<Option<Kind>, Error> {
    if source.real == Path::new("/") {
        return Err(refused(source, "the host's whole root"));
    }
    let file_system = [
        ("/proc", "proc"),
        ("/sys", "sysfs"),
        ("/sys/fs/cgroup", "cgroup"),
        ("/dev/mqueue", "mqueue"),
    ]
    .into_iter()
    .find(|(path, _)| source.real == Path::new(path) && source.is_mount_point());
    if let Some((_, name)) = file_system {
        return Ok(Some(Kind::FileSystem(name)));
    }
    if source.file_type() == FileType::CharacterDevice && DEVICES.contains(&source.device()) {
        let (major, minor) = source.device();
        return Ok(Some(Kind::Device { major, minor }));
    }
    if let Some(what) = kernel_file_system(source.magic()) {
        return Err(refused(source, what));
    }
    for (directory, what) in [
        (
            "/dev/shm",
            "the host's shared memory, which is another machine's (hostIPC)",
        ),
        ("/dev", "in the host's /dev"),
        ("/proc", "in the host's /proc"),
        ("/sys", "in the host's /sys"),
    ] {
        if source.real.starts_with(directory) {
            return Err(refused(source, what));
        }
    }
    Ok(None)
}

/// The pod's `/dev/shm`, or an emptyDir in memory: what makes no sense to be shared through a file server, and would
/// use the host's memory beside the pod's.
fn memory(source: &Source, destination: &str, pod: Option<&str>) -> io::Result<Option<Memory>> {
    if source.magic() != TMPFS {
        return Ok(None);
    }
    let ours = |volume: &KubeletVolume<'_>| volume.is_empty_dir() && pod.is_none_or(|pod| pod == volume.pod);
    if source.is_mount_point() && source.file_type() == FileType::Directory {
        if is_pods_shm(source, destination) {
            return options(source).map(|options| {
                Some(Memory {
                    name: SHM.to_owned(),
                    subpath: String::new(),
                    options,
                })
            });
        }
        if let Some(volume) = KubeletVolume::of(&source.real).filter(ours) {
            return options(source).map(|options| {
                Some(Memory {
                    name: name(&volume),
                    subpath: String::new(),
                    options,
                })
            });
        }
    }
    let Some(path) = kubelet::empty_dir_of_subpath(&source.real) else {
        return Ok(None);
    };
    let (Some(volume), Ok(whole)) = (KubeletVolume::of(&path).filter(ours), Source::open(&path)) else {
        return Ok(None);
    };
    if whole.identity().device != source.identity().device || !whole.is_mount_point() {
        return Ok(None);
    }
    let Some(subpath) = mount_root(source)? else {
        return Ok(None);
    };
    Ok(Some(Memory {
        name: name(&volume),
        subpath,
        options: options(&whole)?,
    }))
}

/// Container engines keep it in a directory of that name. The host's own, which they pass on for `hostIPC`, is refused
/// before it gets here.
fn is_pods_shm(source: &Source, destination: &str) -> bool {
    destination.trim_end_matches('/') == "/dev/shm" && source.real.ends_with("shm")
}

fn name(volume: &KubeletVolume<'_>) -> String {
    let mut name = format!("empty-dir.{}.{}", volume.pod, volume.name);
    name.truncate(name.floor_char_boundary(255));
    name
}

/// The options that make another tmpfs like this one.
fn options(source: &Source) -> io::Result<Vec<String>> {
    let space = source.space()?;
    let (user, group) = source.owner();
    let mut options = vec![
        format!("mode={:o}", source.mode()),
        format!("uid={user}"),
        format!("gid={group}"),
    ];
    // Zero stands for no limit here and there; the guest then has the kernel's default, half of its memory.
    if space.blocks() > 0 {
        let bytes = u128::from(space.blocks()) * u128::from(space.fragment_size());
        options.push(format!("size={}", u64::try_from(bytes).unwrap_or(u64::MAX)));
    }
    if space.files() > 0 {
        options.push(format!("nr_inodes={}", space.files()));
    }
    Ok(options)
}

/// The part of its file system that the mount shows of which `source` is the root, without the leading slash.
fn mount_root(source: &Source) -> io::Result<Option<String>> {
    let id = source.identity().mount.to_string();
    let table = fs::read("/proc/self/mountinfo")?;
    let root = table.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        (fields.next()? == id.as_bytes()).then(|| fields.nth(2)).flatten()
    });
    Ok(root
        .map(crate::cleanup::unescape)
        .and_then(|root| root.into_string().ok())
        .map(|root| root.trim_start_matches('/').to_owned())
        .filter(|root| !root.is_empty() && !root.ends_with("//deleted")))
}

/// Whether a directory is within the bounds of what is copied.
fn is_small(directory: &Path) -> io::Result<bool> {
    let mut files = 0_usize;
    let mut bytes = 0_u64;
    let mut rest = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = rest.pop() {
        let entries = match fs::read_dir(&directory) {
            // Kubelet has just replaced it; what it is now will be seen when the guest copies it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            files += 1;
            bytes = bytes.saturating_add(metadata.len());
            if files > MAX_COPIED_FILES || bytes > MAX_COPIED_BYTES || depth >= MAX_COPIED_DEPTH {
                return Ok(false);
            }
            if metadata.is_dir() {
                rest.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, process::Command};

    use super::*;

    fn kind(path: &Path, destination: &str) -> Result<Kind, Error> {
        of(&Source::open(path).unwrap(), destination, true, Some("u1"))
    }

    #[test]
    fn what_is_the_hosts_alone_is_refused_by_name() {
        let top = tempfile::tempdir().unwrap();
        let link = top.path().join("innocent");
        std::os::unix::fs::symlink("/proc/sys", &link).unwrap();
        let socket = top.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let disk = top.path().join("disk");
        let made = Command::new("mknod").arg(&disk).args(["b", "7", "99"]).status();
        assert!(made.unwrap().success(), "these tests need root");
        for (path, what) in [
            (Path::new("/proc/sys"), "procfs"),
            (Path::new("/sys/kernel"), "sysfs"),
            (Path::new("/dev"), "/dev"),
            (Path::new("/"), "whole root"),
            (&link, "procfs"),
            (&socket, "a socket"),
            (&disk, "a block device"),
        ] {
            let error = kind(path, "/x").unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Unimplemented);
            let line = error.to_string();
            assert!(
                line.contains(what) && line.contains(path.to_str().unwrap()),
                "{line}"
            );
        }
    }

    #[test]
    fn what_every_kernel_has_is_the_guests() {
        assert_eq!(kind(Path::new("/proc"), "/x").unwrap(), Kind::FileSystem("proc"));
        assert_eq!(kind(Path::new("/sys"), "/x").unwrap(), Kind::FileSystem("sysfs"));
        assert_eq!(
            kind(Path::new("/dev/null"), "/x").unwrap(),
            Kind::Device { major: 1, minor: 3 }
        );
    }

    /// A directory tree like kubelet's, with memory mounted where asked for; unmounted at its end.
    struct Kubelet(tempfile::TempDir);

    impl Kubelet {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn directory(&self, name: &str) -> std::path::PathBuf {
            let path = self.0.path().join("pods").join(name);
            fs::create_dir_all(&path).unwrap();
            path
        }

        fn memory(&self, name: &str) -> std::path::PathBuf {
            let path = self.directory(name);
            let made = Command::new("mount")
                .args([
                    "-t",
                    "tmpfs",
                    "-o",
                    "size=1m,nr_inodes=99,mode=1777,gid=7",
                    "tmpfs",
                ])
                .arg(&path)
                .status();
            assert!(made.unwrap().success(), "these tests need root");
            path
        }
    }

    impl Drop for Kubelet {
        fn drop(&mut self) {
            crate::cleanup::unmount_below(self.0.path()).unwrap();
        }
    }

    #[test]
    fn memory_is_the_guests_with_the_hosts_bounds() {
        let kubelet = Kubelet::new();
        let volume = kubelet.memory("u1/volumes/kubernetes.io~empty-dir/cache");
        let shm = kubelet.memory("shm");
        let options = ["mode=1777", "uid=0", "gid=7", "size=1048576", "nr_inodes=99"];
        let memory = |name: &str, subpath: &str| {
            Kind::Memory(Memory {
                name: name.to_owned(),
                subpath: subpath.to_owned(),
                options: options.map(str::to_owned).to_vec(),
            })
        };
        assert_eq!(kind(&volume, "/cache").unwrap(), memory("empty-dir.u1.cache", ""));
        assert_eq!(kind(&shm, "/dev/shm").unwrap(), memory("shm", ""));
        assert_eq!(kind(&shm, "/other").unwrap(), Kind::Shared);

        fs::create_dir(volume.join("sub")).unwrap();
        let subpath = kubelet.directory("u1/volume-subpaths/cache/main/0");
        let bound = Command::new("mount")
            .arg("--bind")
            .args([&volume.join("sub"), &subpath])
            .status();
        assert!(bound.unwrap().success());
        assert_eq!(kind(&subpath, "/x").unwrap(), memory("empty-dir.u1.cache", "sub"));

        let others = kubelet.memory("u2/volumes/kubernetes.io~empty-dir/cache");
        assert_eq!(kind(&others, "/cache").unwrap(), Kind::Shared);
        let disk = kubelet.directory("u1/volumes/kubernetes.io~empty-dir/disk");
        assert_eq!(kind(&disk, "/disk").unwrap(), Kind::Shared);
    }

    #[test]
    fn small_volumes_that_kubelet_writes_are_copied() {
        let kubelet = Kubelet::new();
        for plugin in ["configmap", "secret", "projected", "downward-api"] {
            let volume = kubelet.directory(&format!("u1/volumes/kubernetes.io~{plugin}/v"));
            fs::write(volume.join("key"), "value").unwrap();
            assert_eq!(kind(&volume, "/v").unwrap(), Kind::Copied);
            assert_eq!(
                of(&Source::open(&volume).unwrap(), "/v", false, None).unwrap(),
                Kind::Shared
            );
            assert_eq!(kind(&volume.join("key"), "/v").unwrap(), Kind::Shared);
            fs::write(volume.join("large"), vec![0; 5 << 20]).unwrap();
            assert_eq!(kind(&volume, "/v").unwrap(), Kind::Shared);
        }
    }
}
