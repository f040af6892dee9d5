//! Puts a prepared configuration in force: upstreams, VRRP, certificates, shards, and what the control thread itself
//! goes by. Only VRRP and the random source can still refuse; they come first.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::prepare::{self, Job, Parts, Prepared};
use super::{Answer, Asked, Outcome, describe, hash};
use crate::control::certificates::{self, Next};
use crate::control::config::Config;
use crate::control::director;
use crate::control::logger::Logger;
use crate::control::resolve::{self, Name, Resolver};
use crate::control::state::{ListenerState, Phase, State, UpstreamState};
use crate::control::supervise::{Desk, connections_max, start_ha};
use crate::control::tracing;
use crate::control::vrrp;
use crate::l7::config::{Listener, ServerAddress, Upstream};
use crate::l7::generation::Tables;
use crate::l7::metrics::by_shard;
use crate::l7::tls::Current;
use crate::l7::upstream::SharedUpstream;
use crate::l7::worker::unix_ms;
use crate::ring::executor::spawn;
use crate::ring::{Ring, Timer};
use crate::shard::Message;
use crate::shard::accept::ConnectionLimit;
use crate::shard::change::{Change, NextListener, NextLog, NextUpstream};

/// How often the thread that prepares, VRRP and the shards are looked at.
const LOOK_MS: u64 = 2;
/// VRRP answers within this.
const HA_PATIENCE: Duration = Duration::from_secs(2);
/// A shard takes a configuration over within this, or hangs.
const SHARD_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether requests under way have let go of an old configuration.
const RETIRE_MS: u64 = 1_000;
/// Changes of one reload that are logged each; the others are counted.
const LOGGED_MAX: usize = 20;

