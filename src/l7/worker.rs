//! What one shard's connections share: configuration, pools, figures, log.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{SystemTime, UNIX_EPOCH};

use slab::Slab;

use crate::l7::exchange::{Answer, Exchange};
use crate::l7::generation::Generation;
use crate::l7::log::AccessLog;
use crate::l7::metrics::Metrics;
use crate::l7::request_id::Generator;
use crate::l7::time::http_date;
use crate::ring::event::Event;
use crate::ring::timer::Millis;
use crate::ring::{Ring, Slots, Timer};

/// Exchanges, and places to serve requests in, kept for reuse.
const EXCHANGES_KEPT: usize = 1024;
/// How long a rendered `Date` is used.
const DATE_MS: u64 = 500;
/// Reports of limited clients are this far apart at least.
const CLIENT_REPORTS_MS: u64 = 10_000;
/// How often idle upstream connections are looked through.
const SWEEP_MS: u64 = 1000;

/// Something an operator should read in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A server was taken out after failures.
    ServerOut {
        /// The upstream's name.
        upstream: String,
        /// The server's address.
        server: String,
        /// The last failure.
        reason: &'static str,
    },
    /// TLS with a server did not come about.
    ServerTls {
        /// The upstream's name.
        upstream: String,
        /// The server's address.
        server: String,
        /// Why.
        error: String,
    },
    /// A client's address has reached a limit; others may have too.
    ClientLimited {
        /// The address.
        address: IpAddr,
        /// Which limit.
        what: &'static str,
    },
    /// Accepting stopped because descriptors ran out.
    NoDescriptors {
        /// The listener's name.
        listener: String,
    },
}

/// Where reports go; false when there is no room, and the report is lost.
pub type Reporter = Box<dyn Fn(Report) -> bool>;

/// One shard's side of the layer-7 service.
pub struct Worker {
    /// The shard's ring.
    pub ring: Rc<Ring>,
    /// The configuration in force.
    generation: RefCell<Rc<Generation>>,
    /// Held by what waits, so that it holds no configuration.
    parked: Rc<Generation>,
    /// This shard's figures.
    pub metrics: Arc<Metrics>,
    /// The access log, if there is one.
    log: RefCell<Option<Rc<AccessLog>>>,
    reporter: Reporter,
    client_reported: Cell<Option<Millis>>,
    ids: RefCell<Generator>,
    #[allow(clippy::vec_box)] // what is handed out and taken back is the box
    exchanges: RefCell<Vec<Box<Exchange>>>,
    #[allow(clippy::vec_box)] // likewise
    answers: RefCell<Vec<Box<Answer>>>,
    /// Where requests are served: idle connections do not hold that memory.
    pub(super) serving: Slots,
    /// Where request bodies are sent on: most requests have none.
    pub(super) pumping: Slots,
    /// Where the rest of a response is sent on: most come whole.
    pub(super) forwarding: Slots,
    date: Cell<(Millis, [u8; 29])>,
    /// Open client connections; a waker while one is idle.
    connections: RefCell<Slab<Option<Waker>>>,
    /// When draining began.
    draining: Cell<Option<Millis>>,
    /// A successor accepts in this process's place.
    handed_over: Cell<bool>,
    /// When the addresses were about to be handed over, and how far that is.
    yielding: Cell<Option<(Millis, Yielding)>>,
    /// To be dropped once that is done.
    receipt: RefCell<Option<Receipt>>,
    /// A connection was closed.
    pub departed: Event,
    /// A connection was put into a pool.
    pooled: Event,
}

/// How far a hand-over is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yielding {
    /// Connections end after the request they are serving; new ones are accepted.
    Closing,
    /// New handshakes are ignored as well; their clients send them again, to the new node. Done once the kernel does.
    Refusing,
    /// The same. Done once no connection is open or waits in a listen queue.
    Emptying,
}

impl Yielding {
    /// New handshakes are ignored.
    #[must_use]
    pub const fn is_deaf(self) -> bool {
        matches!(self, Self::Refusing | Self::Emptying)
    }
}

