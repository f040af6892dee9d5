//! The commands and what they take.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  ringgate check /etc/ringgate/ringgate.toml   say what is wrong with a file
  ringgate run /etc/ringgate/ringgate.toml     serve it
  ringgate run --demo                          answer on http://127.0.0.1:8080/";

const RUN_EXAMPLES: &str = "\
Signals:
  SIGTERM, SIGINT   stop accepting, finish what is in flight (node.drain_timeout), exit
  SIGHUP            read FILE again and put it in force in place (as `ringgate ctl reload`)
  SIGUSR1           reopen the access log file

Examples:
  ringgate run /etc/ringgate/ringgate.toml
  ringgate run --demo & curl http://127.0.0.1:8080/";

const CHECK_EXAMPLES: &str = "\
Exit code 0: the file is good; warnings may be printed. 2: it is not; every problem is printed with
file, line, column and what to write instead.

Examples:
  ringgate check ringgate.toml
  ringgate check ringgate.toml && systemctl restart ringgate";

const CTL_EXAMPLES: &str = "\
Exit code 0: done. 1: it was refused, or the process cannot be reached.

Examples:
  ringgate ctl reload                 put the changed file in force; connections stay
  ringgate ctl reload --dry-run       say what that would change
  ringgate ctl vrrp status            roles, priorities and why, peers, misconfigurations
  ringgate ctl vrrp release           hand the addresses over to the peer, and stay behind it
  ringgate ctl vrrp resume            be an ordinary member again";

/// One binary in place of LVS, nginx and keepalived.
#[derive(Debug, Parser)]
#[command(name = "ringgate", version, about, after_help = EXAMPLES)]
#[command(propagate_version = false, disable_help_subcommand = true)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a configuration until told to stop
    #[command(after_help = RUN_EXAMPLES)]
    #[command(override_usage = "ringgate run [--watch] FILE\n       ringgate run --demo")]
    Run {
        /// The configuration file
        #[arg(value_name = "FILE", required_unless_present = "demo", conflicts_with = "demo")]
        file: Option<PathBuf>,
        /// Serve a built-in configuration that answers on 127.0.0.1:8080
        #[arg(long)]
        demo: bool,
        /// Reload whenever FILE changes
        #[arg(long, conflicts_with = "demo")]
        watch: bool,
    },
    /// Control a running process through its unix socket
    #[command(after_help = CTL_EXAMPLES)]
    Ctl {
        /// The socket (admin.socket)
        #[arg(long, value_name = "PATH", default_value = crate::control::config::ADMIN_SOCKET)]
        socket: PathBuf,
        /// About what
        #[command(subcommand)]
        about: About,
    },
    /// Settings of the machine: plan, apply, verify, undo, explain
    #[command(after_help = crate::cli::tune::EXAMPLES)]
    Tune {
        /// What to do
        #[command(subcommand)]
        command: crate::cli::tune::args::Tune,
    },
    /// Validate a configuration file and change nothing
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// What `ctl` is about.
#[derive(Debug, Subcommand)]
pub enum About {
    /// Put the changed configuration file in force; nothing else is touched
    Reload {
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Virtual addresses
    Vrrp {
        /// What to do
        #[command(subcommand)]
        what: Vrrp,
    },
}

/// What to do with virtual addresses.
#[derive(Debug, Subcommand)]
pub enum Vrrp {
    /// Show roles, priorities, peers and misconfigurations
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Hand over to a peer: it is active before this node lets go
    Release {
        /// One [vrrp.NAME]; default: all
        instance: Option<String>,
    },
    /// Take over with the highest priority
    Prefer {
        /// One [vrrp.NAME]; default: all
        instance: Option<String>,
    },
    /// End `release` or `prefer`
    Resume {
        /// One [vrrp.NAME]; default: all
        instance: Option<String>,
    },
}
