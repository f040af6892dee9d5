//! What `ringgate tune` takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::control::config::units;

pub(super) const EXAMPLES: &str = "\
Exit code 0: everything that applies is as wanted. 1: it is not, or it could not be set. 2: wrong usage
or configuration; nothing was touched.

Examples:
  ringgate tune plan --profile edge             what would change, and why
  ringgate tune apply --profile edge --try 60s  undone after a minute unless confirmed
  ringgate tune confirm                         (or `confirm ringgate.toml`, if the file names a state_dir)
  ringgate tune verify ringgate.toml            the configuration's [tuning]; exit code 1 on drift
  ringgate tune rollback                        every value as it was before
  ringgate tune lint /etc/sysctl.d/*.conf       what others' settings really do";

/// What to do.
#[allow(missing_docs)] // of the flattened fields: their types say it
#[derive(Debug, Subcommand)]
pub enum Tune {
    /// Show what is, what should be and why; change nothing
    Plan {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        place: Place,
    },
    /// Make the changes; originals go to a journal first
    Apply {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        place: Place,
        /// Undo everything after this time unless `tune confirm` comes first, like 60s or 5m
        #[arg(long = "try", value_name = "TIME", value_parser = time, conflicts_with = "boot")]
        trial: Option<Duration>,
        /// As at boot: what was tried and never confirmed is left out
        #[arg(long)]
        boot: bool,
    },
    /// Keep what `apply --try` has changed
    Confirm {
        /// The configuration file of the `apply`, whose `[tuning]` says where the journal is
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Compare and exit with 1 when something has drifted
    Verify {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        place: Place,
    },
    /// Restore every value as it was before the first change
    Rollback {
        /// The configuration file of the `apply`, whose `[tuning]` says where the journal is
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Show what has been changed here, or all about one setting
    Show {
        /// A setting, like net.core.somaxconn
        #[arg(value_name = "KEY")]
        key: Option<String>,
        /// The configuration file of the `apply`, whose `[tuning]` says where the journal is
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        place: Place,
    },
    /// Show which CPUs run shards, the control thread and interrupts
    Cpu {
        /// A configuration file, whose node.shards counts; without it shards are placed automatically
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// Network interfaces in place of those with hardware
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        interface: Vec<String>,
        #[command(flatten)]
        place: Place,
    },
    /// Explain the traps in sysctl.conf files
    Lint {
        /// Files of sysctl.conf(5)
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// A configuration of ringgate, whose listeners' ports are looked at too
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait for the end of a trial
    #[command(hide = true)]
    Watch {
        #[command(flatten)]
        place: Place,
    },
}

/// Which settings.
#[derive(Debug, Args)]
pub struct What {
    /// A configuration file, whose `[tuning]` counts
    #[arg(value_name = "FILE", required_unless_present = "profile")]
    pub file: Option<PathBuf>,
    /// Profiles in place of the file's: edge, proxy, director, real-server, minimal
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub profile: Vec<String>,
    /// Network interfaces in place of those with hardware
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub interface: Vec<String>,
    /// Settings that may be lowered
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    pub force: Vec<String>,
    /// Dangerous settings, and those that reset a port, by name
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    pub allow: Vec<String>,
}

/// Where, and how it is told.
#[derive(Debug, Args)]
pub struct Place {
    /// Look for /proc, /sys and /etc below this directory
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Keep the journal there, below the root
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    match units::duration(text) {
        Ok(time) if time.is_zero() => Err("write a time above zero".to_owned()),
        other => other,
    }
}
