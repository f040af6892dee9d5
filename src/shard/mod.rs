//! One thread per CPU: a ring, the listeners' sockets and the layer-7 worker on it.

pub mod accept;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::task::Poll;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::ha::health::Heartbeat;
use crate::l7::config::{AccessLogFormat, Service};
use crate::l7::log::AccessLog;
use crate::l7::metrics::Metrics;
use crate::l7::pool::{Pool, millis};
use crate::l7::tls::{self, Current};
use crate::l7::upstream::{MemberSet, SharedUpstream};
use crate::l7::worker::{Reporter, Worker, Yielding};
use crate::ring::event::Event;
use crate::ring::executor::{self, spawn};
use crate::ring::{Ring, Settings, Stats, Timer};
use crate::shard::accept::ConnectionLimit;
use crate::sys;
use crate::sys::notify::EventFd;

/// Messages that may wait for a shard.
const INBOX_MAX: usize = 256;

/// What a shard is made from.
pub struct Plan {
    /// Number of this shard.
    pub index: usize,
    /// Number of shards.
    pub shards: usize,
    /// The CPU to pin the thread to.
    pub cpu: Option<usize>,
    /// For the ring.
    pub ring: Settings,
    /// The configuration.
    pub service: Service,
    /// Its sockets, each with the number of its listener in the configuration.
    pub listeners: Vec<(usize, OwnedFd)>,
    /// Certificates and keys in force.
    pub tls: Arc<Current>,
    /// Upstreams with their members at the start.
    pub upstreams: Vec<(Arc<SharedUpstream>, Arc<MemberSet>)>,
    /// Client connections, the same count for all shards.
    pub connections: ConnectionLimit,
    /// The access log: format, buffer in bytes, file.
    pub log: Option<(AccessLogFormat, usize, OwnedFd)>,
    /// Differs from shard to shard and from start to start.
    pub seed: u64,
    /// Takes reports for the operator.
    pub reporter: Box<dyn Fn(crate::l7::worker::Report) -> bool + Send>,
    /// Called when the shard has ended.
    pub ended: Box<dyn FnOnce(io::Result<()>) + Send>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("index", &self.index)
            .field("cpu", &self.cpu)
            .finish_non_exhaustive()
    }
}

/// What can be said to a running shard.
#[derive(Debug)]
pub enum Message {
    /// Take connections: every shard has what it needs to serve them.
    Accept,
    /// An upstream has other members.
    Members(usize, Arc<MemberSet>),
    /// Continue the access log in this file.
    ReopenLog(OwnedFd),
    /// The addresses are about to go to another node, or (`None`) that is over.
    Yield(Option<Yielding>),
    /// Another process accepts on the same sockets from now on: accept nothing more, and let
    /// connections end after the request they are serving or the next one. [`Message::Drain`] follows.
    HandOver,
    /// Finish what is in flight within this time, then end.
    Drain(Duration),
}

/// A running shard.
#[derive(Debug)]
pub struct Shard {
    /// The CPU it is pinned to.
    pub cpu: Option<usize>,
    /// Its layer-7 figures.
    pub metrics: Arc<Metrics>,
    /// Its ring's figures.
    pub ring: Arc<Stats>,
    /// Answered each time the shard is woken.
    pub heartbeat: Arc<Heartbeat>,
    inbox: SyncSender<Message>,
    wake: Arc<EventFd>,
    /// Ends by itself.
    thread: JoinHandle<io::Result<()>>,
}

/// A shard whose thread is at work on its ring.
#[derive(Debug)]
pub struct Starting {
    shard: Shard,
    made: Receiver<()>,
}

impl Starting {
    /// Waits until it has its ring. It takes connections once it is told to
    /// ([`Message::Accept`]): before all shards have their rings, connections could take the
    /// descriptors that the others still need.
    ///
    /// # Errors
    /// When the ring cannot be made. What goes wrong later is told to [`Plan::ended`].
    pub fn made(self) -> io::Result<Shard> {
        if self.made.recv().is_ok() {
            return Ok(self.shard);
        }
        match self.shard.thread.join() {
            Ok(Err(error)) => Err(error),
            _ => Err(io::Error::other("its thread ended")),
        }
    }
}

impl Shard {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread or its eventfd cannot be made.
    pub fn start(plan: Plan) -> io::Result<Starting> {
        let cpu = plan.cpu;
        let metrics =
            Arc::new(Metrics::new(plan.service.listeners.len(), plan.service.upstreams.len()));
        let ring = Arc::new(Stats::default());
        let wake = Arc::new(EventFd::new()?);
        let (inbox, messages) = sync_channel(INBOX_MAX);
        let heartbeat = Arc::new(Heartbeat::default());
        let shared = Shared {
            heartbeat: Arc::clone(&heartbeat),
            metrics: Arc::clone(&metrics),
            stats: Arc::clone(&ring),
            wake: Arc::clone(&wake),
        };
        let (making, made) = sync_channel(1);
        let thread = Builder::new()
            .name(format!("shard-{}", plan.index))
            .spawn(move || run(plan, messages, shared, making))?;
        let shard = Self { cpu, metrics, ring, heartbeat, inbox, wake, thread };
        Ok(Starting { shard, made })
    }

