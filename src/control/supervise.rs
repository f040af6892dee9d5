//! Start, watch and stop: everything is opened before anything serves, signals are obeyed, and the
//! process ends when its shards have.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::OpenOptions;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::control::admin::{self, Access};
use crate::control::certificates::{Change, Keeper};
use crate::control::config::{Config, LogTarget, Shards, Steering};
use crate::control::logger::Logger;
use crate::control::resolve;
use crate::control::state::{Phase, State, TuningState, UpstreamState};
use crate::control::tuning::{self, Tuned};
use crate::control::vrrp;
use crate::ha::health::Health;
use crate::ha::{self, Ha};
use crate::l7::tls::Current;
use crate::l7::upstream::SharedUpstream;
use crate::l7::worker::{Report, unix_ms};
use crate::ring::accept::Acceptor;
use crate::ring::event::Event;
use crate::ring::executor::{self, spawn};
use crate::ring::{Ring, Settings, buffers, probe};
use crate::shard::accept::ConnectionLimit;
use crate::shard::{Message, Plan, Shard};
use crate::sys::file::set_blocking;
use crate::sys::notify::EventFd;
use crate::sys::signal::{self, SignalFd};
use crate::sys::{cpu, limits, socket};

/// News that may wait for the control thread; more are dropped and counted.
const NEWS_MAX: usize = 1024;
/// How long the start waits for the first answers of name servers.
const RESOLVE_FIRST: Duration = Duration::from_secs(2);
/// Descriptors that are not client or upstream connections.
const DESCRIPTORS_RESERVED: u64 = 64;
/// Added to the drain timeout before shards that do not answer are left behind.
const DRAIN_MARGIN: Duration = Duration::from_secs(2);

const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGHUP];

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
enum News {
    Report(Report),
    ShardEnded(usize, io::Result<()>),
    Certificates(Change),
    Ha(ha::Event),
    Resolved { upstream: usize, server: usize, host: String, result: io::Result<Vec<SocketAddr>> },
    Tuning(tuning::Standing),
}

/// The way to the control thread, for any thread.
#[derive(Clone)]
struct Desk {
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

/// Serves `config` until a signal ends it. `serving` is called once everything is open.
///
/// # Errors
/// When it cannot start, or a shard fails.
pub fn run(config: Config, serving: impl FnOnce() + 'static) -> Result<(), Failed> {
    probe::check().map_err(|unusable| Failed(unusable.to_string()))?;
    let signals = SignalFd::block(&SIGNALS)
        .map_err(|error| Failed(format!("cannot block signals: {error}")))?;
    let logger = Logger::new(config.log.level, config.log.format);
    let tuned = tuning::first(&config.tuning, logger).map_err(Failed)?;
    let descriptors = limits::raise_open_files().map_or(1024, |limit| limit.soft);
    let _ = limits::raise_locked_memory();
    let epoch = Instant::now();
    let wake = Arc::new(EventFd::new().map_err(|error| Failed(format!("eventfd: {error}")))?);
    let (news, inbox) = sync_channel(NEWS_MAX);
    let desk = Desk { news, wake };
    let settings = Settings { buffers: 16, buffers_limit: 128, epoch };
    let control = Control { config, tuned, logger, signals, desk, inbox, epoch, descriptors };
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
        let cpus = placement(&self.config, self.tuned.as_ref())?;
        let sockets = self.listen(cpus.len())?;
        self.steer(&cpus, &sockets)?;
        let admin = self.config.admin.map(listen_once).transpose()?;
        let upstreams = self.upstreams(cpus.len())?;
        let keeper = self.keeper()?;
        let (tls, current) = (Arc::clone(&keeper.board), Arc::clone(&keeper.current));
        let local = self.config.admin_socket.as_deref().map(vrrp::LocalSocket::open).transpose();
        let local = local.map_err(Failed)?;
        let shards = self.start_shards(&cpus, sockets, &upstreams, &current)?;
        self.watch_certificates(keeper)?;
        let health = Arc::new(Health::new(upstreams.len()));
        let ha = self.start_ha(&shards, &health)?;
        let tuning = self.tuned.as_ref().map(|tuned| self.watch_tuning(tuned)).transpose()?;
        let state = Rc::new(State {
            started: Instant::now(),
            epoch: self.epoch,
            phase: Cell::new(Phase::Serving),
            shards,
            listeners: named_listeners(&self.config),
            upstreams,
            tls,
            ha,
            health,
            tuning,
        });
        if let Some(admin) = admin {
            let acceptor = Acceptor::new(&ring, admin);
            let open = admin::serve(Rc::clone(&ring), acceptor, Rc::clone(&state), Access::Read);
            spawn(&ring, open);
        }
        // Removes its path at the end.
        let _local = local.map(|(guard, listener)| {
            let acceptor = Acceptor::new(&ring, listener);
            let open = admin::serve(Rc::clone(&ring), acceptor, Rc::clone(&state), Access::Control);
            spawn(&ring, open);
            guard
        });
        state.health.listeners.set(true);
        if state.ha.is_some() {
            spawn(&ring, vrrp::watch_upstreams(Rc::clone(&ring), Rc::clone(&state)));
        }
        announce(&logger, &self.config, &state);
        self.warn_of_few_descriptors(&logger);
        warn_of_expired(&logger, &state);
        serving();
        let end = Rc::new(End { result: RefCell::default(), event: Event::default() });
        let watch = Watch { logger, state, end: Rc::clone(&end), log: self.config.log.clone() };
        let (watch, other) = (Rc::new(watch), ring.clone());
        let drain_timeout = self.config.node.drain_timeout;
        let signals_watch = Rc::clone(&watch);
        spawn(&ring, async move { signals_watch.obey(other, self.signals, drain_timeout).await });
        let other = ring.clone();
        spawn(&ring, async move { watch.read(other, self.inbox, self.desk.wake).await });
        end.event.take().await;
        let result = end.result.take();
        result.unwrap_or(Ok(()))
    }

