//! The director at work: threads that take frames out of rings, ask for the verdict and send them on; and one that
//! keeps what they decide by: neighbours, interfaces, rings, the kernel's silence, the real server's addresses.
//!
//! - `worker`: `director-N`, one a director CPU. Rings in, verdicts, frames out; nothing else.
//! - `manager`: `l4`. Is told `Fact`s, hears netlink, ARP and Neighbour Discovery, and gives the workers new
//!   [`Tables`].

mod files;
mod keeper;
mod manager;
mod neighbours;
mod network;
mod real_server;
mod succession;
mod worker;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use self::keeper::{COMMAND as KEEP_SILENCE, keep_silence};
use self::manager::Manager;
pub use self::neighbours::{NeighbourView, Standing};
pub use self::network::interfaces;
pub use self::real_server::RealServer;
use self::succession::{Parts, Standby, Step};
pub use self::succession::{Passing, Succession};
#[cfg(test)]
pub(in crate::l4) use self::worker::forwarded_to;
pub use self::worker::{Counts, OUTCOMES};
use self::worker::{Order, Worker};
use super::Director;
use super::config::{L4, ServiceKey};
use super::offload::{Frames, Learner, Offload, Path};
use super::registry::{Registry, ServerState};
use super::tables::Tables;
use crate::packet::ring::Sender as FrameSender;
use crate::sys::notify::EventFd;

/// Facts that wait at most; whoever has more waits.
const FACTS_MAX: usize = 1024;
/// Orders that wait for a worker at most.
const ORDERS_MAX: usize = 256;
/// How long the end waits for the threads.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What the engine is told.
#[derive(Debug, Clone)]
pub enum Fact {
    /// Another configuration.
    Configure(Box<L4>),
    /// What checks say of a real server.
    State(ServiceKey, IpAddr, ServerState),
    /// The operator's weight of a real server, in place of any other; `None`: no longer.
    Weight(ServiceKey, IpAddr, Option<u32>),
    /// Whether this host is the active director of a virtual address.
    Active(IpAddr, bool),
    /// Ends everything.
    Stop,
}

/// Takes what the engine tells the operator; must not block. False when it was dropped.
pub struct Reporter(pub Box<dyn Fn(Event) -> bool + Send>);

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// What the engine tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A real server's hardware address is known, or another than before.
    Found(IpAddr, String),
    /// A real server does not answer.
    Lost(IpAddr),
    /// How an interface's frames are forwarded from now on.
    Datapath(Path),
    /// Something is wrong that was not before.
    Trouble(String),
    /// Something that another process passed cannot be used.
    Refused(String),
    /// Another process's flows are here now: how many.
    TookOver(u64),
}

/// Called by a director's thread each time it is woken: the proof that it runs.
pub struct Pulse(pub Box<dyn Fn() + Send>);

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pulse")
    }
}

/// What the engine is started with.
#[derive(Debug)]
pub struct Plan {
    /// The configuration.
    pub config: L4,
    /// Virtual addresses that another director has for now.
    pub inactive: Vec<IpAddr>,
    /// The role of a real server, if this host has it.
    pub real_server: Option<RealServer>,
    /// How long virtual addresses outlive this process, when it is killed: the kernel stays silent as long.
    pub outlive: Duration,
    /// One for each director ([`directors`]).
    pub pulses: Vec<Pulse>,
    /// Where events go.
    pub reporter: Reporter,
    /// Another process forwards until [`Engine::go_on`].
    pub succession: Option<Succession>,
}

/// How many directors a configuration has: none without virtual servers.
#[must_use]
pub fn directors(config: &L4) -> usize {
    if config.services.is_empty() { 0 } else { config.director.cpus.len().max(1) }
}

/// What the engine shows.
#[derive(Debug, Default)]
pub struct Board {
    tables: Mutex<Arc<Tables>>,
    network: Mutex<Arc<NetworkView>>,
    /// What each director counts.
    pub directors: Vec<Arc<Counts>>,
}

