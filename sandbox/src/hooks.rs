//! Hooks that are run on the host (config.md, "POSIX-platform Hooks"): `prestart`, `createRuntime`, `poststart` and
//! `poststop`. `createContainer` and `startContainer` belong to the container's namespaces and stay in the specification:
//! the agent runs them.
//!
//! A hook gets the container's state on standard input. The process in it is the pod's machine monitor, in which the
//! container's processes run as far as the host can see.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::Command,
    time::sleep,
};

use crate::{
    agent::printable,
    error::line,
    process,
    spec::{self, invalid},
};

/// The end of a hook's output that is kept for its error, in bytes.
const MAX_OUTPUT: usize = 4096;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be run.
    #[error("{field}: cannot run {}", path.display())]
    Run {
        /// Its place in the specification.
        field: String,
        /// Its program.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{field}: {} failed ({}){}", path.display(), process::describe(*status), said(output))]
    Failed {
        /// Its place in the specification.
        field: String,
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it has written.
        output: String,
    },
    /// It took longer than it may.
    #[error(
        "{field}: {} was killed, for it took longer than its timeout of {} s{}",
        path.display(), timeout.as_secs(), said(output)
    )]
    Timeout {
        /// Its place in the specification.
        field: String,
        /// Its program.
        path: PathBuf,
        /// How long it had.
        timeout: Duration,
        /// The end of what it has written.
        output: String,
    },
}

fn said(output: &str) -> String {
    if output.is_empty() {
        String::new()
    } else {
        format!(": {output}")
    }
}

/// A hook as the specification has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    timeout: Option<u64>,
}

#[derive(Clone, Debug)]
struct Hook {
    /// Its place in the specification.
    field: String,
    path: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    timeout: Option<Duration>,
}

/// A container's hooks on the host; none by default.
#[derive(Clone, Debug, Default)]
pub struct Hooks {
    /// `prestart`, then `createRuntime`.
    create: Vec<Hook>,
    start: Vec<Hook>,
    stop: Vec<Hook>,
    bundle: PathBuf,
    /// The state (runtime.md, "State") but for what changes.
    state: Map<String, Value>,
}

impl Hooks {
    /// Takes them out of the specification of the container `id`. What is the agent's stays.
    ///
    /// # Errors
    /// One isn't as the specification has it; its field is named.
    pub fn take(spec: &mut Value, id: &str, bundle: &Path) -> Result<Self, spec::Error> {
        let mut taken = |kind: &str| match spec.get_mut("hooks").and_then(Value::as_object_mut) {
            Some(hooks) => parse(kind, hooks.remove(kind)),
            None => Ok(Vec::new()),
        };
        let mut create = taken("prestart")?;
        create.extend(taken("createRuntime")?);
        let (start, stop) = (taken("poststart")?, taken("poststop")?);
        if let Some(hooks) = spec.get_mut("hooks").and_then(Value::as_object_mut) {
            hooks.retain(|_, list| !list.is_null() && list.as_array().is_none_or(|list| !list.is_empty()));
        }
        let left = spec.get("hooks").and_then(Value::as_object).map(Map::len);
        if left == Some(0)
            && let Some(spec) = spec.as_object_mut()
        {
            spec.remove("hooks");
        }
        let mut state = Map::new();
        let version = spec.get("ociVersion").cloned();
        state.insert("ociVersion".to_owned(), version.unwrap_or_else(|| "1.0.0".into()));
        state.insert("id".to_owned(), id.into());
        state.insert("bundle".to_owned(), bundle.to_string_lossy().into());
        if let Some(annotations) = spec.get("annotations").filter(|value| value.is_object()) {
            state.insert("annotations".to_owned(), annotations.clone());
        }
        Ok(Self {
            create,
            start,
            stop,
            bundle: bundle.to_owned(),
            state,
        })
    }

