//! What idle containers take of the host, and what a busy one gives back.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    process::{Child, ChildStdout},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use sealock_chart::bars::{Bar, Bars, Group};
use sealock_tests::{
    ctr::{self, MINBASE, Run, Runtime},
    memory::available_without_caches,
};
use serde::Serialize;

use crate::{
    idle::{Memory, Sleeper},
    kind::{Kind, make_template},
    report,
    sample::mib,
};

/// What one more may take, in MiB.
const RESTORED: f64 = 12.0;
const COLD: f64 = 40.0;

/// What a pod may keep of a gibibyte that it has freed, in MiB, and by when.
const KEPT: f64 = 32.0;
const BY: u64 = 10;

/// What the guest frees after its start it has reported by then.
const SETTLE: Duration = Duration::from_secs(8);

#[derive(Serialize)]
struct Figures {
    idle: Vec<Idle>,
    /// What the template takes, whatever their number, in KiB.
    template_kib: u64,
    given_back: Vec<GivenBack>,
}

/// Idle containers of a kind, in KiB.
#[derive(Serialize)]
struct Idle {
    kind: &'static str,
    /// All of them, by their number.
    all: Vec<(u64, Memory)>,
    /// One more of them: the difference between the two largest numbers.
    one_more: Memory,
    /// The same by what the host has free, with all that its kernel keeps for it.
    one_more_of_host: u64,
}

/// What is left of a gibibyte that was touched and freed.
#[derive(Serialize)]
struct GivenBack {
    machine: &'static str,
    before_kib: u64,
    held_kib: u64,
    /// Seconds after it was freed, and what more than before the host then lacks, in KiB.
    after: Vec<(u64, i64)>,
}

pub fn run() -> Result<()> {
    ctr::import_busybox();
    make_template()?;
    let given_back = vec![
        give_back(
            "a machine of 1536 MiB",
            &["--annotation", "io.sealock.memory-mib=1536"],
        )?,
        give_back(
            "a machine that grows from 64 MiB",
            &[
                "--annotation",
                "io.sealock.memory-mib=64",
                "--annotation",
                "io.sealock.max-memory-mib=2048",
            ],
        )?,
    ];
    let counts: [(Kind, &[u64]); 3] = [
        (Kind::Restored, &[1, 10, 50]),
        (Kind::Cold, &[1, 10]),
        (Kind::Runc, &[1, 10]),
    ];
    let mut idle = Vec::new();
    for (kind, counts) in counts {
        kind.prepare()?;
        // The working set is known, and what is made once for all is there.
        drop(Sleeper::start(kind.runtime())?);
        idle.push(idle_containers(kind, counts)?);
    }
    let template_kib = fs::read_dir("/run/sealock/.templates")?
        .flatten()
        .filter_map(|entry| fs::metadata(entry.path().join("memory")).ok())
        .map(|memory| memory.blocks() / 2)
        .sum();
    println!("the template takes {:.1} MiB", mib(template_kib));
    let figures = Figures {
        idle,
        template_kib,
        given_back,
    };
    report::figures("memory", &figures)?;
    chart(&figures)
}

fn idle_containers(kind: Kind, counts: &[u64]) -> Result<Idle> {
    let mut sleepers = Vec::new();
    let mut all = Vec::new();
    let mut free = Vec::new();
    for &count in counts {
        while (sleepers.len() as u64) < count {
            sleepers.push(Sleeper::start(kind.runtime())?);
        }
        thread::sleep(SETTLE);
        let memory = Memory::now(kind.runtime())?;
        println!(
            "{count:3} × {:<18} {:8.1} MiB each, {:.1} private",
            kind.name(),
            mib(memory.pss() / count),
            mib(memory.private / count)
        );
        all.push((count, memory));
        // After they were measured: code that is dropped with the caches counts nowhere.
        free.push(available_without_caches()?);
    }
    drop(sleepers);
    let (&[.., (few, ref less), (many, ref more)], &[.., before, after]) = (&all[..], &free[..]) else {
        bail!("nothing was measured");
    };
    let idle = Idle {
        kind: kind.name(),
        one_more: more.one_of(many - few, less),
        one_more_of_host: before.saturating_sub(after) / (many - few),
        all,
    };
    let one = &idle.one_more;
    println!(
        "one more × {:<13} {:8.1} MiB: shim {:.1}, vmm {:.1}, fsd {:.1}, guest {:.1}, program {:.1}; {:.1} MiB of what the host has free",
        kind.name(),
        mib(one.pss()),
        mib(one.shims),
        mib(one.vmms),
        mib(one.fsds),
        mib(one.guests),
        mib(one.programs),
        mib(idle.one_more_of_host)
    );
    Ok(idle)
}

