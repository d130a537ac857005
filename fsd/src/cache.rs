//! For how long the guest may believe what it was told.

use std::time::Duration;

use fuse_backend_rs::api::filesystem::OpenOptions;

/// Whether anyone but the guest changes the files of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cache {
    /// Only the guest does: a container's own root file system. It may cache names, attributes, contents and the
    /// absence of names for as long as it likes.
    Exclusive,
    /// The host may: volumes, and the directory in which the shim makes containers' mounts appear. The guest asks
    /// again each time, and drops a file's cached contents when it opens it or sees another modification time.
    Coherent,
}

/// The name under which the shim mounts a container's root file system: `<share>/<container>/rootfs`.
const EXCLUSIVE_MOUNT: &[u8] = b"rootfs";

/// "For ever": a guest that cannot be told of changes has none to hear of.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Cache {
    /// The policy of a file called `name` in a directory: its directory's, unless it is where another mount begins.
    pub fn below(self, name: &[u8], mount_begins: bool, directory_is_of_the_share: bool) -> Self {
        match (mount_begins, directory_is_of_the_share && name == EXCLUSIVE_MOUNT) {
            (false, _) => self,
            (true, true) => Self::Exclusive,
            (true, false) => Self::Coherent,
        }
    }

    /// How long names and attributes stay valid.
    pub fn timeout(self) -> Duration {
        match self {
            Self::Exclusive => DAY,
            Self::Coherent => Duration::ZERO,
        }
    }

    /// What an open file's contents may be taken from.
    pub fn file_options(self) -> OpenOptions {
        match self {
            Self::Exclusive => OpenOptions::KEEP_CACHE,
            Self::Coherent => OpenOptions::empty(),
        }
    }

    /// What an open directory's listing may be taken from.
    pub fn directory_options(self) -> OpenOptions {
        match self {
            Self::Exclusive => OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR,
            Self::Coherent => OpenOptions::empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_containers_own_root_is_cached() {
        let top = Cache::Coherent;
        assert_eq!(top.below(b"rootfs", true, true), Cache::Exclusive);
        assert_eq!(top.below(b"rootfs", false, true), Cache::Coherent);
        assert_eq!(top.below(b"volume", true, true), Cache::Coherent);
        let rootfs = Cache::Exclusive;
        assert_eq!(rootfs.below(b"etc", false, false), Cache::Exclusive);
        // A volume mounted into it, even under that name.
        assert_eq!(rootfs.below(b"rootfs", true, false), Cache::Coherent);
    }
}
