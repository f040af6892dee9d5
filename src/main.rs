//! The `ringgate` binary: hands the command line to the library and turns its verdict into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringgate::cli::main()
}