    /// Has it show that it runs ([`Heartbeat::beats`]).
    pub fn ask(&self) {
        self.wake.notify();
    }

    /// What wakes it.
    #[must_use]
    pub fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// Sends a message; false when the shard's inbox is full or it has ended.
    #[must_use]
    pub fn send(&self, message: Message) -> bool {
        let sent = self.inbox.try_send(message).is_ok();
        self.wake.notify();
        sent
    }
}

/// What the thread shares with its [`Shard`].
struct Shared {
    heartbeat: Arc<Heartbeat>,
    metrics: Arc<Metrics>,
    stats: Arc<Stats>,
    wake: Arc<EventFd>,
}

fn run(
    mut plan: Plan,
    messages: Receiver<Message>,
    shared: Shared,
    making: SyncSender<()>,
) -> io::Result<()> {
    if let Some(cpu) = plan.cpu {
        // Refused only when the mask changed after the start; the shard works all the same.
        let _ = sys::cpu::pin(cpu);
    }
    let ended = std::mem::replace(&mut plan.ended, Box::new(|_| {}));
    let (settings, stats) = (plan.ring, Arc::clone(&shared.stats));
    let made = Rc::new(Cell::new(false));
    let main = {
        let made = Rc::clone(&made);
        move |ring| {
            made.set(making.send(()).is_ok());
            serve(ring, plan, messages, shared)
        }
    };
    let result = executor::run(settings, stats, main);
    if !made.get() {
        return result; // to `Starting::made`
    }
    ended(result);
    Ok(())
}

async fn serve(ring: Rc<Ring>, plan: Plan, messages: Receiver<Message>, shared: Shared) {
    let wake = WakeFd(Arc::clone(&shared.wake));
    let (listeners, connections) = (plan.listeners, plan.connections);
    let pools = plan
        .upstreams
        .into_iter()
        .map(|(upstream, set)| Pool::new(upstream, set, plan.index, plan.shards, plan.seed))
        .collect();
    let log = plan.log.map(|(format, capacity, file)| {
        AccessLog::new(format, capacity, file, Arc::clone(&shared.metrics))
    });
    let reporter: Reporter = plan.reporter;
    let worker = Rc::new(Worker::new(
        Rc::clone(&ring),
        plan.service,
        pools,
        tls::Shard::new(plan.tls),
        shared.metrics,
        log,
        reporter,
        plan.seed,
    ));
    start_tasks(&worker);
    let (all_ready, accepted_all) = (Rc::new(Event::default()), Rc::new(Event::default()));
    let (ready, over) = (Rc::clone(&all_ready), Rc::clone(&accepted_all));
    let accepting = Rc::clone(&worker);
    spawn(&ring, async move {
        ready.take().await;
        accept::run(&accepting, listeners, connections).await;
        over.set();
    });
    let drain_timeout =
        obey(&worker, Rc::new(wake), &messages, &shared.heartbeat, &all_ready).await;
    all_ready.set();
    drain(&worker, &accepted_all, drain_timeout).await;
    if let Some(log) = &worker.log {
        log.close(&ring).await;
    }
}

fn start_tasks(worker: &Rc<Worker>) {
    let sweeper = Rc::clone(worker);
    spawn(&worker.ring, async move { sweeper.sweep().await });
    if worker.log.is_some() {
        let logger = Rc::clone(worker);
        spawn(&worker.ring, async move {
            if let Some(log) = &logger.log {
                log.run(&logger.ring).await;
            }
        });
    }
}

/// The shard's eventfd as a file that the ring can keep.
struct WakeFd(Arc<EventFd>);

impl AsRawFd for WakeFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Carries out messages until one says to drain; returns how long that may take.
async fn obey(
    worker: &Worker,
    wake: Rc<WakeFd>,
    messages: &Receiver<Message>,
    heartbeat: &Heartbeat,
    all_ready: &Event,
) -> Duration {
    let mut buffer = Vec::with_capacity(8);
    loop {
        heartbeat.answer();
        while let Ok(message) = messages.try_recv() {
            match message {
                Message::Accept => all_ready.set(),
                Message::Members(upstream, set) => {
                    if let Some(pool) = worker.pools.get(upstream) {
                        pool.replace(set);
                    }
                }
                Message::ReopenLog(file) => {
                    if let Some(log) = &worker.log {
                        log.reopen(file);
                    }
                }
                Message::Yield(how) => worker.yield_to_peer(how),
                Message::HandOver => worker.hand_over(),
                Message::Drain(timeout) => return timeout,
            }
        }
        (_, buffer) = worker.ring.read(wake.clone(), buffer).await;
    }
}

/// Lets requests in flight finish, for `timeout` at most. `accepted_all` is set once the accepting
/// task is over; until then that task is the one that `departed` wakes.
async fn drain(worker: &Worker, accepted_all: &Event, timeout: Duration) {
    worker.drain();
    worker.pools.iter().for_each(Pool::clear);
    let timer = Timer::new(&worker.ring);
    timer.set(millis(timeout));
    if timer.guard(pin!(accepted_all.take())).await.is_err() {
        return;
    }
    poll_fn(|cx| {
        if worker.connections() == 0 {
            return Poll::Ready(());
        }
        while worker.departed.poll_take(cx).is_ready() {}
        timer.poll_fired(cx)
    })
    .await;
}