    /// What keeps certificates and keys, with those that were loaded in force.
    fn keeper(&self) -> Result<Keeper, Failed> {
        let (service, base) = (self.config.service.clone(), self.config.base.clone());
        Keeper::new(service, base, self.config.loaded.clone()).map_err(Failed)
    }

    fn watch_certificates(&self, keeper: Keeper) -> Result<(), Failed> {
        if keeper.is_idle() {
            return Ok(());
        }
        let desk = self.desk.clone();
        let tell = move |change| {
            desk.tell(News::Certificates(change));
        };
        keeper
            .watch(tell)
            .map_err(|error| Failed(format!("cannot start watching certificates: {error}")))
    }

    /// Warns when `max_connections` is more than the file limit allows.
    fn warn_of_few_descriptors(&self, logger: &Logger) {
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

    /// Opens every listener once for each shard, so that what cannot be opened is known before
    /// anything serves.
    fn listen(&self, shards: usize) -> Result<Vec<Vec<OwnedFd>>, Failed> {
        let listeners = &self.config.service.listeners;
        for listener in listeners {
            let bind = listener.bind;
            socket::probe_bind(bind).map_err(|error| cannot_listen(bind, &error))?;
        }
        let open = |_| {
            let sockets = listeners.iter().map(|listener| {
                socket::listen(listener.bind, listener.backlog)
                    .map_err(|error| cannot_listen(listener.bind, &error))
            });
            sockets.collect()
        };
        (0..shards).map(open).collect()
    }

    /// Has the kernel hand connections to the shard on the CPU that took them, if that is configured.
    fn steer(&self, cpus: &[Option<usize>], sockets: &[Vec<OwnedFd>]) -> Result<(), Failed> {
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
        for socket in sockets.first().into_iter().flatten() {
            socket::steer_by_cpu(socket.as_fd(), &known)
                .map_err(|error| Failed(format!("cannot steer connections by CPU: {error}")))?;
        }
        Ok(())
    }

    /// Keeps looking at the machine's settings; keeps this thread off the shards' CPUs if some are free.
    fn watch_tuning(&self, tuned: &Tuned) -> Result<TuningState, Failed> {
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
        })
    }

    /// Resolves names once, without insisting, and keeps resolving them.
    fn upstreams(&self, shards: usize) -> Result<Vec<UpstreamState>, Failed> {
        let configs = &self.config.service.upstreams;
        let names = resolve::names(configs);
        let wanted = names.len();
        if wanted > 0 {
            let desk = self.desk.clone();
            let interval = self.config.node.resolve_interval;
            let tell = move |name: &resolve::Name, result| {
                let (upstream, server, host) = (name.upstream, name.server, name.host.clone());
                desk.tell(News::Resolved { upstream, server, host, result });
                true
            };
            resolve::start(names, interval, tell)
                .map_err(|error| Failed(format!("cannot start the resolver: {error}")))?;
        }
        let mut resolved: Vec<Vec<Vec<SocketAddr>>> =
            configs.iter().map(|config| vec![Vec::new(); config.servers.len()]).collect();
        let deadline = Instant::now() + RESOLVE_FIRST;
        for _ in 0..wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(news) = self.inbox.recv_timeout(left) else { break };
            if let News::Resolved { upstream, server, result: Ok(addresses), .. } = news {
                resolved[upstream][server] = addresses;
            }
        }
        let state = |(config, resolved): (&crate::l7::config::Upstream, Vec<Vec<SocketAddr>>)| {
            let shared = Arc::new(SharedUpstream::new(config.clone(), shards));
            let set = Arc::new(shared.members(&resolved, None));
            UpstreamState { shared, set: RefCell::new(set), resolved: RefCell::new(resolved) }
        };
        Ok(configs.iter().zip(resolved).map(state).collect())
    }

    /// Starts VRRP, if there is any: what it claims can be served from now on.
    fn start_ha(&self, shards: &[Shard], health: &Arc<Health>) -> Result<Option<Ha>, Failed> {
        if self.config.ha.instances.is_empty() {
            return Ok(None);
        }
        let desk = self.desk.clone();
        let plan = ha::Plan {
            config: self.config.ha.clone(),
            health: Arc::clone(health),
            shards: shards
                .iter()
                .map(|shard| (Arc::clone(&shard.heartbeat), shard.waker()))
                .collect(),
            reporter: ha::Reporter(Box::new(move |event| desk.tell(News::Ha(event)))),
        };
        Ha::start(plan).map(Some).map_err(|error| {
            Failed(format!(
                "cannot start VRRP: {error}: it needs CAP_NET_ADMIN and CAP_NET_RAW (systemd: \
                 AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)"
            ))
        })
    }

    fn start_shards(
        &self,
        cpus: &[Option<usize>],
        sockets: Vec<Vec<OwnedFd>>,
        upstreams: &[UpstreamState],
        tls: &Arc<Current>,
    ) -> Result<Vec<Shard>, Failed> {
        let node = &self.config.node;
        let buffers_limit = node.buffer_memory / buffers::BUFFER_LEN as u64;
        let ring = Settings {
            buffers: node.receive_buffers,
            buffers_limit: u16::try_from(buffers_limit)
                .unwrap_or(buffers::BUFFERS_MAX)
                .clamp(node.receive_buffers, buffers::BUFFERS_MAX),
            epoch: self.epoch,
        };
        let connections =
            ConnectionLimit::new(connections_max(node.max_connections, self.descriptors));
        let mut shards = Vec::new();
        for (index, (&cpu, listeners)) in cpus.iter().zip(sockets).enumerate() {
            let log = match self.config.log.access {
                Some(format) => {
                    let file = open_log(&self.config.log.access_file)?;
                    Some((format, self.config.log.access_buffer, file))
                }
                None => None,
            };
            let (reports, ends) = (self.desk.clone(), self.desk.clone());
            let plan = Plan {
                index,
                shards: cpus.len(),
                cpu: cpu.filter(|_| node.pin),
                ring,
                service: self.config.service.clone(),
                listeners,
                tls: Arc::clone(tls),
                upstreams: upstreams
                    .iter()
                    .map(|upstream| {
                        (Arc::clone(&upstream.shared), Arc::clone(&upstream.set.borrow()))
                    })
                    .collect(),
                connections: connections.clone(),
                log,
                seed: random_seed(),
                reporter: Box::new(move |report| reports.tell(News::Report(report))),
                ended: Box::new(move |result| {
                    // The one thing that must not be lost; the thread has nothing else to do.
                    let _ = ends.news.send(News::ShardEnded(index, result));
                    ends.wake.notify();
                }),
            };
            let shard = Shard::start(plan)
                .map_err(|error| Failed(format!("cannot start shard {index}: {error}")))?;
            shards.push(shard);
        }
        Ok(shards)
    }
}

