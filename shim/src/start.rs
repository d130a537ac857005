//! `start`: finds the pod's shim or becomes it, and prints its address.
//!
//! The socket listens before the address is printed, so that nobody has to wait for the shim. The shim is a fork of this
//! process: there is one thread until then, and executing the program again would only cost time.

use std::{fs, io, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use sealock_sandbox::{Timeline, membership::pod_of, spec, state};

use crate::{
    address::{Address, Taken},
    args::Args,
    serve::Shim,
};

/// Why there is no shim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container's specification isn't usable.
    #[error(transparent)]
    Spec(#[from] spec::Error),
    /// An identifier isn't.
    #[error(transparent)]
    Name(#[from] state::Error),
    /// The shim's socket can't be made.
    #[error("cannot make the shim's socket {0}")]
    Socket(Address, #[source] io::Error),
    /// The host refuses something else.
    #[error("cannot {0}")]
    System(&'static str, #[source] io::Error),
}

/// Carries out `start` in the bundle that is the working directory.
///
/// # Errors
/// There is no shim then.
pub fn run(args: &Args, timeline: Timeline) -> Result<(), Error> {
    let bundle = std::env::current_dir().map_err(|error| Error::System("find the bundle", error))?;
    // The bundle of a sandbox (containerd's sandbox API) has none: what it is to be comes with a request.
    let spec = match fs::exists(bundle.join("config.json")) {
        Ok(false) => None,
        _ => Some(spec::read(&bundle)?),
    };
    let pod = spec
        .as_ref()
        .map_or(args.id.as_str(), |spec| pod_of(spec, &args.id));
    let pod = pod.to_owned();
    for (what, name) in [
        ("the namespace", &args.namespace),
        ("the container's identifier", &args.id),
        ("the pod's identifier", &pod),
    ] {
        state::check_name(what, name)?;
    }
    let address = Address::of(&args.address, &args.namespace, &pod);
    let taken = address
        .take()
        .map_err(|error| Error::Socket(address.clone(), error))?;
    if let Taken::New(listener) = taken {
        let score = inherited_oom_score();
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() } {
            Err(error) => {
                let _ = address.remove();
                return Err(Error::System("fork", error.into()));
            }
            Ok(ForkResult::Child) => {
                if let Err(error) = detach(score) {
                    eprintln!("cannot detach from containerd: {error}");
                    let _ = address.remove();
                    std::process::exit(1);
                }
                Shim {
                    listener,
                    address,
                    bundle,
                    spec,
                    namespace: args.namespace.clone(),
                    pod,
                    debug: args.debug,
                    timeline,
                }
                .run();
                std::process::exit(0);
            }
            Ok(ForkResult::Parent { .. }) => {}
        }
    }
    fs::write("address", address.to_string())
        .map_err(|error| Error::System("write the bundle's address file", error))?;
    print(&address).map_err(|error| Error::System("print the address", error))
}

/// containerd says up to which version it speaks; without a word it is one that reads the bare address.
fn print(address: &Address) -> io::Result<()> {
    let newest = std::env::var("MAX_SHIM_VERSION")
        .ok()
        .and_then(|version| version.parse::<u32>().ok());
    let text = if newest.is_some_and(|newest| newest >= 3) {
        serde_json::json!({"version": 3, "address": address.to_string(), "protocol": "ttrpc"}).to_string()
    } else {
        address.to_string()
    };
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A shim is to be killed after containerd when memory is short, and long before anything else.
fn inherited_oom_score() -> Option<i32> {
    let parent = std::os::unix::process::parent_id();
    let score: i32 = fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some((score + 1).min(1000))
}

/// containerd waits for the end of our output, and may be stopped without us.
fn detach(score: Option<i32>) -> io::Result<()> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(Path::new("/dev/null"))?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    setsid()?;
    if let Some(score) = score {
        // Only a wish.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    Ok(())
}
