//! A template's name: a hash of everything that it depends on.

use std::{
    fmt::{self, Write},
    fs::{self, Metadata},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use nix::sys::stat::fstat;
use sha2::{Digest, Sha256};

use super::{Order, Shape};
use crate::{check::HostFiles, config::Config};

/// Changes whenever templates of other builds are of no use although their programs look the same.
const VERSION: u32 = 1;

/// The name of a template: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// The name of the template for `order`.
    ///
    /// Files count by what tells them apart on this host until its next boot, which no template outlives: device, inode, size and
    /// times. Reading them would cost more than what a template saves.
    ///
    /// # Errors
    /// One of the files can't be looked at.
    pub fn of(config: &Config, files: &HostFiles, order: &Order) -> io::Result<Self> {
        let mut identities = Vec::new();
        for file in [files.kernel.as_fd(), files.initramfs.as_fd()] {
            let stat = fstat(file)?;
            identities.push([
                i128::from(stat.st_dev),
                i128::from(stat.st_ino),
                i128::from(stat.st_size),
                i128::from(stat.st_mtime),
                i128::from(stat.st_mtime_nsec),
                i128::from(stat.st_ctime),
                i128::from(stat.st_ctime_nsec),
            ]);
        }
        identities.push(identity(&fs::metadata(config.vmm())?));
        let Shape {
            memory_mib,
            max_memory_mib,
            max_vcpus,
        } = order.shape;
        let text = format!(
            "{VERSION} {identities:?} {:?} {memory_mib} {max_memory_mib} {max_vcpus} {} {:?}",
            processor(),
            config.console(),
            order.namespace,
        );
        let mut name = String::new();
        for byte in Sha256::digest(text) {
            // Writing to a string doesn't fail.
            let _ = write!(name, "{byte:02x}");
        }
        Ok(Self(name))
    }

    /// The key of this name, if it is one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (name.len() == 64 && digits).then(|| Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn identity(file: &Metadata) -> [i128; 7] {
    [
        file.dev().into(),
        file.ino().into(),
        file.size().into(),
        file.mtime().into(),
        file.mtime_nsec().into(),
        file.ctime().into(),
        file.ctime_nsec().into(),
    ]
}

/// Vendor, model and features as CPUID has them; the monitor compares everything that the guest sees.
fn processor() -> Vec<[u32; 4]> {
    use std::arch::x86_64::__cpuid_count;
    [(0, 0), (1, 0), (7, 0), (7, 1), (0x8000_0001, 0), (0x8000_0008, 0)]
        .into_iter()
        .map(|(leaf, index)| {
            let result = __cpuid_count(leaf, index);
            // Of leaf 1, EBX names the processor that this happens to run on.
            [
                result.eax,
                if leaf == 1 { 0 } else { result.ebx },
                result.ecx,
                result.edx,
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, path::Path};

    use super::*;

    fn order() -> Order {
        Order {
            shape: Shape {
                memory_mib: 512,
                max_memory_mib: 512,
                max_vcpus: 4,
            },
            namespace: None,
        }
    }

    #[test]
    fn whatever_a_template_depends_on_is_in_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["kernel", "initramfs", "vmm"] {
            fs::write(path(name), name).unwrap();
        }
        let config = |more: &str| {
            let text = format!("vmm = {:?}\n{more}", path("vmm"));
            Config::parse(&text, Path::new("config.toml"), Path::new("/usr")).unwrap()
        };
        let of = |config: &Config, order: &Order| {
            let open = |name| File::open(path(name)).unwrap().into();
            let files = HostFiles {
                kvm: open("vmm"),
                kernel: open("kernel"),
                initramfs: open("initramfs"),
            };
            Key::of(config, &files, order).unwrap()
        };
        let first = of(&config(""), &order());
        assert_eq!(of(&config(""), &order()), first);
        assert_eq!(Key::parse(first.as_str()), Some(first.clone()));
        let mut others = vec![of(&config("console = true"), &order())];
        let changes: [fn(&mut Order); 4] = [
            |order| order.shape.memory_mib = 256,
            |order| order.shape.max_memory_mib = 1024,
            |order| order.shape.max_vcpus = 5,
            |order| order.namespace = Some("a".to_owned()),
        ];
        for change in changes {
            let mut other = order();
            change(&mut other);
            others.push(of(&config(""), &other));
        }
        for name in ["kernel", "initramfs", "vmm"] {
            fs::write(path(name), format!("another {name}")).unwrap();
            others.push(of(&config(""), &order()));
        }
        others.push(first);
        let count = others.len();
        others.sort();
        others.dedup();
        assert_eq!(others.len(), count);
    }

    #[test]
    fn only_a_key_is_one() {
        for name in [
            "",
            ".new-1",
            "..",
            &"a".repeat(63),
            &"A".repeat(64),
            &"a/".repeat(32),
        ] {
            assert_eq!(Key::parse(name), None, "{name}");
        }
    }
}
