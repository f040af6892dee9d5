//! One thread per CPU: a ring, the listeners' sockets and the layer-7 worker on it.

pub mod accept;
pub mod change;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::task::Poll;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::ha::health::Heartbeat;
use crate::l7::generation::Generation;
use crate::l7::metrics::Metrics;
use crate::l7::pool::millis;
use crate::l7::tls;
use crate::l7::upstream::{MemberSet, SharedUpstream};
use crate::l7::worker::{Receipt, Reporter, Worker, Yielding};
use crate::ring::event::Event;
use crate::ring::executor::{self, spawn};
use crate::ring::{Ring, Settings, Stats, Timer};
use crate::shard::accept::{ConnectionLimit, Doors};
use crate::shard::change::{Change, Changes, Identity};
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
    /// How long to look for work before sleeping; see [`Ring::busy_poll`].
    pub busy_poll: Duration,
    /// The configuration it begins with.
    pub change: Change,
    /// Client connections, the same count for all shards.
    pub connections: ConnectionLimit,
    /// Give up system calls that a shard does not need.
    pub confine: bool,
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
    /// Another configuration is in force.
    Change(Box<Change>),
    /// An upstream has other members.
    Members(Arc<SharedUpstream>, Arc<MemberSet>),
    /// Continue the access log in this file.
    ReopenLog(OwnedFd),
    /// The addresses are about to go to another node, or (`None`) that is over. The receipt is dropped when it is done.
    Yield(Option<Yielding>, Receipt),
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
    /// Its thread may make fewer system calls than the process.
    pub is_confined: bool,
    /// Its layer-7 figures.
    pub metrics: Arc<Metrics>,
    /// Its ring's figures.
    pub ring: Arc<Stats>,
    /// Answered each time the shard is woken.
    pub heartbeat: Arc<Heartbeat>,
    /// The number of the configuration that is in force on it.
    pub generation: Arc<AtomicU64>,
    inbox: SyncSender<Message>,
    wake: Arc<EventFd>,
    /// Ends by itself.
    thread: JoinHandle<io::Result<()>>,
}

/// A shard whose thread is at work on its ring.
#[derive(Debug)]
pub struct Starting {
    shard: Shard,
    /// Whether it is confined.
    made: Receiver<bool>,
}

impl Starting {
    /// Waits until it has its ring. It takes connections once it is told to
    /// ([`Message::Accept`]): before all shards have their rings, connections could take the
    /// descriptors that the others still need.
    ///
    /// # Errors
    /// When the ring cannot be made. What goes wrong later is told to [`Plan::ended`].
    pub fn made(self) -> io::Result<Shard> {
        if let Ok(is_confined) = self.made.recv() {
            return Ok(Shard { is_confined, ..self.shard });
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
        let metrics = Arc::new(Metrics::default());
        let ring = Arc::new(Stats::default());
        let wake = Arc::new(EventFd::new()?);
        let (inbox, messages) = sync_channel(INBOX_MAX);
        let heartbeat = Arc::new(Heartbeat::default());
        let generation = Arc::new(AtomicU64::new(plan.change.number));
        let shared = Shared {
            generation: Arc::clone(&generation),
            heartbeat: Arc::clone(&heartbeat),
            metrics: Arc::clone(&metrics),
            stats: Arc::clone(&ring),
            wake: Arc::clone(&wake),
        };
        let (making, made) = sync_channel(1);
        let thread = Builder::new()
            .name(format!("shard-{}", plan.index))
            .spawn(move || run(plan, messages, shared, making))?;
        let is_confined = false; // yet
        let shard =
            Self { cpu, is_confined, metrics, ring, heartbeat, generation, inbox, wake, thread };
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

    /// Sends a message, or gives it back when the shard's inbox is full or it has ended.
    ///
    /// # Errors
    /// The message.
    pub fn offer(&self, message: Message) -> Result<(), Message> {
        let sent = self.inbox.try_send(message).map_err(|refused| match refused {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        });
        self.wake.notify();
        sent
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
    generation: Arc<AtomicU64>,
    heartbeat: Arc<Heartbeat>,
    metrics: Arc<Metrics>,
    stats: Arc<Stats>,
    wake: Arc<EventFd>,
}

fn run(
    mut plan: Plan,
    messages: Receiver<Message>,
    shared: Shared,
    making: SyncSender<bool>,
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
            let is_confined = plan.confine && sys::seccomp::confine_shard().is_ok();
            made.set(making.send(is_confined).is_ok());
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
    ring.gather_completions();
    ring.busy_poll(plan.busy_poll);
    let wake = WakeFd(Arc::clone(&shared.wake));
    let identity = Identity { shard: plan.index, shards: plan.shards, seed: plan.seed };
    let Change { number, tables, listeners, upstreams, tls, log } = plan.change;
    let pools = upstreams.into_iter().map(|next| Rc::new(identity.pool(next, None))).collect();
    let generation = Rc::new(Generation::new(number, tables, pools, tls::Shard::new(tls)));
    let reporter: Reporter = plan.reporter;
    let worker = Rc::new(Worker::new(
        Rc::clone(&ring),
        Rc::clone(&generation),
        shared.metrics,
        reporter,
        plan.seed,
    ));
    let doors = Rc::new(Doors::new(plan.connections));
    let changes = Changes { worker: Rc::clone(&worker), doors, identity, done: shared.generation };
    changes.listeners(listeners, &generation);
    changes.log(log);
    let sweeper = Rc::clone(&worker);
    spawn(&ring, async move { sweeper.sweep().await });
    let (all_ready, accepted_all) = (Rc::new(Event::default()), Rc::new(Event::default()));
    let (ready, over) = (Rc::clone(&all_ready), Rc::clone(&accepted_all));
    let (accepting, doors) = (Rc::clone(&worker), Rc::clone(&changes.doors));
    spawn(&ring, async move {
        ready.take().await;
        doors.run(&accepting).await;
        over.set();
    });
    let drain_timeout =
        obey(&changes, Rc::new(wake), &messages, &shared.heartbeat, &all_ready).await;
    all_ready.set();
    drain(&worker, &accepted_all, drain_timeout).await;
    if let Some(log) = worker.log() {
        log.close(&ring).await;
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
    changes: &Changes,
    wake: Rc<WakeFd>,
    messages: &Receiver<Message>,
    heartbeat: &Heartbeat,
    all_ready: &Event,
) -> Duration {
    let worker = &changes.worker;
    let mut buffer = Vec::with_capacity(8);
    loop {
        heartbeat.answer();
        while let Ok(message) = messages.try_recv() {
            match message {
                Message::Accept => all_ready.set(),
                Message::Change(change) => changes.make(*change),
                Message::Members(upstream, set) => {
                    let generation = worker.generation();
                    let mut pools = generation.pools.iter();
                    if let Some(pool) = pools.find(|pool| Arc::ptr_eq(&pool.upstream, &upstream)) {
                        pool.replace(set);
                    }
                }
                Message::ReopenLog(file) => {
                    if let Some(log) = worker.log() {
                        log.reopen(file);
                    }
                }
                Message::Yield(how, receipt) => worker.yield_to_peer(how, receipt),
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
    worker.generation().pools.iter().for_each(|pool| pool.clear());
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
