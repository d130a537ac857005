//! Benchmarks, run in the lab by `scripts/bench`: a table for people on standard output, in `/lab/out` figures as JSON and a chart as
//! SVG.

mod boot;
mod crowd;
mod exec;
mod idle;
mod kind;
mod logs;
mod memory;
mod net;
mod report;
mod sample;
mod start;

use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let result = match name.as_str() {
        "boot" => boot::run(),
        "crowd" => crowd::run(),
        "exec" => exec::run(),
        "logs" => logs::run(),
        "memory" => memory::run(),
        "net" => net::run(),
        "start" => start::run(),
        _ => {
            eprintln!("usage: sealock-bench boot|crowd|exec|logs|memory|net|start [ARGUMENT]");
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
