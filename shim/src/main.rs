//! containerd's task service for Sealock.
//!
//! containerd runs this program in a bundle's directory:
//!
//! - `start` prints the address of the pod's shim, which it becomes itself (by forking, not by executing again) when there
//!   is none yet; the pod's machine is started right then ([`start`], [`serve`]).
//! - `delete` undoes what a crashed shim left ([`delete`]).
//! - `template` makes a template for later pods; the shim runs it by itself ([`maker`]).
//! - `-info` and `-v` tell about it ([`info`]).

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod args;
mod delete;
mod events;
mod exec;
mod info;
mod lifecycle;
mod log;
mod maker;
mod metrics;
mod pod;
mod pod_config;
mod pod_sandbox;
mod sandbox_service;
mod serve;
mod service;
mod start;
mod status;
mod task;

use std::process::ExitCode;

use args::{Action, Args};
use sealock_sandbox::{Timeline, error};

fn main() -> ExitCode {
    let mut timeline = Timeline::default();
    timeline.mark("shim_start");
    match run(timeline) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // containerd shows this to whoever asked for the container.
            eprintln!("{}", error::line(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(timeline: Timeline) -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse(std::env::args_os().skip(1))?;
    match args.action {
        Action::Start => start::run(&args, timeline)?,
        Action::Delete => delete::run(&args)?,
        Action::Template => maker::run()?,
        Action::Info => info::print()?,
        Action::Version => info::print_version()?,
    }
    Ok(())
}
