//! `mounts` of Sealock's own types: what the containers of a pod share in the guest (`agent.proto`,
//! `CreateContainerRequest.spec`).

use serde::{Deserialize, Serialize};

use super::{
    mount_options::MountOptions,
    object::{Object, SpecError},
    share_path::SharePath,
};

/// A volume that the guest keeps in its memory, for the whole pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What it is.
    pub content: Content,
    /// The part of it that the container gets.
    pub subpath: Option<SharePath>,
    /// The agent's number for it; `None` until the agent has it.
    pub number: Option<u32>,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A tmpfs that starts empty.
    Memory {
        /// Who says the same name gets the same one.
        name: String,
        /// What it is made with, the first time.
        options: Vec<(String, String)>,
    },
    /// A copy of files of the host, kept like them.
    Copy {
        /// Where they are.
        source: SharePath,
    },
}

/// The options of tmpfs(5) that one of a pod can have.
const MEMORY_OPTIONS: [&str; 5] = ["size", "mode", "nr_inodes", "uid", "gid"];

/// The longest name of a tmpfs, in bytes.
const MAX_NAME: usize = 255;

impl Volume {
    /// Reads a mount of the type `kind`; takes its own words out of `options`. `None` when it is of another type.
    ///
    /// # Errors
    /// Its source is none.
    pub fn parse(
        mount: &Object,
        kind: &str,
        source: Option<&str>,
        options: &mut MountOptions,
    ) -> Result<Option<Self>, SpecError> {
        let field = mount.field("source");
        let source = source.unwrap_or_default().to_owned();
        let content = match kind {
            "sealock-tmpfs" => {
                let plain = !source.is_empty() && source.len() <= MAX_NAME && !source.contains('/');
                if !plain {
                    let reason = format!("{source:?} is not 1 to {MAX_NAME} bytes without a slash");
                    return Err(SpecError::invalid(field, reason));
                }
                Content::Memory {
                    name: source,
                    options: take(options, &MEMORY_OPTIONS),
                }
            }
            "sealock-copy" => {
                // Whoever writes to a copy writes to nothing.
                options.attributes.set |= libc::MOUNT_ATTR_RDONLY;
                options.attributes.clear &= !libc::MOUNT_ATTR_RDONLY;
                Content::Copy {
                    source: SharePath::parse(&field, source)?,
                }
            }
            _ => return Ok(None),
        };
        let subpath = take(options, &["subpath"])
            .pop()
            .map(|(_, path)| SharePath::parse(&mount.field("options"), path))
            .transpose()?;
        Ok(Some(Self {
            content,
            subpath,
            number: None,
        }))
    }
}

/// Takes the words with these names and a value out.
fn take(options: &mut MountOptions, names: &[&str]) -> Vec<(String, String)> {
    let (taken, left) = std::mem::take(&mut options.data)
        .into_iter()
        .partition(|(name, value)| value.is_some() && names.contains(&name.as_str()));
    options.data = left;
    let taken: Vec<(String, Option<String>)> = taken;
    taken
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Mount, MountKind};

    fn parse(mount: &str) -> Result<Mount, SpecError> {
        let mut spec = Object::parse(format!(r#"{{"mounts":[{mount}]}}"#).as_bytes()).unwrap();
        Mount::parse_all(&mut spec).map(|mut mounts| mounts.remove(0))
    }

    #[test]
    fn a_tmpfs_is_told_from_the_mount_of_it() {
        let mount = parse(
            r#"{"destination":"/dev/shm","type":"sealock-tmpfs","source":"shm",
                "options":["mode=1777","size=65536","subpath=a/b","rbind","ro","nosuid"]}"#,
        )
        .unwrap();
        let MountKind::Volume(volume) = mount.kind else {
            panic!("{:?}", mount.kind)
        };
        assert_eq!(volume.subpath.unwrap().as_str(), "a/b");
        let Content::Memory { name, options } = volume.content else {
            panic!("{:?}", volume.content)
        };
        assert_eq!(name, "shm");
        assert_eq!(options.len(), 2);
        assert!(mount.options.data.is_empty());
        assert_eq!(
            mount.options.attributes.set,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
        );
    }

    #[test]
    fn a_copy_is_read_only_whatever_it_says() {
        let mount = parse(
            r#"{"destination":"/etc/config","type":"sealock-copy","source":"v/0","options":["rbind","rw"]}"#,
        )
        .unwrap();
        assert_eq!(mount.options.attributes.set, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn what_is_no_volume_is_named() {
        for (mount, field) in [
            (r#""type":"sealock-tmpfs","source":"a/b""#, "mounts[0].source: "),
            (r#""type":"sealock-tmpfs""#, "mounts[0].source: "),
            (r#""type":"sealock-copy","source":"../x""#, "mounts[0].source: "),
            (
                r#""type":"sealock-copy","source":"x","options":["subpath=/etc"]"#,
                "mounts[0].options: ",
            ),
            (
                r#""type":"sealock-copy","source":"x","options":["size=1"]"#,
                "mounts[0].options: ",
            ),
        ] {
            let error = parse(&format!(r#"{{"destination":"/x",{mount}}}"#))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