    /// Runs `prestart` and `createRuntime` of a container that is being created in the machine of process `pid`. The first
    /// that fails is the last. From now on `poststop` is owed.
    ///
    /// # Errors
    /// That one's; or it can't be written down that `poststop` is owed.
    pub async fn create(&self, pid: u32) -> Result<(), Error> {
        if let Some(first) = self.stop.first() {
            fs::write(self.marker(), "").map_err(|source| Error::Run {
                field: first.field.clone(),
                path: first.path.clone(),
                source,
            })?;
        }
        let state = self.state("creating", Some(pid));
        for hook in &self.create {
            hook.run(&state, &self.bundle).await?;
        }
        Ok(())
    }

    /// Runs `poststart` of a container that has been started. Failures are logged.
    pub async fn started(&self, pid: u32) {
        self.run_all(&self.start, "running", Some(pid)).await;
    }

    /// Runs `poststop` of a container that is gone, unless somebody has already. Failures are logged.
    pub async fn stopped(&self) {
        if fs::remove_file(self.marker()).is_ok() {
            self.run_all(&self.stop, "stopped", None).await;
        }
    }

    /// Whether `poststop` has still to be run.
    #[must_use]
    pub fn owes_poststop(&self) -> bool {
        self.marker().exists()
    }

    /// A file that is there while `poststop` is owed: who removes it runs them, the shim or, after its crash, `delete`.
    fn marker(&self) -> PathBuf {
        self.bundle.join("poststop-owed")
    }

    async fn run_all(&self, hooks: &[Hook], status: &str, pid: Option<u32>) {
        let state = self.state(status, pid);
        for hook in hooks {
            if let Err(error) = hook.run(&state, &self.bundle).await {
                tracing::warn!(error = line(&error), "a hook failed");
            }
        }
    }

    fn state(&self, status: &str, pid: Option<u32>) -> Vec<u8> {
        let mut state = self.state.clone();
        state.insert("status".to_owned(), status.into());
        if let Some(pid) = pid {
            state.insert("pid".to_owned(), pid.into());
        }
        Value::Object(state).to_string().into_bytes()
    }
}

fn parse(kind: &str, hooks: Option<Value>) -> Result<Vec<Hook>, spec::Error> {
    let list = match hooks {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(invalid(format!("hooks.{kind}"), "not a list")),
    };
    list.into_iter()
        .enumerate()
        .map(|(index, entry)| {
            let field = format!("hooks.{kind}[{index}]");
            let entry: Entry = serde_json::from_value(entry)
                .map_err(|_| invalid(field.clone(), "not an object of path, args, env and timeout"))?;
            if !entry.path.is_absolute() {
                return Err(invalid(format!("{field}.path"), "not an absolute path"));
            }
            if entry.timeout == Some(0) {
                return Err(invalid(
                    format!("{field}.timeout"),
                    "not a positive number of seconds",
                ));
            }
            let args = entry.args.unwrap_or_default();
            let mut env = Vec::new();
            for variable in entry.env.unwrap_or_default() {
                match variable.split_once('=') {
                    Some((name, value)) if !name.is_empty() => env.push((name.to_owned(), value.to_owned())),
                    _ => return Err(invalid(format!("{field}.env"), "not a list of NAME=VALUE")),
                }
            }
            Ok(Hook {
                field,
                path: entry.path,
                args,
                env,
                timeout: entry.timeout.map(Duration::from_secs),
            })
        })
        .collect()
}

