//! Start, watch and stop: everything is opened before anything serves, signals are obeyed, and the
//! process ends when its shards have.

mod start;
mod succession;
mod watch;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use crate::control::admin::{self, Access};
use crate::control::certificates::Change;
use crate::control::config::Config;
use crate::control::director;
use crate::control::hardening;
use crate::control::history;
use crate::control::logger::Logger;
use crate::control::pulse::{self, Pulses};
use crate::control::reload::{self, apply::Reloader};
use crate::control::resolve;
use crate::control::state::{ListenerState, Phase, State};
use crate::control::systemd;
use crate::control::tracing;
use crate::control::tuning::{self, Tuned};
use crate::control::upgrade::{Inherited, Office, pid_file};
use crate::control::vrrp;
use crate::ha;
use crate::ha::health::Health;
use crate::l7::config::Listener;
use crate::l7::generation::Tables;
use crate::l7::metrics::by_shard;
use crate::l7::worker::{Report, unix_ms};
use crate::ring::accept::Acceptor;
use crate::ring::event::Event;
use crate::ring::executor::{self, spawn};
use crate::ring::{Ring, Settings, probe};
use crate::shard::accept::ConnectionLimit;
use crate::sys::limits;
use crate::sys::notify::EventFd;
use crate::sys::signal::SignalFd;
use start::{Begin, placement};
pub(in crate::control) use start::{await_free, cannot_listen, connections_max, start_ha};
use watch::Watch;
pub(in crate::control) use watch::open_log;

/// News that may wait for the control thread; more are dropped and counted.
const NEWS_MAX: usize = 1024;

const SIGNALS: [libc::c_int; 5] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP];

/// Why serving did not begin, or ended badly; says what to do about it.
#[derive(Debug)]
pub struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// What the control thread is told by others.
pub(super) enum News {
    Report(Report),
    ShardEnded(usize, io::Result<()>),
    Certificates(Change),
    Ha(ha::Event),
    L4(crate::l4::engine::Event),
    Resolved { name: resolve::Name, result: io::Result<Vec<SocketAddr>> },
    Tuning(tuning::Standing),
    FileChanged,
    Health(crate::health::Event),
}

/// The way to the control thread, for any thread.
#[derive(Clone)]
pub(super) struct Desk {
    news: SyncSender<News>,
    wake: Arc<EventFd>,
}

impl Desk {
    fn tell(&self, news: News) -> bool {
        let told = self.news.try_send(news).is_ok();
        self.wake.notify();
        told
    }
}

/// Serves `config` until a signal ends it, in the place of an earlier process if there is something
/// inherited from one. `serving` is called once everything is open.
///
/// # Errors
/// When it cannot start, or a shard fails.
pub fn run(
    config: Config,
    inherited: Option<Rc<Inherited>>,
    serving: impl FnOnce() + 'static,
) -> Result<(), Failed> {
    probe::check().map_err(|unusable| Failed(unusable.to_string()))?;
    let signals = SignalFd::block(&SIGNALS)
        .map_err(|error| Failed(format!("cannot block signals: {error}")))?;
    let level = inherited.as_ref().and_then(|inherited| inherited.log_level());
    let logger = Logger::new(level.unwrap_or(config.log.level), config.log.format);
    let tuned = tuning::first(&config.tuning, logger).map_err(Failed)?;
    let descriptors = limits::raise_open_files().map_or(1024, |limit| limit.soft);
    // Without it connections are served all the same, some of them after a pause.
    let _ = limits::reserve_descriptors(descriptors);
    let _ = limits::raise_locked_memory();
    hardening::apply(&config, logger, inherited.is_some()).map_err(Failed)?;
    if config.node.user.is_some() {
        probe::check().map_err(|unusable| Failed(unusable.to_string()))?;
    }
    // Times that are inherited go on.
    let epoch = inherited.as_ref().and_then(|inherited| inherited.epoch());
    let epoch = epoch.unwrap_or_else(Instant::now);
    let wake = Arc::new(EventFd::new().map_err(|error| Failed(format!("eventfd: {error}")))?);
    let (news, inbox) = sync_channel(NEWS_MAX);
    let desk = Desk { news, wake };
    let settings = Settings { buffers: 16, buffers_limit: 128, epoch };
    let control =
        Control { config, inherited, tuned, logger, signals, desk, inbox, epoch, descriptors };
    executor::run(settings, Arc::default(), |ring| control.serve(ring, serving)).map_err(
        |error| {
            let unusable = probe::explain(&error, 0);
            Failed(format!("the control thread cannot run: {unusable}"))
        },
    )?
}

