//! The part of a reload that takes time or can fail, on a thread of its own with lower priority: reading,
//! judging, comparing, opening sockets and files, looking names up, building tables.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Table;

use super::diff::{Diff, Side};
use crate::control::certificates;
use crate::control::config::{self, Config, Log, Steering};
use crate::control::resolve::{self, Name};
use crate::control::supervise::{await_free, cannot_listen, open_log};
use crate::control::tracing;
use crate::ha::config::Instance;
use crate::l7::generation::Tables;
use crate::ring::share::UNSENT;
use crate::sys::{cpu, socket};

/// How long names that are new are waited for.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(2);
/// The thread's nice value: on a busy machine they go first.
const NICENESS: i32 = 10;

/// What there is to do.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) path: PathBuf,
    pub(super) dry_run: bool,
    /// In force.
    pub(super) old: Arc<Config>,
    /// The shards' CPUs.
    pub(super) cpus: Vec<Option<usize>>,
    pub(super) keeper: certificates::Shared,
    /// What the operator has changed at run time: upstream, server, and how.
    pub(super) drift: Vec<(String, String, String)>,
}

/// A good configuration with everything that can fail done.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) config: Config,
    pub(super) diff: Diff,
    /// What only has to be done if something differs; `None` for a dry run.
    pub(super) parts: Option<Parts>,
}

/// What was made ready.
#[derive(Debug)]
pub(super) struct Parts {
    /// Each shard's.
    pub(super) tables: Vec<Arc<Tables>>,
    /// Sockets of new listeners, one a shard, by address.
    pub(super) sockets: HashMap<SocketAddr, Vec<OwnedFd>>,
    /// Each shard's access log, if that changes; a list of `None` turns it off.
    pub(super) logs: Option<Vec<Option<OwnedFd>>>,
    /// Addresses of names that are new.
    pub(super) found: HashMap<Name, Vec<SocketAddr>>,
}

/// Does it; text for people if the file cannot be put in force.
pub(super) fn prepare(job: &Job) -> Result<Prepared, String> {
    let _ = cpu::be_nicer(NICENESS);
    let mut config = config::load(&job.path).map_err(|errors| errors.to_string())?;
    if config.service.clients == job.old.service.clients {
        // What is known of client addresses stays.
        config.service.clients.clone_from(&job.old.service.clients);
    }
    config.service.tracing =
        tracing::succeed(job.old.service.tracing.as_ref(), config.service.tracing.take());
    let diff = compare(job, &config)?;
    let parts = if diff.is_empty() || diff.is_refused() {
        None
    } else if job.dry_run {
        probe(&job.old, &config)?;
        None
    } else {
        Some(make(job, &config)?)
    };
    Ok(Prepared { config, diff, parts })
}

fn compare(job: &Job, config: &Config) -> Result<Diff, String> {
    let parse = |text: &str| {
        text.parse::<Table>().map_err(|error| format!("{}: {error}", job.path.display()))
    };
    let (old, new) = (parse(&job.old.text)?, parse(&config.text)?);
    let (old, new) = (Side { file: &old, config: &job.old }, Side { file: &new, config });
    let mut diff = Diff::new(&old, &new);
    let find = |config: &Config, name: &str| {
        config.service.upstreams.iter().find(|one| one.name == name).cloned()
    };
    for (upstream, server, what) in &job.drift {
        let (before, after) = (find(&job.old, upstream), find(config, upstream));
        if after.is_some() && before != after {
            diff.apply(format!(
                "upstream {upstream}: {server} {what} at run time: as in the file again"
            ));
        }
    }
    if let (Some(before), Some(after)) = (&job.old.service.tracing, &config.service.tracing)
        && before.settings == after.settings
        && before != after
    {
        diff.apply("file of tracing.ca has changed and is read anew".to_owned());
    }
    for instance in &config.ha.instances {
        let before = job.old.ha.instances.iter().find(|one| one.name == instance.name);
        let trust = |one: &Instance| one.webhook.as_ref()?.tls.clone();
        if let Some((before, after)) = before.and_then(trust).zip(trust(instance))
            && before.ca == after.ca
            && before != after
        {
            let file = "file of notify_webhook_ca has changed and is read anew";
            diff.apply(format!("vrrp {}: {file} (in place)", instance.name));
        }
    }
    for path in job.keeper.changed_files(&config.loaded) {
        diff.apply(format!("file {} has changed and is read anew", path.display()));
    }
    Ok(diff)
}

fn make(job: &Job, config: &Config) -> Result<Parts, String> {
    let sockets = open(&job.old, config, &job.cpus)?;
    let logs = logs(&job.old.log, &config.log, job.cpus.len())?;
    let known = resolve::names(&job.old.service.upstreams);
    let mut names = resolve::names(&config.service.upstreams);
    let known: std::collections::HashSet<Name> = known.into_iter().collect();
    names.retain(|name| !known.contains(name));
    let found = resolve::look_up_all(names, RESOLVE_PATIENCE).into_iter().collect();
    let tables = Tables::for_shards(&config.service, job.cpus.len());
    Ok(Parts { tables, sockets, logs, found })
}

/// Addresses that are not open yet.
fn new_binds<'a>(old: &'a Config, new: &'a Config) -> impl Iterator<Item = (SocketAddr, u32)> {
    let listeners = new.service.listeners.iter();
    let is_open = |bind: SocketAddr| old.service.listeners.iter().any(|known| known.bind == bind);
    listeners.filter(move |next| !is_open(next.bind)).map(|next| (next.bind, next.backlog))
}

/// Whether somebody else listens there. Our own sockets of the same port, such as the wildcard's, do not count.
fn probe_one(old: &Config, bind: SocketAddr) -> Result<(), String> {
    if old.service.listeners.iter().any(|known| known.bind.port() == bind.port()) {
        return Ok(());
    }
    await_free(bind).map_err(|failed| failed.to_string())
}

fn probe(old: &Config, new: &Config) -> Result<(), String> {
    new_binds(old, new).try_for_each(|(bind, _)| probe_one(old, bind))
}

/// Opens every new address for every shard, or none.
fn open(
    old: &Config,
    new: &Config,
    cpus: &[Option<usize>],
) -> Result<HashMap<SocketAddr, Vec<OwnedFd>>, String> {
    probe(old, new)?;
    let mut sockets = HashMap::new();
    for (bind, backlog) in new_binds(old, new) {
        let listen = |_| {
            socket::listen_limited(bind, backlog, Some(UNSENT))
                .map_err(|error| cannot_listen(bind, &error).to_string())
        };
        let opened: Vec<OwnedFd> = (0..cpus.len()).map(listen).collect::<Result<_, _>>()?;
        if let (Steering::Cpu, Some(first)) = (new.node.steering, opened.first()) {
            let cpus: Vec<usize> = cpus.iter().copied().flatten().collect();
            socket::steer_by_cpu(first.as_fd(), &cpus)
                .map_err(|error| format!("cannot steer connections by CPU: {error}"))?;
        }
        sockets.insert(bind, opened);
    }
    Ok(sockets)
}

fn logs(old: &Log, new: &Log, shards: usize) -> Result<Option<Vec<Option<OwnedFd>>>, String> {
    let what = |log: &Log| (log.access, log.access_file.clone(), log.access_buffer);
    if what(old) == what(new) {
        return Ok(None);
    }
    let open = |_| {
        let file = || open_log(&new.access_file).map_err(|error| error.to_string());
        new.access.map(|_| file()).transpose()
    };
    (0..shards).map(open).collect::<Result<_, _>>().map(Some)
}
