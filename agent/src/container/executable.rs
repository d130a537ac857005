//! Finding the program to execute, in the words that callers of container runtimes know and look for.

use std::{
    ffi::{CString, OsStr},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{SFlag, stat},
    unistd::{AccessFlags, faccessat},
};

use super::failure::text;

/// Why a program can't be executed.
#[derive(Debug, thiserror::Error)]
pub enum ExecutableError {
    /// No directory of `$PATH` has it.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotFound(String),
    /// It was found by a relative directory of `$PATH`.
    #[error("exec: {0:?}: cannot run executable found relative to current directory")]
    Relative(String),
    /// There is nothing at its path.
    #[error("exec: {name:?}: stat {name}: {}", text(*error))]
    Stat {
        /// The path, as given.
        name: String,
        /// stat(2)'s answer.
        error: Errno,
    },
    /// It is there, but may not be executed.
    #[error("exec: {name:?}: {}", text(*error))]
    NotExecutable {
        /// The path, as given.
        name: String,
        /// Why not.
        error: Errno,
    },
    /// execve(2) refused it.
    #[error("exec {path}: {}", text(*error))]
    Execute {
        /// The program's path.
        path: String,
        /// Its answer.
        error: Errno,
    },
}

/// The path of the program that `name` stands for, with the environment's `PATH`, in the process's present root and with
/// its present rights.
///
/// # Errors
/// There is none that could be executed.
pub fn find(name: &str, env: &[String]) -> Result<CString, ExecutableError> {
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => c_path(Path::new(name), name),
            Err(Refusal::Stat(error)) => Err(ExecutableError::Stat {
                name: name.to_owned(),
                error,
            }),
            Err(Refusal::Access(error)) => Err(ExecutableError::NotExecutable {
                name: name.to_owned(),
                error,
            }),
        };
    }
    for directory in search_path(env).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let path: PathBuf = [OsStr::from_bytes(directory.as_bytes()), OsStr::new(name)]
            .iter()
            .collect();
        if check(&path).is_ok() {
            if path.is_relative() {
                return Err(ExecutableError::Relative(name.to_owned()));
            }
            return c_path(&path, name);
        }
    }
    Err(ExecutableError::NotFound(name.to_owned()))
}

/// The last `PATH` of an environment: the one that the program itself would see when variables are set one by one.
fn search_path(env: &[String]) -> &str {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default()
}

fn c_path(path: &Path, name: &str) -> Result<CString, ExecutableError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| ExecutableError::NotFound(name.to_owned()))
}

enum Refusal {
    Stat(Errno),
    Access(Errno),
}

fn check(path: &Path) -> Result<(), Refusal> {
    let status = stat(path).map_err(Refusal::Stat)?;
    if SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        return Err(Refusal::Access(Errno::EISDIR));
    }
    faccessat(nix::fcntl::AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(Refusal::Access)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use tempfile::TempDir;

    use super::*;

    fn env(directory: &TempDir) -> Vec<String> {
        vec![
            "PATH=/wrong".to_owned(),
            format!("PATH=/nonexistent:{}", directory.path().display()),
        ]
    }

    fn directory_with(name: &str, mode: u32) -> TempDir {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join(name);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        directory
    }

    #[test]
    fn a_name_is_looked_for_in_the_containers_path() {
        let directory = directory_with("tool", 0o755);
        assert_eq!(
            find("tool", &env(&directory)).unwrap().to_str().unwrap(),
            directory.path().join("tool").to_str().unwrap()
        );
    }

    #[test]
    fn each_failure_is_worded_as_users_know_it() {
        let directory = directory_with("data", 0o644);
        let data = directory.path().join("data").display().to_string();
        for (name, message) in [
            (
                "foo",
                r#"exec: "foo": executable file not found in $PATH"#.to_owned(),
            ),
            (
                "data",
                r#"exec: "data": executable file not found in $PATH"#.to_owned(),
            ),
            (
                "/foo/bar",
                r#"exec: "/foo/bar": stat /foo/bar: no such file or directory"#.to_owned(),
            ),
            ("/", r#"exec: "/": is a directory"#.to_owned()),
            (data.as_str(), format!(r#"exec: "{data}": permission denied"#)),
        ] {
            assert_eq!(find(name, &env(&directory)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn without_a_path_nothing_is_found_by_name() {
        assert!(matches!(find("sh", &[]), Err(ExecutableError::NotFound(_))));
    }
}