/// Everything the control thread starts with.
struct Control {
    config: Config,
    inherited: Option<Rc<Inherited>>,
    tuned: Option<Tuned>,
    logger: Logger,
    signals: SignalFd,
    desk: Desk,
    inbox: Receiver<News>,
    epoch: Instant,
    descriptors: u64,
}

/// How serving ends.
struct End {
    result: RefCell<Option<Result<(), Failed>>>,
    event: Event,
}

impl End {
    fn with(&self, result: Result<(), Failed>) {
        self.result.borrow_mut().get_or_insert(result);
        self.event.set();
    }
}

impl Control {
    async fn serve(self, ring: Rc<Ring>, serving: impl FnOnce()) -> Result<(), Failed> {
        let logger = self.logger;
        let office =
            Office::new(logger, self.config.node.upgrade_timeout, self.inherited.is_some());
        let cpus = placement(&self.config, self.tuned.as_ref())?;
        let sockets = self.listen(cpus.len(), &office)?;
        self.steer(&cpus, &sockets)?;
        let admin = self.admin(&office)?;
        let token = self.token()?;
        let standing = self.inherited.as_ref().map(|inherited| inherited.take_standing());
        let standing = standing.unwrap_or_default();
        let (upstreams, resolver) = self.upstreams(cpus.len(), &standing)?;
        let listeners = listeners(&self.config, cpus.len());
        let keeper = self.keeper()?;
        let (tls, current) = (Arc::clone(&keeper.board), Arc::clone(&keeper.current));
        let local = self.local_socket(&office)?;
        let (checks, l4_checks) = self.start_checks(&ring, &upstreams, &standing).await?;
        let node = &self.config.node;
        let max = connections_max(node.max_connections, self.descriptors);
        let limit = ConnectionLimit::new(max);
        let tables = Tables::for_shards(&self.config.service, cpus.len());
        let begin = Begin {
            sockets,
            listeners: &listeners,
            upstreams: &upstreams,
            tables: &tables,
            tls: &current,
            connections: &limit,
        };
        let shards = self.start_shards(&cpus, begin)?;
        let keeper = self.watch_certificates(keeper)?;
        self.watch_file()?;
        let health = Arc::new(Health::new(vrrp::count_usable(&upstreams)));
        health.listeners.set(true);
        let desk = self.desk.clone();
        let (l4, directors) =
            director::start(&self.config, self.inherited.as_deref(), move |event| {
                desk.tell(News::L4(event))
            })
            .map_err(Failed)?;
        if let (Some(checks), Some(engine)) = (&l4_checks, &l4) {
            checks.attach(engine.teller());
        }
        let (ha, held) = self.succeed(&shards, l4.as_ref(), directors.clone(), &health)?;
        let tuning = self.tuned.as_ref().map(|tuned| self.watch_tuning(tuned)).transpose()?;
        let state = Rc::new(State {
            logger,
            file: self.config.file.clone(),
            resolver: resolver.clone(),
            history: RefCell::default(),
            started: Instant::now(),
            epoch: self.epoch,
            pulses: Pulses::default(),
            phase: Cell::new(Phase::Serving),
            shards,
            listeners: RefCell::new(listeners.into()),
            upstreams: RefCell::new(upstreams.into()),
            checks,
            tls,
            ha,
            l4,
            l4_checks,
            hand_overs: vrrp::HandOvers::default(),
            roles: RefCell::default(),
            health,
            reload: reload::Standing::at_start(&self.config.text, unix_ms()),
            drain_timeout: Cell::new(self.config.node.drain_timeout),
            log: RefCell::new(self.config.log.clone()),
            tuning,
            tracing: RefCell::new(self.start_tracing()?),
            upgrade: office,
        });
        let mut acceptors = Vec::new();
        let mut open = |listener, access| {
            let acceptor = Rc::new(Acceptor::new(&ring, listener));
            acceptors.push(Rc::clone(&acceptor));
            spawn(&ring, admin::serve(Rc::clone(&ring), acceptor, Rc::clone(&state), access));
        };
        if let Some(admin) = admin {
            open(admin, Access::Network(token));
        }
        // Removes its path at the end.
        let local = local.map(|(guard, listener)| {
            open(listener, Access::Local);
            guard
        });
        pulse::watch(&ring, &state, logger);
        spawn(&ring, history::watch(Rc::clone(&ring), Rc::clone(&state)));
        if state.l4.is_some() {
            spawn(&ring, director::watch_roles(Rc::clone(&ring), Rc::clone(&state), held));
        }
        if state.ha.get().is_some() {
            spawn(&ring, vrrp::watch_upstreams(Rc::clone(&ring), Rc::clone(&state)));
        }
        crate::control::health::watch(&ring, &state, logger);
        announce(&logger, &self.config, &state);
        self.warn_of_few_descriptors(&logger);
        warn_of_expired(&logger, &state);
        serving();
        if let Some(inherited) = &self.inherited {
            state.upgrade.succeed(inherited);
        }
        self.tell_manager(&ring, &state);
        let end = Rc::new(End { result: RefCell::default(), event: Event::default() });
        let upgrade_drain_timeout = self.config.node.upgrade_drain_timeout;
        let pid_path = self.config.node.pid_file.clone();
        let reloader = Reloader {
            ring: Rc::clone(&ring),
            state: Rc::clone(&state),
            logger,
            config: RefCell::new(Arc::new(self.config)),
            keeper,
            resolver,
            limit,
            descriptors: self.descriptors,
            cpus,
            desk: self.desk.clone(),
            directors,
            tables: RefCell::new(tables),
        };
        spawn(&ring, reloader.run());
        let watch = Watch { logger, state, end: Rc::clone(&end), hurried: Cell::new(false) };
        let (watch, other) = (Rc::new(watch), ring.clone());
        let signals_watch = Rc::clone(&watch);
        spawn(&ring, async move { signals_watch.obey(other, self.signals).await });
        let (succession, other) = (Rc::clone(&watch), ring.clone());
        spawn(&ring, async move {
            succession.leave(&other, &acceptors, upgrade_drain_timeout).await;
        });
        let state = Rc::clone(&watch.state);
        let other = ring.clone();
        spawn(&ring, async move { watch.read(other, self.inbox, self.desk.wake).await });
        end.event.take().await;
        if let Some(l4) = &state.l4 {
            l4.stop();
        }
        state.checks.finish();
        systemd::notify("STOPPING=1\n");
        if let Some(traces) = &*state.tracing.borrow() {
            tracing::finish(traces);
        }
        if let Some(path) = pid_path.as_deref() {
            pid_file::remove(path);
        }
        if let Some(local) = local.filter(|_| state.upgrade.has_left()) {
            local.leave_to_successor();
        }
        let result = end.result.take();
        result.unwrap_or(Ok(()))
    }
}