impl Hook {
    /// Runs it to its end, with `state` on standard input and nothing of this process's environment.
    async fn run(&self, state: &[u8], bundle: &Path) -> Result<(), Error> {
        let failed = |source| Error::Run {
            field: self.field.clone(),
            path: self.path.clone(),
            source,
        };
        let (reader, writer) = io::pipe().map_err(failed)?;
        let mut command = Command::new(&self.path);
        command
            .args(self.args.iter().skip(1))
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(bundle)
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .kill_on_drop(true);
        if let Some(name) = self.args.first() {
            command.arg0(name);
        }
        let mut child = command.spawn().map_err(failed)?;
        // It holds our copies of the writing end.
        drop(command);
        let mut stdin = child.stdin.take();
        let mut output = pipe::Receiver::from_owned_fd(reader.into()).map_err(failed)?;
        let mut tail = Tail::default();
        let mut told = 0;
        let mut buffer = [0; 4096];
        let mut open = true;
        let mut deadline = pin!(async {
            match self.timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        });
        let status = loop {
            tokio::select! {
                status = child.wait() => break Some(status.map_err(failed)?),
                () = &mut deadline => break None,
                read = output.read(&mut buffer), if open => match read {
                    Ok(length) if length > 0 => tail.add(&buffer[..length]),
                    _ => open = false,
                },
                written = write(&mut stdin, &state[told..]), if stdin.is_some() => {
                    told += written;
                    // A hook need not read what it is told.
                    if written == 0 || told == state.len() {
                        stdin = None;
                    }
                },
            }
        };
        if status.is_none() {
            child.kill().await.map_err(failed)?;
        }
        // What it wrote is there; whoever it left behind may hold the pipe open for ever.
        while let Ok(length @ 1..) = output.try_read(&mut buffer) {
            if !tail.add_last(&buffer[..length]) {
                break;
            }
        }
        let (field, path, output) = (self.field.clone(), self.path.clone(), tail.text());
        match (status, self.timeout) {
            (Some(status), _) if status.success() => Ok(()),
            (Some(status), _) => Err(Error::Failed {
                field,
                path,
                status,
                output,
            }),
            (None, timeout) => Err(Error::Timeout {
                field,
                path,
                timeout: timeout.unwrap_or_default(),
                output,
            }),
        }
    }
}

/// Writes some of `bytes`, and returns how many; 0 when nobody reads.
async fn write(stdin: &mut Option<tokio::process::ChildStdin>, bytes: &[u8]) -> usize {
    match stdin {
        Some(stdin) => stdin.write(bytes).await.unwrap_or(0),
        None => 0,
    }
}

