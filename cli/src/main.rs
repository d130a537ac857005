//! The `sealock` command.

mod check;
mod template;
mod trace;

use std::{path::PathBuf, process::ExitCode};

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
    /// Print the timeline of a pod's start as a table
    Trace {
        /// containerd's log; `-` stands for standard input (journalctl -u containerd | sealock trace)
        #[arg(long, default_value = "-")]
        log: PathBuf,
        /// The pod's id (the newest start in the log if not given)
        id: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Check => check::run(),
        Command::Template { command } => template::run(command),
        Command::Trace { log, id } => trace::run(&log, id.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealock: {error:#}");
            ExitCode::FAILURE
        }
    }
}