/// Neighbours and troubles as last published.
#[derive(Debug, Clone, Default)]
pub struct NetworkView {
    /// Every real server that is another host, and every peer director.
    pub neighbours: Vec<NeighbourView>,
    /// Interfaces with rings.
    pub interfaces: Vec<String>,
    /// What is wrong now.
    pub troubles: Vec<String>,
    /// Addresses that this host has as a real server.
    pub real_server: Vec<IpAddr>,
    /// How each interface's frames are forwarded.
    pub datapaths: Vec<Path>,
    /// What the XDP program did.
    pub xdp: Frames,
}

impl Board {
    /// What directors decide by.
    #[must_use]
    pub fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Neighbours and troubles.
    #[must_use]
    pub fn network(&self) -> Arc<NetworkView> {
        Arc::clone(&self.network.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_xdp(&self, frames: Frames) {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut network).xdp = frames;
    }

    fn publish(&self, tables: Arc<Tables>, network: NetworkView) {
        *self.tables.lock().unwrap_or_else(PoisonError::into_inner) = tables;
        *self.network.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(network);
    }
}

/// The way to a worker.
#[derive(Debug)]
struct Desk {
    orders: SyncSender<Order>,
    waiting: Arc<AtomicBool>,
    wake: Arc<EventFd>,
}

impl Desk {
    /// A worker takes its orders in each round; one that lets so many wait is stuck, which its pulse shows.
    fn give(&self, order: Order) {
        let _ = self.orders.try_send(order);
        self.waiting.store(true, Ordering::Release);
        self.wake.notify();
    }
}

/// The way to tell facts, for any thread.
#[derive(Debug, Clone)]
pub struct Teller {
    facts: SyncSender<Fact>,
    wake: Arc<EventFd>,
}

impl Teller {
    /// To an inbox without a director, with room for so many.
    ///
    /// # Panics
    /// When there are no descriptors left.
    #[cfg(test)]
    #[must_use]
    pub fn to_inbox(room: usize) -> (Self, std::sync::mpsc::Receiver<Fact>) {
        let (facts, inbox) = sync_channel(room);
        let wake = Arc::new(EventFd::new().expect("an eventfd"));
        (Self { facts, wake }, inbox)
    }

    /// Tells a fact; false when too many wait.
    #[must_use]
    pub fn tell(&self, fact: Fact) -> bool {
        let told = self.facts.try_send(fact).is_ok();
        self.wake.notify();
        told
    }
}

/// The running threads; dropping it ends them.
#[derive(Debug)]
pub struct Engine {
    /// What it shows.
    pub board: Arc<Board>,
    /// What wakes each director, so that it calls its [`Pulse`].
    pub wakers: Vec<Arc<EventFd>>,
    facts: SyncSender<Fact>,
    steps: Sender<Step>,
    wake: Arc<EventFd>,
    over: Arc<AtomicBool>,
}

impl Engine {
    /// Opens what it needs and starts the threads. The kernel is silent, and real-server addresses are there, when this
    /// returns; frames are forwarded as soon as neighbours have answered.
    ///
    /// # Errors
    /// Text for the operator: which part failed and what it needs.
    pub fn start(mut plan: Plan) -> Result<Self, String> {
        let (mut parts, refused) = match &mut plan.succession {
            Some(succession) => Parts::sort(std::mem::take(&mut succession.passed)),
            None => Default::default(),
        };
        for why in refused {
            (plan.reporter.0)(Event::Refused(why));
        }
        let count = directors(&plan.config);
        let wake = Arc::new(EventFd::new().map_err(|error| format!("eventfd: {error}"))?);
        let (facts, inbox) = sync_channel(FACTS_MAX);
        // The XDP program's figures are kept as those of one director more.
        let mut registry = Registry::new(plan.config.clone(), count + 1);
        for address in &plan.inactive {
            registry.set_active(*address, false);
        }
        if let Some(standing) = &parts.standing {
            registry.restore(&standing.places);
        }
        let tables = registry.tables();
        let board =
            Board { directors: (0..count).map(|_| Arc::default()).collect(), ..Board::default() };
        let board = Arc::new(board);
        let offload = Offload::with_flows(&plan.config, count, parts.take_xdp_flows());
        let mut desks = Vec::new();
        for (index, pulse) in (0..count).zip(plan.pulses) {
            let director =
                Director::new(index, Arc::clone(&tables), flows_each(&plan.config, count));
            let counts = board.directors.get(index).map(Arc::clone).unwrap_or_default();
            let cpu = plan.config.director.cpus.get(index).copied();
            let learner = offload.learner();
            desks.push(start_worker(index, cpu, director, counts, pulse, learner)?);
        }
        let wakers = desks.iter().map(|desk| Arc::clone(&desk.wake)).collect();
        let mut manager =
            Manager::open(registry, desks, Arc::clone(&board), plan.reporter, offload)?;
        match plan.succession {
            None => manager.begin(plan.real_server, plan.outlive)?,
            Some(succession) => {
                let (role, outlive) = (plan.real_server, plan.outlive);
                let standby = Standby { role, outlive, checked: succession.checked };
                manager.stand_by(standby, &parts)?;
            }
        }
        let (steps, taken) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let (ended, woken) = (Arc::clone(&over), Arc::clone(&wake));
        thread::Builder::new()
            .name("l4".into())
            .spawn(move || {
                manager.run(&inbox, &taken, &woken);
                ended.store(true, Ordering::Release);
            })
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { board, wakers, facts, steps, wake, over })
    }

