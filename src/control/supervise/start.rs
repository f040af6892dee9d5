//! Before anything serves: sockets, upstreams, shards and the threads beside them.

use std::cell::{OnceCell, RefCell};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::watch::open_log;
use super::{Control, Desk, Failed, News};
use crate::control::admin::Token;
use crate::control::certificates::{self, Keeper};
use crate::control::config::{Config, Shards, Steering};
use crate::control::director;
use crate::control::hardening;
use crate::control::health::Checks;
use crate::control::l4_checks;
use crate::control::logger::Logger;
use crate::control::probing::Probing;
use crate::control::reload;
use crate::control::resolve::{self, Resolver};
use crate::control::servers::Servers;
use crate::control::state::{ListenerState, TuningState, UpstreamState};
use crate::control::tracing;
use crate::control::tuning::{self, Tuned};
use crate::control::upgrade::standing::{Handed, Since};
use crate::ha::handoff::Takeover;
use crate::ha::health::Health;
use crate::ha::{self, Ha};
use crate::l7;
use crate::l7::generation::Tables;
use crate::l7::tls::Current;
use crate::l7::tracing::Traces;
use crate::l7::upstream::SharedUpstream;
use crate::ring::{Ring, Settings, buffers, probe};
use crate::shard::accept::ConnectionLimit;
use crate::shard::change::{Change, NextListener, NextLog, NextUpstream};
use crate::shard::{Plan, Shard};
use crate::sys::{cpu, socket};

/// How long the start waits for the first answers of name servers.
const RESOLVE_FIRST: Duration = Duration::from_secs(2);
/// Length of the admin token.
const TOKEN_MIN: usize = 16;
const TOKEN_MAX: usize = 512;
/// An address that a reload has just closed is free within this.
const CLOSING: Duration = Duration::from_millis(1_500);
const CLOSING_STEP: Duration = Duration::from_millis(20);
/// Descriptors that are not client or upstream connections.
const DESCRIPTORS_RESERVED: u64 = 64;

impl Control {
    /// What keeps certificates and keys, with those that were loaded in force.
    pub(super) fn keeper(&self) -> Result<Keeper, Failed> {
        let (service, base) = (self.config.service.clone(), self.config.base.clone());
        let tickets = self.inherited.as_ref().map(|inherited| inherited.tickets());
        let loaded = self.config.loaded.clone();
        Keeper::new(service, base, loaded, tickets.unwrap_or_default()).map_err(Failed)
    }

    pub(super) fn watch_certificates(
        &self,
        keeper: Keeper,
    ) -> Result<certificates::Shared, Failed> {
        let desk = self.desk.clone();
        let tell = move |change| {
            desk.tell(News::Certificates(change));
        };
        keeper
            .watch(tell)
            .map_err(|error| Failed(format!("cannot start watching certificates: {error}")))
    }

    /// Has the file watched, if that was asked for.
    pub(super) fn watch_file(&self) -> Result<(), Failed> {
        let Some(path) = self.config.file.clone().filter(|_| self.config.watch) else {
            return Ok(());
        };
        let desk = self.desk.clone();
        // One that is lost is made up for by the next change; the control thread is that busy seldom.
        let tell = move || {
            desk.tell(News::FileChanged);
            true
        };
        reload::watch::start(path, tell)
            .map_err(|error| Failed(format!("cannot watch the file: {error}")))
    }

    /// Warns when `max_connections` is more than the file limit allows.
    pub(super) fn warn_of_few_descriptors(&self, logger: &Logger) {
        let configured = self.config.node.max_connections;
        let possible = connections_max(0, self.descriptors);
        if configured > possible {
            logger.warn(
                "max_connections exceeds half the limit on open files, and each connection may \
                 need one to a server: raise LimitNOFILE (ulimit -n)",
                &[
                    ("max_connections", &configured.to_string()),
                    ("open_files", &self.descriptors.to_string()),
                ],
            );
        }
    }

    /// Has the kernel hand connections to the shard on the CPU that took them, if that is configured.
    pub(super) fn steer(
        &self,
        cpus: &[Option<usize>],
        sockets: &[Vec<(usize, OwnedFd)>],
    ) -> Result<(), Failed> {
        if self.config.node.steering == Steering::Hash {
            return Ok(());
        }
        let known: Vec<usize> = cpus.iter().copied().flatten().collect();
        let each_its_own = (1..known.len()).all(|n| !known[..n].contains(&known[n]));
        if known.len() < cpus.len() || !each_its_own || !self.config.node.pin {
            return Err(Failed(
                "node.steering = \"cpu\" needs node.pin and a CPU for each shard: change node.shards"
                    .to_owned(),
            ));
        }
        for (_, socket) in sockets.first().into_iter().flatten() {
            socket::steer_by_cpu(socket.as_fd(), &known)
                .map_err(|error| Failed(format!("cannot steer connections by CPU: {error}")))?;
        }
        Ok(())
    }