/// What carries reloads out, one after the other.
pub struct Reloader {
    /// The control thread's ring.
    pub ring: Rc<Ring>,
    /// The process.
    pub state: Rc<State>,
    /// For what came of it.
    pub logger: Logger,
    /// In force.
    pub config: RefCell<Arc<Config>>,
    /// Certificates.
    pub keeper: certificates::Shared,
    /// Names.
    pub resolver: Resolver,
    /// Client connections.
    pub limit: ConnectionLimit,
    /// The limit on open files.
    pub descriptors: u64,
    /// The shards' CPUs.
    pub cpus: Vec<Option<usize>>,
    /// Where VRRP tells events, should it be started.
    pub(in crate::control) desk: Desk,
    /// The directors' heartbeats, for VRRP.
    pub directors: Vec<director::Watched>,
    /// The shards' tables in force.
    pub tables: RefCell<Vec<Arc<Tables>>>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl Reloader {
    /// Carries out what is asked for, as long as the process runs.
    pub async fn run(self) {
        loop {
            self.state.reload.wake.take().await;
            loop {
                let asked = self.state.reload.pending.borrow_mut().pop_front();
                let Some(asked) = asked else { break };
                let answer = self.carry_out(&asked).await;
                if !asked.dry_run {
                    self.state.reload.note(&answer, unix_ms());
                    self.log(&asked, &answer);
                }
                asked.answer.answer.replace(Some(answer));
                asked.answer.event.set();
            }
        }
    }

    fn log(&self, asked: &Asked, answer: &Answer) {
        let generation = self.state.reload.generation.get().to_string();
        let by = asked.cause.name();
        match answer.outcome {
            Outcome::Refused => self.logger.error(
                "reload refused, nothing was changed",
                &[("by", by), ("generation", &generation), ("problem", answer.text.trim_end())],
            ),
            Outcome::Unchanged => self.logger.info("reload: nothing to change", &[("by", by)]),
            Outcome::Applied | Outcome::WouldApply => {
                let lines: Vec<&str> = answer.text.lines().collect();
                // The last line is the verdict.
                let count = lines.len().saturating_sub(1);
                for line in lines.iter().take(count.min(LOGGED_MAX)) {
                    self.logger.info("changed", &[("what", line)]);
                }
                let fields =
                    [("by", by), ("generation", &generation), ("changes", &count.to_string())];
                self.logger.info("reloaded", &fields);
            }
        }
    }

    async fn carry_out(&self, asked: &Asked) -> Answer {
        let old = Arc::clone(&self.config.borrow());
        let Some(path) = old.file.clone() else {
            return Answer::refused(
                "this configuration is built in: run a file to be able to reload".to_owned(),
            );
        };
        if self.state.phase.get() != Phase::Serving {
            return Answer::refused("the process is draining".to_owned());
        }
        let _changing = match self.state.upgrade.change() {
            Ok(changing) => changing,
            Err(why) => return Answer::refused(why.to_owned()),
        };
        self.change(asked, old, path).await
    }

    async fn change(&self, asked: &Asked, old: Arc<Config>, path: PathBuf) -> Answer {
        let job = Job {
            path,
            dry_run: asked.dry_run,
            old,
            cpus: self.cpus.clone(),
            keeper: self.keeper.clone(),
            drift: drift(&self.state),
        };
        let prepared = match self.prepare(job).await {
            Ok(prepared) => prepared,
            Err(why) => return Answer::refused(why),
        };
        let generation = self.state.reload.generation.get();
        let Prepared { config, diff, parts } = prepared;
        let outcome = match (&parts, diff.is_refused()) {
            (_, true) => Outcome::Refused,
            (None, _) if diff.is_empty() => Outcome::Unchanged,
            (None, _) => Outcome::WouldApply,
            (Some(_), _) => Outcome::Applied,
        };
        let Some(parts) = parts else {
            if outcome == Outcome::Unchanged && !asked.dry_run {
                self.state.reload.hash.replace(hash(&config.text));
                self.config.replace(Arc::new(config));
            }
            return Answer { outcome, text: describe(&diff, outcome, generation) };
        };
        match self.apply(config, parts).await {
            Ok(generation) => Answer { outcome, text: describe(&diff, outcome, generation) },
            Err(why) => Answer::refused(why),
        }
    }

    /// On a thread of its own; this one has timers and a page to serve.
    async fn prepare(&self, job: Job) -> Result<Prepared, String> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let _ = tell.send(prepare::prepare(&job));
        };
        std::thread::Builder::new()
            .name("reload".into())
            .spawn(work)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        let timer = Timer::new(&self.ring);
        loop {
            match told.try_recv() {
                Ok(prepared) => return prepared,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    return Err("the thread that read the file has failed".to_owned());
                }
                Err(std::sync::mpsc::TryRecvError::Empty) => {
                    timer.set(LOOK_MS);
                    timer.fired().await;
                }
            }
        }
    }

    fn renew_checks(&self, config: &Config) {
        let replaced = self.state.checks.replace(config, &self.state.upstreams());
        self.log_checks(replaced);
        crate::control::health::watch(&self.ring, &self.state, self.logger);
    }

    fn log_checks(&self, started: io::Result<()>) {
        if let Err(error) = started {
            let error = error.to_string();
            self.logger.error("health checks cannot be started", &[("error", &error)]);
        }
    }

    /// The exporter of before ends with the last request that hands it a span.
    fn renew_tracing(&self, config: &Config) {
        if let Some(traces) = &config.service.tracing
            && let Err(error) = tracing::start(traces, self.logger)
        {
            self.logger.error("traces cannot be exported", &[("error", &error.to_string())]);
        }
        self.state.tracing.replace(config.service.tracing.clone());
    }

    /// Returns the number of the generation that is in force then.
    async fn apply(&self, config: Config, parts: Parts) -> Result<u64, String> {
        let old = Arc::clone(&self.config.borrow());
        let Parts { tables, sockets, logs, found } = parts;
        let upstreams = self.upstreams(&config, found);
        self.vrrp(&old, &config, &upstreams).await?;
        let next = Next {
            service: config.service.clone(),
            base: config.base.clone(),
            loaded: config.loaded.clone(),
        };
        let current = self.keeper.renew(next)?;
        let listeners = self.listeners(&config);
        let number = self.state.reload.generation.get() + 1;
        let made = Made { listeners, upstreams, current, number };
        self.renew_office(&old, &config, &sockets);
        let changes = self.changes(&old, &config, &made, tables.clone(), sockets, logs);
        let Made { listeners, upstreams, .. } = made;
        self.state.listeners.replace(listeners.into());
        self.state.upstreams.replace(upstreams.into());
        self.renew_checks(&config);
        self.state.health.set_usable(vrrp::count_usable(&self.state.upstreams()));
        self.log_checks(director::configure(&self.state, &old, &config));
        self.renew_tracing(&config);
        self.limit.set_max(connections_max(config.node.max_connections, self.descriptors));
        if config.log.level != old.log.level {
            self.logger.set_level(config.log.level);
        }
        self.logger.set_format(config.log.format);
        self.state.drain_timeout.set(config.node.drain_timeout);
        self.state.log.replace(config.log.clone());
        self.resolver.set(self.state.names(), config.node.resolve_interval);
        self.state.reload.generation.set(number);
        self.state.reload.hash.replace(hash(&config.text));
        self.config.replace(Arc::new(config));
        self.retire(tables);
        self.tell_shards(changes, number).await;
        Ok(number)
    }

    /// Upstreams that do not differ are the very same objects: runtime changes, health and counts stay.
    fn upstreams(
        &self,
        config: &Config,
        found: HashMap<Name, Vec<SocketAddr>>,
    ) -> Vec<Rc<UpstreamState>> {
        let before = self.state.upstreams();
        let known: HashMap<&str, &Rc<UpstreamState>> =
            before.iter().map(|one| (one.shared.config.name.as_str(), one)).collect();
        let found = with_known(&before, found);
        let upstream = |config: &Upstream| {
            let known = known.get(config.name.as_str());
            if let Some(same) = known.filter(|known| known.shared.config == *config) {
                return Rc::clone(same);
            }
            let shared = match known {
                Some(known) => known.shared.succeed(config.clone()),
                None => SharedUpstream::new(config.clone(), self.state.shards.len()),
            };
            let set = known.map(|known| Arc::clone(&known.set.borrow()));
            let addresses = resolve::addresses(config, &found);
            Rc::new(UpstreamState::new(Arc::new(shared), addresses, set.as_deref()))
        };
        config.service.upstreams.iter().map(upstream).collect()
    }

    /// Listeners keep their figures with their address.
    fn listeners(&self, config: &Config) -> Vec<ListenerState> {
        let before = self.state.listeners();
        let listener = |listener: &Listener| ListenerState {
            name: listener.name.clone(),
            bind: listener.bind,
            figures: match before.iter().find(|known| known.bind == listener.bind) {
                Some(known) => Arc::clone(&known.figures),
                None => by_shard(self.state.shards.len()),
            },
        };
        config.service.listeners.iter().map(listener).collect()
    }

    /// Has VRRP take its part over; begins it if there was none.
    async fn vrrp(
        &self,
        old: &Config,
        new: &Config,
        upstreams: &[Rc<UpstreamState>],
    ) -> Result<(), String> {
        if old.ha == new.ha {
            return Ok(());
        }
        let state = &self.state;
        // What instances depend on is there before they ask, and stays until they do not.
        let mut usable = vrrp::count_usable(&state.upstreams());
        usable.extend(vrrp::count_usable(upstreams));
        state.health.set_usable(usable);
        let Some(ha) = state.ha.get() else {
            if !new.ha.instances.is_empty() {
                let beats = (&state.shards[..], self.directors.clone());
                let ha = start_ha(new.ha.clone(), beats, &state.health, &self.desk, None)?;
                let _ = state.ha.set(ha);
                spawn(&self.ring, vrrp::watch_upstreams(Rc::clone(&self.ring), Rc::clone(state)));
            }
            return Ok(());
        };
        let answer = ha.reload(new.ha.clone());
        let (timer, began) = (Timer::new(&self.ring), Instant::now());
        loop {
            match answer.try_recv() {
                Ok(result) => return result,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    return Err("VRRP is busy: try again".to_owned());
                }
                Err(_) if began.elapsed() > HA_PATIENCE => {
                    return Err("VRRP does not answer".to_owned());
                }
                Err(_) => {
                    timer.set(LOOK_MS);
                    timer.fired().await;
                }
            }
        }
    }

    /// A successor is passed the sockets that are in use.
    fn renew_office(
        &self,
        old: &Config,
        new: &Config,
        sockets: &HashMap<SocketAddr, Vec<OwnedFd>>,
    ) {
        let office = &self.state.upgrade;
        let kept = |bind: SocketAddr| new.service.listeners.iter().any(|next| next.bind == bind);
        let gone = old.service.listeners.iter().filter(|known| !kept(known.bind));
        gone.for_each(|listener| office.forget_listener(listener.bind));
        for (bind, opened) in sockets {
            for (shard, socket) in opened.iter().enumerate() {
                office.keep_listener(*bind, shard, socket);
            }
        }
    }

    /// The message for each shard.
    fn changes(
        &self,
        old: &Config,
        new: &Config,
        made: &Made,
        tables: Vec<Arc<Tables>>,
        mut sockets: HashMap<SocketAddr, Vec<OwnedFd>>,
        mut logs: Option<Vec<Option<OwnedFd>>>,
    ) -> Vec<Change> {
        let before = self.state.upstreams();
        let places: HashMap<&str, usize> = (before.iter().enumerate())
            .map(|(place, one)| (one.shared.config.name.as_str(), place))
            .collect();
        let upstream = |one: &Rc<UpstreamState>| {
            let place = places.get(one.shared.config.name.as_str());
            NextUpstream {
                shared: Arc::clone(&one.shared),
                set: Arc::clone(&one.set.borrow()),
                previous: place.map(|place| (*place, Arc::clone(&before[*place].shared))),
            }
        };
        let mut changes = Vec::new();
        // From the last shard, so that sockets and files are taken off the ends of their lists.
        for tables in tables.into_iter().rev() {
            let listener = |(state, listener): (&ListenerState, &Listener)| {
                let known = old.service.listeners.iter().find(|known| known.bind == state.bind);
                let backlog = known.filter(|known| known.backlog != listener.backlog);
                NextListener {
                    bind: state.bind,
                    figures: Arc::clone(&state.figures),
                    sockets: sockets.get_mut(&state.bind).and_then(Vec::pop).into_iter().collect(),
                    backlog: backlog.map(|_| listener.backlog),
                }
            };
            let listeners =
                made.listeners.iter().zip(&new.service.listeners).map(listener).collect();
            let log = match (&mut logs, new.log.access) {
                (None, _) => NextLog::Same,
                (Some(files), Some(format)) => match files.pop().flatten() {
                    Some(file) => NextLog::To(format, new.log.access_buffer, file),
                    None => NextLog::Off,
                },
                (Some(_), None) => NextLog::Off,
            };
            changes.push(Change {
                number: made.number,
                tables,
                listeners,
                upstreams: made.upstreams.iter().map(upstream).collect(),
                tls: Arc::clone(&made.current),
                log,
            });
        }
        changes.reverse();
        changes
    }

    /// Hands the changes out and waits until they are in force.
    async fn tell_shards(&self, changes: Vec<Change>, number: u64) {
        let (timer, began) = (Timer::new(&self.ring), Instant::now());
        let shards = &self.state.shards;
        let mut unsent: Vec<_> = changes.into_iter().map(|change| Some(Box::new(change))).collect();
        loop {
            for (shard, unsent) in shards.iter().zip(&mut unsent) {
                if let Some(change) = unsent.take() {
                    *unsent = match shard.offer(Message::Change(change)) {
                        Err(Message::Change(change)) => Some(change),
                        _ => None,
                    };
                }
            }
            let late =
                |shard: &crate::shard::Shard| shard.generation.load(Ordering::Acquire) < number;
            if !shards.iter().any(late) || self.state.phase.get() != Phase::Serving {
                return;
            }
            if began.elapsed() > SHARD_PATIENCE {
                let late = shards.iter().position(late).unwrap_or_default();
                let fields = [("shard", late.to_string())];
                let fields = [("shard", fields[0].1.as_str())];
                return self.logger.error("a shard does not take the configuration over", &fields);
            }
            timer.set(LOOK_MS);
            timer.fired().await;
        }
    }

    /// Frees the old tables here, not on the shards, once no request holds them.
    fn retire(&self, tables: Vec<Arc<Tables>>) {
        let mut retired = self.tables.replace(tables);
        let timer = Timer::new(&self.ring);
        spawn(&self.ring, async move {
            while !retired.is_empty() {
                timer.set(RETIRE_MS);
                timer.fired().await;
                retired.retain(|tables| Arc::strong_count(tables) > 1);
            }
        });
    }
}