/// A program that touches a gibibyte when it is told to, frees it when it is told to, and waits.
const BUSY: &str = "
import mmap, sys
print('up', flush=True)
sys.stdin.readline()
held = mmap.mmap(-1, 1 << 30)
for at in range(0, 1 << 30, 4096): held[at] = 1
print('held', flush=True)
sys.stdin.readline()
held.close()
print('freed', flush=True)
sys.stdin.readline()
";

/// A container with such a program, until it is dropped.
struct Busy {
    client: Child,
    output: Option<BufReader<ChildStdout>>,
}

impl Busy {
    fn start(size: &[&str]) -> Result<Self> {
        let run = Run::rootfs(Runtime::Sealock, MINBASE, &["/usr/bin/python3", "-c", BUSY]).flag(size);
        let mut busy = Self {
            client: run.spawn(),
            output: None,
        };
        busy.output = busy.client.stdout.take().map(BufReader::new);
        busy.hear("up")?;
        Ok(busy)
    }

    fn hear(&mut self, word: &str) -> Result<()> {
        let output = self.output.as_mut().context("its output is piped")?;
        let mut line = String::new();
        output.read_line(&mut line)?;
        ensure!(line.trim() == word, "{line:?} instead of {word:?}");
        Ok(())
    }

    /// Has it go on, until it says `word`.
    fn until(&mut self, word: &str) -> Result<()> {
        let input = self.client.stdin.as_mut().context("its input is piped")?;
        input.write_all(b"go on\n")?;
        self.hear(word)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // Without input it goes on to its end.
        drop(self.client.stdin.take());
        let _ = self.client.wait();
    }
}

fn give_back(machine: &'static str, size: &[&str]) -> Result<GivenBack> {
    let mut busy = Busy::start(size)?;
    thread::sleep(SETTLE);
    let before = available_without_caches()?;
    busy.until("held")?;
    let held = available_without_caches()?;
    busy.until("freed")?;
    let mut after = Vec::new();
    for seconds in (2..=2 * BY).step_by(2) {
        thread::sleep(Duration::from_secs(2));
        let lacks = before.cast_signed() - available_without_caches()?.cast_signed();
        after.push((seconds, lacks));
    }
    drop(busy);
    let back = GivenBack {
        machine,
        before_kib: before,
        held_kib: held,
        after,
    };
    println!(
        "{machine} that has touched and freed 1 GiB ({:.0} MiB of the host's): keeps, in MiB,",
        mib(before.saturating_sub(held))
    );
    for (seconds, kib) in &back.after {
        println!(
            "  {:8.1}  after {seconds} s{}",
            signed_mib(*kib),
            if *seconds == BY {
                format!(" (at most {KEPT})")
            } else {
                String::new()
            }
        );
    }
    Ok(back)
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn signed_mib(kib: i64) -> f64 {
    kib as f64 / 1024.0
}

fn chart(figures: &Figures) -> Result<()> {
    let bar = |name: &str, memory: &Memory, limit| Bar {
        name: name.to_owned(),
        values: [
            memory.shims,
            memory.vmms,
            memory.fsds,
            memory.guests,
            memory.programs,
        ]
        .map(mib)
        .into_iter()
        .enumerate()
        .collect(),
        spread: None,
        limit,
    };
    let limits = [Some(RESTORED), Some(COLD), None];
    report::chart(
        "memory",
        &Bars {
            title: "one more idle container: proportional memory of its processes (red: aim)",
            unit: "MiB",
            parts: &["shim", "vmm", "fsd", "guest's memory", "program"],
            groups: vec![Group {
                name: String::new(),
                bars: figures
                    .idle
                    .iter()
                    .zip(limits)
                    .map(|(idle, limit)| bar(idle.kind, &idle.one_more, limit))
                    .collect(),
            }],
        },
    )?;
    report::chart(
        "given-back",
        &Bars {
            title: "what a pod keeps of 1 GiB that it has touched and freed (red: aim)",
            unit: "MiB",
            parts: &["of the host's memory"],
            groups: figures
                .given_back
                .iter()
                .map(|back| Group {
                    name: back.machine.to_owned(),
                    bars: back
                        .after
                        .iter()
                        .map(|(seconds, kib)| Bar {
                            name: format!("after {seconds} s"),
                            values: vec![(0, signed_mib(*kib).max(0.0))],
                            spread: None,
                            limit: (*seconds == BY).then_some(KEPT),
                        })
                        .collect(),
                })
                .collect(),
        },
    )
}
