//! The configuration file: TOML text in, validated types out.
//!
//! The file's keys and defaults stand in `deploy/ringgate.toml`. Reading has three steps: `toml`
//! parses the text into a tree with places, `raw` knows the keys, `validate` judges the values. All
//! problems that can be found independently of each other are reported at once ([`ConfigErrors`]).

pub mod checks;
mod error;
mod place;
mod raw;
pub mod units;
mod unknown;
mod validate;

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::error::Source;
pub use self::error::{ConfigError, ConfigErrors, Position};
use self::place::Report;
use crate::control::certificates::{self, Loaded, Problem};
use crate::ha::config::Ha;
use crate::l4::config::L4;
use crate::l4::engine::RealServer;
use crate::l7::config::{AccessLogFormat, Service};

/// Largest file that is read, in bytes.
pub const FILE_SIZE_MAX: u64 = 4 << 20;

/// Where `ringgate ctl` finds the process unless told otherwise.
pub const ADMIN_SOCKET: &str = "/run/ringgate/admin.sock";

/// A valid configuration.
#[derive(Debug)]
pub struct Config {
    /// The process: shards, buffers, draining.
    pub node: Node,
    /// Logs.
    pub log: Log,
    /// What is tuned before anything listens.
    pub tuning: crate::tune::Config,
    /// Where metrics and status are served; `None`: nowhere.
    pub admin: Option<SocketAddr>,
    /// The unix socket for `ringgate ctl`; `None`: there is none.
    pub admin_socket: Option<AdminSocket>,
    /// The file with the token that lets clients of the loopback listener give orders.
    pub admin_token: Option<PathBuf>,
    /// The layer-7 proxy.
    pub service: Service,
    /// The file it was read from; `None`: from memory.
    pub file: Option<PathBuf>,
    /// Active health checks, in the order of the upstreams.
    pub checks: Vec<Option<checks::UpstreamCheck>>,
    /// Where relative paths of certificates start: the directory of the file.
    pub base: PathBuf,
    /// Certificates and keys, once [`load`] has read them.
    pub loaded: Loaded,
    /// VRRP.
    pub ha: Ha,
    /// The file's text.
    pub text: String,
    /// The layer-4 director.
    pub l4: L4,
    /// Health checks of real servers, in the order of the virtual servers.
    pub l4_checks: Vec<Option<checks::UpstreamCheck>>,
    /// Reload when the file changes (`ringgate run --watch`).
    pub watch: bool,
    /// The role of a real server, if this host has it.
    pub real_server: Option<RealServer>,
    /// What is allowed but probably not meant, each line with its place in the file.
    pub warnings: Vec<String>,
}

/// The unix socket for `ringgate ctl`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSocket {
    /// Where.
    pub path: PathBuf,
    /// Without it the process does not start; else it only says so.
    pub required: bool,
    /// Its permissions.
    pub mode: u32,
    /// Its user and group, by name or number; `None`: as made.
    pub owner: (Option<String>, Option<String>),
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// How many shards run, and where.
    pub shards: Shards,
    /// Pin each shard to its CPU.
    pub pin: bool,
    /// How new connections are spread over the shards.
    pub steering: Steering,
    /// Client connections over all shards, 0 for as many as the file limit allows.
    pub max_connections: u32,
    /// How long requests in flight get at shutdown; may be zero.
    pub drain_timeout: Duration,
    /// Receive buffers of 16 KiB a shard, a power of two from 16 to 32768.
    pub receive_buffers: u16,
    /// A shard's bound, in bytes, for data held for slow readers.
    pub buffer_memory: u64,
    /// How long a shard looks for completions before it sleeps, when they came as soon before; zero: not at all.
    pub busy_poll: Duration,
    /// How often server names are looked up again.
    pub resolve_interval: Duration,
    /// How long a new binary may take until it could serve.
    pub upgrade_timeout: Duration,
    /// How long connections of the old process run on after an upgrade.
    pub upgrade_drain_timeout: Duration,
    /// Where the process's number is written.
    pub pid_file: Option<PathBuf>,
    /// Who to be once everything that takes root is done, with the group.
    pub user: Option<crate::sys::process::User>,
    /// Whether files and system calls are restricted then.
    pub sandbox: Sandbox,
    /// Further directories that may be written to then.
    pub writable: Vec<PathBuf>,
}

/// Whether files and system calls are restricted after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// With `node.user`.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How many shards run, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shards {
    /// One for each CPU the process may use.
    Auto,
    /// This many, at least 1.
    Count(u32),
    /// One on each of these CPUs, in this order; none twice.
    Cpus(Vec<usize>),
}

