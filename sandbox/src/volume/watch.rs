//! Notices that a copied volume has changed on the host, and has the guest look again (inotify(7)).

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::AsFd,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::time::sleep;

use super::source::Source;
use crate::socket;

/// How long changes are collected: kubelet's update of a volume is a dozen of them, which come at once.
const SETTLE: Duration = Duration::from_millis(100);

/// What happens in a volume's own directory when it is updated: kubelet makes a new directory, moves a link to it over
/// the old link and removes the old directory; others rewrite a file.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB);

/// The watch on a pod's copied volumes.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    volumes: Mutex<HashMap<WatchDescriptor, String>>,
}

impl Watch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The host has no more instances for its user (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            volumes: Mutex::default(),
        })
    }

    /// Watches the directory `source`, known to the guest as `volume`.
    ///
    /// # Errors
    /// The host has no more watches for its user (`fs.inotify.max_user_watches`).
    pub fn add(&self, source: &Source, volume: String) -> io::Result<()> {
        let mut volumes = self.volumes();
        let watch = self.inotify.add_watch(&source.proc_path(), EVENTS)?;
        volumes.insert(watch, volume);
        Ok(())
    }

    fn volumes(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, String>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `refresh` with each volume that has changed, for ever. Changes during a call are seen by the next.
    ///
    /// # Errors
    /// The runtime or the kernel refuses to wait.
    pub async fn run<F: Future<Output = ()>>(&self, mut refresh: impl FnMut(String) -> F) -> io::Result<()> {
        let readiness = socket::watch(self.inotify.as_fd().try_clone_to_owned()?)?;
        loop {
            readiness.readable().await?.clear_ready();
            let mut changed = self.changed()?;
            if changed.is_empty() {
                continue;
            }
            sleep(SETTLE).await;
            changed.extend(self.changed()?);
            for volume in changed {
                refresh(volume).await;
            }
        }
    }

    /// The volumes with changes that have been told until now.
    fn changed(&self) -> io::Result<HashSet<String>> {
        let mut changed = HashSet::new();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(nix::Error::EAGAIN) => return Ok(changed),
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut volumes = self.volumes();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    changed.extend(volumes.values().cloned());
                } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    volumes.remove(&event.wd);
                } else if let Some(volume) = volumes.get(&event.wd) {
                    changed.insert(volume.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;

    #[test]
    fn an_update_by_kubelet_is_told_in_one_piece() {
        let top = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let watch = Arc::new(Watch::new().unwrap());
            watch
                .add(&Source::open(top.path()).unwrap(), ".volumes/3".to_owned())
                .unwrap();
            let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
            let running = Arc::clone(&watch);
            tokio::spawn(async move {
                running
                    .run(|volume| {
                        let sender = sender.clone();
                        async move { sender.send(volume).unwrap() }
                    })
                    .await
            });
            for generation in ["..1", "..2"] {
                fs::create_dir(top.path().join(generation)).unwrap();
                fs::write(top.path().join(generation).join("key"), generation).unwrap();
                std::os::unix::fs::symlink(generation, top.path().join("..data_tmp")).unwrap();
                fs::rename(top.path().join("..data_tmp"), top.path().join("..data")).unwrap();
                assert_eq!(told.recv().await.unwrap(), ".volumes/3");
                assert!(told.try_recv().is_err());
            }
        });
    }
}
