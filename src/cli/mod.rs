//! The command line: arguments, messages and exit codes.
//!
//! Exit codes: 0 for success, 1 when standard output cannot be written, 2 for wrong usage or a
//! wrong configuration. What `run` returns is its own.

pub mod args;
pub mod ctl;
pub mod generated;
pub mod run;
pub mod top;
pub mod tune;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Parser as _;

use self::args::{Args, Command};
use crate::control::config::{self, Config, ConfigErrors};
use crate::control::upgrade::Inherited;

/// Wrong usage or a wrong configuration; clap has the same code for usage.
const EXIT_USAGE: u8 = 2;
/// Standard output could not be written.
const EXIT_OUTPUT: u8 = 1;

/// What `run --demo` serves.
pub const DEMO: &str = include_str!("../../deploy/demo.toml");

/// Runs the program with the arguments it was started with.
#[must_use]
pub fn main() -> ExitCode {
    let inherited = match Inherited::receive() {
        Ok(inherited) => inherited,
        Err(why) => {
            print(&mut io::stderr(), &format!("ringgate: {why}\n"));
            return ExitCode::FAILURE;
        }
    };
    let mut told = Told::default();
    match prepare(std::env::args_os(), &mut io::stdout(), &mut told) {
        Step::Exit(code) => {
            if let Some(inherited) = inherited {
                inherited.failed(String::from_utf8_lossy(&told.0).trim_end());
            }
            ExitCode::from(code)
        }
        Step::Run { config, demo } => run::run(*config, demo, inherited.map(Rc::new)),
    }
}

/// Standard error, and what was written there, for the process that an upgrade would replace.
#[derive(Default)]
struct Told(Vec<u8>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        io::stderr().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// What is left to do after the arguments are understood.
#[derive(Debug)]
pub enum Step {
    /// Nothing: everything was printed; exit with this code.
    Exit(u8),
    /// Serve this configuration.
    Run {
        /// What to serve.
        config: Box<Config>,
        /// It is the demo: say what to try.
        demo: bool,
    },
}

/// Does everything but serve: reads the arguments and the file, prints to `out` and `err`.
pub fn prepare<I>(args: I, out: &mut dyn Write, err: &mut dyn Write) -> Step
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(usage) if usage.use_stderr() => {
            print(err, &usage.to_string());
            return Step::Exit(EXIT_USAGE);
        }
        // Help and version come as errors too.
        Err(help) => return Step::Exit(print_result(out, &help.to_string())),
    };
    match args.command {
        Command::Ctl { socket, json, about } => {
            Step::Exit(ctl::run(&ctl::Socket { path: &socket, json }, &about, out, err))
        }
        Command::Top { socket, interval, once, width } => {
            let how = top::How { socket: &socket, interval, once, width };
            Step::Exit(top::run(&how, out, err))
        }
        Command::Completions { shell } => {
            Step::Exit(print_result(out, &generated::completions(shell)))
        }
        Command::Man => Step::Exit(print_result(out, &generated::manual())),
        Command::Check { file } => match loaded(config::load(&file), err) {
            Some(config) => Step::Exit(print_result(out, &verdict(&file, &config))),
            None => Step::Exit(EXIT_USAGE),
        },
        Command::KeepSilence { milliseconds } => {
            crate::l4::engine::keep_silence(Duration::from_millis(milliseconds));
            Step::Exit(0)
        }
        Command::Tune { command } => Step::Exit(tune::run(&command, out, err)),
        Command::Run { file: Some(file), watch, .. } => {
            let watched = |config| Config { watch, ..config };
            run_step(config::load(&file).map(watched), false, err)
        }
        Command::Run { file: None, .. } => run_step(config::parse("demo.toml", DEMO), true, err),
    }
}

fn run_step(result: Result<Config, ConfigErrors>, demo: bool, err: &mut dyn Write) -> Step {
    let run = |config| Step::Run { config: Box::new(config), demo };
    loaded(result, err).map_or(Step::Exit(EXIT_USAGE), run)
}

/// The configuration, with its warnings printed; or its errors printed.
fn loaded(result: Result<Config, ConfigErrors>, err: &mut dyn Write) -> Option<Config> {
    match result {
        Ok(config) => {
            config.warnings.iter().for_each(|warning| print(err, &format!("{warning}\n")));
            Some(config)
        }
        Err(errors) => {
            print(err, &errors.to_string());
            None
        }
    }
}

fn verdict(file: &Path, config: &Config) -> String {
    let counted = |count: usize, what: &str| {
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {what}{plural}")
    };
    format!(
        "{}: ok ({}, {}, {})\n",
        file.display(),
        counted(config.service.listeners.len(), "listener"),
        counted(config.service.routes.len(), "route"),
        counted(config.service.upstreams.len(), "upstream"),
    )
}

/// Writes to standard error, where nothing can be said about a failure.
fn print(to: &mut dyn Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

/// Writes what was asked for; a reader that has left (`| head`) is no failure.
fn print_result(to: &mut dyn Write, text: &str) -> u8 {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Ok(()) => 0,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(_) => EXIT_OUTPUT,
    }
}

#[cfg(test)]
mod tests;
