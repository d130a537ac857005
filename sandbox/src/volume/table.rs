//! What a pod's containers share of the host: `<share>/.volumes/<number>`, a mount for each source.
//!
//! Containers that are given the same source get the same mount, and so the same files in the guest: its kernel's file
//! locks, sockets and memory mappings are those of one file. A mount is read-only, in the host's kernel too, for as long
//! as no container of the pod may write to it.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    source::{FileType, Identity, Source},
    watch::Watch,
};
use crate::{
    cleanup,
    mount::{self, Allow},
    process::ProcessId,
};

/// No container has a name with a leading dot.
const DIRECTORY: &str = ".volumes";

/// What makes two mounts of a source different.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    identity: Identity,
    /// But for `read_only`, which a mount can lose.
    allow: Allow,
}

#[derive(Debug)]
struct Mounted {
    number: u64,
    read_only: bool,
    users: usize,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    mounted: HashMap<Key, Mounted>,
    /// The copied volumes, by their directory on the host: until the pod's end, as the guest's copies.
    copied: HashMap<PathBuf, u64>,
    /// Those that the server has a mount of its own of, on top of the one that comes from here.
    twofold: HashSet<u64>,
    watch: Option<Arc<Watch>>,
    watch_runs: bool,
}

/// A pod's volumes.
#[derive(Debug)]
pub struct Volumes {
    /// The shared directory.
    share: PathBuf,
    /// The same directory below its read-only mount, to make mount points in.
    below: OwnedFd,
    server: OnceLock<ProcessId>,
    table: Mutex<Table>,
}

impl Volumes {
    /// Shares volumes in `share`; `below` is the same directory, writable.
    #[must_use]
    pub fn new(share: PathBuf, below: OwnedFd) -> Self {
        Self {
            share,
            below,
            server: OnceLock::new(),
            table: Mutex::default(),
        }
    }

    /// Says which process serves the shared directory, in a mount namespace of its own.
    pub fn serve_by(&self, process: ProcessId) {
        // There is one for a pod.
        let _ = self.server.set(process);
    }

