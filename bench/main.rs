//! `ringgate-bench`: a load generator on Ringgate's reactor, and a minimal server to point it at.

mod agent;
mod args;
mod client;
mod fleet;
mod live;
mod machine;
mod pace;
mod plan;
mod report;
mod request_heads;
mod response;
mod run;
mod serve;
mod sleeper;
mod tally;
mod target;
mod wire;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve(options) => serve::run(&options),
        Command::Run(options) => run::run(&options),
        Command::Agent(options) => agent::serve(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ringgate-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
