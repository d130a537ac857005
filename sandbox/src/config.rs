//! The configuration file: read, parsed, and made into a type that cannot be wrong.
//!
//! Every key and its default is explained in the installed `etc/sealock/config.toml`.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use crate::template::Scope;

/// Where the configuration is read from, unless [`ENVIRONMENT`] says otherwise.
pub const DEFAULT_FILE: &str = "/etc/sealock/config.toml";

/// Where the state of pods is kept, unless the configuration says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/run/sealock";

/// The environment variable that names another configuration file.
pub const ENVIRONMENT: &str = "SEALOCK_CONFIG";

/// The smallest machine that the guest kernel and the agent are fit to run in, in MiB.
pub const MIN_MEMORY_MIB: u32 = 64;

/// The largest configuration file, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// The most virtual CPUs a machine can have.
pub const MAX_VCPUS: u8 = 32;

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is there but can't be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A line of it is not acceptable.
    #[error("{}:{line}: {problem}; {remedy}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, beginning with the key where there is one.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The program's own place can't be found, and so nor what is installed beside it.
    #[error("cannot tell where this program is installed (/proc/self/exe)")]
    Prefix(#[source] io::Error),
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures only.
    Error,
    /// And what is odd.
    Warn,
    /// And the steps of a pod's life.
    Info,
    /// And every request.
    Debug,
}

/// Whether the kernel's own virtio-net back end is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VhostNet {
    /// Where the host has it.
    Auto,
    /// Never.
    Off,
}

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    kernel: PathBuf,
    initramfs: PathBuf,
    vmm: PathBuf,
    fsd: PathBuf,
    memory_mib: u32,
    max_memory_mib: u32,
    vcpus: u8,
    max_vcpus: u8,
    console: bool,
    agent_timeout: Duration,
    uid_base: u32,
    uid_count: u32,
    state_dir: PathBuf,
    vhost_net: bool,
    templates: Scope,
    log_level: LogLevel,
}

/// The file as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    kernel: Option<Spanned<PathBuf>>,
    initramfs: Option<Spanned<PathBuf>>,
    vmm: Option<Spanned<PathBuf>>,
    fsd: Option<Spanned<PathBuf>>,
    memory_mib: Option<Spanned<u32>>,
    max_memory_mib: Option<Spanned<u32>>,
    vcpus: Option<Spanned<u8>>,
    max_vcpus: Option<Spanned<u8>>,
    console: Option<bool>,
    agent_timeout_ms: Option<Spanned<u32>>,
    uid_base: Option<Spanned<u32>>,
    uid_count: Option<Spanned<u32>>,
    state_dir: Option<Spanned<PathBuf>>,
    vhost_net: Option<VhostNet>,
    templates: Option<Scope>,
    log_level: Option<LogLevel>,
}

impl Config {
    /// Reads the file that the environment names, or else the default one. Without a file every key has its default.
    ///
    /// # Errors
    /// One line that names file, line, key and remedy.
    pub fn load() -> Result<Self, Error> {
        let file = std::env::var_os(ENVIRONMENT).map_or_else(|| PathBuf::from(DEFAULT_FILE), PathBuf::from);
        let program = std::env::current_exe().map_err(Error::Prefix)?;
        Self::read(&file, &prefix_of(&program))
    }

