//! Many starts at once.

use std::{thread, time::Instant};

use anyhow::{Context, Result, ensure};
use sealock_chart::bars::{Bar, Bars, Group};
use sealock_tests::ctr::{self, Run};
use serde::Serialize;

use crate::{
    kind::{Kind, make_template},
    report,
    sample::print_ratio,
};

/// How many at once.
const SIZES: [usize; 3] = [10, 25, 50];

#[derive(Serialize)]
struct Crowd {
    containers: usize,
    /// Milliseconds until the last has ended, by their number.
    restored_ms_each: f64,
    runc_ms_each: f64,
    ratio: f64,
}

pub fn run() -> Result<()> {
    ctr::import_busybox();
    make_template()?;
    // What is made once for all is there, and the working set is known.
    for kind in [Kind::Restored, Kind::Runc] {
        for _ in 0..2 {
            together(kind, 1)?;
        }
    }
    let mut crowds = Vec::new();
    for containers in SIZES {
        let restored_ms_each = together(Kind::Restored, containers)?;
        let runc_ms_each = together(Kind::Runc, containers)?;
        let ratio = restored_ms_each / runc_ms_each;
        println!(
            "{containers:3} at once, each: {restored_ms_each:8.0} ms sealock, restored   {runc_ms_each:8.0} ms runc   ratio {ratio:.2}"
        );
        crowds.push(Crowd {
            containers,
            restored_ms_each,
            runc_ms_each,
            ratio,
        });
    }
    if let (Some(first), Some(last)) = (crowds.first(), crowds.last()) {
        print_ratio(
            "  each of 50 to each of 10",
            last.restored_ms_each / first.restored_ms_each,
            Some(1.0),
        );
    }
    report::figures("crowd", &crowds)?;
    let bar = |name: &str, part, value| Bar {
        name: name.to_owned(),
        values: vec![(part, value)],
        spread: None,
        limit: None,
    };
    report::chart(
        "crowd",
        &Bars {
            title: "ctr run --rm …, so many at once: time by number of containers",
            unit: "ms",
            parts: &["sealock", "runc"],
            groups: crowds
                .iter()
                .map(|crowd| Group {
                    name: format!("{} at once", crowd.containers),
                    bars: vec![
                        bar(Kind::Restored.name(), 0, crowd.restored_ms_each),
                        bar(Kind::Runc.name(), 1, crowd.runc_ms_each),
                    ],
                })
                .collect(),
        },
    )
}

/// Starts so many containers at once, each of which has to say its number; milliseconds for each of them.
fn together(kind: Kind, containers: usize) -> Result<f64> {
    kind.prepare()?;
    let began = Instant::now();
    let all: Vec<_> = (0..containers)
        .map(|number| {
            thread::spawn(move || {
                let word = number.to_string();
                let output = Run::busybox(kind.runtime(), &["echo", &word]).output();
                ensure!(
                    output.status.success() && output.stdout == format!("{word}\n").as_bytes(),
                    "{} {word} of {containers}: {}, {:?}, {}",
                    kind.name(),
                    output.status,
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                Ok(())
            })
        })
        .collect();
    for one in all {
        one.join().ok().context("a client panicked")??;
    }
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    Ok(began.elapsed().as_secs_f64() * 1e3 / containers as f64)
}
