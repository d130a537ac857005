//! A program that logs a container's output: containerd's `binary://` URIs.
//!
//! The program gets the standard output as descriptor 3, the standard error as 4, and closes 5 when it is ready. Its
//! arguments are the names and values of the URI's query, its environment is `CONTAINER_ID` and `CONTAINER_NAMESPACE`.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    time::timeout,
};

use crate::stdio::{Owner, set_nonblocking};

/// How long it may take to get ready.
const READY_DEADLINE: Duration = Duration::from_secs(10);

/// How long it may take to end after the output has, as containerd's own shim lets it.
const END_DEADLINE: Duration = Duration::from_secs(12);

/// Why output can't be logged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URI makes no sense.
    #[error("binary://{0} does not name a program by an absolute path")]
    Uri(String),
    /// The program can't be run.
    #[error("cannot run {}", program.display())]
    Run {
        /// Its path.
        program: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It didn't get ready.
    #[error("{} was not ready within {} s: it has to close descriptor 5", .0.display(), READY_DEADLINE.as_secs())]
    NotReady(PathBuf),
}

/// What a `binary://` URI asks for.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    path: PathBuf,
    arguments: Vec<String>,
}

impl Program {
    /// Parses what follows `binary://` (RFC 3986, 3.3 and 3.4).
    fn parse(uri: &str) -> Option<Self> {
        let uri = uri.split('#').next().unwrap_or_default();
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let path = PathBuf::from(decode(path, false)?);
        if !path.is_absolute() {
            return None;
        }
        let mut arguments = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            arguments.push(decode(name, true)?);
            if !value.is_empty() {
                arguments.push(decode(value, true)?);
            }
        }
        Some(Self { path, arguments })
    }
}

/// Undoes percent-encoding; in a query a plus sign stands for a space.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b'+' if query => b' ',
            other => other,
        });
    }
    // A zero can be in no argument.
    String::from_utf8(plain).ok().filter(|text| !text.contains('\0'))
}

/// A program that logs; killed when this is dropped.
#[derive(Debug)]
pub struct Logger {
    path: PathBuf,
    child: Child,
}

impl Logger {
    /// Starts the program and waits until it is ready. Returns where standard output and error are to be written.
    ///
    /// # Errors
    /// It can't be run, or doesn't get ready.
    pub async fn start(uri: &str, owner: Owner<'_>) -> Result<(Self, OwnedFd, OwnedFd), Error> {
        let program = Program::parse(uri).ok_or_else(|| Error::Uri(uri.chars().take(256).collect()))?;
        let failed = |source| Error::Run {
            program: program.path.clone(),
            source,
        };
        let null = File::open("/dev/null").map_err(failed)?;
        // The numbers that the program is to find are taken while the pipes are made, so that none of them has one.
        let taken = [null.try_clone(), null.try_clone(), null.try_clone()];
        let (stdout_there, stdout) = io::pipe().map_err(failed)?;
        let (stderr_there, stderr) = io::pipe().map_err(failed)?;
        let (ready, ready_there) = io::pipe().map_err(failed)?;
        let there: [OwnedFd; 3] = [stdout_there.into(), stderr_there.into(), ready_there.into()];
        let child = spawn(&program, owner, there).map_err(failed)?;
        drop(taken);
        let logger = Self {
            path: program.path.clone(),
            child,
        };
        let [stdout, stderr, ready] = [OwnedFd::from(stdout), stderr.into(), ready.into()];
        for end in [&stdout, &stderr, &ready] {
            set_nonblocking(end).map_err(failed)?;
        }
        let mut ready = pipe::Receiver::from_owned_fd(ready).map_err(failed)?;
        match timeout(READY_DEADLINE, ready.read(&mut [0; 1])).await {
            // A byte is as good as the end.
            Ok(Ok(_)) => Ok((logger, stdout, stderr)),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Error::NotReady(program.path)),
        }
    }

    /// Waits for it to end, now that nobody writes to it any longer; not for ever.
    pub async fn finish(mut self) {
        match timeout(END_DEADLINE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => tracing::warn!(program = %self.path.display(), %status, "a logger failed"),
            Ok(Err(error)) => {
                tracing::warn!(program = %self.path.display(), %error, "cannot wait for a logger")
            }
            Err(_) => {
                tracing::warn!(program = %self.path.display(), "a logger did not end with its input: it is killed");
                let _ = self.child.kill().await;
            }
        }
    }
}

/// Starts `program` with `there` as its descriptors 3, 4 and 5, which none of them is here.
fn spawn(program: &Program, owner: Owner<'_>, there: [OwnedFd; 3]) -> io::Result<Child> {
    let raw = there.each_ref().map(AsRawFd::as_raw_fd);
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // SAFETY: between fork and exec there is dup2 alone, on descriptors that are open in the parent until this returns.
    unsafe {
        command.pre_exec(move || {
            for (target, raw) in (3..).zip(raw) {
                if libc::dup2(raw, target) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::fs::PermissionsExt, path::Path};

    use super::*;

    #[test]
    fn a_uri_names_a_program_and_its_arguments() {
        let program = Program::parse("/usr/bin/log%20ger?--file=/tmp/a%26b&-v&x=1+2#fragment").unwrap();
        assert_eq!(program.path, Path::new("/usr/bin/log ger"));
        assert_eq!(program.arguments, ["--file", "/tmp/a&b", "-v", "x", "1 2"]);
        assert_eq!(Program::parse("/bin/true").unwrap().arguments, [""; 0]);
        for uri in ["logger", "", "host/bin/x", "/x%2", "/x%zz", "/x?a=%00"] {
            assert_eq!(Program::parse(uri), None, "{uri}");
        }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test);
    }

    fn script(directory: &Path, text: &str) -> String {
        let path = directory.join("logger");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    const OWNER: Owner<'_> = Owner {
        namespace: "ns",
        id: "c1",
    };

    #[test]
    fn both_streams_reach_the_program_with_its_arguments_and_environment() {
        let top = tempfile::tempdir().unwrap();
        let log = top.path().join("log");
        let uri = script(
            top.path(),
            "exec 5>&-; { echo \"$1 $2 $CONTAINER_NAMESPACE/$CONTAINER_ID\"; cat <&3; cat <&4; } > $2",
        );
        run(async {
            let uri = format!("{uri}?--to={}", log.display());
            let (logger, stdout, stderr) = Logger::start(&uri, OWNER).await.unwrap();
            File::from(stdout).write_all(b"out\n").unwrap();
            File::from(stderr).write_all(b"err\n").unwrap();
            logger.finish().await;
        });
        let expected = format!("--to {} ns/c1\nout\nerr\n", log.display());
        assert_eq!(fs::read_to_string(&log).unwrap(), expected);
    }

    #[test]
    fn a_program_that_is_missing_is_told() {
        run(async {
            let error = Logger::start("/nonexistent/logger", OWNER).await.unwrap_err();
            assert!(
                crate::error::line(&error).contains("/nonexistent/logger: No such file"),
                "{error}"
            );
        });
    }
}
