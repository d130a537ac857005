//! Where templates are kept: `<state>/.templates/<key>/`, with three files.
//!
//! | file | what |
//! |---|---|
//! | `state` | the monitor's ([`sealock_protocol::control::Request::Save`]), with a checksum that it checks itself |
//! | `memory` | the guest's memory |
//! | `about` | what is known of both ([`About`]) |
//! | `working-set` | what restored machines touch first ([`super::working_set`]), once that is known |
//!
//! A template is made in a directory of another name, by whoever holds the lock of its key, and gets its own name when it is whole:
//! a half-written one can't be found. Nobody writes to one later. The memory's checksum is only looked at when somebody asks
//! ([`Store::list`]): it would take longer than booting. What a start checks is that the file is the one that was written, and that
//! nobody has written to it since: by its inode, size and times. Both live and end with the host's memory, so there is no disk in
//! between that could lose anything.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{TMPFS_MAGIC, fstatfs},
    unistd::{Whence, lseek64},
};
use sealock_protocol::control::WorkingSet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Key, Opened, Order};
use crate::{cleanup, state::Uid};

/// The version of [`About`].
const VERSION: u32 = 1;

/// The most templates that are kept; the one that was used longest ago makes room.
const MAX_TEMPLATES: usize = 8;

/// How long nobody tries again what has failed.
const FAILURE_HOLDS: Duration = Duration::from_secs(600);

/// The largest `working-set`, in bytes.
const MAX_WORKING_SET: u64 = 96 * 1024;

/// The largest `about`, in bytes.
const MAX_ABOUT: u64 = 4096;

const STATE: &str = "state";
const MEMORY: &str = "memory";
const ABOUT: &str = "about";
const WORKING_SET: &str = "working-set";

/// Why templates can't be kept or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The state directory isn't in memory.
    #[error(
        "templates need a tmpfs, which {} is not on: set `state_dir` in Sealock's configuration, or `templates` to \"off\"",
        .0.display()
    )]
    NotTmpfs(PathBuf),
    /// Somebody is making it.
    #[error("the template is being made")]
    BeingMade,
    /// It is not what was written.
    #[error("template {key} is damaged: {what}")]
    Damaged {
        /// Its name.
        key: Key,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Making it has failed a while ago.
    #[error("the template could not be made: {0}")]
    Failed(String),
}

/// What is known of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// [`VERSION`].
    version: u32,
    /// What it was made for.
    pub order: Order,
    /// Seconds since 1970 when it was made.
    pub made: u64,
    memory: Written,
    state: Written,
    /// The memory's SHA-256, holes left out, in hexadecimal digits.
    checksum: String,
}

/// A file as it was when nobody wrote to it any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Written {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// A template in a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub key: Key,
    /// What is known of it, or why it is of no use.
    pub about: Result<About, String>,
    /// When it was used last.
    pub used: SystemTime,
    /// The host's memory that it takes, in bytes.
    pub bytes: u64,
}

/// The directory of templates.
#[derive(Clone, Debug)]
pub struct Store(PathBuf);

fn file_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { verb, path, source }
}