    /// Keeps looking at the machine's settings; keeps this thread off the shards' CPUs if some are free.
    pub(super) fn watch_tuning(&self, tuned: &Tuned) -> Result<TuningState, Failed> {
        let keep = &tuned.placement.housekeeping;
        if self.config.node.pin && !keep.is_empty() && cpu::confine(keep).is_err() {
            self.logger.warn("tuning: the control thread stays on all CPUs", &[]);
        }
        let desk = self.desk.clone();
        tuning::watch(tuned.config.clone(), move |standing| {
            desk.tell(News::Tuning(standing));
            true
        })
        .map_err(|error| Failed(format!("cannot watch the machine's settings: {error}")))?;
        Ok(TuningState {
            required: tuned.config.require,
            profiles: tuned.config.profiles.clone(),
            changed: tuned.changed,
            standing: RefCell::new(tuned.standing.clone()),
            config: tuned.config.clone(),
        })
    }

    /// Resolves names once, without insisting, and keeps resolving them.
    pub(super) fn upstreams(
        &self,
        shards: usize,
        handed: &Handed,
    ) -> Result<(Vec<Rc<UpstreamState>>, Resolver), Failed> {
        let configs = &self.config.service.upstreams;
        let servers: Vec<_> = configs.iter().map(|config| self.servers(config, handed)).collect();
        let names = resolve::names_of(
            servers.iter().flat_map(Servers::now).map(|standing| &standing.server),
        );
        let desk = self.desk.clone();
        let tell = move |name: &resolve::Name, result| {
            desk.tell(News::Resolved { name: name.clone(), result });
        };
        let resolver = Resolver::start(tell)
            .map_err(|error| Failed(format!("cannot start the resolver: {error}")))?;
        let mut found = handed.addresses();
        found.extend(resolve::look_up_all(names.clone(), RESOLVE_FIRST));
        resolver.set(names, self.config.node.resolve_interval);
        let state = |(config, servers): (&l7::config::Upstream, Servers)| {
            let shared = Arc::new(SharedUpstream::new(config.clone(), shards));
            let addresses = resolve::addresses_of(servers.now(), &found);
            Rc::new(UpstreamState::with_servers(shared, servers, addresses))
        };
        Ok((configs.iter().zip(servers).map(state).collect(), resolver))
    }

    /// As the file has them, or as the operator of an earlier process had them since.
    fn servers(&self, config: &l7::config::Upstream, handed: &Handed) -> Servers {
        let mut servers = Servers::new(&config.servers);
        match handed.since(&config.name, &config.servers) {
            Since::Nothing => {}
            Since::Servers(now) => servers.set(now),
            Since::Void => self.logger.warn(
                "the file has other servers than before the upgrade: what was changed at run time is gone",
                &[("upstream", &config.name)],
            ),
        }
        servers
    }

    /// Starts health checks of both layers and waits for their first round, a bounded time: what does not answer in
    /// it takes requests until its verdict.
    pub(super) async fn start_checks(
        &self,
        ring: &Rc<Ring>,
        upstreams: &[Rc<UpstreamState>],
        before: &Handed,
    ) -> Result<(Checks, Option<l4_checks::Checks>), Failed> {
        let desk = self.desk.clone();
        let tell = Arc::new(move |event| desk.tell(News::Health(event)));
        let probing = Probing::new(self.descriptors, tell);
        let failed = |error: io::Error| Failed(format!("cannot start health checks: {error}"));
        let (config, shared) = (&self.config, Rc::clone(&probing));
        let checks = Checks::start(config, upstreams, &before.health, self.epoch, shared);
        let shared = Rc::clone(&probing);
        // Without a check too: a reload may bring one.
        let l4_checks = director::is_wanted(config)
            .then(|| l4_checks::Checks::start(config, &before.real_servers, shared))
            .transpose()
            .map_err(failed)?;
        if !probing.first_round(ring).await {
            self.logger
                .warn("the first round of health checks is not over, serving all the same", &[]);
        }
        Ok((checks.map_err(failed)?, l4_checks))
    }

    /// Starts the exporter of traces, if there are any.
    pub(super) fn start_tracing(&self) -> Result<Option<Arc<Traces>>, Failed> {
        let traces = self.config.service.tracing.clone();
        if let Some(traces) = &traces {
            tracing::start(traces, self.logger)
                .map_err(|error| Failed(format!("cannot start the export of traces: {error}")))?;
        }
        Ok(traces)
    }

