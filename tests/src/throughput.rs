//! What a pod's network carries, beside a container's: iperf3 between a pod and the host, and between two pods.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cni::{self, Namespace},
    ctr::{self, MINBASE, Run, Runtime},
};

/// The containers' root: Debian's, with iperf3 and what it needs from the host's.
const ROOT: &str = "/tmp/throughput/root";

/// Seconds of each measurement, after one that doesn't count.
const SECONDS: &str = "5";

/// One measurement.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figure {
    /// Megabits a second that were received.
    pub mbit_per_second: f64,
    /// Nanoseconds of the host's processors for each byte, guests' included.
    pub cpu_ns_per_byte: f64,
}

/// A runtime's figures.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// From a pod to the host.
    pub pod_to_host: Figure,
    /// From the host to a pod.
    pub host_to_pod: Figure,
    /// From one pod to another.
    pub pod_to_pod: Figure,
}

/// Measures a runtime.
///
/// # Errors
/// iperf3 isn't installed, or a container fails.
pub fn measure(runtime: Runtime) -> Result<Throughput> {
    make_root()?;
    let (mut one, mut two) = (Namespace::new("bench1"), Namespace::new("bench2"));
    let address = one
        .add(&[cni::bridge(1500)], "eth0")
        .into_iter()
        .next()
        .context("the network has no address")?;
    two.add(&[cni::bridge(1500)], "eth0");
    let server = serve(runtime, &one, &["-s"]);
    let result = (|| {
        Ok(Throughput {
            host_to_pod: figure(|| on_host(&address, &[]))?,
            pod_to_host: figure(|| on_host(&address, &["-R"]))?,
            pod_to_pod: figure(|| in_pod(runtime, &two, &address))?,
        })
    })();
    server.stop()?;
    result
}

fn make_root() -> Result<()> {
    if fs::exists(ROOT)? {
        return Ok(());
    }
    let script = format!(
        "set -e; mkdir -p {ROOT} /tmp/throughput/work; mount -t tmpfs none /tmp/throughput/work
         mkdir /tmp/throughput/work/upper /tmp/throughput/work/work
         mount -t overlay none -o lowerdir={MINBASE},upperdir=/tmp/throughput/work/upper,workdir=/tmp/throughput/work/work {ROOT}
         for file in $(command -v iperf3) $(ldd $(command -v iperf3) | grep -o '/[^ ]*'); do
             mkdir -p {ROOT}$(dirname $file); [ -e {ROOT}$file ] || cp -L $file {ROOT}$file
         done"
    );
    let made = Command::new("sh").args(["-c", &script]).status()?;
    ensure!(
        made.success(),
        "iperf3 is not installed, or an overlay can't be mounted"
    );
    Ok(())
}

struct Server {
    run: Run,
    child: Child,
}

impl Server {
    fn stop(mut self) -> Result<()> {
        let killed = ctr::ctr(&["task", "kill", "-s", "KILL", self.run.id()]);
        ensure!(killed.status.success(), "the server can't be killed");
        self.child.wait()?;
        Ok(())
    }
}

fn iperf(runtime: Runtime, namespace: &Namespace, arguments: &[&str]) -> Run {
    let command: Vec<_> = ["/usr/bin/iperf3"].iter().chain(arguments).copied().collect();
    Run::rootfs(runtime, ROOT, &command).flag(&["--with-ns", &namespace.flag()])
}

fn serve(runtime: Runtime, namespace: &Namespace, arguments: &[&str]) -> Server {
    let run = iperf(runtime, namespace, arguments);
    let child = run
        .clone()
        .flag(&["--rm"])
        .to_command()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("ctr is installed in the lab");
    Server { run, child }
}

/// The client's report as JSON. The server may not be up yet: it is tried until it is.
fn on_host(address: &str, more: &[&str]) -> Result<Vec<u8>> {
    let mut last = Vec::new();
    for _ in 0..60 {
        let output = Command::new("iperf3")
            .args(["-J", "-O", "1", "-t", SECONDS, "-c", address])
            .args(more)
            .output()?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        last = output.stdout;
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    anyhow::bail!("iperf3: {}", String::from_utf8_lossy(&last))
}

fn in_pod(runtime: Runtime, namespace: &Namespace, address: &str) -> Result<Vec<u8>> {
    let output = iperf(
        runtime,
        namespace,
        &["-J", "-O", "1", "-t", SECONDS, "-c", address],
    )
    .output();
    ensure!(
        output.status.success(),
        "iperf3 in a pod: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output.stdout)
}

fn figure(run: impl Fn() -> Result<Vec<u8>>) -> Result<Figure> {
    // The first connects, starts and warms up.
    run()?;
    let before = busy_ns()?;
    let report: Value = serde_json::from_slice(&run()?).context("iperf3's report")?;
    let busy = busy_ns()?.saturating_sub(before);
    let end = &report["end"]["sum_received"];
    let number = |name: &str| {
        end[name]
            .as_f64()
            .with_context(|| format!("iperf3's report has no {name}"))
    };
    Ok(Figure {
        mbit_per_second: number("bits_per_second")? / 1e6,
        cpu_ns_per_byte: busy as f64 / number("bytes")?.max(1.0),
    })
}

/// What all processors have worked so far (proc(5), `stat`): everything but idling and waiting. Guests are in `user`.
fn busy_ns() -> Result<u64> {
    const TICK_NS: u64 = 10_000_000;
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    ensure!(fields.len() >= 8, "/proc/stat is odd");
    Ok((fields[..3].iter().sum::<u64>() + fields[5..8].iter().sum::<u64>()) * TICK_NS)
}
