//! `ctr run --rm … true`, one after the other.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use sealock_chart::{bars::Bars, waterfall};
use sealock_sandbox::timeline::{self, Step, steps::spans};
use sealock_tests::ctr::{self, Run};
use serde::Serialize;

use crate::{
    kind::{Kind, make_template},
    report,
    sample::{Sample, mib, print_ratio},
};

/// Runs of each kind that count, after [`WARM_UP`] that don't.
const RUNS: usize = 12;
const WARM_UP: usize = 2;

/// Where containerd writes what its shims log.
const LOG: &str = "/var/log/containerd.log";

/// What a start may take by runc's.
const RESTORED: f64 = 0.6;
const COLD: f64 = 1.5;

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
    /// The timeline of a typical start: the median of each step's time.
    restored_steps: Vec<Step>,
    cold_steps: Vec<Step>,
    sizes_bytes: Sizes,
}

#[derive(Serialize)]
struct Sizes {
    vmlinux: u64,
    initramfs: u64,
    shim: u64,
    vmm: u64,
    fsd: u64,
}

pub fn run() -> Result<()> {
    ctr::import_busybox();
    make_template()?;
    let mut times = Kind::ALL.map(|_| Vec::new());
    let mut timelines = Kind::ALL.map(|_| Vec::new());
    for round in 0..WARM_UP + RUNS {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
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
        restored_steps: typical(&restored_steps)?,
        cold_steps: typical(&cold_steps)?,
        sizes_bytes: Sizes {
            vmlinux: size("share/sealock/vmlinux")?,
            initramfs: size("share/sealock/initramfs")?,
            shim: size("bin/containerd-shim-sealock-v2")?,
            vmm: size("libexec/sealock/sealock-vmm")?,
            fsd: size("libexec/sealock/sealock-fsd")?,
        },
    };
    print(&figures);
    report::figures("start", &figures)?;
    let limit = |ratio| Some(ratio * figures.runc_ms.median);
    report::chart(
        "start",
        &Bars {
            title: "ctr run --rm … true (median; half of the runs; red: aim)",
            unit: "ms",
            parts: &["took"],
            groups: vec![report::group(
                "",
                &[
                    (Kind::Restored.name(), &figures.restored_ms, limit(RESTORED)),
                    (Kind::Cold.name(), &figures.cold_ms, limit(COLD)),
                    (Kind::Runc.name(), &figures.runc_ms, None),
                ],
            )],
        },
    )?;
    for (name, title, steps) in [
        (
            "start-restored",
            "a start from a template",
            &figures.restored_steps,
        ),
        ("start-booted", "a start that boots", &figures.cold_steps),
    ] {
        let picture = waterfall::draw(title, &spans(steps));
        report::leave(&format!("{name}.svg"), picture.as_bytes())?;
    }
    Ok(())
}

/// Runs `true` and returns how long it took in milliseconds, with the timeline of a machine.
fn run_true(kind: Kind) -> Result<(f64, Vec<Step>)> {
    kind.prepare()?;
    let before = fs::metadata(LOG).map_or(0, |log| log.len());
    let run = Run::busybox(kind.runtime(), &["true"]);
    let began = Instant::now();
    let output = run.output();
    let took = began.elapsed().as_secs_f64() * 1e3;
    ensure!(
        output.status.success(),
        "{}: {}",
        kind.name(),
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

/// The steps that all have, each at the median of its times.
fn typical(timelines: &[Vec<Step>]) -> Result<Vec<Step>> {
    let last = timelines.last().context("no timeline")?;
    let mut steps = Vec::new();
    for Step { step, .. } in last {
        let times: Vec<_> = timelines
            .iter()
            .filter_map(|timeline| at(timeline, step))
            .collect();
        if times.len() == timelines.len() {
            steps.push(Step {
                step: step.clone(),
                ms: Sample::of(times)?.median,
            });
        }
    }
    steps.sort_by(|one, other| one.ms.total_cmp(&other.ms));
    Ok(steps)
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

fn print(figures: &Start) {
    figures.restored_ms.print("ctr run --rm true: restored");
    figures.cold_ms.print("ctr run --rm true: booted");
    figures.runc_ms.print("ctr run --rm true: runc");
    print_ratio("  restored to runc", figures.restored_ratio, Some(RESTORED));
    print_ratio("  booted to runc", figures.cold_ratio, Some(COLD));
    figures
        .vmm_exec_to_hello_ms
        .print("VMM exec to agent hello, booted");
    print_ratio("  share of the whole", figures.vmm_exec_to_hello_share, Some(0.5));
    for (what, steps) in [
        ("restored", &figures.restored_steps),
        ("booted", &figures.cold_steps),
    ] {
        println!("{what}\n     at ms   took ms  step");
        for span in spans(steps) {
            println!("  {:8.1}  {:8.1}  {}", span.to, span.to - span.from, span.step);
        }
    }
    let sizes = &figures.sizes_bytes;
    for (name, bytes, most) in [
        ("guest kernel", sizes.vmlinux, "at most 16"),
        ("initramfs (the agent)", sizes.initramfs, "at most 6"),
        ("shim", sizes.shim, ""),
        ("vmm", sizes.vmm, ""),
        ("fsd", sizes.fsd, ""),
    ] {
        println!("{name:<38} {:8.1} MiB  {most}", mib(bytes / 1024));
    }
}
