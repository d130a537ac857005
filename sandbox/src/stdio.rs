//! A container's standard streams on the host.
//!
//! Output goes from the monitor straight into the client's FIFO, by way of a pipe into a file, or into a program that logs
//! it ([`crate::logger`]). Of a terminal there is one stream of output. Input comes by way of a
//! pipe: the client's FIFO is opened for reading only when the container is started. A client that finds it open earlier
//! may have written everything, and so have reached its own input's end, before it knows the task that it then has to
//! tell of it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
};

use crate::{
    error::Kind,
    logger::{self, Logger},
    mount::open_path,
};

/// Why a stream can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be opened.
    #[error("{stream}: cannot open {path}")]
    Open {
        /// Which stream.
        stream: &'static str,
        /// Its path.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// It's neither a FIFO nor a file URI.
    #[error("{stream}: {path} is not a FIFO")]
    NotAFifo {
        /// Which stream.
        stream: &'static str,
        /// Its path.
        path: String,
    },
    /// A scheme that isn't supported.
    #[error("{stream}: {scheme}:// is not supported")]
    Scheme {
        /// Which stream.
        stream: &'static str,
        /// The scheme.
        scheme: String,
    },
    /// Two destinations where one program gets both streams.
    #[error("stderr: {stderr} is not stdout's {stdout}: one program logs both")]
    TwoLoggers {
        /// Standard output's.
        stdout: String,
        /// Standard error's.
        stderr: String,
    },
    /// The program that is to log the output can't be run.
    #[error("stdout")]
    Logger(#[from] logger::Error),
}

impl Error {
    /// What this means to a caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open { .. } | Self::NotAFifo { .. } | Self::TwoLoggers { .. } | Self::Logger(_) => {
                Kind::InvalidArgument
            }
            Self::Scheme { .. } => Kind::Unimplemented,
        }
    }
}

/// Whose streams they are, for a program that logs them.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container's identifier, or the exec's.
    pub id: &'a str,
}

/// Where the streams are, as containerd says it: a FIFO's path, a `fifo://`, `file://` or `binary://` URI, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether a terminal is asked for: then there is no standard error.
    pub terminal: bool,
}

/// The streams, opened. What is absent is `/dev/null` to the container.
#[derive(Debug, Default)]
pub struct Streams {
    /// What the monitor reads standard input from.
    pub stdin: Option<OwnedFd>,
    /// What feeds that, once the container is started.
    pub input: Option<Input>,
    /// What the monitor writes standard output to.
    pub stdout: Option<OwnedFd>,
    /// What the monitor writes standard error to.
    pub stderr: Option<OwnedFd>,
    /// What is to be copied into files meanwhile.
    pub copies: Vec<FileCopy>,
    /// The program that logs the output.
    pub logger: Option<Logger>,
}

impl Streams {
    /// Opens the streams, those of a program once it says that it is ready for them.
    ///
    /// # Errors
    /// The first that can't be.
    pub async fn open(paths: &Paths, owner: Owner<'_>) -> Result<Self, Error> {
        let mut streams = Self::default();
        if let Some(Place::Fifo(path)) = place("stdin", &paths.stdin)? {
            let failed = |source| Error::Open {
                stream: "stdin",
                path: path.to_owned(),
                source,
            };
            let fifo = find_fifo("stdin", path)?;
            let (from, to) = io::pipe().map_err(failed)?;
            let from = OwnedFd::from(from);
            set_nonblocking(&from).map_err(failed)?;
            streams.stdin = Some(from);
            streams.input = Some(Input { fifo, to: to.into() });
        } else if let Some((scheme, _)) = paths.stdin.split_once("://") {
            return Err(unsupported("stdin", scheme));
        }
        let stderr = if paths.terminal { "" } else { paths.stderr.as_str() };
        if let Some(Place::Program(uri)) = place("stdout", &paths.stdout)? {
            if !stderr.is_empty() && stderr != paths.stdout {
                return Err(Error::TwoLoggers {
                    stdout: paths.stdout.clone(),
                    stderr: stderr.to_owned(),
                });
            }
            let (logger, stdout, program_stderr) = Logger::start(uri, owner).await?;
            streams.stdout = Some(stdout);
            streams.stderr = (!paths.terminal).then_some(program_stderr);
            streams.logger = Some(logger);
        } else {
            streams.stdout = streams.open_output("stdout", &paths.stdout)?;
            streams.stderr = streams.open_output("stderr", stderr)?;
        }
        Ok(streams)
    }

