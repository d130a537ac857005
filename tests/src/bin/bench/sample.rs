//! Several measurements of one thing.

use anyhow::{Result, ensure};
use serde::Serialize;

/// Measurements, in short.
#[derive(Serialize)]
pub struct Sample {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// Half of the measurements lie between these.
    pub quartiles: [f64; 2],
    pub runs: usize,
}

impl Sample {
    pub fn of(mut values: Vec<f64>) -> Result<Self> {
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

    /// A line of a table, in milliseconds.
    pub fn print(&self, what: &str) {
        println!(
            "{what:<38} {:8.1} ms   {:.1}-{:.1} (half of {} runs), {:.1}-{:.1} (all)",
            self.median, self.quartiles[0], self.quartiles[1], self.runs, self.min, self.max
        );
    }
}

/// Two samples side by side.
#[derive(Serialize)]
pub struct Beside {
    pub sealock_ms: Sample,
    pub runc_ms: Sample,
    /// Sealock's median by runc's.
    pub ratio: f64,
}

impl Beside {
    pub fn of(sealock: Vec<f64>, runc: Vec<f64>) -> Result<Self> {
        let (sealock_ms, runc_ms) = (Sample::of(sealock)?, Sample::of(runc)?);
        Ok(Self {
            ratio: sealock_ms.median / runc_ms.median,
            sealock_ms,
            runc_ms,
        })
    }

    pub fn print(&self, what: &str) {
        self.sealock_ms.print(&format!("{what}: sealock"));
        self.runc_ms.print(&format!("{what}: runc"));
        print_ratio("  sealock to runc", self.ratio, None);
    }
}

/// A line of a table, a ratio and what it is to be at most.
pub fn print_ratio(what: &str, ratio: f64, most: Option<f64>) {
    let most = most.map_or(String::new(), |most| format!("at most {most}"));
    println!("{what:<38} {ratio:8.2}      {most}");
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
pub fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}