fn listeners(config: &Config, shards: usize) -> Vec<ListenerState> {
    let listener = |listener: &Listener| ListenerState {
        name: listener.name.clone(),
        bind: listener.bind,
        figures: by_shard(shards),
    };
    config.service.listeners.iter().map(listener).collect()
}

fn announce(logger: &Logger, config: &Config, state: &State) {
    for ListenerState { name, bind, .. } in &*state.listeners() {
        logger.info("listening", &[("listener", name), ("address", &bind.to_string())]);
    }
    let admin = config.admin.map_or_else(|| "off".to_owned(), |admin| admin.to_string());
    let cpus: Vec<String> = state
        .shards
        .iter()
        .map(|shard| shard.cpu.map_or_else(|| "any".to_owned(), |cpu| cpu.to_string()))
        .collect();
    let fields = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("shards", &state.shards.len().to_string()),
        ("cpus", &cpus.join(",")),
        ("admin", &admin),
    ];
    logger.info("serving", &fields);
}

/// Clients will refuse these; they are served all the same.
fn warn_of_expired(logger: &Logger, state: &State) {
    let now = i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX);
    for certificate in state.tls.certificates() {
        if certificate.not_after < now {
            let fields = [("listener", certificate.listener.as_str()), ("file", &certificate.file)];
            logger.warn("certificate has expired", &fields);
        }
    }
}