    /// The token of the loopback listener, if there is one.
    pub(super) fn token(&self) -> Result<Option<Token>, Failed> {
        let Some(path) = &self.config.admin_token else { return Ok(None) };
        let path = self.config.base.join(path);
        let failed = |why: &str| {
            Failed(format!(
                "cannot use admin.token_file {}: {why}: `openssl rand -hex 32` makes one",
                path.display()
            ))
        };
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&error.to_string()))?;
        let secret = text.trim();
        if !(TOKEN_MIN..=TOKEN_MAX).contains(&secret.len())
            || !secret.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(failed("it has no line of 16 to 512 visible characters"));
        }
        Ok(Some(Token::new(secret.as_bytes())))
    }

    /// Starts VRRP, if there is any: what it claims can be served from now on.
    pub(super) fn start_ha(
        &self,
        shards: &[Shard],
        directors: Vec<director::Watched>,
        health: &Arc<Health>,
        takeover: Option<Takeover>,
    ) -> Result<OnceCell<Ha>, Failed> {
        let ha = OnceCell::new();
        if !self.config.ha.instances.is_empty() {
            let config = self.config.ha.clone();
            let started = start_ha(config, (shards, directors), health, &self.desk, takeover);
            let _ = ha.set(started.map_err(Failed)?);
        }
        Ok(ha)
    }

    pub(super) fn start_shards(
        &self,
        cpus: &[Option<usize>],
        begin: Begin<'_>,
    ) -> Result<Vec<Shard>, Failed> {
        let Begin { sockets, listeners, upstreams, tables, tls, connections } = begin;
        let node = &self.config.node;
        let buffers_limit = node.buffer_memory / buffers::BUFFER_LEN as u64;
        let ring = Settings {
            buffers: node.receive_buffers,
            buffers_limit: u16::try_from(buffers_limit)
                .unwrap_or(buffers::BUFFERS_MAX)
                .clamp(node.receive_buffers, buffers::BUFFERS_MAX),
            epoch: self.epoch,
        };
        let mut starting = Vec::new();
        for (index, ((&cpu, sockets), tables)) in cpus.iter().zip(sockets).zip(tables).enumerate() {
            let log = match self.config.log.access {
                Some(format) => {
                    let file = open_log(&self.config.log.access_file)?;
                    NextLog::To(format, self.config.log.access_buffer, file)
                }
                None => NextLog::Off,
            };
            let change = Change {
                number: 1,
                tables: Arc::clone(tables),
                listeners: next_listeners(listeners, sockets),
                upstreams: upstreams
                    .iter()
                    .map(|upstream| NextUpstream {
                        shared: Arc::clone(&upstream.shared),
                        set: Arc::clone(&upstream.set.borrow()),
                        previous: None,
                    })
                    .collect(),
                tls: Arc::clone(tls),
                log,
            };
            let (reports, ends) = (self.desk.clone(), self.desk.clone());
            let plan = Plan {
                index,
                shards: cpus.len(),
                cpu: cpu.filter(|_| node.pin),
                ring,
                busy_poll: node.busy_poll,
                change,
                connections: connections.clone(),
                confine: hardening::is_confined(&self.config),
                seed: random_seed(),
                reporter: Box::new(move |report| reports.tell(News::Report(report))),
                ended: Box::new(move |result| {
                    // The one thing that must not be lost; the thread has nothing else to do.
                    let _ = ends.news.send(News::ShardEnded(index, result));
                    ends.wake.notify();
                }),
            };
            starting.push(Shard::start(plan).map_err(|error| cannot_start(index, &error))?);
        }
        let made = starting
            .into_iter()
            .enumerate()
            .map(|(index, starting)| starting.made().map_err(|error| cannot_start(index, &error)));
        made.collect()
    }
}

/// Starts VRRP.
pub(in crate::control) fn start_ha(
    config: ha::config::Ha,
    (shards, directors): (&[Shard], Vec<director::Watched>),
    health: &Arc<Health>,
    desk: &Desk,
    takeover: Option<Takeover>,
) -> Result<Ha, String> {
    let desk = desk.clone();
    let plan = ha::Plan {
        config,
        health: Arc::clone(health),
        shards: shards
            .iter()
            .map(|shard| (Arc::clone(&shard.heartbeat), shard.waker()))
            .chain(directors)
            .collect(),
        reporter: ha::Reporter(Box::new(move |event| desk.tell(News::Ha(event)))),
        takeover,
    };
    Ha::start(plan).map_err(|error| {
        format!(
            "cannot start VRRP: {error}: it needs CAP_NET_ADMIN and CAP_NET_RAW (systemd: \
             AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)"
        )
    })
}

fn cannot_start(index: usize, error: &io::Error) -> Failed {
    Failed(format!("cannot start shard {index}: {}", probe::explain(error, 0)))
}

