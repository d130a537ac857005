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
        "memory" => memory(),
        "net" => net(),
        "exec" => exec(),
        "logs" => logs(),
        _ => {
            eprintln!("usage: sealock-bench start|memory|net|exec|logs [MIB]");
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
    restored_ms: Sample,
    cold_ms: Sample,
    runc_ms: Sample,
    restored_ratio: f64,
    cold_ratio: f64,
    /// Milliseconds from the VMM's exec to the agent's hello, booted.
    vmm_exec_to_hello_ms: Sample,
    vmm_exec_to_hello_share: f64,
    /// Median milliseconds from one step of a start to the next.
    restored_steps_ms: Vec<(String, f64)>,
    cold_steps_ms: Vec<(String, f64)>,
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

/// What is measured side by side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Restored,
    Cold,
    Runc,
}

const KINDS: [Kind; 3] = [Kind::Restored, Kind::Cold, Kind::Runc];

/// The configuration of the lab's host, which has none.
const CONFIGURATION: &str = "/etc/sealock/config.toml";

/// Has pods that start from now on be restored, or boot.
fn templates(on: bool) -> Result<()> {
    fs::create_dir_all("/etc/sealock")?;
    let value = if on { "node" } else { "off" };
    fs::write(CONFIGURATION, format!("templates = \"{value}\"\n")).context("cannot configure Sealock")
}

