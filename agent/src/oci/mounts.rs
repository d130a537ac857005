//! `mounts`: what is mounted into the root file system, in the order given.

use serde::{Deserialize, Serialize};

use super::{
    id_mappings::IdMappings,
    mount_options::{Bind, MountOptions},
    object::{Object, SpecError},
    share_path::SharePath,
    volume::Volume,
};

/// One of `mounts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Its place in the specification, for messages.
    pub field: String,
    /// Where in the container, absolute.
    pub destination: String,
    /// What is mounted.
    pub kind: MountKind,
    /// How. For a bind mount without [`MountOptions::data`].
    pub options: MountOptions,
    /// `uidMappings` and `gidMappings`; without them [`MountOptions::id_map`] means those of the container.
    pub id_mappings: Option<IdMappings>,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountKind {
    /// Files of the host, below the share.
    Bind {
        /// Where they are.
        source: SharePath,
        /// How much of them.
        bind: Bind,
    },
    /// A volume of the pod, kept in the guest.
    Volume(Volume),
    /// A new instance of a file system of the guest's kernel.
    FileSystem {
        /// The kernel's name for it.
        name: String,
    },
    /// What is mounted there already.
    Present,
}

/// The file systems that need no source. Others would be given a block device or a host's path.
const FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "hugetlbfs"];

/// Words for a file system's superblock, which a bind mount has in common with others.
const NO_CHANGE_FOR_BIND: [&str; 3] = ["async", "nomand", "nolazytime"];

impl Mount {
    /// Reads `mounts`.
    ///
    /// # Errors
    /// A type or an option that can't be applied.
    pub fn parse_all(spec: &mut Object) -> Result<Vec<Self>, SpecError> {
        spec.objects("mounts")?.into_iter().map(Self::parse).collect()
    }

    fn parse(mut mount: Object) -> Result<Self, SpecError> {
        let field = mount.path().to_owned();
        let destination = mount
            .take_text("destination")?
            .ok_or_else(|| SpecError::invalid(mount.field("destination"), "is missing"))?;
        let destination = format!("/{}", destination.trim_start_matches('/'));
        if destination.split('/').all(|part| matches!(part, "" | "." | "..")) {
            return Err(SpecError::invalid(
                mount.field("destination"),
                "the root itself can't be mounted over",
            ));
        }
        let source = mount.take_text("source")?;
        let kind = mount.take_text("type")?.unwrap_or_default();
        let words = mount.take_texts("options")?;
        let mut options = MountOptions::parse(&words);
        let id_mappings = IdMappings::parse(&mut mount)?;
        if id_mappings.is_some() {
            options.id_map.get_or_insert(Bind::One);
        }
        let bind = options.bind.or((kind == "bind").then_some(Bind::One));
        let volume = Volume::parse(&mount, &kind, source.as_deref(), &mut options)?;
        let kind = if let Some(volume) = volume {
            Self::check_without_file_system(&mount, &options, "a bind mount")?;
            MountKind::Volume(volume)
        } else if options.remount {
            Self::check_without_file_system(&mount, &options, "a remount")?;
            MountKind::Present
        } else if let Some(bind) = bind {
            let source = source
                .ok_or_else(|| SpecError::invalid(mount.field("source"), "is missing for a bind mount"))?;
            Self::check_without_file_system(&mount, &options, "a bind mount")?;
            MountKind::Bind {
                source: SharePath::parse(&mount.field("source"), source)?,
                bind,
            }
        } else if kind == "cgroup" || kind == "cgroup2" {
            // The guest has version 2 only; a container's specification asks for "the cgroup file system".
            MountKind::FileSystem {
                name: "cgroup2".to_owned(),
            }
        } else if FILE_SYSTEMS.contains(&kind.as_str()) {
            MountKind::FileSystem { name: kind }
        } else {
            return Err(SpecError::unsupported(format!(
                "{} {kind:?}",
                mount.field("type")
            )));
        };
        if options.copy_up && !matches!(&kind, MountKind::FileSystem { name } if name == "tmpfs") {
            return Err(SpecError::invalid(
                mount.field("options"),
                "\"tmpcopyup\" is for a tmpfs",
            ));
        }
        mount.finish()?;
        Ok(Self {
            field,
            destination,
            options: match kind {
                MountKind::Bind { .. } | MountKind::Volume(_) | MountKind::Present => MountOptions {
                    data: Vec::new(),
                    ..options
                },
                MountKind::FileSystem { .. } => options,
            },
            id_mappings,
            kind,
        })
    }