/// Shared by those who are to do something: dropped by each that has, or that never will.
pub type Receipt = Arc<()>;

impl Worker {
    /// Puts a shard's side together.
    #[must_use]
    pub fn new(
        ring: Rc<Ring>,
        generation: Rc<Generation>,
        metrics: Arc<Metrics>,
        reporter: Reporter,
        seed: u64,
    ) -> Self {
        Self {
            ring,
            parked: Rc::new(generation.parked()),
            generation: RefCell::new(generation),
            metrics,
            log: RefCell::default(),
            reporter,
            client_reported: Cell::new(None),
            ids: RefCell::new(Generator::new(seed)),
            exchanges: RefCell::default(),
            answers: RefCell::default(),
            serving: Slots::new(EXCHANGES_KEPT),
            pumping: Slots::new(EXCHANGES_KEPT),
            forwarding: Slots::new(EXCHANGES_KEPT),
            date: Cell::new((0, http_date(0))),
            connections: RefCell::default(),
            draining: Cell::new(None),
            handed_over: Cell::new(false),
            yielding: Cell::new(None),
            receipt: RefCell::default(),
            departed: Event::default(),
            pooled: Event::default(),
        }
    }

    /// The configuration in force.
    #[must_use]
    pub fn generation(&self) -> Rc<Generation> {
        Rc::clone(&self.generation.borrow())
    }

    /// A generation without content, for what waits and may do so for long.
    #[must_use]
    pub fn parked(&self) -> Rc<Generation> {
        Rc::clone(&self.parked)
    }

    /// Puts another configuration in force; returns the one before.
    pub fn renew(&self, generation: Rc<Generation>) -> Rc<Generation> {
        let old = self.generation.replace(generation);
        // There may be idle connections in pools that had none.
        self.pooled.set();
        old
    }

    /// The access log, if there is one.
    #[must_use]
    pub fn log(&self) -> Option<Rc<AccessLog>> {
        self.log.borrow().clone()
    }

    /// Writes another access log from now on, or none; returns the one before.
    pub fn set_log(&self, log: Option<Rc<AccessLog>>) -> Option<Rc<AccessLog>> {
        self.log.replace(log)
    }

