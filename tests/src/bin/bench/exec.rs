//! One more process in an idle container: by `ctr`, and by its shim alone.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Result, anyhow, ensure};
use containerd_shim_protos::{
    api::{
        DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, StartRequest, StartResponse, WaitRequest,
        WaitResponse,
    },
    protobuf::well_known_types::any::Any,
};
use sealock_chart::bars::Bars;
use sealock_tests::{
    ctr::{self, Runtime},
    task::Shim,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    idle::Sleeper,
    report,
    sample::{Beside, Sample, print_ratio},
};

const RUNS: usize = 24;
const WARM_UP: usize = 2;

/// What an exec may take by runc's.
const AIM: f64 = 0.2;

#[derive(Serialize)]
struct Exec {
    /// `ctr task exec … true`.
    by_ctr: Beside,
    /// The same requests to the shim, without client and containerd: exec, start, wait, delete.
    by_shim: Beside,
    /// `ctr version`: what of that is the client, whatever the runtime.
    client_ms: Sample,
    /// Each request to Sealock's shim.
    exec_ms: Sample,
    start_ms: Sample,
    wait_ms: Sample,
    delete_ms: Sample,
}

pub fn run() -> Result<()> {
    ctr::import_busybox();
    let sleepers = [Sleeper::start(Runtime::Sealock)?, Sleeper::start(Runtime::Runc)?];
    let (mut by_ctr, mut by_shim) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut client = Vec::new();
    let mut steps = [const { Vec::new() }; 4];
    for round in 0..WARM_UP + RUNS {
        let counts = round >= WARM_UP;
        for (place, sleeper) in sleepers.iter().enumerate() {
            let exec_id = ctr::fresh_id();
            let words = ["task", "exec", "--exec-id", &exec_id, sleeper.id(), "true"];
            let took = client_took(&words)?;
            let requests = requests(sleeper.id())?;
            if counts {
                by_ctr[place].push(took);
                by_shim[place].push(requests.iter().sum());
            }
            if counts && place == 0 {
                for (step, took) in steps.iter_mut().zip(requests) {
                    step.push(took);
                }
            }
        }
        let took = client_took(&["version"])?;
        if counts {
            client.push(took);
        }
    }
    drop(sleepers);
    let ([sealock, runc], [sealock_shim, runc_shim]) = (by_ctr, by_shim);
    let [exec, start, wait, delete] = steps;
    let figures = Exec {
        by_ctr: Beside::of(sealock, runc)?,
        by_shim: Beside::of(sealock_shim, runc_shim)?,
        client_ms: Sample::of(client)?,
        exec_ms: Sample::of(exec)?,
        start_ms: Sample::of(start)?,
        wait_ms: Sample::of(wait)?,
        delete_ms: Sample::of(delete)?,
    };
    figures.by_ctr.print("ctr task exec true");
    print_ratio("  aim", figures.by_ctr.ratio, Some(AIM));
    figures.client_ms.print("ctr version");
    figures.by_shim.print("the shim's part");
    for (name, sample) in [
        ("exec", &figures.exec_ms),
        ("start", &figures.start_ms),
        ("wait", &figures.wait_ms),
        ("delete", &figures.delete_ms),
    ] {
        sample.print(&format!("  sealock's shim: {name}"));
    }
    report::figures("exec", &figures)?;
    let limit = Some(AIM * figures.by_ctr.runc_ms.median);
    report::chart(
        "exec",
        &Bars {
            title: "a process in a running container (median; half of the runs; red: aim)",
            unit: "ms",
            parts: &["took"],
            groups: vec![
                report::group(
                    "ctr task exec … true",
                    &[
                        ("sealock", &figures.by_ctr.sealock_ms, limit),
                        ("runc", &figures.by_ctr.runc_ms, None),
                        ("ctr version", &figures.client_ms, None),
                    ],
                ),
                report::group(
                    "the same, asked of the shim",
                    &[
                        ("sealock", &figures.by_shim.sealock_ms, None),
                        ("runc", &figures.by_shim.runc_ms, None),
                    ],
                ),
            ],
        },
    )
}

/// Milliseconds of a `ctr`.
fn client_took(words: &[&str]) -> Result<f64> {
    let mut command = Command::new("ctr");
    command.args(words).stdin(Stdio::null());
    let began = Instant::now();
    let output = command.output()?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    ensure!(
        output.status.success(),
        "ctr {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}

/// Runs `true` in a container by its shim: milliseconds of each request.
fn requests(id: &str) -> Result<[f64; 4]> {
    let shim = Shim::of(id);
    let exec_id = ctr::fresh_id();
    let mut exec = ExecProcessRequest::new();
    id.clone_into(&mut exec.id);
    exec.exec_id.clone_from(&exec_id);
    let mut process = Any::new();
    "types.containerd.io/opencontainers/runtime-spec/1/Process".clone_into(&mut process.type_url);
    process.value = serde_json::to_vec(&json!({
        "args": ["true"],
        "cwd": "/",
        "env": ["PATH=/bin:/usr/bin"],
        "user": {"uid": 0, "gid": 0},
    }))?;
    exec.spec = Some(process).into();
    let mut start = StartRequest::new();
    id.clone_into(&mut start.id);
    start.exec_id.clone_from(&exec_id);
    let mut wait = WaitRequest::new();
    id.clone_into(&mut wait.id);
    wait.exec_id.clone_from(&exec_id);
    let mut delete = DeleteRequest::new();
    id.clone_into(&mut delete.id);
    delete.exec_id = exec_id;

    let failed = |(code, words): (_, String)| anyhow!("{code:?}: {words}");
    let mut times = [0.0; 4];
    let mut began = Instant::now();
    let mut next = |place: usize| {
        times[place] = began.elapsed().as_secs_f64() * 1e3;
        began = Instant::now();
    };
    shim.call::<_, Empty>("Exec", &exec).map_err(failed)?;
    next(0);
    shim.call::<_, StartResponse>("Start", &start).map_err(failed)?;
    next(1);
    let exit: WaitResponse = shim.call("Wait", &wait).map_err(failed)?;
    next(2);
    let _: DeleteResponse = shim.call("Delete", &delete).map_err(failed)?;
    next(3);
    ensure!(exit.exit_status == 0, "true ended with {}", exit.exit_status);
    Ok(times)
}