    fn open_output(&mut self, stream: &'static str, path: &str) -> Result<Option<OwnedFd>, Error> {
        Ok(match place(stream, path)? {
            None => None,
            Some(Place::Program(_)) => return Err(unsupported(stream, "binary")),
            // For reading too: so that it outlives a reader who goes and comes back.
            Some(Place::Fifo(path)) => Some(open_fifo(
                stream,
                path,
                OpenOptions::new().read(true).write(true),
            )?),
            Some(Place::File(path)) => {
                let failed = |source| Error::Open {
                    stream,
                    path: path.to_owned(),
                    source,
                };
                if let Some(parent) = Path::new(path).parent() {
                    fs::create_dir_all(parent).map_err(failed)?;
                }
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o644)
                    .open(path)
                    .map_err(failed)?;
                let (from, to) = io::pipe().map_err(failed)?;
                let to = OwnedFd::from(to);
                set_nonblocking(&to).map_err(failed)?;
                self.copies.push(FileCopy {
                    from: from.into(),
                    to: file,
                });
                Some(to)
            }
        })
    }
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Fifo(&'a str),
    File(&'a str),
    /// What follows `binary://`.
    Program(&'a str),
}

fn place<'a>(stream: &'static str, path: &'a str) -> Result<Option<Place<'a>>, Error> {
    Ok(match path.split_once("://") {
        _ if path.is_empty() => None,
        Some(("fifo", path)) => Some(Place::Fifo(path)),
        Some(("file", path)) => Some(Place::File(path)),
        Some(("binary", program)) => Some(Place::Program(program)),
        Some((scheme, _)) => return Err(unsupported(stream, scheme)),
        None => Some(Place::Fifo(path)),
    })
}

fn unsupported(stream: &'static str, scheme: &str) -> Error {
    Error::Scheme {
        stream,
        scheme: scheme.chars().take(32).collect(),
    }
}

/// Finds a FIFO without opening it: opening a device may do something.
fn find_fifo(stream: &'static str, path: &str) -> Result<File, Error> {
    let failed = |source| Error::Open {
        stream,
        path: path.to_owned(),
        source,
    };
    let named = File::from(open_path(Path::new(path)).map_err(failed)?);
    if named.metadata().map_err(failed)?.file_type().is_fifo() {
        Ok(named)
    } else {
        Err(Error::NotAFifo {
            stream,
            path: path.to_owned(),
        })
    }
}

/// Opens the very FIFO that was found.
fn reopen(fifo: &File, options: &mut OpenOptions) -> io::Result<OwnedFd> {
    options
        .custom_flags(libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{}", fifo.as_raw_fd()))
        .map(OwnedFd::from)
}

fn open_fifo(stream: &'static str, path: &str, options: &mut OpenOptions) -> Result<OwnedFd, Error> {
    let fifo = find_fifo(stream, path)?;
    reopen(&fifo, options).map_err(|source| Error::Open {
        stream,
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Standard input, found and not opened yet.
#[derive(Debug)]
pub struct Input {
    fifo: File,
    to: OwnedFd,
}

impl Input {
    /// Opens the client's FIFO. Returns what feeds the container from now on, and what keeps its input from ending before
    /// the client has said that it is complete.
    ///
    /// # Errors
    /// It can't be opened. To be called within a runtime.
    pub fn open(self) -> io::Result<(Feed, OwnedFd)> {
        // The reader first: a writer that doesn't block needs one.
        let from = reopen(&self.fifo, OpenOptions::new().read(true))?;
        let writer = reopen(&self.fifo, OpenOptions::new().write(true))?;
        let feed = Feed {
            from: pipe::Receiver::from_owned_fd(from)?,
            to: pipe::Sender::from_owned_fd(self.to)?,
        };
        Ok((feed, writer))
    }
}

/// Feeds a container's standard input.
#[derive(Debug)]
pub struct Feed {
    from: pipe::Receiver,
    to: pipe::Sender,
}

impl Feed {
    /// Copies until the input ends or nobody reads it any longer.
    pub async fn run(mut self) {
        let mut buffer = vec![0; 4096];
        while let Ok(filled @ 1..) = self.from.read(&mut buffer).await {
            if self.to.write_all(&buffer[..filled]).await.is_err() {
                break;
            }
        }
    }
}

/// A stream that goes into a file: the monitor can't wait for a file to be ready, so it gets a pipe.
#[derive(Debug)]
pub struct FileCopy {
    from: OwnedFd,
    to: File,
}

impl FileCopy {
    /// Copies until the stream ends.
    ///
    /// # Errors
    /// The file can't be written.
    pub async fn run(mut self) -> io::Result<()> {
        let mut from = pipe::Receiver::from_owned_fd(self.from)?;
        let mut buffer = vec![0; 4096];
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok(()),
                filled => self.to.write_all(&buffer[..filled])?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn fifo(directory: &Path, name: &str) -> String {
        let path = directory.join(name);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        path.to_str().unwrap().to_owned()
    }

    async fn open(paths: Paths) -> Result<Streams, Error> {
        let owner = Owner {
            namespace: "ns",
            id: "c1",
        };
        Streams::open(&paths, owner).await
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn standard_input_ends_when_both_the_client_and_this_side_have_closed_it() {
        let top = tempfile::tempdir().unwrap();
        let stdin = fifo(top.path(), "stdin");
        run(async {
            let mut streams = open(Paths {
                stdin: stdin.clone(),
                ..Paths::default()
            })
            .await
            .unwrap();
            let mut monitor = pipe::Receiver::from_owned_fd(streams.stdin.take().unwrap()).unwrap();
            // No client can have found a reader yet.
            let early = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&stdin);
            assert_eq!(early.unwrap_err().raw_os_error(), Some(libc::ENXIO));

            let (feed, writer) = streams.input.take().unwrap().open().unwrap();
            let feed = tokio::spawn(feed.run());
            let mut client = OpenOptions::new().write(true).open(&stdin).unwrap();
            client.write_all(b"one").unwrap();
            drop(client);
            let mut buffer = [0; 8];
            assert_eq!(monitor.read(&mut buffer).await.unwrap(), 3);
            // Another client comes: the first one's end was not the input's.
            let mut client = OpenOptions::new().write(true).open(&stdin).unwrap();
            client.write_all(b"two!").unwrap();
            assert_eq!(monitor.read(&mut buffer).await.unwrap(), 4);
            drop(writer);
            client.write_all(b"three").unwrap();
            drop(client);
            assert_eq!(monitor.read(&mut buffer).await.unwrap(), 5);
            feed.await.unwrap();
            assert_eq!(monitor.read(&mut buffer).await.unwrap(), 0);
        });
    }

    #[test]
    fn output_survives_a_readers_absence() {
        let top = tempfile::tempdir().unwrap();
        let stdout = fifo(top.path(), "stdout");
        run(async {
            let streams = open(Paths {
                stdout: stdout.clone(),
                ..Paths::default()
            })
            .await
            .unwrap();
            let mut writer = File::from(streams.stdout.unwrap());
            writer.write_all(b"early").unwrap();
            let mut reader = OpenOptions::new().read(true).open(&stdout).unwrap();
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "early");
            assert!(streams.stderr.is_none() && streams.stdin.is_none());
        });
    }

    #[test]
    fn a_terminal_has_no_standard_error() {
        let top = tempfile::tempdir().unwrap();
        let stdout = fifo(top.path(), "stdout");
        run(async {
            let streams = open(Paths {
                stdout,
                stderr: "/nonexistent/fifo".to_owned(),
                terminal: true,
                ..Paths::default()
            })
            .await
            .unwrap();
            assert!(streams.stdout.is_some() && streams.stderr.is_none());
        });
    }

    #[test]
    fn a_file_is_appended_to() {
        let top = tempfile::tempdir().unwrap();
        let log = top.path().join("logs/out.log");
        fs::create_dir(log.parent().unwrap()).unwrap();
        fs::write(&log, "before\n").unwrap();
        run(async {
            let mut streams = open(Paths {
                stdout: format!("file://{}", log.display()),
                ..Paths::default()
            })
            .await
            .unwrap();
            let copy = tokio::spawn(streams.copies.remove(0).run());
            File::from(streams.stdout.take().unwrap())
                .write_all(b"after\n")
                .unwrap();
            copy.await.unwrap().unwrap();
        });
        assert_eq!(fs::read_to_string(log).unwrap(), "before\nafter\n");
    }

    #[test]
    fn what_can_be_no_stream_is_refused_by_name() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("file");
        fs::write(&file, "").unwrap();
        for (stdout, stderr, expected) in [
            (file.to_str().unwrap(), "", "is not a FIFO"),
            ("/dev/null", "", "stdout: /dev/null is not a FIFO"),
            ("/nonexistent/fifo", "", "stdout: cannot open /nonexistent/fifo"),
            ("tcp://127.0.0.1:7", "", "stdout: tcp:// is not supported"),
            ("", "binary:///bin/logger", "stderr: binary:// is not supported"),
            (
                "binary:///bin/one",
                "binary:///bin/two",
                "stderr: binary:///bin/two is not stdout's",
            ),
        ] {
            run(async {
                let paths = Paths {
                    stdout: stdout.to_owned(),
                    stderr: stderr.to_owned(),
                    ..Paths::default()
                };
                let error = open(paths).await.unwrap_err();
                assert!(error.to_string().contains(expected), "{error}");
            });
        }
    }
}
