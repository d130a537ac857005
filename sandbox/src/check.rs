//! What a host must have: checked before a machine is started, each lack told in one line with its remedy.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use crate::config::Config;

/// What a host lacks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No KVM.
    #[error(
        "{} does not exist: load kvm-amd or kvm-intel, or enable virtualization in the firmware",
        .0.display()
    )]
    NoKvm(PathBuf),
    /// KVM, but not for this process.
    #[error("no permission to open {}: run containerd as root, outside of a container", .0.display())]
    KvmPermission(PathBuf),
    /// KVM's device can't be opened for another reason.
    #[error("cannot open {}", path.display())]
    Kvm {
        /// The device.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Not KVM's device.
    #[error("{} is not a character device: remove it and load kvm-amd or kvm-intel", .0.display())]
    NotKvm(PathBuf),
    /// The processor's features can't be read.
    #[error("cannot read the processor's features from {}", path.display())]
    Processor {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// KVM without hardware behind it.
    #[error(
        "the processor has no hardware virtualization ({} shows neither vmx nor svm): enable it in the firmware, or \
         nested virtualization if this host is a virtual machine",
        .0.display()
    )]
    NoVirtualization(PathBuf),
    /// A file of the guest can't be opened.
    #[error("cannot open {what} {}: reinstall Sealock or set `{key}` in its configuration", path.display())]
    Open {
        /// Which one.
        what: &'static str,
        /// Its key in the configuration.
        key: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file of the guest is too short to be one.
    #[error(
        "{what} {} is truncated ({size} bytes): reinstall Sealock or set `{key}` in its configuration",
        path.display()
    )]
    Truncated {
        /// Which one.
        what: &'static str,
        /// Its key in the configuration.
        key: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
    /// A file of the guest is a directory or so.
    #[error("{what} {} is not a regular file: set `{key}` in Sealock's configuration to one", path.display())]
    NotAFile {
        /// Which one.
        what: &'static str,
        /// Its key in the configuration.
        key: &'static str,
        /// Where it is.
        path: PathBuf,
    },
}

/// What a machine is made of, opened.
#[derive(Debug)]
pub struct HostFiles {
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// The guest's kernel.
    pub kernel: OwnedFd,
    /// The guest's initramfs.
    pub initramfs: OwnedFd,
}

/// Checks this host and opens what a machine needs. The monitor checks the files' contents.
///
/// # Errors
/// The first lack.
pub fn open(config: &Config) -> Result<HostFiles, Error> {
    let kvm = open_kvm(Path::new("/dev/kvm"))?;
    check_processor(Path::new("/proc/cpuinfo"))?;
    Ok(HostFiles {
        kvm,
        // An ELF header; a cpio header (newc).
        kernel: open_file("the guest's kernel", "kernel", config.kernel(), 64)?,
        initramfs: open_file("the guest's initramfs", "initramfs", config.initramfs(), 110)?,
    })
}

fn open_kvm(path: &Path) -> Result<OwnedFd, Error> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoKvm(path.to_owned()),
            io::ErrorKind::PermissionDenied => Error::KvmPermission(path.to_owned()),
            // ENXIO, ENODEV: a node without a driver behind it.
            _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
                Error::NoKvm(path.to_owned())
            }
            _ => Error::Kvm {
                path: path.to_owned(),
                source,
            },
        })?;
    let metadata = file.metadata().map_err(|source| Error::Kvm {
        path: path.to_owned(),
        source,
    })?;
    if !metadata.file_type().is_char_device() {
        return Err(Error::NotKvm(path.to_owned()));
    }
    Ok(file.into())
}

/// Looks at the first processor only: its features are within the file's first 8 KiB, and the file grows with the host.
fn check_processor(path: &Path) -> Result<(), Error> {
    let mut start = Vec::with_capacity(8192);
    File::open(path)
        .and_then(|file| file.take(8192).read_to_end(&mut start))
        .map_err(|source| Error::Processor {
            path: path.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&start);
    let capable = text
        .lines()
        .find_map(|line| line.strip_prefix("flags"))
        .is_some_and(|flags| {
            flags
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    if capable {
        Ok(())
    } else {
        Err(Error::NoVirtualization(path.to_owned()))
    }
}

fn open_file(what: &'static str, key: &'static str, path: &Path, least: u64) -> Result<OwnedFd, Error> {
    let failed = |source| Error::Open {
        what,
        key,
        path: path.to_owned(),
        source,
    };
    // Not to hang on a FIFO.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(Error::NotAFile {
            what,
            key,
            path: path.to_owned(),
        });
    }
    if metadata.len() < least {
        return Err(Error::Truncated {
            what,
            key,
            path: path.to_owned(),
            size: metadata.len(),
        });
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_missing_kvm_names_the_modules() {
        let error = open_kvm(Path::new("/nonexistent/kvm")).unwrap_err().to_string();
        assert_eq!(
            error,
            "/nonexistent/kvm does not exist: load kvm-amd or kvm-intel, or enable virtualization in the firmware"
        );
    }

    #[test]
    fn something_else_in_kvms_place_is_not_taken_for_it() {
        let file = write("");
        assert!(matches!(open_kvm(file.path()), Err(Error::NotKvm(_))));
    }

    #[test]
    fn either_vendors_virtualization_is_enough() {
        for flag in ["vmx", "svm"] {
            let file = write(&format!(
                "processor\t: 0\nflags\t\t: fpu {flag} sse\n\nprocessor\t: 1\n"
            ));
            check_processor(file.path()).unwrap();
        }
    }

    #[test]
    fn a_processor_without_virtualization_is_told() {
        // A feature of a similar name, and the word elsewhere, must not do.
        let file = write("model name\t: svm vmx\nflags\t\t: fpu vmx_like svme\n");
        let error = check_processor(file.path()).unwrap_err().to_string();
        assert!(error.contains("neither vmx nor svm"), "{error}");
        assert!(error.contains("firmware"), "{error}");
    }

    #[test]
    fn a_missing_kernel_names_its_key() {
        let error = open_file(
            "the guest's kernel",
            "kernel",
            Path::new("/nonexistent/vmlinux"),
            64,
        )
        .unwrap_err();
        let line = crate::error::line(&error);
        assert!(
            line.contains("/nonexistent/vmlinux") && line.contains("`kernel`"),
            "{line}"
        );
        assert!(line.contains("No such file"), "{line}");
    }

    #[test]
    fn a_truncated_kernel_is_told() {
        let file = write("short");
        let error = open_file("the guest's kernel", "kernel", file.path(), 64)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is truncated (5 bytes)"), "{error}");
    }

    #[test]
    fn a_directory_is_no_kernel() {
        let error = open_file("the guest's kernel", "kernel", Path::new("/"), 64)
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