/// The CPU of each shard; `None` when it is not known.
fn placement(config: &Config, tuned: Option<&Tuned>) -> Result<Vec<Option<usize>>, Failed> {
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
fn connections_max(configured: u32, descriptors: u64) -> u32 {
    if configured > 0 {
        return configured;
    }
    let half = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / 2;
    u32::try_from(half).unwrap_or(u32::MAX).max(1)
}

fn listen_once(bind: SocketAddr) -> Result<OwnedFd, Failed> {
    socket::probe_bind(bind)
        .and_then(|()| socket::listen(bind, 128))
        .map_err(|error| cannot_listen(bind, &error))
}

fn cannot_listen(bind: SocketAddr, error: &io::Error) -> Failed {
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

fn open_log(target: &LogTarget) -> Result<OwnedFd, Failed> {
    match target {
        LogTarget::Stdout => io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Failed(format!("cannot use standard output for the log: {error}"))),
        LogTarget::File(path) => open_to_append(path).map_err(|error| {
            let hint = match error.raw_os_error() {
                Some(libc::ENXIO) => ": nobody reads from this FIFO",
                _ => "",
            };
            Failed(format!("cannot open log.access_file {}: {error}{hint}", path.display()))
        }),
    }
}

/// Opens without waiting, which a FIFO without a reader would ask for.
fn open_to_append(path: &Path) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().create(true).append(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let file = OwnedFd::from(file);
    // Later a write is to wait, in the ring, until there is room for all of it.
    set_blocking(file.as_fd())?;
    Ok(file)
}

/// Different for each call: the standard library's hash keys come from the kernel's random source.
fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn named_listeners(config: &Config) -> Vec<(String, SocketAddr)> {
    config.service.listeners.iter().map(|l| (l.name.clone(), l.bind)).collect()
}

fn announce(logger: &Logger, config: &Config, state: &State) {
    for (name, bind) in &state.listeners {
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

/// What runs until the end.
struct Watch {
    logger: Logger,
    state: Rc<State>,
    end: Rc<End>,
    log: crate::control::config::Log,
}

/// A descriptor in a form the ring can keep.
struct Keep<T>(T);

impl<T: AsRawFd> AsRawFd for Keep<Arc<T>> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Watch {
    /// Obeys signals: the first TERM or INT drains, the second ends at once.
    async fn obey(self: &Rc<Self>, ring: Rc<Ring>, signals: SignalFd, drain_timeout: Duration) {
        let signals: Rc<dyn AsRawFd> = Rc::new(signals);
        let mut record = Vec::with_capacity(signal::RECORD_LEN);
        loop {
            let (read, buffer) = ring.read(Rc::clone(&signals), record).await;
            record = buffer;
            if read.is_err() {
                return;
            }
            match signal::number(&record) {
                Some(libc::SIGUSR1) => self.reopen_logs(),
                Some(libc::SIGHUP) => {
                    self.logger.warn("SIGHUP: there is no reload yet; restart to change", &[]);
                }
                Some(_) if self.state.phase.get() == Phase::Draining => {
                    self.logger.warn("second signal: ending at once", &[]);
                    self.end.with(Ok(()));
                }
                Some(_) => self.drain(&ring, drain_timeout),
                None => {}
            }
        }
    }

    fn drain(self: &Rc<Self>, ring: &Rc<Ring>, timeout: Duration) {
        self.state.phase.set(Phase::Draining);
        if self.state.ha.is_some() {
            self.logger.info("resigning", &[]);
            let (ring, watch) = (Rc::clone(ring), Rc::clone(self));
            // The addresses go to a peer first; what is under way on them is served meanwhile.
            spawn(&ring.clone(), async move {
                vrrp::stop(&ring, &watch.state).await;
                watch.drain_shards(&ring, timeout);
            });
            return;
        }
        self.drain_shards(ring, timeout);
    }

    fn drain_shards(&self, ring: &Rc<Ring>, timeout: Duration) {
        self.logger.info("draining", &[("drain_timeout", &format!("{timeout:?}"))]);
        self.state.health.listeners.set(false);
        for shard in &self.state.shards {
            let _ = shard.send(Message::Drain(timeout));
        }
        let timer = crate::ring::Timer::new(ring);
        timer.set(crate::l7::pool::millis(timeout + DRAIN_MARGIN));
        let end = Rc::clone(&self.end);
        spawn(ring, async move {
            timer.fired().await;
            end.with(Err(Failed("a shard did not end within the drain timeout".into())));
        });
    }

    fn reopen_logs(&self) {
        if self.log.access.is_none() {
            return;
        }
        for shard in &self.state.shards {
            match open_log(&self.log.access_file) {
                Ok(file) => {
                    let _ = shard.send(Message::ReopenLog(file));
                }
                Err(error) => return self.logger.error("log not reopened", &[("error", &error.0)]),
            }
        }
        self.logger.info("access log reopened", &[]);
    }

    /// Reads what other threads tell.
    async fn read(&self, ring: Rc<Ring>, inbox: Receiver<News>, wake: Arc<EventFd>) {
        let wake: Rc<dyn AsRawFd> = Rc::new(Keep(wake));
        let mut buffer = Vec::with_capacity(8);
        let mut running = self.state.shards.len();
        loop {
            while let Ok(news) = inbox.try_recv() {
                match news {
                    News::Report(report) => self.log_report(&report),
                    News::Certificates(change) => self.log_change(&change),
                    News::Ha(event) => vrrp::log(self.logger, &event),
                    News::Resolved { upstream, server, host, result } => {
                        self.apply_resolved(upstream, server, &host, result);
                    }
                    News::Tuning(standing) => self.log_drift(standing),
                    News::ShardEnded(index, result) => {
                        running -= 1;
                        self.shard_ended(index, result, running);
                    }
                }
            }
            (_, buffer) = ring.read(Rc::clone(&wake), buffer).await;
        }
    }

    fn shard_ended(&self, index: usize, result: io::Result<()>, running: usize) {
        match result {
            Err(error) => {
                let failed = format!("shard {index} failed: {}", probe::explain(&error, 0));
                self.end.with(Err(Failed(failed)));
            }
            Ok(()) if running == 0 => {
                self.logger.info("drained", &[]);
                self.end.with(Ok(()));
            }
            Ok(()) => {}
        }
    }

    fn log_drift(&self, standing: tuning::Standing) {
        let Some(tuning) = &self.state.tuning else { return };
        let before = tuning.standing.replace(standing);
        let now = tuning.standing.borrow();
        if tuning.required {
            self.state.health.tuning.set(now.drift.is_empty());
        }
        let (gone, back) = tuning::news(&before, &now);
        for drift in gone {
            let fields = [("key", &drift.key[..]), ("now", &drift.now), ("wanted", &drift.wanted)];
            self.logger.warn("a setting of the machine has drifted", &fields);
        }
        for drift in back {
            self.logger.info("a setting of the machine is as wanted again", &[("key", &drift.key)]);
        }
    }

    fn log_report(&self, report: &Report) {
        match report {
            Report::ServerOut { upstream, server, reason } => self.logger.warn(
                "server is out after failures",
                &[("upstream", upstream), ("server", server), ("reason", reason)],
            ),
            Report::ServerTls { upstream, server, error } => self.logger.warn(
                "no TLS with a server",
                &[("upstream", upstream), ("server", server), ("error", error)],
            ),
            Report::NoDescriptors { listener } => self.logger.error(
                "out of file descriptors: accepting rests (raise LimitNOFILE)",
                &[("listener", listener)],
            ),
        }
    }

    fn log_change(&self, change: &Change) {
        match change {
            Change::Replaced(files) => {
                self.logger.info("certificates replaced", &[("files", &files.join(","))]);
                warn_of_expired(&self.logger, &self.state);
            }
            Change::Refused(what) => self.logger.error(
                "new certificate or key refused, the old one stays in force",
                &[("problem", what)],
            ),
        }
    }

    fn apply_resolved(
        &self,
        upstream: usize,
        server: usize,
        host: &str,
        result: io::Result<Vec<SocketAddr>>,
    ) {
        let addresses = match result {
            Ok(addresses) => addresses,
            Err(error) => {
                let fields = [("name", host), ("error", &error.to_string())];
                return self.logger.debug("name not resolved; its addresses stay", &fields);
            }
        };
        let text = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        if !self.state.resolved(upstream, server, addresses) {
            return;
        }
        let state = &self.state.upstreams[upstream];
        let name = state.shared.config.name.as_str();
        self.logger
            .info("name resolved", &[("upstream", name), ("name", host), ("addresses", &text)]);
        for shard in &self.state.shards {
            if !shard.send(Message::Members(upstream, Arc::clone(&state.set.borrow()))) {
                self.logger.warn("shard did not take new addresses", &[("upstream", name)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_leaves_room_for_its_server_connection() {
        assert_eq!(connections_max(0, 20_064), 10_000);
        assert_eq!(connections_max(1000, 20_064), 1000);
        assert_eq!(connections_max(0, 10), 1);
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