    /// Reads `file`; what it doesn't name is expected below `prefix`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn read(file: &Path, prefix: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read {
            file: file.to_owned(),
            source,
        };
        let text = match File::open(file) {
            Ok(open) => {
                let mut text = String::new();
                open.take(MAX_FILE + 1).read_to_string(&mut text).map_err(read)?;
                if text.len() as u64 > MAX_FILE {
                    return Err(read(io::Error::other(format!(
                        "it is larger than {MAX_FILE} bytes"
                    ))));
                }
                text
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(read(error)),
        };
        Self::parse(&text, file, prefix)
    }

    /// Parses `text`, which is `file`'s.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &Path, prefix: &Path) -> Result<Self, Error> {
        let lines = Lines { text, file };
        let written: Written = toml::from_str(text).map_err(|error| lines.syntax(&error))?;
        let path = |key: &str, value: Option<Spanned<PathBuf>>, default: PathBuf| match value {
            None => Ok(default),
            Some(value) if value.get_ref().is_absolute() => Ok(value.into_inner()),
            Some(value) => Err(lines.value(key, &value.span(), "not an absolute path", "give the full path")),
        };
        let vcpus = |key: &str, value: Option<Spanned<u8>>, default: u8| match value {
            Some(value) if !(default..=MAX_VCPUS).contains(value.get_ref()) => Err(lines.value(
                key,
                &value.span(),
                &format!("{} is out of range", value.get_ref()),
                &format!("use {default} to {MAX_VCPUS}"),
            )),
            value => Ok(value.map_or(default, Spanned::into_inner)),
        };
        let at_least =
            |key: &str, value: Option<Spanned<u32>>, default: u32, least: u32, most: u32| match value {
                Some(value) if !(least..=most).contains(value.get_ref()) => Err(lines.value(
                    key,
                    &value.span(),
                    &format!("{} is out of range", value.get_ref()),
                    &format!("use {least} to {most}"),
                )),
                value => Ok(value.map_or(default, Spanned::into_inner)),
            };
        let libexec = prefix.join("libexec/sealock");
        let share = prefix.join("share/sealock");
        Ok(Self {
            kernel: path("kernel", written.kernel, share.join("vmlinux"))?,
            initramfs: path("initramfs", written.initramfs, share.join("initramfs"))?,
            vmm: path("vmm", written.vmm, libexec.join("sealock-vmm"))?,
            fsd: path("fsd", written.fsd, libexec.join("sealock-fsd"))?,
            memory_mib: at_least("memory_mib", written.memory_mib, 512, MIN_MEMORY_MIB, 1 << 24)?,
            max_memory_mib: at_least("max_memory_mib", written.max_memory_mib, 0, 0, 1 << 24)?,
            vcpus: vcpus("vcpus", written.vcpus, 1)?,
            max_vcpus: vcpus("max_vcpus", written.max_vcpus, 0)?,
            console: written.console.unwrap_or(false),
            agent_timeout: Duration::from_millis(
                at_least(
                    "agent_timeout_ms",
                    written.agent_timeout_ms,
                    30_000,
                    100,
                    3_600_000,
                )?
                .into(),
            ),
            uid_base: at_least("uid_base", written.uid_base, 0x7000_0000, 1000, 0xfff0_0000)?,
            uid_count: at_least("uid_count", written.uid_count, 65_536, 1, 1 << 20)?,
            state_dir: path("state_dir", written.state_dir, PathBuf::from(DEFAULT_STATE_DIR))?,
            vhost_net: written.vhost_net != Some(VhostNet::Off),
            templates: written.templates.unwrap_or(Scope::Node),
            log_level: written.log_level.unwrap_or(LogLevel::Info),
        })
    }

    /// The guest's kernel, an ELF `vmlinux`.
    #[must_use]
    pub fn kernel(&self) -> &Path {
        &self.kernel
    }

    /// The guest's initramfs, which holds the agent.
    #[must_use]
    pub fn initramfs(&self) -> &Path {
        &self.initramfs
    }

    /// The virtual machine monitor.
    #[must_use]
    pub fn vmm(&self) -> &Path {
        &self.vmm
    }

    /// The file server.
    #[must_use]
    pub fn fsd(&self) -> &Path {
        &self.fsd
    }

    /// A machine's memory when nothing more is asked for, in MiB, at least [`MIN_MEMORY_MIB`].
    #[must_use]
    pub fn memory_mib(&self) -> u32 {
        self.memory_mib
    }

    /// What a machine's memory can grow to, in MiB; 0 stands for what it starts with.
    #[must_use]
    pub fn max_memory_mib(&self) -> u32 {
        self.max_memory_mib
    }

    /// What a machine's virtual CPUs can become, at most [`MAX_VCPUS`]; 0 stands for the host's.
    #[must_use]
    pub fn max_vcpus(&self) -> u8 {
        self.max_vcpus
    }

    /// A machine's virtual CPUs when nothing more is asked for, 1 to [`MAX_VCPUS`].
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        self.vcpus
    }

    /// Whether guest kernels log everything to their serial console.
    #[must_use]
    pub fn console(&self) -> bool {
        self.console
    }

    /// How long an agent may take for its hello, and later for an answer.
    #[must_use]
    pub fn agent_timeout(&self) -> Duration {
        self.agent_timeout
    }

    /// The users that virtual machine monitors run as, one each.
    #[must_use]
    pub fn uids(&self) -> Range<u32> {
        // Their bounds keep the sum below 2^32.
        self.uid_base..self.uid_base + self.uid_count
    }

    /// Where the state of pods is kept.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Whether the kernel's own virtio-net back end (`/dev/vhost-net`) is used where the host has it.
    #[must_use]
    pub fn vhost_net(&self) -> bool {
        self.vhost_net
    }

    /// Who shares a template.
    #[must_use]
    pub fn templates(&self) -> Scope {
        self.templates
    }

    /// How much is logged.
    #[must_use]
    pub fn log_level(&self) -> LogLevel {
        self.log_level
    }
}

/// The prefix of a program installed as `<prefix>/bin/<program>`.
fn prefix_of(program: &Path) -> PathBuf {
    program
        .parent()
        .and_then(Path::parent)
        .map_or_else(|| PathBuf::from("/usr/local"), Path::to_owned)
}

/// Tells where in the file something is wrong.
struct Lines<'a> {
    text: &'a str,
    file: &'a Path,
}