/// The end of a hook's output.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    last: usize,
}

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(MAX_OUTPUT);
        self.bytes.drain(..excess);
    }

    /// Adds what is found after the hook's end; false once that is more than a pipe holds.
    fn add_last(&mut self, bytes: &[u8]) -> bool {
        self.add(bytes);
        self.last += bytes.len();
        self.last < 1 << 20
    }

    fn text(&self) -> String {
        printable(&String::from_utf8_lossy(&self.bytes), MAX_OUTPUT)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn hooks(hooks: Value, bundle: &Path) -> Hooks {
        let mut spec = json!({"ociVersion": "1.2.0", "annotations": {"a": "b"}, "hooks": hooks});
        let taken = Hooks::take(&mut spec, "c1", bundle).unwrap();
        assert!(spec.get("hooks").is_none());
        taken
    }

    fn shell(script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["hook", "-c", script], "env": ["COLOUR=green"]})
    }

    #[test]
    fn a_hook_is_told_the_state_and_has_its_own_environment_alone() {
        let top = tempfile::tempdir().unwrap();
        let hooks = hooks(
            json!({
                "prestart": [shell("cat > first")],
                "createRuntime": [shell("test -e first && /usr/bin/env > environment && echo $0 > name")],
                "poststart": [shell("cat > started")],
                "poststop": [shell("cat > stopped")],
            }),
            top.path(),
        );
        run(async {
            hooks.create(17).await.unwrap();
            hooks.started(17).await;
            hooks.stopped().await;
        });
        let read = |name: &str| fs::read_to_string(top.path().join(name)).unwrap();
        let state = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
        let bundle = top.path().to_str().unwrap();
        assert_eq!(
            state("first"),
            json!({"ociVersion": "1.2.0", "id": "c1", "status": "creating", "pid": 17, "bundle": bundle,
                "annotations": {"a": "b"}})
        );
        assert_eq!(state("started")["status"], "running");
        assert_eq!(state("stopped")["status"], "stopped");
        assert!(state("stopped").get("pid").is_none());
        let environment = read("environment");
        // What a shell adds by itself.
        assert!(
            environment
                .lines()
                .all(|line| ["COLOUR=green", "PWD=", "SHLVL=", "_=", "OLDPWD"]
                    .iter()
                    .any(|known| line.starts_with(known))),
            "{environment}"
        );
        assert!(environment.contains("COLOUR=green"));
        assert_eq!(read("name"), "hook\n");
    }

    #[test]
    fn a_failing_hook_is_named_with_its_output_and_the_next_is_not_run() {
        let top = tempfile::tempdir().unwrap();
        let hooks = hooks(
            json!({
                "prestart": [shell("true"), shell("yes | head -c 100000 >&2; echo the reason; exit 3")],
                "createRuntime": [shell("touch never")],
                "poststop": [shell("exit 1"), shell("touch after")],
            }),
            top.path(),
        );
        let error = run(hooks.create(1)).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("hooks.prestart[1]: /bin/sh failed ("), "{text}");
        assert!(text.ends_with("the reason") && text.len() < 5000, "{text}");
        assert!(!top.path().join("never").exists());
        // After the container's end a failure keeps no other from being run, and nothing is run twice.
        assert!(hooks.owes_poststop());
        run(hooks.stopped());
        fs::remove_file(top.path().join("after")).unwrap();
        assert!(!hooks.owes_poststop());
        run(hooks.stopped());
        assert!(!top.path().join("after").exists());
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let top = tempfile::tempdir().unwrap();
        let slow = json!({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1});
        let hooks = hooks(json!({"createRuntime": [slow]}), top.path());
        let begin = Instant::now();
        let error = run(hooks.create(1)).unwrap_err().to_string();
        assert!(
            error.contains("hooks.createRuntime[0]: /bin/sleep was killed")
                && error.contains("timeout of 1 s"),
            "{error}"
        );
        assert!(begin.elapsed() < Duration::from_secs(500));
    }

    #[test]
    fn neither_a_daemon_nor_a_deaf_hook_holds_things_up() {
        let top = tempfile::tempdir().unwrap();
        let mut spec = json!({"annotations": {"large": "x".repeat(1 << 20)},
            "hooks": {"prestart": [shell("sleep 1000 & echo $! > daemon")]}});
        let hooks = Hooks::take(&mut spec, "c1", top.path()).unwrap();
        run(hooks.create(1)).unwrap();
        let pid = fs::read_to_string(top.path().join("daemon")).unwrap();
        std::process::Command::new("kill")
            .arg(pid.trim())
            .status()
            .unwrap();
    }

    #[test]
    fn what_is_no_hook_is_refused_by_name_and_what_is_the_agents_stays() {
        for (hooks, expected) in [
            (json!({"prestart": 3}), "hooks.prestart: not a list"),
            (
                json!({"poststop": [{"args": []}]}),
                "hooks.poststop[0]: not an object",
            ),
            (
                json!({"poststart": [{"path": "bin/x"}]}),
                "hooks.poststart[0].path: not an absolute",
            ),
            (
                json!({"createRuntime": [{"path": "/x", "timeout": 0}]}),
                "hooks.createRuntime[0].timeout: ",
            ),
            (
                json!({"createRuntime": [{"path": "/x", "env": ["HOME"]}]}),
                "hooks.createRuntime[0].env: ",
            ),
        ] {
            let error = Hooks::take(&mut json!({"hooks": hooks}), "c1", Path::new("/b")).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
        let mut spec = json!({"hooks": {"createContainer": [{"path": "/x"}], "prestart": []}});
        Hooks::take(&mut spec, "c1", Path::new("/b")).unwrap();
        assert_eq!(spec["hooks"], json!({"createContainer": [{"path": "/x"}]}));
    }
}