    /// Shares `source` and returns a hold on it. What it is shared with others of the pod already is used again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn share(self: &Arc<Self>, source: &Source, allow: &Allow) -> io::Result<Lease> {
        let key = Key {
            identity: source.identity(),
            allow: Allow {
                read_only: false,
                ..allow.clone()
            },
        };
        let mut table = self.table();
        let number = if let Some(mounted) = table.mounted.get_mut(&key) {
            if mounted.read_only && !allow.read_only {
                self.make_writable(mounted.number, source)?;
                mounted.read_only = false;
            }
            mounted.users += 1;
            mounted.number
        } else {
            let number = self.mount(&mut table, source, allow)?;
            table.mounted.insert(
                key.clone(),
                Mounted {
                    number,
                    read_only: allow.read_only,
                    users: 1,
                },
            );
            number
        };
        Ok(Lease {
            volumes: Arc::clone(self),
            key,
            number,
            held: true,
        })
    }

    /// Shares `source`, a volume that the guest copies, and returns its path below the shared directory; it is watched
    /// for changes from now on. `None` when the host has no more inotify instances or watches for it.
    ///
    /// # Errors
    /// The kernel refuses the mount.
    pub fn copy(&self, source: &Source) -> io::Result<Option<String>> {
        let mut table = self.table();
        if let Some(&number) = table.copied.get(&source.real) {
            return Ok(Some(path(number)));
        }
        let watch = match &table.watch {
            Some(watch) => Arc::clone(watch),
            None => match Watch::new() {
                Ok(watch) => Arc::clone(table.watch.insert(Arc::new(watch))),
                Err(error) => return Ok(unwatched(source, &error)),
            },
        };
        let allow = Allow {
            read_only: true,
            read_only_below: true,
            ..Allow::default()
        };
        let number = self.mount(&mut table, source, &allow)?;
        // Before the guest reads it for the first time, so that no change is missed.
        if let Err(error) = watch.add(source, path(number)) {
            self.unmount(&mut table, number)?;
            return Ok(unwatched(source, &error));
        }
        table.copied.insert(source.real.clone(), number);
        Ok(Some(path(number)))
    }

    /// The watch on what is copied, when there is something and nobody has been given it yet, to run it.
    #[must_use]
    pub fn watch_to_run(&self) -> Option<Arc<Watch>> {
        let mut table = self.table();
        let watch = table.watch.clone().filter(|_| !table.watch_runs)?;
        table.watch_runs = true;
        Some(watch)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mount(&self, table: &mut Table, source: &Source, allow: &Allow) -> io::Result<u64> {
        // A number is used once: nothing in the guest can take a new volume for an old one.
        let number = table.next;
        table.next += 1;
        let directory = self.writable();
        match directory_at(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let place = directory.join(number.to_string());
        if source.file_type() == FileType::Directory {
            directory_at(&place)?;
        } else {
            fs::File::create_new(&place)?;
        }
        let mounted = match self.server.get() {
            Some(&server) if allow.recursive && !allow.slave && source.has_mounts_below()? => {
                self.mount_in(server, table, number, source, allow)
            }
            _ => mount::bind(source.as_fd(), &self.share.join(path(number)), allow),
        };
        mounted.inspect_err(|_| {
            let _ = self.unmount(table, number);
        })?;
        Ok(number)
    }

    /// Shows a volume with the mounts below it to the server alone. In this namespace they would keep the host from removing
    /// the directories that they are mounted on.
    fn mount_in(
        &self,
        server: ProcessId,
        table: &mut Table,
        number: u64,
        source: &Source,
        allow: &Allow,
    ) -> io::Result<()> {
        let here = self.share.join(path(number));
        let top = Allow {
            recursive: false,
            ..allow.clone()
        };
        mount::bind(source.as_fd(), &here, &top)?;
        if let Err(error) = mount::bind_in(server, source.as_fd(), &seen_by_server(number), allow) {
            // One that has only just been started is not where it will be yet.
            tracing::debug!(volume = %source.path.display(), %error, "mounted on the host with all that is below");
            cleanup::unmount_below(&here)?;
            return mount::bind(source.as_fd(), &here, allow);
        }
        table.twofold.insert(number);
        Ok(())
    }

    /// Lifts what makes a mount read-only, here and where it is served from, unless the source is so itself.
    fn make_writable(&self, number: u64, source: &Source) -> io::Result<()> {
        if source.is_read_only()? {
            return Ok(());
        }
        mount::make_writable(&self.share.join(path(number)))?;
        match self.server.get() {
            Some(&process) => mount::make_writable_in(process, &seen_by_server(number)),
            None => Ok(()),
        }
    }

    fn unmount(&self, table: &mut Table, number: u64) -> io::Result<()> {
        if let Some(&server) = self.server.get()
            && table.twofold.remove(&number)
        {
            mount::unbind_in(server, &seen_by_server(number))?;
        }
        cleanup::unmount_below(&self.share.join(path(number)))?;
        let directory = self.writable();
        let place = directory.join(number.to_string());
        let removed = match fs::symlink_metadata(&place) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir(&place),
            Ok(_) => fs::remove_file(&place),
            Err(error) => Err(error),
        };
        match removed {
            // The whole pod has been undone meanwhile.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // While others are in it, it stays.
        let _ = fs::remove_dir(&directory);
        Ok(())
    }

    fn writable(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.below.as_raw_fd())).join(DIRECTORY)
    }
}

fn path(number: u64) -> String {
    format!("{DIRECTORY}/{number}")
}

/// The server's root is the shared directory.
fn seen_by_server(number: u64) -> PathBuf {
    Path::new("/").join(path(number))
}

fn directory_at(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o755).create(path)
}

fn unwatched(source: &Source, error: &io::Error) -> Option<String> {
    tracing::warn!(
        volume = %source.path.display(),
        %error,
        "cannot watch a volume (see fs.inotify in sysctl): shared, without events for its changes"
    );
    None
}

/// A container's hold on a shared volume, which goes away with the last of them.
#[derive(Debug)]
pub struct Lease {
    volumes: Arc<Volumes>,
    key: Key,
    number: u64,
    held: bool,
}

impl Lease {
    /// The volume's path below the shared directory.
    #[must_use]
    pub fn path(&self) -> String {
        path(self.number)
    }

