//! Where figures and charts are left.

use std::fs;

use anyhow::{Context, Result};
use sealock_chart::bars::{self, Bar, Bars, Group};
use serde::Serialize;

use crate::sample::Sample;

const DIRECTORY: &str = "/lab/out";

/// Leaves the figures of the benchmark `name`.
pub fn figures(name: &str, figures: &impl Serialize) -> Result<()> {
    leave(&format!("{name}.json"), &serde_json::to_vec_pretty(figures)?)
}

/// Leaves a chart for the documentation.
pub fn chart(name: &str, chart: &Bars<'_>) -> Result<()> {
    leave(&format!("{name}.svg"), bars::draw(chart).as_bytes())
}

/// Leaves a file.
pub fn leave(name: &str, contents: &[u8]) -> Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let path = format!("{DIRECTORY}/{name}");
    fs::write(&path, contents).with_context(|| format!("cannot write {path}"))
}

/// A group of one bar for each sample, with what half of the measurements were between and what it should not exceed.
pub fn group(name: &str, bars: &[(&str, &Sample, Option<f64>)]) -> Group {
    Group {
        name: name.to_owned(),
        bars: bars
            .iter()
            .map(|(name, sample, limit)| Bar {
                name: (*name).to_owned(),
                values: vec![(0, sample.median)],
                spread: Some(sample.quartiles),
                limit: *limit,
            })
            .collect(),
    }
}
