//! High availability: VRRP instances and the leased addresses that go with them, on a thread of their own.
//!
//! The thread owns its sockets and timers and waits in ppoll(2), so neither shards nor the control thread can
//! delay an advertisement. What it shows is a snapshot ([`Board`]); what it is told are [`Order`]s and the
//! atomics of [`health`].

mod checks;
mod claims;
mod clock;
pub mod config;
mod engine;
pub mod handoff;
mod handover;
pub mod health;
mod instance;
mod keeper;
mod lease;
mod network;
mod notify;
mod reload;
mod sockets;
pub mod status;
mod tracking;
mod vmac;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use self::clock::Clock;
use self::engine::{Engine, Rounds};
use self::handoff::{Step, Takeover};
use self::health::{Health, Heartbeat, Pulse};
use self::instance::Instance;
use self::network::Network;
use self::notify::Notifier;
use self::status::Board;
use self::tracking::Sources;
use crate::packet::frames::FrameSender;
use crate::protocol::vrrp::{HandOver, State};
use crate::sys::notify::EventFd;
use crate::sys::realtime;

/// Orders that wait at most.
const ORDERS_MAX: usize = 16;
/// How long the end waits for the thread to drop the addresses.
const END_PATIENCE: Duration = Duration::from_millis(500);

/// What the thread may be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Hand over to a peer; serve on with the lowest priority if none takes over.
    Release,
    /// Take over with the highest priority, if it can be once the active router has finished what is under way.
    Prefer,
    /// Go back to the ordinary priority.
    Resume,
    /// What a peer wanted finished is: offer it the addresses, this once.
    HandOver,
    /// Hand over, then end.
    Stop,
    /// Resign, drop the addresses, end.
    StopNow,
}

#[derive(Debug)]
struct Command {
    what: What,
    reply: SyncSender<Result<(), String>>,
}

#[derive(Debug)]
enum What {
    Order(Order, Option<String>),
    Reload(Box<config::Ha>),
}

/// What the thread tells.
#[derive(Debug)]
pub enum Event {
    /// An instance changed its state.
    Transition {
        /// Its name.
        instance: String,
        /// From.
        from: State,
        /// To.
        to: State,
        /// Why.
        reason: String,
        /// Effective priority.
        priority: u8,
    },
    /// A peer asks for an instance's addresses: finish what is under way, then order [`Order::HandOver`].
    Asked {
        /// The instance.
        instance: String,
    },
    /// What became of a request to hand over.
    HandOver {
        /// The instance.
        instance: String,
        /// What.
        news: HandOver,
        /// The other router.
        peer: IpAddr,
    },
    /// Something is wrong that was not before.
    Trouble(String),
}

/// Takes what the thread tells; must not block. False when it was dropped.
pub struct Reporter(pub Box<dyn Fn(Event) -> bool + Send>);

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// What the thread is started with.
#[derive(Debug)]
pub struct Plan {
    /// The configuration.
    pub config: config::Ha,
    /// Inputs from the rest of the process.
    pub health: Arc<Health>,
    /// Each shard's heartbeat, and what wakes it.
    pub shards: Vec<(Arc<Heartbeat>, Arc<EventFd>)>,
    /// Where events go.
    pub reporter: Reporter,
    /// Go on with the routers of an earlier process.
    pub takeover: Option<Takeover>,
}

/// The running thread; dropping it resigns and removes the addresses.
#[derive(Debug)]
pub struct Ha {
    /// What it shows.
    pub board: Arc<Board>,
    commands: SyncSender<Command>,
    steps: SyncSender<Step>,
    wake: Arc<EventFd>,
    over: Arc<AtomicBool>,
}

