//! The words of `mounts[].options`, as mount(8) and the specification know them.

use serde::{Deserialize, Serialize};

/// A change of a mount's attributes (mount_setattr(2), `MOUNT_ATTR_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeChange {
    /// Attributes to set.
    pub set: u64,
    /// Attributes to clear, before setting.
    pub clear: u64,
}

impl AttributeChange {
    fn apply(&mut self, word: Attribute) {
        match word {
            Attribute::Set(bit) => {
                self.set |= bit;
                self.clear &= !bit;
            }
            Attribute::Clear(bit) => {
                self.clear |= bit;
                self.set &= !bit;
            }
            Attribute::AccessTime(mode) => {
                self.clear |= libc::MOUNT_ATTR__ATIME;
                self.set = self.set & !libc::MOUNT_ATTR__ATIME | mode;
            }
        }
    }

    /// Whether nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes the read-only attribute out, to be set later; tells whether it was there.
    pub fn take_read_only(&mut self) -> bool {
        let there = self.set & libc::MOUNT_ATTR_RDONLY != 0;
        self.set &= !libc::MOUNT_ATTR_RDONLY;
        there
    }
}

/// A propagation type (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Propagation {
    /// `MS_PRIVATE`, `MS_SHARED`, `MS_SLAVE` or `MS_UNBINDABLE`.
    pub kind: u64,
    /// Whether mounts below are meant too.
    pub recursive: bool,
}

impl Propagation {
    /// One of the eight words for it.
    pub fn parse(word: &str) -> Option<Self> {
        let (name, recursive) = match word {
            "rprivate" | "rshared" | "rslave" | "runbindable" => (&word[1..], true),
            _ => (word, false),
        };
        let kind = match name {
            "private" => libc::MS_PRIVATE,
            "shared" => libc::MS_SHARED,
            "slave" => libc::MS_SLAVE,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return None,
        };
        Some(Self { kind, recursive })
    }
}

/// What a list of options asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// Attributes of the mount itself.
    pub attributes: AttributeChange,
    /// Attributes of the mount and of all mounts below it (`rro` and the like).
    pub recursive_attributes: AttributeChange,
    /// Propagation types, in the order they were given.
    pub propagation: Vec<Propagation>,
    /// `bind` or `rbind`, the latter being recursive.
    pub bind: Option<Bind>,
    /// `idmap`, or `ridmap` for the mounts below too.
    pub id_map: Option<Bind>,
    /// Whether a new tmpfs begins with a copy of what it covers (`tmpcopyup`).
    pub copy_up: bool,
    /// Whether it is what is mounted there already that is changed.
    pub remount: bool,
    /// Words for the file system: a name, and a value if there was a `=`.
    pub data: Vec<(String, Option<String>)>,
}

/// How much of a tree is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bind {
    /// The mount alone.
    One,
    /// The mount and all mounts below it.
    Recursive,
}

/// Words that name a state which is the default and cannot be otherwise.
const WITHOUT_EFFECT: [&str; 3] = ["defaults", "loud", "silent"];

impl MountOptions {
    /// Reads the words in their order, a later one overriding an earlier one.
    pub fn parse(words: &[String]) -> Self {
        let mut options = Self::default();
        for word in words {
            if let Some(attribute) = attribute(word) {
                options.attributes.apply(attribute);
            } else if let Some(attribute) = word.strip_prefix('r').and_then(attribute) {
                options.recursive_attributes.apply(attribute);
            } else if let Some(propagation) = Propagation::parse(word) {
                options.propagation.push(propagation);
            } else if word == "remount" {
                options.remount = true;
            } else if word == "tmpcopyup" {
                options.copy_up = true;
            } else if word == "idmap" {
                options.id_map.get_or_insert(Bind::One);
            } else if word == "ridmap" {
                options.id_map = Some(Bind::Recursive);
            } else if word == "bind" {
                options.bind.get_or_insert(Bind::One);
            } else if word == "rbind" {
                options.bind = Some(Bind::Recursive);
            } else if !WITHOUT_EFFECT.contains(&word.as_str()) {
                options.data.push(match word.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (word.clone(), None),
                });
            }
        }
        options
    }
}

#[derive(Clone, Copy)]
enum Attribute {
    Set(u64),
    Clear(u64),
    AccessTime(u64),
}

fn attribute(word: &str) -> Option<Attribute> {
    use Attribute::{AccessTime, Clear, Set};
    Some(match word {
        "ro" => Set(libc::MOUNT_ATTR_RDONLY),
        "rw" => Clear(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => Set(libc::MOUNT_ATTR_NOSUID),
        "suid" => Clear(libc::MOUNT_ATTR_NOSUID),
        "nodev" => Set(libc::MOUNT_ATTR_NODEV),
        "dev" => Clear(libc::MOUNT_ATTR_NODEV),
        "noexec" => Set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => Clear(libc::MOUNT_ATTR_NOEXEC),
        "nodiratime" => Set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => Clear(libc::MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => Set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Clear(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => AccessTime(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => AccessTime(libc::MOUNT_ATTR_STRICTATIME),
        // Relative is what the kernel does unless told otherwise.
        "atime" | "relatime" | "norelatime" | "nostrictatime" => AccessTime(libc::MOUNT_ATTR_RELATIME),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> MountOptions {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        MountOptions::parse(&words)
    }

    #[test]
    fn words_become_attributes_and_the_rest_goes_to_the_file_system() {
        let options = parse(&["nosuid", "strictatime", "mode=755", "size=65536k", "newinstance"]);
        assert_eq!(
            options.attributes,
            AttributeChange {
                set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME,
                clear: libc::MOUNT_ATTR__ATIME,
            }
        );
        assert_eq!(
            options.data,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("size".to_owned(), Some("65536k".to_owned())),
                ("newinstance".to_owned(), None),
            ]
        );
    }

    #[test]
    fn the_last_word_wins() {
        assert_eq!(
            parse(&["ro", "rw"]).attributes,
            AttributeChange {
                set: 0,
                clear: libc::MOUNT_ATTR_RDONLY
            }
        );
        assert_eq!(parse(&["noatime", "relatime"]).attributes.set, 0);
    }

    #[test]
    fn recursive_words_are_told_from_words_that_begin_with_r() {
        let options = parse(&["rro", "rnosuid", "rw", "relatime", "rrelatime"]);
        assert_eq!(
            options.recursive_attributes.set,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID
        );
        assert_eq!(
            options.attributes.clear,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR__ATIME
        );
        assert!(options.data.is_empty());
    }

    #[test]
    fn propagation_and_bind_words_are_understood() {
        let options = parse(&["bind", "rbind", "rprivate", "shared"]);
        assert_eq!(options.bind, Some(Bind::Recursive));
        assert_eq!(
            options.propagation,
            [
                Propagation {
                    kind: libc::MS_PRIVATE,
                    recursive: true
                },
                Propagation {
                    kind: libc::MS_SHARED,
                    recursive: false
                },
            ]
        );
    }

    #[test]
    fn words_for_more_than_attributes_are_understood() {
        let options = parse(&["ridmap", "idmap", "tmpcopyup", "remount"]);
        assert_eq!(options.id_map, Some(Bind::Recursive));
        assert!(options.copy_up && options.remount && options.data.is_empty());
    }
}