    /// What makes no file system has no words for one.
    fn check_without_file_system(
        mount: &Object,
        options: &MountOptions,
        what: &str,
    ) -> Result<(), SpecError> {
        let other = options
            .data
            .iter()
            .find(|(name, value)| value.is_some() || !NO_CHANGE_FOR_BIND.contains(&name.as_str()));
        match other {
            Some((name, value)) => {
                let word = match value {
                    Some(value) => format!("{name}={value}"),
                    None => name.clone(),
                };
                Err(SpecError::invalid(
                    mount.field("options"),
                    format!("{word:?} can't be applied to {what}"),
                ))
            }
            None => Ok(()),
        }
    }

    /// Whether this is a file system in memory which starts empty: it is made read-only last, so that mount points and
    /// devices can be made in it.
    pub fn starts_empty(&self) -> bool {
        matches!(&self.kind, MountKind::FileSystem { name } if name == "tmpfs" || name == "ramfs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(mount: &str) -> Result<Mount, SpecError> {
        let mut spec = Object::parse(format!(r#"{{"mounts":[{mount}]}}"#).as_bytes()).unwrap();
        Mount::parse_all(&mut spec).map(|mut mounts| mounts.remove(0))
    }

    #[test]
    fn the_mounts_of_a_usual_container_are_understood() {
        for (mount, name) in [
            (
                r#"{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","noexec","nodev"]}"#,
                "proc",
            ),
            (
                r#"{"destination":"/dev/pts","type":"devpts","source":"devpts",
                    "options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"]}"#,
                "devpts",
            ),
            (
                r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["ro","nosuid"]}"#,
                "cgroup2",
            ),
        ] {
            assert_eq!(
                parse(mount).unwrap().kind,
                MountKind::FileSystem {
                    name: name.to_owned()
                }
            );
        }
    }

    #[test]
    fn a_bind_mount_shows_files_below_the_share_only() {
        let mount =
            parse(r#"{"destination":"/etc/hosts","source":"c1/m0","options":["rbind","ro"]}"#).unwrap();
        assert!(matches!(
            mount.kind,
            MountKind::Bind {
                bind: Bind::Recursive,
                ..
            }
        ));
        assert_eq!(mount.options.attributes.set, libc::MOUNT_ATTR_RDONLY);
        for source in ["/etc", "../x", "a/../b"] {
            let text = format!(r#"{{"destination":"/x","type":"bind","source":"{source}"}}"#);
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with("mounts[0].source: "), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_name() {
        for (mount, message) in [
            (
                r#"{"destination":"/x","type":"ext4","source":"/dev/sda"}"#,
                r#"mounts[0].type "ext4" is not supported"#,
            ),
            (
                r#"{"destination":"/x","type":"bind","source":"a","options":["sync"]}"#,
                r#"mounts[0].options: "sync" can't be applied to a bind mount"#,
            ),
            (
                r#"{"destination":"/x","type":"mqueue","options":["tmpcopyup"]}"#,
                r#"mounts[0].options: "tmpcopyup" is for a tmpfs"#,
            ),
            (
                r#"{"destination":"/x/../..//","type":"bind","source":"a","uidMappings":[{"size":1}]}"#,
                "mounts[0].gidMappings: is missing beside uidMappings",
            ),
            (
                r#"{"destination":"/./..","type":"tmpfs"}"#,
                "mounts[0].destination: the root itself can't be mounted over",
            ),
            (r#"{"type":"tmpfs"}"#, "mounts[0].destination: is missing"),
        ] {
            assert_eq!(parse(mount).unwrap_err().to_string(), message);
        }
    }
}