/// Makes the usual template.
fn make_template() -> Result<()> {
    templates(true)?;
    let made = Command::new("sealock").args(["template", "create"]).output()?;
    ensure!(
        made.status.success(),
        "no template: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    Ok(())
}

/// Runs `true` and returns how long it took in milliseconds, with the timeline of a machine.
fn run_true(kind: Kind) -> Result<(f64, Vec<Step>)> {
    let runtime = match kind {
        Kind::Runc => Runtime::Runc,
        _ => Runtime::Sealock,
    };
    templates(kind == Kind::Restored)?;
    let before = fs::metadata(LOG).map_or(0, |log| log.len());
    let run = Run::busybox(runtime, &["true"]);
    let began = Instant::now();
    let output = run.output();
    let took = began.elapsed().as_secs_f64() * 1e3;
    ensure!(
        output.status.success(),
        "{}: {}",
        runtime.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    if kind == Kind::Runc {
        return Ok((took, Vec::new()));
    }
    let log = fs::read(LOG).with_context(|| format!("cannot read {LOG}"))?;
    let log = String::from_utf8_lossy(&log[usize::try_from(before)?..]).into_owned();
    let (_, steps) = log
        .lines()
        .find_map(timeline::parse)
        .context("the log has no timeline")?;
    let restored = at(&steps, "vmm_restored").is_some();
    ensure!(restored == (kind == Kind::Restored), "restored: {restored}");
    Ok((took, steps))
}

fn start() -> Result<()> {
    ctr::import_busybox();
    make_template()?;
    let mut times = KINDS.map(|_| Vec::new());
    let mut timelines = KINDS.map(|_| Vec::new());
    for round in 0..WARM_UP + RUNS {
        for (place, kind) in KINDS.into_iter().enumerate() {
            let (took, steps) = run_true(kind)?;
            if round >= WARM_UP {
                times[place].push(took);
                timelines[place].push(steps);
            }
        }
    }
    let [restored, cold, runc] = times;
    let [restored_steps, cold_steps, _] = timelines;
    let to_hello = cold_steps
        .iter()
        .map(|timeline| {
            let at = |step| at(timeline, step).with_context(|| format!("a timeline without {step}"));
            Ok(at("agent_hello")? - at("vmm_exec")?)
        })
        .collect::<Result<Vec<_>>>()?;

    templates(false)?;
    let idle = idle()?;
    let restored_ms = Sample::of(restored)?;
    let cold_ms = Sample::of(cold)?;
    let runc_ms = Sample::of(runc)?;
    let hello = Sample::of(to_hello)?;
    let figures = Start {
        restored_ratio: restored_ms.median / runc_ms.median,
        cold_ratio: cold_ms.median / runc_ms.median,
        vmm_exec_to_hello_share: hello.median / cold_ms.median,
        restored_ms,
        cold_ms,
        runc_ms,
        vmm_exec_to_hello_ms: hello,
        restored_steps_ms: steps(&restored_steps)?,
        cold_steps_ms: steps(&cold_steps)?,
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

/// Memory of idle containers in KiB.
#[derive(Serialize)]
struct Density {
    /// Of all processes that belong to containers, by their number.
    pss_kib: Vec<(usize, u64)>,
    /// What one more of them takes.
    one_more_kib: u64,
    /// What is the guest's of that.
    one_more_guest_kib: u64,
    /// What the template takes, whatever their number.
    template_kib: u64,
}

/// What one more restored container takes when there are some.
fn memory() -> Result<()> {
    /// Containers before and after.
    const COUNTS: [usize; 3] = [1, 3, 6];
    /// What the guest frees after its start it has reported by then.
    const SETTLE: Duration = Duration::from_secs(8);
    ctr::import_busybox();
    make_template()?;
    let mut sleepers = Vec::new();
    let mut measured = Vec::new();
    for count in COUNTS {
        while sleepers.len() < count {
            sleepers.push(Sleeper::start(Runtime::Sealock)?);
        }
        std::thread::sleep(SETTLE);
        let (mut all, mut guests) = (0, 0);
        for name in ["containerd-shim-sealock-v2", "sealock-vmm", "sealock-fsd"] {
            for pid in host::pids_of(name) {
                let Footprint { pss, pss_of_guest } = footprint(pid)?;
                all += pss;
                guests += pss_of_guest;
            }
        }
        println!(
            "{count} idle containers: {:.1} MiB, {:.1} MiB of it the guests'",
            mib(all),
            mib(guests)
        );
        measured.push((count, all, guests));
    }
    drop(sleepers);
    let [_, (few, few_kib, few_guests), (many, many_kib, many_guests)] = measured[..] else {
        bail!("nothing was measured");
    };
    let more = (many - few) as u64;
    let template = fs::read_dir("/run/sealock/.templates")?
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path().join("memory")).ok())
        .map(|memory| std::os::unix::fs::MetadataExt::blocks(&memory) / 2)
        .sum();
    let figures = Density {
        pss_kib: measured.iter().map(|(count, all, _)| (*count, *all)).collect(),
        one_more_kib: many_kib.saturating_sub(few_kib) / more,
        one_more_guest_kib: many_guests.saturating_sub(few_guests) / more,
        template_kib: template,
    };
    println!(
        "one more takes {:.1} MiB (budget 12), {:.1} MiB of it the guest's; the template takes {:.1} MiB",
        mib(figures.one_more_kib),
        mib(figures.one_more_guest_kib),
        mib(figures.template_kib)
    );
    fs::create_dir_all("/lab/out")?;
    fs::write("/lab/out/memory.json", serde_json::to_vec_pretty(&figures)?)?;
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
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

fn print(figures: &Start) {
    let row = |what: &str, sample: &Sample| {
        println!(
            "{what:<34} {:8.0} ms   {:.0}-{:.0} (half of {} runs), {:.0}-{:.0} (all)",
            sample.median, sample.quartiles[0], sample.quartiles[1], sample.runs, sample.min, sample.max
        );
    };
    row("ctr run --rm true: restored", &figures.restored_ms);
    row("ctr run --rm true: cold", &figures.cold_ms);
    row("ctr run --rm true: runc", &figures.runc_ms);
    println!(
        "{:<34} {:8.2}      budget 0.5",
        "  restored to runc", figures.restored_ratio
    );
    println!(
        "{:<34} {:8.2}      budget 1.5",
        "  cold to runc", figures.cold_ratio
    );
    row("VMM exec to agent hello", &figures.vmm_exec_to_hello_ms);
    println!(
        "{:<34} {:8.2}      budget 0.5",
        "  share of the whole", figures.vmm_exec_to_hello_share
    );
    for (what, steps) in [
        ("restored", &figures.restored_steps_ms),
        ("cold", &figures.cold_steps_ms),
    ] {
        println!("{what}");
        for (step, ms) in steps {
            println!("  + {ms:8.1} ms  {step}");
        }
    }
    let idle = &figures.idle;
    println!(
        "{:<34} {:8.1} MiB  budget 60",
        "idle container, booted, all in",
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
