//! Benchmarks, run in the lab by `scripts/bench`: a table for people on standard output, JSON in `/lab/out`.

use std::{
    fs, io,
    io::Read,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sealock_sandbox::timeline::{self, Step};
use sealock_tests::{
    ctr::{self, Run, Runtime},
    host,
    memory::{Footprint, footprint},
    throughput::{self, Throughput},
};
use serde::Serialize;

/// Runs of each runtime that count, after [`WARM_UP`] that don't.
const RUNS: usize = 12;
const WARM_UP: usize = 2;

/// Where containerd writes what its shims log.
const LOG: &str = "/var/log/containerd.log";

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let result = match name.as_str() {
        "start" => start(),
        "net" => net(),
        "exec" => exec(),
        "logs" => logs(),
        _ => {
            eprintln!("usage: sealock-bench start|net|exec|logs [MIB]");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealock-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Several measurements of one thing.
#[derive(Serialize)]
struct Sample {
    median: f64,
    min: f64,
    max: f64,
    /// Half of the measurements lie between these.
    quartiles: [f64; 2],
    runs: usize,
}

impl Sample {
    fn of(mut values: Vec<f64>) -> Result<Self> {
        ensure!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        let at = |part: usize| values[last * part / 4];
        Ok(Self {
            median: at(2),
            min: values[0],
            max: values[last],
            quartiles: [at(1), at(3)],
            runs: values.len(),
        })
    }
}

#[derive(Serialize)]
struct Start {
    /// Milliseconds of `ctr run --rm … true`.
    sealock_ms: Sample,
    runc_ms: Sample,
    ratio: f64,
    /// Milliseconds from the VMM's exec to the agent's hello.
    vmm_exec_to_hello_ms: Sample,
    vmm_exec_to_hello_share: f64,
    /// Median milliseconds from one step of a start to the next.
    steps_ms: Vec<(String, f64)>,
    idle: Idle,
    sizes_bytes: Sizes,
}

/// Memory of one idle container in KiB: proportional set sizes of every host process that belongs to it.
#[derive(Serialize)]
struct Idle {
    sealock_pss_kib: u64,
    sealock_processes_kib: Vec<(String, u64)>,
    guest_memory_kib: u64,
    vmm_overhead_kib: u64,
    runc_pss_kib: u64,
}

#[derive(Serialize)]
struct Sizes {
    vmlinux: u64,
    initramfs: u64,
    shim: u64,
    vmm: u64,
    fsd: u64,
}

fn start() -> Result<()> {
    ctr::import_busybox();
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..WARM_UP + RUNS {
        for (runtime, times) in [Runtime::Sealock, Runtime::Runc].into_iter().zip(&mut times) {
            let run = Run::busybox(runtime, &["true"]);
            let began = Instant::now();
            let output = run.output();
            let took = began.elapsed();
            ensure!(
                output.status.success(),
                "{}: {}",
                runtime.name(),
                String::from_utf8_lossy(&output.stderr)
            );
            if round >= WARM_UP {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    let [sealock, runc] = times;
    let log = fs::read_to_string(LOG).with_context(|| format!("cannot read {LOG}"))?;
    let mut timelines: Vec<_> = log
        .lines()
        .filter_map(timeline::parse)
        .map(|(_, steps)| steps)
        .collect();
    ensure!(
        timelines.len() >= RUNS,
        "the log has {} timelines only",
        timelines.len()
    );
    let timelines = timelines.split_off(timelines.len() - RUNS);
    let to_hello = timelines
        .iter()
        .map(|timeline| {
            let at = |step| at(timeline, step).with_context(|| format!("a timeline without {step}"));
            Ok(at("agent_hello")? - at("vmm_exec")?)
        })
        .collect::<Result<Vec<_>>>()?;

    let idle = idle()?;
    let sealock_ms = Sample::of(sealock)?;
    let runc_ms = Sample::of(runc)?;
    let hello = Sample::of(to_hello)?;
    let figures = Start {
        ratio: sealock_ms.median / runc_ms.median,
        vmm_exec_to_hello_share: hello.median / sealock_ms.median,
        sealock_ms,
        runc_ms,
        vmm_exec_to_hello_ms: hello,
        steps_ms: steps(&timelines)?,
        idle,
        sizes_bytes: Sizes {
            vmlinux: size("share/sealock/vmlinux")?,
            initramfs: size("share/sealock/initramfs")?,
            shim: size("bin/containerd-shim-sealock-v2")?,
            vmm: size("libexec/sealock/sealock-vmm")?,
            fsd: size("libexec/sealock/sealock-fsd")?,
        },
    };
    print(&figures);
    fs::create_dir_all("/lab/out")?;
    fs::write("/lab/out/start.json", serde_json::to_vec_pretty(&figures)?)?;
    Ok(())
}

/// The median time between neighbouring steps, in the order of the last start.
fn steps(timelines: &[Vec<Step>]) -> Result<Vec<(String, f64)>> {
    let last = timelines.last().context("no timeline")?;
    last.windows(2)
        .map(|pair| {
            let gaps = timelines
                .iter()
                .filter_map(|timeline| Some(at(timeline, &pair[1].step)? - at(timeline, &pair[0].step)?))
                .collect();
            Ok((pair[1].step.clone(), Sample::of(gaps)?.median))
        })
        .collect()
}

/// When a step was reached, in milliseconds since the first.
fn at(timeline: &[Step], name: &str) -> Option<f64> {
    timeline.iter().find(|step| step.step == name).map(|step| step.ms)
}

fn size(below_prefix: &str) -> Result<u64> {
    let path = format!("/usr/local/{below_prefix}");
    Ok(fs::metadata(&path)
        .with_context(|| format!("cannot look at {path}"))?
        .len())
}

/// A container that sleeps, until it is dropped.
struct Sleeper {
    id: String,
    client: Child,
}

impl Sleeper {
    fn start(runtime: Runtime) -> Result<Self> {
        let run = Run::busybox(runtime, &["sh", "-c", "echo up; exec sleep 1000"]);
        let mut sleeper = Self {
            id: run.id().to_owned(),
            client: run.spawn(),
        };
        let mut up = [0; 3];
        sleeper
            .client
            .stdout
            .as_mut()
            .context("its output is piped")?
            .read_exact(&mut up)
            .context("the idle container did not start")?;
        Ok(sleeper)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = ctr::ctr(&["task", "kill", "--signal", "SIGKILL", &self.id]);
        let _ = self.client.wait();
    }
}

fn idle() -> Result<Idle> {
    /// What a container does right after its start is not idling.
    const SETTLE: Duration = Duration::from_secs(3);
    let sleeper = Sleeper::start(Runtime::Sealock)?;
    std::thread::sleep(SETTLE);
    let mut processes = Vec::new();
    let mut guest = 0;
    let mut overhead = 0;
    for name in ["containerd-shim-sealock-v2", "sealock-vmm", "sealock-fsd"] {
        let [pid] = host::pids_of(name)[..] else {
            bail!("there is not one {name}");
        };
        let Footprint { pss, pss_of_guest } = footprint(pid)?;
        if name == "sealock-vmm" {
            guest = pss_of_guest;
            overhead = pss - pss_of_guest;
        }
        processes.push((name.to_owned(), pss));
    }
    drop(sleeper);

    let sleeper = Sleeper::start(Runtime::Runc)?;
    std::thread::sleep(SETTLE);
    let mut runc = 0;
    for name in ["containerd-shim-runc-v2", "sleep"] {
        for pid in host::pids_of(name) {
            runc += footprint(pid)?.pss;
        }
    }
    drop(sleeper);
    Ok(Idle {
        sealock_pss_kib: processes.iter().map(|(_, pss)| pss).sum(),
        sealock_processes_kib: processes,
        guest_memory_kib: guest,
        vmm_overhead_kib: overhead,
        runc_pss_kib: runc,
    })
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn print(figures: &Start) {
    let mib = |kib: u64| kib as f64 / 1024.0;
    let row = |what: &str, sample: &Sample| {
        println!(
            "{what:<34} {:8.0} ms   {:.0}-{:.0} (half of {} runs), {:.0}-{:.0} (all)",
            sample.median, sample.quartiles[0], sample.quartiles[1], sample.runs, sample.min, sample.max
        );
    };
    row("ctr run --rm true: sealock, cold", &figures.sealock_ms);
    row("ctr run --rm true: runc", &figures.runc_ms);
    println!("{:<34} {:8.2}      budget 2", "  ratio", figures.ratio);
    row("VMM exec to agent hello", &figures.vmm_exec_to_hello_ms);
    println!(
        "{:<34} {:8.2}      budget 0.5",
        "  share of the whole", figures.vmm_exec_to_hello_share
    );
    for (step, ms) in &figures.steps_ms {
        println!("  + {ms:8.1} ms  {step}");
    }
    let idle = &figures.idle;
    println!(
        "{:<34} {:8.1} MiB  budget 60",
        "idle container, all in: sealock",
        mib(idle.sealock_pss_kib)
    );
    for (name, pss) in &idle.sealock_processes_kib {
        println!("  {:8.1} MiB  {name}", mib(*pss));
    }
    println!(
        "  {:8.1} MiB  of that the guest's memory",
        mib(idle.guest_memory_kib)
    );
    println!(
        "{:<34} {:8.1} MiB  budget 5",
        "VMM beyond guest memory",
        mib(idle.vmm_overhead_kib)
    );
    println!(
        "{:<34} {:8.1} MiB",
        "idle container, all in: runc",
        mib(idle.runc_pss_kib)
    );
    let sizes = &figures.sizes_bytes;
    for (name, bytes, budget) in [
        ("guest kernel", sizes.vmlinux, " budget 16"),
        ("initramfs (the agent)", sizes.initramfs, " budget 6"),
        ("shim", sizes.shim, ""),
        ("vmm", sizes.vmm, ""),
        ("fsd", sizes.fsd, ""),
    ] {
        println!("{name:<34} {:8.1} MiB {budget}", mib(bytes / 1024));
    }
}

/// Two samples side by side.
#[derive(Serialize)]
struct Beside {
    sealock_ms: Sample,
    runc_ms: Sample,
    /// Sealock's median by runc's.
    ratio: f64,
}

impl Beside {
    fn of(sealock: Vec<f64>, runc: Vec<f64>) -> Result<Self> {
        let (sealock_ms, runc_ms) = (Sample::of(sealock)?, Sample::of(runc)?);
        Ok(Self {
            ratio: sealock_ms.median / runc_ms.median,
            sealock_ms,
            runc_ms,
        })
    }

    fn print(&self, what: &str) {
        for (name, sample) in [("sealock", &self.sealock_ms), ("runc", &self.runc_ms)] {
            let text = format!("{what}: {name}");
            println!(
                "{text:<34} {:8.0} ms   {:.0}-{:.0} (half of {} runs)",
                sample.median, sample.quartiles[0], sample.quartiles[1], sample.runs
            );
        }
    }
}

fn exec() -> Result<()> {
    ctr::import_busybox();
    let sleepers = [Sleeper::start(Runtime::Sealock)?, Sleeper::start(Runtime::Runc)?];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..WARM_UP + 2 * RUNS {
        for (sleeper, times) in sleepers.iter().zip(&mut times) {
            let began = Instant::now();
            let exec_id = ctr::fresh_id();
            let output = ctr::ctr(&["task", "exec", "--exec-id", &exec_id, &sleeper.id, "true"]);
            let took = began.elapsed();
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            if round >= WARM_UP {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    drop(sleepers);
    let [sealock, runc] = times;
    let figures = Beside::of(sealock, runc)?;
    figures.print("ctr task exec true");
    println!("{:<34} {:8.2}      aim 0.2", "  ratio", figures.ratio);
    fs::create_dir_all("/lab/out")?;
    fs::write("/lab/out/exec.json", serde_json::to_vec_pretty(&figures)?)?;
    Ok(())
}

#[derive(Serialize)]
struct Logs {
    mib: u64,
    times: Beside,
    /// Sealock's throughput by runc's.
    ratio: f64,
}

/// Lines of a log from a container, by containerd's FIFO and `ctr`, to a reader that counts them.
fn logs() -> Result<()> {
    const ROUNDS: usize = 3;
    const MIB: u64 = 1 << 20;
    let mib = match std::env::args().nth(2) {
        None => 1024,
        Some(words) => words
            .parse()
            .with_context(|| format!("{words:?} is no number of MiB"))?,
    };
    ctr::import_busybox();
    let line = "2026-01-01T00:00:00.000000000Z INFO a service has done something for somebody, and says so at length";
    let script = format!("yes '{line}' | head -c {}", mib * MIB);
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
        "{:<34} {:8.2}      at least 0.5",
        "  ratio of throughput", figures.ratio
    );
    fs::create_dir_all("/lab/out")?;
    fs::write("/lab/out/logs.json", serde_json::to_vec_pretty(&figures)?)?;
    Ok(())
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

#[derive(Serialize)]
struct Net {
    sealock: Throughput,
    runc: Throughput,
}

fn net() -> Result<()> {
    let net = Net {
        runc: throughput::measure(Runtime::Runc)?,
        sealock: throughput::measure(Runtime::Sealock)?,
    };
    println!(
        "{:14} {:>14} {:>14} {:>7}   {:>14} {:>14} {:>7}",
        "", "Sealock Mbit/s", "runc Mbit/s", "ratio", "Sealock ns/B", "runc ns/B", "ratio"
    );
    for (name, sealock, runc) in [
        ("pod to host", net.sealock.pod_to_host, net.runc.pod_to_host),
        ("host to pod", net.sealock.host_to_pod, net.runc.host_to_pod),
        ("pod to pod", net.sealock.pod_to_pod, net.runc.pod_to_pod),
    ] {
        println!(
            "{name:14} {:14.1} {:14.1} {:7.3}   {:14.2} {:14.2} {:7.2}",
            sealock.mbit_per_second,
            runc.mbit_per_second,
            sealock.mbit_per_second / runc.mbit_per_second,
            sealock.cpu_ns_per_byte,
            runc.cpu_ns_per_byte,
            sealock.cpu_ns_per_byte / runc.cpu_ns_per_byte
        );
    }
    fs::create_dir_all("/lab/out")?;
    fs::write("/lab/out/net.json", serde_json::to_vec_pretty(&net)?)?;
    Ok(())
}