    /// The way to tell facts from other threads.
    #[must_use]
    pub fn teller(&self) -> Teller {
        Teller { facts: self.facts.clone(), wake: Arc::clone(&self.wake) }
    }

    /// Tells a fact; false when too many wait.
    pub fn tell(&self, fact: Fact) -> bool {
        let told = self.facts.try_send(fact).is_ok();
        self.wake.notify();
        told
    }

    /// Takes other virtual servers over; waits while too many facts wait.
    pub fn configure(&self, config: L4) {
        // The thread ends only with the process.
        let _ = self.facts.send(Fact::Configure(Box::new(config)));
        self.wake.notify();
    }

    fn await_end(&self, patience: Duration) {
        let began = Instant::now();
        while !self.over.load(Ordering::Acquire) && began.elapsed() < patience {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends the threads: the real server's addresses go, then rings and silence. Waits a second at most.
    pub fn stop(&self) {
        let began = Instant::now();
        while !self.over.load(Ordering::Acquire) && began.elapsed() < END_PATIENCE {
            self.tell(Fact::Stop);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The share of one director in the flows that all remember together.
fn flows_each(config: &L4, directors: usize) -> u32 {
    config.director.flows_max / u32::try_from(directors.max(1)).unwrap_or(1)
}

fn start_worker(
    index: usize,
    cpu: Option<usize>,
    director: Director,
    counts: Arc<Counts>,
    pulse: Pulse,
    learner: Option<Learner>,
) -> Result<Desk, String> {
    let (orders, inbox) = sync_channel(ORDERS_MAX);
    let wake = Arc::new(EventFd::new().map_err(|error| format!("eventfd: {error}"))?);
    let waiting = Arc::new(AtomicBool::new(false));
    let sender = FrameSender::new().map_err(|error| needs("packet sockets", &error))?;
    let (flag, waker) = (Arc::clone(&waiting), Arc::clone(&wake));
    let worker = Worker::new(director, sender, inbox, flag, waker, learner);
    thread::Builder::new()
        .name(format!("director-{index}"))
        .spawn(move || worker.run(cpu, &counts, &pulse))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    Ok(Desk { orders, waiting, wake })
}

/// What failed, and what it takes.
fn needs(what: &str, error: &io::Error) -> String {
    format!(
        "layer 4: {what}: {error}: directors need CAP_NET_RAW and CAP_NET_ADMIN (systemd: \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW), packet sockets and nf_tables"
    )
}

/// Sleeps until one of the files has input.
fn sleep(
    fds: &[RawFd],
    timeout: Duration,
    ready: &mut Vec<RawFd>,
    scratch: &mut Vec<libc::pollfd>,
) {
    if crate::sys::poll::readable(fds, Some(timeout), ready, scratch).is_err() {
        // Descriptors are ours and valid: memory was short. Nobody spins meanwhile.
        thread::sleep(Duration::from_millis(1));
    }
}
