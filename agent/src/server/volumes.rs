//! The pod's own volumes: file systems in memory, and copies of small volumes of the host's.
//!
//! Each is mounted once, in the agent's own mount namespace, where a container's process finds it by its number.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use tokio::task::spawn_blocking;

use super::{error::Error, volume_copy};
use crate::{
    container::Share,
    init::VOLUMES,
    linux::mount::{NewFileSystem, attach},
    oci::{self, MountKind, SharePath, VolumeContent},
};

/// The most of them in a pod.
const MAX_VOLUMES: usize = 256;

/// What the volumes have in common.
#[derive(Debug, Default)]
pub struct Volumes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u32,
    memory: BTreeMap<String, u32>,
    copies: BTreeMap<String, Arc<Copy>>,
}

/// A copy, by the path of what it is a copy of.
#[derive(Debug)]
struct Copy {
    number: u32,
    source: SharePath,
    /// Its root, held by whoever changes it.
    root: Arc<tokio::sync::Mutex<OwnedFd>>,
}

impl Volumes {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and a panic ends the program.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that the volumes which `mounts` ask for are there, and numbers them. A copy is as its original when this
    /// returns.
    ///
    /// # Errors
    /// One can't be made: the message names the mount.
    pub async fn prepare(&self, mounts: &mut [oci::Mount]) -> Result<(), Error> {
        for mount in mounts {
            let MountKind::Volume(volume) = &mut mount.kind else {
                continue;
            };
            let made = match &volume.content {
                VolumeContent::Memory { name, options } => self.memory(name, options),
                VolumeContent::Copy { source } => {
                    let copy = self.copy(source);
                    match copy {
                        Ok(copy) => copy.refresh().await.map(|()| copy.number),
                        Err(error) => Err(error),
                    }
                }
            };
            volume.number = Some(made.map_err(|error| error.within(&mount.field))?);
        }
        Ok(())
    }

    /// Makes the copy of the volume at `source`, a path below the share, as its original is now.
    ///
    /// # Errors
    /// There is no such copy, or it can't be made so.
    pub async fn refresh(&self, source: &str) -> Result<(), Error> {
        let copy = self.state().copies.get(source).map(Arc::clone);
        copy.ok_or(Error::NoVolume)?.refresh().await
    }

    fn memory(&self, name: &str, options: &[(String, String)]) -> Result<u32, Error> {
        let mut state = self.state();
        if let Some(&number) = state.memory.get(name) {
            return Ok(number);
        }
        let options: Vec<(&str, &str)> = options
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let (number, _) = state.mount(&options)?;
        state.memory.insert(name.to_owned(), number);
        Ok(number)
    }

    fn copy(&self, source: &SharePath) -> Result<Arc<Copy>, Error> {
        let mut state = self.state();
        if let Some(copy) = state.copies.get(source.as_str()) {
            return Ok(Arc::clone(copy));
        }
        let (number, root) = state.mount(&volume_copy::OPTIONS)?;
        let copy = Arc::new(Copy {
            number,
            source: source.clone(),
            root: Arc::new(tokio::sync::Mutex::new(root)),
        });
        state.copies.insert(source.as_str().to_owned(), Arc::clone(&copy));
        Ok(copy)
    }
}

impl State {
    /// Mounts a new tmpfs; gives its number and its root.
    fn mount(&mut self, options: &[(&str, &str)]) -> Result<(u32, OwnedFd), Error> {
        if self.memory.len() + self.copies.len() >= MAX_VOLUMES {
            return Err(Error::State("the pod has too many volumes of its own"));
        }
        let doing = "making a file system in memory";
        let file_system = NewFileSystem::open(c"tmpfs").map_err(Error::system(doing))?;
        for (name, value) in options {
            let text = |text: &str| CString::new(text).map_err(Error::system(doing));
            file_system
                .set(&text(name)?, Some(&text(value)?))
                .map_err(Error::system(format!("options: {name}={value}")))?;
        }
        let tree = file_system.mount().map_err(Error::system(doing))?;
        self.last += 1;
        let path = format!("{VOLUMES}/{}", self.last);
        fs::create_dir(&path).map_err(Error::system(doing))?;
        let how = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = open(path.as_str(), how, Mode::empty()).map_err(Error::system(doing))?;
        attach(&tree, place).map_err(Error::system(doing))?;
        let root = open(path.as_str(), how, Mode::empty()).map_err(Error::system(doing))?;
        Ok((self.last, root))
    }
}

impl Copy {
    /// Where it may block: the host answers.
    async fn refresh(&self) -> Result<(), Error> {
        let doing = format!("copying volume {:?}", self.source.as_str());
        let root = Arc::clone(&self.root).lock_owned().await;
        let source = self.source.clone();
        let copied = spawn_blocking(move || {
            volume_copy::refresh(
                || {
                    let share = Share::open().map_err(std::io::Error::other)?;
                    Ok(share.resolve(&source)?)
                },
                &root,
            )
        });
        match copied.await {
            Ok(copied) => copied.map_err(Error::system(doing)),
            // A panic ends the program, and nobody cancels.
            Err(error) => Err(Error::Setup(error.to_string())),
        }
    }
}