impl Store {
    /// That of a state directory.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        // No namespace has a name with a leading dot.
        Self(state_dir.join(".templates"))
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.0.join(key.as_str())
    }

    fn failure(&self, key: &Key) -> PathBuf {
        self.0.join(format!("{key}.failed"))
    }

    /// Opens a template for a machine; `None` when there is none.
    ///
    /// # Errors
    /// It can't be used, or it could not be made lately.
    pub fn open(&self, key: &Key) -> Result<Option<Opened>, Error> {
        let path = self.place(key);
        let about = match open(&path.join(ABOUT)) {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match self.failed(key) {
                    Some(reason) => Err(Error::Failed(reason)),
                    None => Ok(None),
                };
            }
            Err(error) => return Err(file_error("open", &path)(error)),
        };
        let damaged = |what| Error::Damaged {
            key: key.clone(),
            what,
        };
        let known = read_about(&about).map_err(damaged)?;
        let state = open(&path.join(STATE)).map_err(|_| damaged("its state can't be opened"))?;
        let memory = open(&path.join(MEMORY)).map_err(|_| damaged("its memory can't be opened"))?;
        for (file, written) in [(&state, known.state), (&memory, known.memory)] {
            if Written::of(file).ok() != Some(written) {
                return Err(damaged(
                    "a file is not the one that was written, or has been written to since",
                ));
            }
        }
        // Only a note of when it was used.
        let _ = about.set_modified(SystemTime::now());
        Ok(Some(Opened {
            key: key.clone(),
            order: known.order,
            state,
            memory,
            working_set: self.working_set(key),
        }))
    }

    /// What restored machines touch first, as the first one of them has shown.
    fn working_set(&self, key: &Key) -> Option<WorkingSet> {
        let file = open(&self.place(key).join(WORKING_SET)).ok()?;
        let mut text = Vec::new();
        file.take(MAX_WORKING_SET).read_to_end(&mut text).ok()?;
        let set: WorkingSet = serde_json::from_slice(&text).ok()?;
        set.is_bounded().then_some(set)
    }

    /// Keeps what a restored machine has touched, for the next ones.
    ///
    /// # Errors
    /// The template is gone, or the file system refuses.
    pub fn keep_working_set(&self, key: &Key, set: &WorkingSet) -> Result<(), Error> {
        let path = self.place(key).join(WORKING_SET);
        let new = self
            .place(key)
            .join(format!("{WORKING_SET}.{}", std::process::id()));
        // Numbers.
        let text = serde_json::to_vec(set).unwrap_or_default();
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(file_error("write", &path))
    }

    /// The memory of a template.
    ///
    /// # Errors
    /// It is gone.
    pub fn memory(&self, key: &Key) -> Result<File, Error> {
        let path = self.place(key).join(MEMORY);
        open(&path).map_err(file_error("open", &path))
    }

    /// Why the template could not be made, if that is not long ago.
    fn failed(&self, key: &Key) -> Option<String> {
        let file = open(&self.failure(key)).ok()?;
        let since = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        if since > FAILURE_HOLDS {
            return None;
        }
        let mut reason = String::new();
        file.take(MAX_ABOUT).read_to_string(&mut reason).ok()?;
        Some(reason)
    }

    /// Notes that the template could not be made.
    pub fn note_failure(&self, key: &Key, reason: &str) {
        // Without the note it is tried again sooner.
        let _ = fs::write(self.failure(key), reason);
    }

    /// Begins to make a template: nobody else does, for as long as the result lives.
    ///
    /// # Errors
    /// [`Error::BeingMade`], or the file system refuses.
    pub fn begin(&self, key: &Key) -> Result<New, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .map_err(file_error("create", &self.0))?;
        let store = File::open(&self.0).map_err(file_error("open", &self.0))?;
        let kind = fstatfs(&store).map_err(|error| file_error("look at", &self.0)(error.into()))?;
        if kind.filesystem_type() != TMPFS_MAGIC {
            return Err(Error::NotTmpfs(self.0.clone()));
        }
        let path = self.0.join(format!(".{key}.new"));
        let lock = lock(&self.0.join(format!(".{key}.lock")))?;
        // What whoever held the lock before has left when it was killed.
        if let Some(state_dir) = self.0.parent().filter(|_| path.exists()) {
            Uid::release_all(state_dir);
        }
        cleanup::remove_tree(&path).map_err(file_error("remove", &path))?;
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(file_error("create", &path))?;
        Ok(New {
            store: self.clone(),
            key: key.clone(),
            path,
            _lock: lock,
        })
    }

    /// All templates, with their memory's checksum looked at.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut list = Vec::new();
        for key in self.keys()? {
            let path = self.place(&key);
            let used = fs::metadata(path.join(ABOUT)).and_then(|about| about.modified());
            let bytes = [MEMORY, STATE]
                .iter()
                .filter_map(|name| fs::metadata(path.join(name)).ok())
                .map(|file| file.blocks() * 512)
                .sum();
            list.push(Listed {
                about: self.examine(&key).map_err(|error| crate::error::line(&error)),
                key,
                used: used.unwrap_or(UNIX_EPOCH),
                bytes,
            });
        }
        list.sort_by_key(|listed| std::cmp::Reverse(listed.used));
        Ok(list)
    }

    fn examine(&self, key: &Key) -> Result<About, Error> {
        let damaged = |what| Error::Damaged {
            key: key.clone(),
            what,
        };
        let about = self.place(key).join(ABOUT);
        let about = open(&about).map_err(file_error("open", &about))?;
        let known = read_about(&about).map_err(damaged)?;
        let memory =
            open(&self.place(key).join(MEMORY)).map_err(|_| damaged("its memory can't be opened"))?;
        let sum = checksum(&memory).map_err(|_| damaged("its memory can't be read"))?;
        if sum != known.checksum {
            return Err(damaged("its memory has another checksum"));
        }
        Ok(known)
    }

    /// The names of all templates.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn keys(&self) -> Result<Vec<Key>, Error> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(file_error("read", &self.0))?,
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| Key::parse(entry.file_name().to_str()?))
            .collect())
    }

    /// Removes a template. Machines that were restored from it keep what they have mapped. Returns whether there was one.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, key: &Key) -> Result<bool, Error> {
        let _ = fs::remove_file(self.failure(key));
        let (path, gone) = (self.place(key), self.0.join(format!(".{key}.old")));
        // What somebody was killed over.
        cleanup::remove_tree(&gone).map_err(file_error("remove", &gone))?;
        match fs::rename(&path, &gone) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(file_error("remove", &path)(error)),
        }
        cleanup::remove_tree(&gone).map_err(file_error("remove", &gone))?;
        Ok(true)
    }

    /// Removes all templates, and what is left of those that were being made. Returns how many there were.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove_all(&self) -> Result<usize, Error> {
        let mut removed = 0;
        for key in self.keys()? {
            removed += usize::from(self.remove(&key)?);
        }
        let Ok(entries) = fs::read_dir(&self.0) else {
            return Ok(removed);
        };
        for name in entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
        {
            if name.ends_with(".failed") {
                let _ = fs::remove_file(self.0.join(&name));
            }
            let left = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
            if let Some(key) = left.and_then(Key::parse) {
                match self.begin(&key) {
                    // Dropping it removes it.
                    Ok(_) | Err(Error::BeingMade) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(removed)
    }

    /// Makes room for one more.
    fn make_room(&self) -> Result<(), Error> {
        let mut by_use: Vec<_> = self
            .keys()?
            .into_iter()
            .map(|key| {
                let used = fs::metadata(self.place(&key).join(ABOUT)).and_then(|about| about.modified());
                (used.unwrap_or(UNIX_EPOCH), key)
            })
            .collect();
        by_use.sort();
        let surplus = (by_use.len() + 1).saturating_sub(MAX_TEMPLATES);
        for (_, key) in by_use.into_iter().take(surplus) {
            self.remove(&key)?;
        }
        Ok(())
    }
}

/// A template that is being made. What there is of it is removed when this is dropped.
#[derive(Debug)]
pub struct New {
    store: Store,
    key: Key,
    path: PathBuf,
    _lock: Flock<File>,
}

impl New {
    /// Its name.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whether it has been made before the lock was had.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn is_made(&self) -> Result<bool, Error> {
        self.store.open(&self.key).map(|opened| opened.is_some())
    }

    /// Creates the files of the state and the memory.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create_files(&self) -> Result<(File, File), Error> {
        let create = |name| {
            let path = self.path.join(name);
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(file_error("create", &path))
        };
        Ok((create(STATE)?, create(MEMORY)?))
    }

    /// Lets the template be found, now that its files are written and nobody else has a descriptor of them.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn publish(self, order: &Order, state: &File, memory: &File) -> Result<(), Error> {
        let at = |verb| file_error(verb, &self.path);
        for file in [state, memory] {
            file.set_permissions(Permissions::from_mode(0o400))
                .map_err(at("protect the files in"))?;
        }
        let made = SystemTime::now().duration_since(UNIX_EPOCH);
        let about = About {
            version: VERSION,
            order: order.clone(),
            made: made.map_or(0, |made| made.as_secs()),
            memory: Written::of(memory).map_err(at("look at"))?,
            state: Written::of(state).map_err(at("look at"))?,
            checksum: checksum(memory).map_err(at("read the memory in"))?,
        };
        // Numbers and names.
        let text = serde_json::to_vec(&about).unwrap_or_default();
        fs::write(self.path.join(ABOUT), text).map_err(at("write into"))?;
        self.store.make_room()?;
        let place = self.store.place(&self.key);
        fs::rename(&self.path, &place).map_err(file_error("publish", &place))?;
        let _ = fs::remove_file(self.store.failure(&self.key));
        Ok(())
    }
}

