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

/// Wrong usage; clap has the same code.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve(options) => serve::run(&options),
        Command::Agent(options) => agent::serve(&options),
        Command::Run(options) => match run::plan(&options) {
            Ok(plan) => run::run(&options, plan),
            Err(why) => return complain(&why, EXIT_USAGE),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => complain(&why, 1),
    }
}

fn complain(why: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ringgate-bench: {why}");
    ExitCode::from(code)
}