/// How new connections are spread over the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// By a hash of the addresses: evenly.
    Hash,
    /// To the shard on the CPU that processed the handshake.
    Cpu,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// What is logged.
    pub level: Level,
    /// The form of log lines.
    pub format: LogFormat,
    /// The form of the access log; `None`: there is none.
    pub access: Option<AccessLogFormat>,
    /// Where the access log goes.
    pub access_file: LogTarget,
    /// A shard's buffer for access log lines, in bytes.
    pub access_buffer: usize,
}

/// How much is logged; each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What stops a service or loses requests.
    Error,
    /// What may.
    Warn,
    /// What an operator wants to know of normal work.
    Info,
    /// What helps to find a fault.
    Debug,
}

impl Level {
    /// All of them, the fewest lines first.
    pub const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// As in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// This file, reopened on SIGUSR1.
    File(PathBuf),
}

/// Reads and validates the file at `path`.
///
/// # Errors
///
/// Everything that is wrong with it: unreadable, over [`FILE_SIZE_MAX`], not UTF-8, or as in
/// [`parse`].
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let name = path.to_string_lossy();
    with_files(&name, &text_of(&name, path)?, path)
}

/// The `root` and `state_dir` of the file's `[tuning]`, where they are given. The rest of the file may be
/// wrong: what was changed has to be undone all the same.
///
/// # Errors
///
/// When the file cannot be read, or not as TOML.
pub fn tuning_place(path: &Path) -> Result<(Option<PathBuf>, Option<PathBuf>), ConfigErrors> {
    let name = path.to_string_lossy();
    let text = text_of(&name, path)?;
    let source = Source { name: &name, text: &text };
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        ConfigErrors::at(
            &source,
            vec![(error.span().unwrap_or_default(), error.message().to_owned())],
        )
    })?;
    let tuning = table.get("tuning");
    let path = |key| Some(PathBuf::from(tuning?.get(key)?.as_str()?));
    Ok((path("root"), path("state_dir")))
}

fn text_of(name: &str, path: &Path) -> Result<String, ConfigErrors> {
    let failed = |error: std::io::Error| ConfigErrors::file(name, &format!("cannot read: {error}"));
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    String::from_utf8(bytes)
        .map_err(|error| not_utf8(name, error.as_bytes(), error.utf8_error().valid_up_to()))
}

/// Parses the text and reads the certificates it names.
fn with_files(name: &str, text: &str, path: &Path) -> Result<Config, ConfigErrors> {
    let mut config = parse(name, text)?;
    config.file = Some(path.to_owned());
    config.base = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let source = Source { name, text };
    let mut loaded = certificates::load(&config.service, &config.base).map_err(|problems| {
        let problems = problems.into_iter().map(|problem| (problem.span, problem.message));
        ConfigErrors::at(&source, problems.collect())
    })?;
    for checks in [&mut config.checks, &mut config.l4_checks] {
        certificates::load_checks(&config.service, &config.base, checks)
            .map_err(|problem| ConfigErrors::at(&source, vec![(problem.span, problem.message)]))?;
    }
    certificates::load_webhooks(&config.service, &config.base, &mut config.ha.instances)
        .map_err(|problem| ConfigErrors::at(&source, vec![(problem.span, problem.message)]))?;
    certificates::load_collector(&config.service, &config.base)
        .map_err(|problem| ConfigErrors::at(&source, vec![(problem.span, problem.message)]))?;
    let show = |more: Problem| ConfigErrors::warning(&source, &more.span, more.message);
    config.warnings.extend(std::mem::take(&mut loaded.warnings).into_iter().map(show));
    Ok(Config { loaded, ..config })
}

fn not_utf8(name: &str, bytes: &[u8], valid: usize) -> ConfigErrors {
    let text = String::from_utf8_lossy(bytes);
    let source = Source { name, text: &text };
    let message = "the file is not UTF-8 from here on: save it as UTF-8".to_owned();
    ConfigErrors::at(&source, vec![(valid..valid, message)])
}

/// Validates `text`; messages call it `name`.
///
/// # Errors
///
/// Everything that is wrong: all syntax errors if there are any, else every unknown key and every
/// value that cannot stand.
pub fn parse(name: &str, text: &str) -> Result<Config, ConfigErrors> {
    if text.len() as u64 > FILE_SIZE_MAX {
        let message = format!("the file is larger than {}", units::show_size(FILE_SIZE_MAX));
        return Err(ConfigErrors::file(name, &message));
    }
    let source = Source { name, text };
    let report = Report::new(source);
    let built = unknown::read(&report, text).and_then(|file| validate::config(&report, &file));
    let (problems, mut warnings) = report.into_parts();
    match built {
        Ok(config) if problems.is_empty() => {
            warnings.sort_by_key(|(span, _)| span.start);
            let show = |(span, message)| ConfigErrors::warning(&source, &span, message);
            let warnings = warnings.into_iter().map(show).collect();
            Ok(Config { warnings, text: text.to_owned(), ..config })
        }
        _ => Err(ConfigErrors::at(&source, problems)),
    }
}

#[cfg(test)]
mod tests;
