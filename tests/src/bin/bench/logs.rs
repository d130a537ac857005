//! Log output, by containerd's FIFO and `ctr`.

use std::{
    io::{self, Read},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use sealock_tests::ctr::{self, Run, Runtime};
use serde::Serialize;

use crate::{kind::make_template, report, sample::Beside};

#[derive(Serialize)]
struct Logs {
    mib: u64,
    times: Beside,
    /// Sealock's throughput by runc's.
    ratio: f64,
}

/// Lines of a log from a container, by containerd's FIFO and `ctr`, to a reader that counts them.
pub fn run() -> Result<()> {
    const ROUNDS: usize = 3;
    const MIB: u64 = 1 << 20;
    let mib = match std::env::args().nth(2) {
        None => 1024,
        Some(words) => words
            .parse()
            .with_context(|| format!("{words:?} is no number of MiB"))?,
    };
    ctr::import_busybox();
    // Or the first pod has one made while it is measured.
    make_template()?;
    let line = "2026-01-01T00:00:00.000000000Z INFO a service has done something for somebody, and says so at length";
    // Lines that are there already, and one process that writes them: making them takes longer than anything else.
    let script =
        format!("yes '{line}' | head -c {MIB} > /dev/shm/log; yes /dev/shm/log | head -n {mib} | xargs cat");
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (runtime, times) in [Runtime::Sealock, Runtime::Runc].into_iter().zip(&mut times) {
            times.push(flood(
                Run::busybox(runtime, &["sh", "-c", &script])
                    .flag(&["--rm"])
                    .to_command(),
                mib * MIB,
            )?);
        }
    }
    let [sealock, runc] = times;
    let times = Beside::of(sealock, runc)?;
    times.print(&format!("{mib} MiB of log"));
    let figures = Logs {
        mib,
        ratio: 1.0 / times.ratio,
        times,
    };
    println!(
        "{:<38} {:8.2}      at least 0.5",
        "  ratio of throughput", figures.ratio
    );
    report::figures("logs", &figures)
}

/// Milliseconds from the first byte of a command's output to its last; there must be `expected` bytes.
fn flood(mut command: Command, expected: u64) -> Result<f64> {
    let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut output = client.stdout.take().context("its output is piped")?;
    output.read_exact(&mut [0]).context("no output")?;
    let began = Instant::now();
    let read = 1 + io::copy(&mut output, &mut io::sink())?;
    let took = began.elapsed();
    let status = client.wait()?;
    ensure!(
        status.success() && read == expected,
        "{read} bytes of {expected}, {status}"
    );
    Ok(took.as_secs_f64() * 1e3)
}