impl Drop for New {
    fn drop(&mut self) {
        // While it is still locked. Published, it has gone elsewhere.
        if let Err(error) = cleanup::remove_tree(&self.path) {
            tracing::error!(%error, path = %self.path.display(), "cannot clean up");
        }
        let _ = fs::remove_file(self.store.0.join(format!(".{}.lock", self.key)));
    }
}

fn lock(path: &Path) -> Result<Flock<File>, Error> {
    let failed = |error: io::Error| file_error("lock", path)(error);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Its last owner may have removed it between our opening and locking it: then the template has just been made.
        Ok(lock) if lock.metadata().is_ok_and(|file| file.nlink() > 0) => Ok(lock),
        Ok(_) | Err((_, Errno::EWOULDBLOCK)) => Err(Error::BeingMade),
        Err((_, error)) => Err(failed(error.into())),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn read_about(file: &File) -> Result<About, &'static str> {
    let mut text = Vec::new();
    let read = file.take(MAX_ABOUT).read_to_end(&mut text);
    let about: About = read
        .ok()
        .and_then(|_| serde_json::from_slice(&text).ok())
        .ok_or("its description makes no sense")?;
    if about.version == VERSION {
        Ok(about)
    } else {
        Err("its description is of another version")
    }
}

/// SHA-256 of what is in a file, with where it is: holes are left out.
fn checksum(file: &File) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    let seek = |at: i64, whence| match lseek64(file.as_fd(), at, whence) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(io::Error::from(error)),
    };
    while let Some(start) = seek(at, Whence::SeekData)? {
        let end = seek(start, Whence::SeekHole)?.unwrap_or(start);
        sum.update(start.to_le_bytes());
        sum.update(end.to_le_bytes());
        at = start;
        while at < end {
            let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let position = u64::try_from(at).map_err(io::Error::other)?;
            file.read_exact_at(&mut buffer[..wanted], position)?;
            sum.update(&buffer[..wanted]);
            at += i64::try_from(wanted).map_err(io::Error::other)?;
        }
    }
    Ok(sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