/// What a generation is made of, on the control thread.
struct Made {
    listeners: Vec<ListenerState>,
    upstreams: Vec<Rc<UpstreamState>>,
    current: Arc<Current>,
    number: u64,
}

/// What the operator has changed at run time.
fn drift(state: &State) -> Vec<(String, String, String)> {
    let of = |upstream: &Rc<UpstreamState>| {
        let name = upstream.shared.config.name.clone();
        let drift = upstream.servers.borrow().drift();
        drift.into_iter().map(move |one| (name.clone(), one.server, one.what)).collect::<Vec<_>>()
    };
    state.upstreams().iter().flat_map(of).collect()
}

/// Adds what is known of names that were there before.
fn with_known(
    before: &[Rc<UpstreamState>],
    mut found: HashMap<Name, Vec<SocketAddr>>,
) -> HashMap<Name, Vec<SocketAddr>> {
    let mut seen: HashSet<Name> = HashSet::new();
    for upstream in before {
        let (servers, resolved) = (upstream.servers.borrow(), upstream.resolved.borrow());
        for standing in servers.now() {
            let ServerAddress::Name(host, port) = &standing.server.address else { continue };
            let Some(addresses) = resolved.get(standing.id) else { continue };
            let name = Name { host: host.clone(), port: *port };
            if seen.insert(name.clone()) {
                found.entry(name).or_insert_with(|| addresses.clone());
            }
        }
    }
    found
}
