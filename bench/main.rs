//! `ringgate-bench`: a load generator on Ringgate's reactor, and a minimal server to point it at.
//!
//! - `serve` answers every request with one prebuilt response ([`serve`], [`request_heads`]).
//! - `relay` passes bytes on without reading them, the floor for a proxy ([`relay`]).
//! - `run` makes load. [`plan`] is what it does, [`target`] the bytes it sends. Each thread of a
//!   [`fleet`] has a ring; each connection is a task ([`client`]) that reads responses with the
//!   product's codec ([`response`], for HTTP/2 [`multiplex`]), over TLS if asked to ([`tls`]), and
//!   counts into its thread's [`tally`]. Threads report their
//!   figures several times a second through a queue; [`run`] adds them up, shows [`live`] lines and
//!   makes the [`report`].
//! - `blast` sends single packets for layer 4 ([`blast`], [`packet`]); `sink` counts them ([`sink`]).
//! - `reflect` is the floor for a director with packet sockets ([`reflect`]).
//! - `xdp` measures the director's XDP program in the kernel ([`xdp`]), `verdict` its decision in user space ([`verdict`]); `hostile`
//!   makes frames that mean no good ([`hostile`]).
//! - `cores` measures how far two CPUs are from each other ([`cores`]).
//! - `agent` is the same on another host: [`agent`] puts a connection ([`wire`]) in place of the queue.
//!
//! The open loop: [`pace`] says when each request is due, as arithmetic from the start of the run.
//! A free connection takes the next due time, be it past or to come, sleeps until then ([`sleeper`])
//! and sends. So the order and the number of requests do not depend on the server, and latency
//! counts from the due time however late the request was sent: because all connections were busy,
//! because the timer woke several requests in one burst, or because this process had no CPU.

mod agent;
mod args;
mod blast;
mod client;
mod cores;
mod fleet;
mod hostile;
mod live;
mod machine;
mod multiplex;
mod pace;
mod packet;
mod plan;
mod reflect;
mod relay;
mod report;
mod request_heads;
mod response;
mod run;
mod serve;
mod sink;
mod sleeper;
mod tally;
mod target;
mod tls;
mod verdict;
mod watch;
mod wire;
mod xdp;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};

/// Wrong usage; clap has the same code.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Serve(options) => serve::run(&options).map(|()| 0),
        Command::Relay(options) => relay::run(&options).map(|()| 0),
        Command::Blast(options) => blast::run(&options),
        Command::Sink(options) => sink::run(&options),
        Command::Xdp(options) => xdp::run(&options),
        Command::Reflect(options) => reflect::run(&options),
        Command::Verdict(options) => verdict::run(&options),
        Command::Hostile(options) => hostile::run(&options),
        Command::Cores(options) => cores::run(&options),
        Command::Agent(options) => agent::serve(&options).map(|()| 0),
        Command::Run(options) => match run::plan(&options) {
            Ok(plan) => run::run(&options, plan),
            Err(why) => return complain(&why, EXIT_USAGE),
        },
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(why) => complain(&why, 1),
    }
}

fn complain(why: &str, code: u8) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "ringgate-bench: {why}");
    ExitCode::from(code)
}
