//! The `sealock` command.

mod check;
mod template;
mod trace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Containers in microVMs of their own
#[derive(Parser)]
#[command(name = "sealock", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell whether this host can run microVMs, and what to do if not
    Check,
    /// Make, list and delete the templates that pods are restored from
    Template {
        #[command(subcommand)]
        command: template::Command,
    },
    /// Show where the time of a pod's start went
    Trace(trace::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Check => check::run(),
        Command::Template { command } => template::run(command),
        Command::Trace(arguments) => trace::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealock: {error:#}");
            ExitCode::FAILURE
        }
    }
}