    /// Lets go.
    ///
    /// # Errors
    /// It was the last hold, and the mount can't be undone.
    pub fn release(mut self) -> io::Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        let mut table = self.volumes.table();
        let Some(mounted) = table.mounted.get_mut(&self.key) else {
            return Ok(());
        };
        mounted.users = mounted.users.saturating_sub(1);
        if mounted.users > 0 {
            return Ok(());
        }
        table.mounted.remove(&self.key);
        self.volumes.unmount(&mut table, self.number)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::error!(volume = self.path(), %error, "cannot clean up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::Share;

    const WRITABLE: Allow = Allow {
        read_only: false,
        read_only_below: false,
        recursive: true,
        slave: false,
        id_map: None,
        id_map_below: false,
    };
    const READ_ONLY: Allow = Allow {
        read_only: true,
        read_only_below: false,
        recursive: true,
        slave: false,
        id_map: None,
        id_map_below: false,
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
            fs::create_dir(top.path().join("data")).unwrap();
            let share = Share::create(path).expect("these tests need root");
            Self { share, top }
        }

        fn data(&self) -> Source {
            Source::open(&self.top.path().join("data")).unwrap()
        }

        fn shown(&self, path: &str) -> PathBuf {
            self.share.path().join(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            cleanup::unmount_below(self.top.path()).unwrap();
        }
    }

    #[test]
    fn files_and_directories_become_volumes() {
        let scratch = Scratch::new();
        let file = scratch.top.path().join("hosts");
        fs::write(&file, "127.0.0.1").unwrap();
        let mut container = scratch.share.add("c1").unwrap();
        let path = container
            .add_volume(&Source::open(&file).unwrap(), &READ_ONLY)
            .unwrap();
        assert_eq!(fs::read_to_string(scratch.shown(&path)).unwrap(), "127.0.0.1");
        assert!(fs::write(scratch.shown(&path), "").is_err());
        let path = container.add_volume(&scratch.data(), &WRITABLE).unwrap();
        fs::write(scratch.shown(&path).join("new"), "").unwrap();
        drop(container);
        assert!(scratch.top.path().join("data/new").exists());
        assert_eq!(fs::read_dir(scratch.share.path()).unwrap().count(), 0);
    }

    #[test]
    fn containers_of_a_pod_share_one_mount_until_the_last_is_gone() {
        let scratch = Scratch::new();
        let mut first = scratch.share.add("c1").unwrap();
        let mut second = scratch.share.add("c2").unwrap();
        let path = first.add_volume(&scratch.data(), &WRITABLE).unwrap();
        assert_eq!(second.add_volume(&scratch.data(), &WRITABLE).unwrap(), path);
        first.remove().unwrap();
        fs::write(scratch.shown(&path).join("file"), "").unwrap();
        second.remove().unwrap();
        assert!(!scratch.shown(&path).exists());
        // The number is not used again.
        let mut third = scratch.share.add("c3").unwrap();
        assert_ne!(third.add_volume(&scratch.data(), &WRITABLE).unwrap(), path);
    }

    #[test]
    fn a_volume_can_be_written_once_a_container_may() {
        let scratch = Scratch::new();
        let mut reader = scratch.share.add("c1").unwrap();
        let path = reader.add_volume(&scratch.data(), &READ_ONLY).unwrap();
        assert!(fs::write(scratch.shown(&path).join("file"), "").is_err());
        // Somebody with a mount namespace of its own, as the file server has.
        let mut server = std::process::Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "slave",
                "sh",
                "-c",
                "echo; read line; echo > \"$0/file\"",
            ])
            .arg(scratch.shown(&path))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        io::Read::read_exact(server.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let process = ProcessId::of(server.id()).unwrap();
        mount::make_writable_in(process, &scratch.shown(&path)).unwrap();
        assert!(fs::write(scratch.shown(&path).join("file"), "").is_err());
        drop(server.stdin.take());
        assert!(server.wait().unwrap().success());
        let mut writer = scratch.share.add("c2").unwrap();
        assert_eq!(writer.add_volume(&scratch.data(), &WRITABLE).unwrap(), path);
        fs::write(scratch.shown(&path).join("file"), "").unwrap();
    }

    #[test]
    fn a_mount_made_later_appears_where_that_is_asked_for() {
        let scratch = Scratch::new();
        let source = scratch.top.path().join("source");
        fs::create_dir_all(source.join("below")).unwrap();
        mount::make_stage(&source).unwrap();
        let opened = Source::open(&source).unwrap();
        let mut container = scratch.share.add("c1").unwrap();
        let private = container.add_volume(&opened, &WRITABLE).unwrap();
        let slave = Allow {
            slave: true,
            ..WRITABLE
        };
        let following = container.add_volume(&opened, &slave).unwrap();
        assert_ne!(private, following);
        let request = mount::Request {
            fs_type: "tmpfs".to_owned(),
            source: "tmpfs".to_owned(),
            ..mount::Request::default()
        };
        mount::mount(&request, &source.join("below")).unwrap();
        fs::write(source.join("below/new"), "").unwrap();
        assert!(scratch.shown(&following).join("below/new").exists());
        assert!(!scratch.shown(&private).join("below/new").exists());
        drop(container);
        assert!(source.join("below/new").exists());
    }

    #[test]
    fn a_copied_volume_is_shared_once_and_stays() {
        let scratch = Scratch::new();
        let mut container = scratch.share.add("c1").unwrap();
        let path = container.copy_volume(&scratch.data()).unwrap().unwrap();
        container.remove().unwrap();
        let mut again = scratch.share.add("c1").unwrap();
        assert_eq!(again.copy_volume(&scratch.data()).unwrap().unwrap(), path);
        assert!(fs::write(scratch.shown(&path).join("file"), "").is_err());
        let volumes = scratch.share.volumes();
        assert!(volumes.watch_to_run().is_some());
        assert!(volumes.watch_to_run().is_none());
    }
}
