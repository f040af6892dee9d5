//! STUB: `run` will start the shards; replaced with the shard layer.

use std::io::Write;
use std::process::ExitCode;

use crate::control::config::Config;

/// STUB: serves `config` until told to stop; today it says so and fails.
#[must_use]
pub fn run(config: Config) -> ExitCode {
    drop(config);
    let _ = std::io::stderr().write_all(b"ringgate: `run` is not built in yet\n");
    ExitCode::FAILURE
}