impl Lines<'_> {
    fn value(&self, key: &str, span: &Range<usize>, problem: &str, remedy: &str) -> Error {
        Error::Line {
            file: self.file.to_owned(),
            line: self.number(span.start),
            problem: format!("{key}: {problem}"),
            remedy: format!("{remedy}, or remove the line for the default"),
        }
    }

    fn syntax(&self, error: &toml::de::Error) -> Error {
        let start = error.span().map_or(0, |span| span.start);
        let line = self.number(start);
        let text = self.text.lines().nth(line - 1).unwrap_or_default();
        let message = error.message().replace('\n', ", ");
        let unknown = message.starts_with("unknown field");
        let problem = match text.split_once('=') {
            Some((key, _)) if !unknown => format!("{}: {message}", key.trim()),
            _ => message,
        };
        let remedy = if unknown {
            "correct the key's name or remove the line"
        } else {
            "correct the line, or remove it for the default"
        };
        Error::Line {
            file: self.file.to_owned(),
            line,
            problem,
            remedy: remedy.to_owned(),
        }
    }

    fn number(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        before.iter().filter(|&&byte| byte == b'\n').count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(
            text,
            Path::new("/etc/sealock/config.toml"),
            Path::new("/usr/local"),
        )
    }

    fn problem(text: &str) -> String {
        let line = parse(text).unwrap_err().to_string();
        assert!(!line.contains('\n'), "{line:?} is more than one line");
        assert!(line.starts_with("/etc/sealock/config.toml:"), "{line}");
        line
    }

    #[test]
    fn a_missing_file_means_the_defaults() {
        let config = Config::read(Path::new("/nonexistent/sealock.toml"), Path::new("/opt/sealock")).unwrap();
        assert_eq!(config.kernel(), Path::new("/opt/sealock/share/sealock/vmlinux"));
        assert_eq!(
            config.initramfs(),
            Path::new("/opt/sealock/share/sealock/initramfs")
        );
        assert_eq!(
            config.vmm(),
            Path::new("/opt/sealock/libexec/sealock/sealock-vmm")
        );
        assert_eq!(
            config.fsd(),
            Path::new("/opt/sealock/libexec/sealock/sealock-fsd")
        );
        assert_eq!((config.memory_mib(), config.vcpus()), (512, 1));
        assert_eq!(config.agent_timeout(), Duration::from_secs(30));
        assert_eq!(config.state_dir(), Path::new("/run/sealock"));
    }

    #[test]
    fn the_documented_configuration_is_the_default_one() {
        let documented = include_str!("../../deploy/config.toml");
        assert_eq!(parse(documented).unwrap(), parse("").unwrap());
        // Every commented-out key is a real one with its default.
        let active: String = documented
            .lines()
            .map(|line| line.strip_prefix("#=").map_or(line, str::trim).to_owned() + "\n")
            .collect();
        assert_eq!(parse(&active).unwrap(), parse("").unwrap());
        for key in [
            "kernel",
            "initramfs",
            "vmm",
            "fsd",
            "memory_mib",
            "max_memory_mib",
            "vcpus",
            "max_vcpus",
            "console",
            "agent_timeout_ms",
            "uid_base",
            "uid_count",
            "state_dir",
            "vhost_net",
            "templates",
            "log_level",
        ] {
            assert!(active.contains(&format!("\n{key} = ")), "{key} is not documented");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let line = problem("memory_mib = 256\nmemroy = 3\n");
        assert!(line.contains(":2: unknown field `memroy`"), "{line}");
        assert!(line.contains("correct the key's name"), "{line}");
    }

    #[test]
    fn a_wrong_type_is_named_with_its_key_and_line() {
        let line = problem("\n\nvcpus = \"two\"\n");
        assert!(line.contains(":3: vcpus: invalid type: string \"two\""), "{line}");
    }

    #[test]
    fn an_unknown_log_level_lists_the_known_ones() {
        let line = problem("log_level = \"loud\"\n");
        assert!(line.contains(":1: log_level: unknown variant `loud`"), "{line}");
        assert!(line.contains("debug"), "{line}");
    }

    #[test]
    fn a_negative_number_is_refused() {
        assert!(problem("memory_mib = -1").contains(":1: memory_mib: "));
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_the_range() {
        for (text, expected) in [
            ("memory_mib = 63", "memory_mib: 63 is out of range; use 64 to"),
            ("vcpus = 0", "vcpus: 0 is out of range; use 1 to 32"),
            ("max_vcpus = 33", "max_vcpus: 33 is out of range; use 0 to 32"),
            ("vcpus = 33", "vcpus: 33 is out of range; use 1 to 32"),
            ("agent_timeout_ms = 0", "agent_timeout_ms: 0 is out of range"),
            ("uid_base = 0", "uid_base: 0 is out of range; use 1000 to"),
            ("uid_base = 4294967295", "uid_base: 4294967295 is out of range"),
            ("uid_count = 0", "uid_count: 0 is out of range"),
        ] {
            let line = problem(text);
            assert!(line.contains(expected), "{line}");
        }
    }

    #[test]
    fn a_relative_path_is_refused() {
        for key in ["kernel", "initramfs", "vmm", "fsd", "state_dir"] {
            let line = problem(&format!("{key} = \"here\""));
            assert!(
                line.contains(&format!(":1: {key}: not an absolute path")),
                "{line}"
            );
        }
    }

    #[test]
    fn broken_syntax_names_the_line() {
        assert!(problem("console = true\nvcpus = = 2\n").contains(":2: "));
        assert!(problem("vcpus = 1\nvcpus = 2\n").contains(":2: "));
    }
}