impl Ha {
    /// Opens what it needs and starts the thread.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN and CAP_NET_RAW; what threads and sockets say.
    pub fn start(plan: Plan) -> io::Result<Self> {
        let wake = Arc::new(EventFd::new()?);
        let (commands, inbox) = sync_channel(ORDERS_MAX);
        let board = Arc::new(Board::default());
        let over = Arc::new(AtomicBool::new(false));
        let priority = plan.config.realtime;
        let lock = plan.config.lock_memory;
        let (steps, successor) = sync_channel(ORDERS_MAX);
        let mut engine = engine(plan, (inbox, successor), &wake, &board)?;
        let ended = Arc::clone(&over);
        thread::Builder::new().name("ha".into()).spawn(move || {
            engine.realtime = prepare(&engine.reporter, priority);
            engine.locked = lock && lock_memory(&engine.reporter);
            engine.run(&ended);
        })?;
        Ok(Self { board, commands, steps, wake, over })
    }

    /// Gives an order for one instance, or for all; the answer comes to the receiver.
    pub fn order(&self, order: Order, instance: Option<String>) -> Receiver<Result<(), String>> {
        self.command(What::Order(order, instance))
    }

    /// Puts another configuration in force. What it does not change is not touched: instances keep their
    /// state and addresses. What [`config::Ha`] says of priority and memory of the thread stays as it was.
    pub fn reload(&self, config: config::Ha) -> Receiver<Result<(), String>> {
        self.command(What::Reload(Box::new(config)))
    }

    fn command(&self, what: What) -> Receiver<Result<(), String>> {
        let (reply, answer) = sync_channel(1);
        // When the queue is full the receiver finds its sender gone, which is an answer too.
        let _ = self.commands.try_send(Command { what, reply });
        self.wake.notify();
        answer
    }

    /// True once the thread has dropped every address and ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Drop for Ha {
    fn drop(&mut self) {
        if self.is_over() {
            return;
        }
        drop(self.order(Order::StopNow, None));
        let began = Instant::now();
        while !self.is_over() && began.elapsed() < END_PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn engine(
    plan: Plan,
    (commands, steps): (Receiver<Command>, Receiver<Step>),
    wake: &Arc<EventFd>,
    board: &Arc<Board>,
) -> io::Result<Engine> {
    let Plan { config, health, shards, reporter, takeover } = plan;
    let clock = Clock::new();
    let mut sources =
        Sources { health, scripts: Vec::new(), files: Vec::new(), dead_shards: Vec::new() };
    sources.renew(&config, wake)?;
    let instances = config.instances.iter().cloned().enumerate();
    let instances = instances.filter_map(|(place, one)| Instance::new(one, config.grouped(place)));
    let now = clock.now();
    let pulses = shards.into_iter().map(|(beat, wake)| Pulse::new(beat, wake, now)).collect();
    Ok(Engine {
        clock,
        instances: instances.collect(),
        groups: config.groups.clone(),
        network: Network::open()?,
        frames: FrameSender::new()?,
        sources,
        pulses,
        shard_timeout: config.shard_timeout,
        commands,
        steps,
        takeover,
        wake: Arc::clone(wake),
        board: Arc::clone(board),
        notifier: Notifier::start()?,
        reporter,
        realtime: false,
        locked: false,
        state: Rounds::default(),
    })
}

/// Makes the calling thread one that others cannot delay.
fn prepare(reporter: &Reporter, priority: Option<u8>) -> bool {
    realtime::wake_precisely();
    let Some(priority) = priority else { return false };
    match realtime::schedule_fifo(priority.into()) {
        Ok(()) => true,
        Err(error) => {
            (reporter.0)(Event::Trouble(format!(
                "no real-time priority for VRRP: {error}: a busy machine can delay advertisements \
                 (CAP_SYS_NICE, or vrrp_rt_priority = 0)"
            )));
            false
        }
    }
}

fn lock_memory(reporter: &Reporter) -> bool {
    match realtime::lock_memory() {
        Ok(()) => true,
        Err(error) => {
            (reporter.0)(Event::Trouble(format!(
                "memory is not locked: {error} (CAP_IPC_LOCK, or vrrp_lock_memory = false)"
            )));
            false
        }
    }
}
