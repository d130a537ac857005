//! Templates are made by a process of their own: this program once more, outside of the pod's cgroup, with little urgency. The pod
//! may end before it does.

use std::{
    fs,
    io::{self, Read, Write},
    process::Stdio,
    sync::Arc,
};

use sealock_sandbox::{
    Config, Error, Sandbox,
    template::{Order, make},
};
use tokio::{process::Command, runtime::Builder};

/// The largest order, in bytes.
const MAX_ORDER: u64 = 4096;

/// How much less urgent making a template is than anything else (nice(2)).
const NICE: i32 = 10;

/// Has the template made that the pod would have been restored from, if there had been one, once the pod is ready.
pub async fn order(sandbox: Arc<Sandbox>) {
    if sandbox.ready().await.is_err() {
        return;
    }
    let Some(order) = sandbox.take_order() else {
        return;
    };
    match begin(&order, &sandbox) {
        Ok(mut child) => {
            tracing::info!(sandbox = sandbox.id(), "a template is being made for later pods");
            // Reaped if it ends first; the reason of a failure is the next pod's to tell.
            let _ = child.wait().await;
        }
        Err(error) => tracing::warn!(sandbox = sandbox.id(), %error, "cannot have a template made"),
    }
}

fn begin(order: &Order, sandbox: &Sandbox) -> io::Result<tokio::process::Child> {
    let (reader, mut writer) = io::pipe()?;
    // Fits the pipe.
    writer.write_all(&serde_json::to_vec(order)?)?;
    drop(writer);
    let child = Command::new(std::env::current_exe()?)
        .arg("template")
        .current_dir("/")
        .stdin(reader)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    if let (Some(origin), Some(pid)) = (sandbox.origin_cgroup(), child.id()) {
        // What it takes is the host's, and it is not to end with the pod.
        fs::write(origin.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(child)
}

/// Makes the template that standard input describes.
///
/// # Errors
/// It can't be made.
pub fn run() -> Result<(), Error> {
    let failed = |error: io::Error| {
        Error::Template(sealock_sandbox::template::store::Error::Failed(error.to_string()))
    };
    let mut text = Vec::new();
    io::stdin()
        .take(MAX_ORDER)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let order: Order = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
    // SAFETY: nice takes a number. Where it is refused, the template is made with more urgency.
    unsafe { libc::nice(NICE) };
    let config = Config::load()?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(make(&config, &order)).map(drop)
}
