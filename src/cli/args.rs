//! The commands and what they take.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

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
  SIGUSR2           start the binary again and drain once that serves, as `ringgate ctl upgrade`

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
Exit code 0: done. 1: it was refused, something is not as it should be (tune verify), or the process
cannot be reached. 2: wrong usage.

Examples:
  ringgate ctl status                        everything in a few lines
  ringgate ctl reload                        put the changed file in force; connections stay
  ringgate ctl reload --dry-run              say what that would change
  ringgate ctl upstream list                 servers, their state and why, drift from the file
  ringgate ctl upstream api drain 10.0.1.11:8080            no new requests, those on it finish
  ringgate ctl upstream api weight 5 10.0.1.11:8080 --persist   and write it into the file
  ringgate ctl log level debug               until the next restart
  ringgate ctl vrrp release                  hand the addresses over to the peer, and stay behind it
  ringgate ctl upgrade                       start the new binary, pass it the sockets, drain the old one
  ringgate ctl --json connections            JSON, whatever is asked";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  ringgate completions bash > /usr/share/bash-completion/completions/ringgate
  ringgate completions zsh > /usr/share/zsh/site-functions/_ringgate
  ringgate completions fish > /usr/share/fish/vendor_completions.d/ringgate.fish";

const TOP_EXAMPLES: &str = "\
Keys: q or Ctrl-C ends it, arrows and PgUp/PgDn scroll.
Exit code 0: ended by the user. 1: the process cannot be reached, or this is no terminal.

Examples:
  ringgate top
  ringgate top --once | head -20";

const MAN_EXAMPLES: &str = "\
Examples:
  ringgate man > /usr/local/share/man/man8/ringgate.8
  ringgate man | man -l -";

const UPSTREAM_USAGE: &str = "\
ringgate ctl upstream list
       ringgate ctl upstream NAME
       ringgate ctl upstream NAME add [--weight N] [--backup] [--max-conns N] SERVER...
       ringgate ctl upstream NAME remove|drain|undrain SERVER...
       ringgate ctl upstream NAME weight WEIGHT SERVER...";

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
        /// Print JSON
        #[arg(long, global = true)]
        json: bool,
        /// About what
        #[command(subcommand)]
        about: About,
    },
    /// Watch a running process: rates, latency, upstreams, shards, VRRP
    #[command(after_help = TOP_EXAMPLES)]
    Top {
        /// The socket (admin.socket)
        #[arg(long, value_name = "PATH", default_value = crate::control::config::ADMIN_SOCKET)]
        socket: PathBuf,
        /// Seconds between looks
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
        interval: u64,
        /// Print one frame as text
        #[arg(long)]
        once: bool,
        /// Columns of that frame
        #[arg(long, value_name = "COLUMNS", default_value_t = 100, value_parser = clap::value_parser!(u16).range(20..=400))]
        width: u16,
    },
    /// Print completions for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Whose
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    #[command(after_help = MAN_EXAMPLES)]
    Man,
    /// Keep the kernel silent after the process that this one belongs to has died
    #[command(hide = true)]
    KeepSilence {
        /// For so many milliseconds
        milliseconds: u64,
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
    /// Show the process: phase, requests, upstreams, VRRP, drift
    Status,
    /// Put the changed configuration file in force; nothing else is touched
    Reload {
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Show or change the servers of upstreams
    #[command(override_usage = UPSTREAM_USAGE)]
    Upstream(UpstreamArgs),
    /// Show virtual and real servers as `ipvsadm -L -n --stats` does, or change a weight
    L4 {
        /// What to change
        #[command(subcommand)]
        what: Option<L4>,
    },
    /// Show connections, buffers and CPU of each shard
    Shards,
    /// Show client and server connections
    Connections,
    /// Show recent events, the newest last
    Events,
    /// Show or set the level of the log
    Log {
        /// What to do
        #[command(subcommand)]
        what: Log,
    },
    /// Virtual addresses
    Vrrp {
        /// What to do
        #[command(subcommand)]
        what: Vrrp,
    },
    /// Replace the running binary without losing a connection
    Upgrade {
        /// The new binary; default: the path the process was started by
        #[arg(long, value_name = "PATH")]
        binary: Option<PathBuf>,
    },
    /// The machine's settings, as the running process sees them
    Tune {
        /// What to do
        #[command(subcommand)]
        what: RunningTune,
    },
    /// List the verbs of the admin endpoint
    Api,
}

/// What to do with upstreams. The first word is `list` or a name.
#[derive(Debug, ClapArgs)]
pub struct UpstreamArgs {
    /// `list`, or the NAME of [upstream.NAME]
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What to do
    #[arg(value_parser = ["add", "remove", "drain", "undrain", "weight"])]
    pub what: Option<String>,
    /// Servers as in the file, like 10.0.1.11:8080; before them the weight, with `weight`
    #[arg(value_name = "SERVER")]
    pub servers: Vec<String>,
    /// The weight of servers that are added
    #[arg(long)]
    pub weight: Option<u32>,
    /// Servers that are added stand in for the others only
    #[arg(long)]
    pub backup: bool,
    /// Requests in flight a server that is added may have
    #[arg(long, value_name = "COUNT")]
    pub max_conns: Option<u32>,
    /// Write it into the configuration file too, where comments and layout stay
    #[arg(long)]
    pub persist: bool,
    /// Even if nobody is left to take requests
    #[arg(long)]
    pub force: bool,
}

/// What to change at the layer-4 director.
#[derive(Debug, Subcommand)]
pub enum L4 {
    /// Give a real server another weight until the next restart; 0 drains it
    Weight {
        /// As in the configuration: ADDRESS:PORT, or ADDRESS for all ports
        virtual_server: String,
        /// The real server's address
        server: String,
        /// 0 to 65535; without, the configured one counts again
        weight: Option<u16>,
        /// tcp, udp or sctp
        #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp", "sctp"])]
        protocol: String,
    },
}

/// What to do with the log.
#[derive(Debug, Subcommand)]
pub enum Log {
    /// Show the level, or set it until the next restart
    Level {
        /// error, warn, info or debug
        #[arg(value_parser = ["error", "warn", "info", "debug"])]
        level: Option<String>,
    },
}

/// What to do with the machine's settings.
#[derive(Debug, Subcommand)]
pub enum RunningTune {
    /// Look at them now; exit code 1 when one is not as it should be
    Verify,
}

/// What to do with virtual addresses.
#[derive(Debug, Subcommand)]
pub enum Vrrp {
    /// Show roles, priorities, peers and misconfigurations
    Status,
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
