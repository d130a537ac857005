//! `delete`: undoes what is left of a pod whose shim has crashed.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use containerd_shim_protos::{api::DeleteResponse, protobuf::Message};
use sealock_sandbox::{
    Config,
    config::DEFAULT_STATE_DIR,
    error::line,
    guest_process::KILLED,
    hooks::Hooks,
    membership::pod_of,
    process::monotonic_deadline,
    spec,
    state::{self, PodDir},
};

use crate::{address::Address, args::Args, status};

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An identifier isn't.
    #[error(transparent)]
    Name(#[from] state::Error),
    /// The pod can't be undone.
    #[error("cannot undo pod {0}")]
    Undo(String, #[source] io::Error),
    /// Standard output is closed.
    #[error("cannot answer containerd")]
    Answer(#[source] io::Error),
}

/// How long a shim may take to end in order; containerd waits five seconds for all of this.
const GRACE: Duration = Duration::from_secs(2);

/// How long a shim that doesn't answer may take to go away once it is killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Carries out `delete`.
///
/// # Errors
/// Something is left.
pub fn run(args: &Args) -> Result<(), Error> {
    let state_dir = match Config::load() {
        Ok(config) => config.state_dir().to_owned(),
        Err(error) => {
            // A mistake made since the pod was started must not keep it from being undone. containerd logs this.
            eprintln!("{}", line(&error));
            PathBuf::from(DEFAULT_STATE_DIR)
        }
    };
    let bundle = args.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    // Without a specification any longer it is a container by itself.
    let mut spec = spec::read(&bundle).unwrap_or_default();
    let pod = pod_of(&spec, &args.id).to_owned();
    let pid = undo(&state_dir, &args.namespace, &pod, &args.id)?;
    run_poststop_hooks(&mut spec, &args.id, &bundle);
    if let Some(address) = Address::of_bundle(&bundle).filter(|address| !address.answers()) {
        let _ = address.remove();
    }
    let mut response = DeleteResponse::new();
    response.pid = pid;
    response.exit_status = KILLED.into();
    response.exited_at = status::timestamp(SystemTime::now());
    let bytes = response
        .write_to_bytes()
        .map_err(|error| Error::Answer(io::Error::other(error)))?;
    io::stdout().write_all(&bytes).map_err(Error::Answer)
}

/// The container is gone as much as if it had been deleted by its shim.
fn run_poststop_hooks(spec: &mut serde_json::Value, id: &str, bundle: &Path) {
    let ran = Hooks::take(spec, id, bundle)
        .map_err(io::Error::other)
        .and_then(|hooks| {
            if hooks.owes_poststop() {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(hooks.stopped());
            }
            Ok(())
        });
    if let Err(error) = ran {
        eprintln!("cannot run hooks: {}", line(&error));
    }
}

/// Undoes `pod` and returns its monitor's number, 0 when it isn't known. A pod whose shim lives is undone for its own
/// sandbox only, not for one of its other containers.
fn undo(state_dir: &Path, namespace: &str, pod: &str, container: &str) -> Result<u32, Error> {
    let path = PodDir::place(state_dir, namespace, pod)?;
    let undone = |error| Error::Undo(pod.to_owned(), error);
    let record = state::read_record(&path);
    if let Some(record) = &record
        && record.supervisor.is_alive()
    {
        if pod != container {
            return Ok(record.vmm.pid);
        }
        // It may be about to end by itself.
        let orderly = record
            .supervisor
            .terminate(monotonic_deadline(GRACE))
            .map_err(undone)?;
        if !orderly {
            record
                .supervisor
                .kill(monotonic_deadline(KILL_DEADLINE))
                .map_err(undone)?;
        }
    }
    state::destroy(&path).map_err(undone)?;
    Ok(record.map_or(0, |record| record.vmm.pid))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use sealock_sandbox::{process::ProcessId, state::Record};

    use super::*;

    fn sleep() -> Child {
        Command::new("sleep")
            .arg("100")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_living_pod_is_undone_for_its_sandbox_only() {
        let state = tempfile::tempdir().unwrap();
        let dir = PodDir::create(state.path(), "ns", "p1").unwrap();
        let mut children = [sleep(), sleep(), sleep()];
        let ids = children
            .each_ref()
            .map(|child| ProcessId::of(child.id()).unwrap());
        dir.write_record(&Record {
            supervisor: ids[0],
            vmm: ids[1],
            fsd: ids[2],
            uid: 7,
            network: None,
        })
        .unwrap();
        let path = dir.path().to_owned();
        std::mem::forget(dir);

        assert_eq!(undo(state.path(), "ns", "p1", "c2").unwrap(), ids[1].pid);
        assert!(path.exists());
        assert!(
            children
                .iter_mut()
                .all(|child| child.try_wait().unwrap().is_none())
        );

        assert_eq!(undo(state.path(), "ns", "p1", "p1").unwrap(), ids[1].pid);
        assert!(!path.exists());
        assert!(children.iter_mut().all(|child| !child.wait().unwrap().success()));
        assert_eq!(undo(state.path(), "ns", "p1", "p1").unwrap(), 0);
    }
}