/// Listeners with a shard's sockets.
fn next_listeners(
    listeners: &[ListenerState],
    sockets: Vec<(usize, OwnedFd)>,
) -> Vec<NextListener> {
    let next = |listener: &ListenerState| NextListener {
        bind: listener.bind,
        figures: Arc::clone(&listener.figures),
        sockets: Vec::new(),
        backlog: None,
    };
    let mut all: Vec<NextListener> = listeners.iter().map(next).collect();
    for (number, socket) in sockets {
        if let Some(listener) = all.get_mut(number) {
            listener.sockets.push(socket);
        }
    }
    all
}

/// What shards begin with.
pub(super) struct Begin<'a> {
    /// By shard, with the number of their listener.
    pub(super) sockets: Vec<Vec<(usize, OwnedFd)>>,
    pub(super) listeners: &'a [ListenerState],
    pub(super) upstreams: &'a [Rc<UpstreamState>],
    /// By shard.
    pub(super) tables: &'a [Arc<Tables>],
    pub(super) tls: &'a Arc<Current>,
    pub(super) connections: &'a ConnectionLimit,
}

/// The CPU of each shard; `None` when it is not known.
pub(super) fn placement(
    config: &Config,
    tuned: Option<&Tuned>,
) -> Result<Vec<Option<usize>>, Failed> {
    let allowed = cpu::allowed();
    // A plan made from a copy of another machine's files may name CPUs that are not here.
    let planned = tuned.map(|tuned| &tuned.placement.shards[..]).unwrap_or_default();
    let usable = !planned.is_empty() && planned.iter().all(|cpu| allowed.contains(cpu));
    match &config.node.shards {
        Shards::Auto | Shards::Count(_) if usable => {
            Ok(planned.iter().copied().map(Some).collect())
        }
        Shards::Auto if allowed.is_empty() => Ok(vec![None]),
        Shards::Auto => Ok(allowed.into_iter().map(Some).collect()),
        Shards::Count(count) => {
            let cpu = |shard: u32| allowed.get(shard as usize % allowed.len().max(1)).copied();
            Ok((0..*count).map(cpu).collect())
        }
        Shards::Cpus(wanted) => {
            let missing = wanted.iter().find(|cpu| !allowed.contains(cpu));
            match missing {
                Some(cpu) => Err(Failed(format!(
                    "node.shards names CPU {cpu}, which this process may not use (its CPUs are \
                     {allowed:?}): change node.shards, or the cpuset that the process runs in"
                ))),
                None => Ok(wanted.iter().copied().map(Some).collect()),
            }
        }
    }
}

/// Client connections there may be: each may need one to a server.
pub(in crate::control) fn connections_max(configured: u32, descriptors: u64) -> u32 {
    if configured > 0 {
        return configured;
    }
    let half = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2;
    u32::try_from(half).unwrap_or(u32::MAX).max(1)
}

pub(super) fn listen_once(bind: SocketAddr) -> Result<OwnedFd, Failed> {
    socket::probe_bind(bind)
        .and_then(|()| socket::listen(bind, 128))
        .map_err(|error| cannot_listen(bind, &error))
}

/// Waits until nobody listens at an address any more: one that a reload has just closed is served for a
/// moment yet, by this process or by the one it succeeds.
pub(in crate::control) fn await_free(bind: SocketAddr) -> Result<(), Failed> {
    let began = Instant::now();
    loop {
        match socket::probe_bind(bind) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < CLOSING => {
                thread::sleep(CLOSING_STEP);
            }
            Err(error) => return Err(cannot_listen(bind, &error)),
        }
    }
}

pub(in crate::control) fn cannot_listen(bind: SocketAddr, error: &io::Error) -> Failed {
    let hint = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            format!("somebody else listens there: `ss -ltnp 'sport = :{}'` shows who", bind.port())
        }
        Some(libc::EACCES) => "ports below 1024 need CAP_NET_BIND_SERVICE (systemd: \
                               AmbientCapabilities=CAP_NET_BIND_SERVICE) or a lower \
                               net.ipv4.ip_unprivileged_port_start"
            .to_owned(),
        Some(libc::EADDRNOTAVAIL) => "this host does not have the address (for a VIP that comes \
                                      later: sysctl net.ipv4.ip_nonlocal_bind=1)"
            .to_owned(),
        _ => "check the address".to_owned(),
    };
    Failed(format!("cannot listen on {bind}: {error}: {hint}"))
}

/// Different for each call: the standard library's hash keys come from the kernel's random source.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    pub(super) fn each_client_leaves_room_for_its_server_connection() {
        assert_eq!(connections_max(0, 20_064), 10_000);
        assert_eq!(connections_max(1000, 20_064), 1000);
        assert_eq!(connections_max(0, 10), 1);
    }

    #[test]
    pub(super) fn seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