    /// The time on the clock that all shards share.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.ring.now()
    }

    /// Tells the operator; never waits.
    pub fn report(&self, report: Report) {
        if !(self.reporter)(report) {
            self.metrics.reports_dropped.increment();
        }
    }

    /// Tells the operator of a client that is limited: one in a while, the others are only counted.
    pub fn report_client(&self, address: IpAddr, what: &'static str) {
        let now = self.now();
        let is_due = |last: Millis| now.saturating_sub(last) >= CLIENT_REPORTS_MS;
        if self.client_reported.get().is_none_or(is_due) {
            self.client_reported.set(Some(now));
            self.report(Report::ClientLimited { address, what });
        }
    }

    /// A fresh request id.
    #[must_use]
    pub fn request_id(&self) -> [u8; 32] {
        self.ids.borrow_mut().next()
    }

    /// `Date` for responses, rendered anew when it is half a second old.
    #[must_use]
    pub fn date(&self) -> [u8; 29] {
        let (rendered, date) = self.date.get();
        if rendered > 0 && self.now() - rendered < DATE_MS {
            return date;
        }
        let date = http_date(unix_ms() / 1000);
        self.date.set((self.now().max(1), date));
        date
    }

    /// An exchange to work in; give it back with [`Worker::recycle`].
    #[must_use]
    pub fn exchange(&self) -> Box<Exchange> {
        self.exchanges.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps an exchange's memory for the next request.
    pub fn recycle(&self, mut exchange: Box<Exchange>) {
        let mut kept = self.exchanges.borrow_mut();
        if kept.len() < EXCHANGES_KEPT {
            exchange.clear();
            kept.push(exchange);
        }
    }

    /// A place for a response's head; give it back with [`Worker::recycle_answer`].
    #[must_use]
    pub fn answer(&self) -> Box<Answer> {
        self.answers.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps its memory for the next response.
    pub fn recycle_answer(&self, mut answer: Box<Answer>) {
        let mut kept = self.answers.borrow_mut();
        if kept.len() < EXCHANGES_KEPT {
            answer.clear();
            kept.push(answer);
        }
    }

    /// Notes a client connection; the key is for [`Worker::leave`].
    pub fn enter(&self) -> usize {
        self.connections.borrow_mut().insert(None)
    }

    /// Forgets a client connection.
    pub fn leave(&self, key: usize) {
        self.connections.borrow_mut().try_remove(key);
        self.departed.set();
    }

    /// Open client connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.borrow().len()
    }

    /// Has the connection woken when draining begins.
    pub fn wake_on_drain(&self, key: usize, cx: &Context<'_>) {
        if let Some(slot) = self.connections.borrow_mut().get_mut(key) {
            match slot {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => *slot = Some(cx.waker().clone()),
            }
        }
    }

    /// When connections began to be closed, for good or for a hand-over; `None` while serving.
    #[must_use]
    pub fn draining(&self) -> Option<Millis> {
        self.draining.get().or_else(|| self.yielding.get().map(|(since, _)| since))
    }

    /// True once the shard is to end.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.draining.get().is_some()
    }

    /// How far a hand-over is; `None` when there is none.
    #[must_use]
    pub fn yielding(&self) -> Option<Yielding> {
        self.yielding.get().map(|(_, how)| how)
    }

    /// Before another node takes the addresses over, connections end as in a drain, and then no new ones
    /// begin, so that none is under way when the network changes its mind. `None` ends that. The receipt is dropped
    /// once it is done.
    pub fn yield_to_peer(&self, how: Option<Yielding>, receipt: Receipt) {
        self.receipt.replace(how.map(|_| receipt));
        let since = self.yielding.get().map_or_else(|| self.now(), |(since, _)| since);
        self.yielding.set(how.map(|how| (since, how)));
        self.wake_idle();
    }

    /// What [`Worker::yield_to_peer`] was told is done.
    pub fn has_yielded(&self) {
        self.receipt.take();
    }

    /// Wakes the tasks of idle connections, to see whether they are to end.
    pub fn wake_idle(&self) {
        for (_, waker) in self.connections.borrow_mut().iter_mut() {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
        self.departed.set();
    }

    /// From now on connections are closed after the request they are serving, idle ones soon.
    pub fn drain(&self) {
        self.handed_over.set(false);
        self.draining.set(Some(self.now()));
        self.wake_idle();
    }

    /// A successor accepts from now on. Connections end after a request; idle ones may have one on its
    /// way, so they are left to it and to `keepalive_timeout`.
    pub fn hand_over(&self) {
        self.handed_over.set(true);
        self.draining.set(Some(self.now()));
        self.wake_idle();
    }

    /// A successor accepts, and nothing hurries.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.get()
    }

    /// Idle connections are to be closed.
    #[must_use]
    pub fn closes_idle(&self) -> bool {
        !self.handed_over.get() && self.draining().is_some()
    }

    /// Tells the sweeper that there are idle connections.
    pub fn note_pooled(&self) {
        self.pooled.set();
    }

    /// Looks through the pools once a second, as long as there is something in them.
    pub async fn sweep(&self) {
        let timer = Timer::new(&self.ring);
        loop {
            if self.generation.borrow().pools.iter().all(|pool| pool.idle() == 0) {
                self.pooled.take().await;
            }
            timer.set(SWEEP_MS);
            timer.fired().await;
            for pool in &self.generation().pools {
                pool.metrics().stale.add(pool.sweep(self.now()) as u64);
            }
        }
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("ring", &self.ring).finish_non_exhaustive()
    }
}

/// Milliseconds since 1970; 0 for a clock before that.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
