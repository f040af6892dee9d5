//! The threads of one host, and the news that they (or agents in their place) send.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use ringgate::ring::executor::{self, spawn};
use ringgate::ring::{Ring, Settings, Timer, buffers, probe};
use ringgate::sys::{cpu, limits};

use crate::args::Placement;
use crate::client::{self, Load};
use crate::pace::{Pace, Turns};
use crate::plan::Plan;
use crate::sleeper::{Clock, Sleeper};
use crate::tally::Tally;
use crate::target::{self, Wire};
use crate::tls::Handshakes;

/// How often a thread reports: often enough that a line a second does not miss much.
const REPORT_MS: u64 = 200;
/// Reports that may wait to be added up.
const NEWS_MAX: usize = 1024;
/// How far the ring's clock may lag when the run begins.
const CLOCK_LAG: Duration = Duration::from_millis(10);
/// How long threads may take to make their rings.
const READY_TIME: Duration = Duration::from_secs(20);

/// What a source of load tells.
pub(crate) enum News {
    /// It waits for the start.
    Ready,
    /// The figures since its last report.
    Report(Box<Tally>),
    /// The same, and it is over.
    Ended(Box<Tally>),
    /// It cannot go on.
    Failed(String),
}

/// Sources of load that have been started.
pub(crate) struct Sources {
    pub(crate) news: Receiver<News>,
    pub(crate) count: usize,
    /// Set to end them early.
    pub(crate) abort: Arc<AtomicBool>,
}

/// Threads that wait for the start.
pub(crate) struct Fleet {
    sources: Sources,
    /// Dropping these lets the threads go without a run.
    go: Vec<SyncSender<Instant>>,
}

impl Fleet {
    /// Starts the threads and has them make their rings.
    pub(crate) fn prepare(plan: &Plan, placement: &Placement) -> Result<Self, String> {
        let target = plan.check()?;
        let address = target.resolve()?;
        probe::check().map_err(|unusable| unusable.to_string())?;
        let _ = limits::raise_locked_memory();
        let files = limits::raise_open_files().map_or(1024, |limit| limit.soft);
        if u64::from(plan.connections) + 64 > files {
            return Err(format!(
                "{} connections: only {files} open files allowed",
                plan.connections
            ));
        }
        let mut cpus = placement.cpus();
        // More threads than connections would have nothing to do.
        cpus.truncate(usize::try_from(plan.connections).unwrap_or(usize::MAX));
        let (close, http2) = (plan.new_connections, plan.http2);
        let wires = target::wires(&plan.requests, &target.authority, &plan.headers, close, http2);
        let handshakes = |tls| Handshakes::new(tls, &target.host, http2);
        let tls = plan.tls.as_ref().map(handshakes).transpose()?;
        let (sender, news) = sync_channel(NEWS_MAX);
        let abort = Arc::new(AtomicBool::new(false));
        let (count, epoch) = (cpus.len(), Instant::now());
        let mut go = Vec::new();
        for (index, cpu) in cpus.into_iter().enumerate() {
            let (start, started) = sync_channel(1);
            go.push(start);
            let (plan, news, abort) = (plan.clone(), sender.clone(), Arc::clone(&abort));
            let (wires, tls) = (Arc::clone(&wires), tls.clone());
            let place = (index, count, cpu);
            let worker = Worker { place, plan, wires, tls, address, epoch, news, started, abort };
            thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn(move || worker.run())
                .map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        let fleet = Self { sources: Sources { news, count, abort }, go };
        fleet.await_ready().map(|()| fleet)
    }

    fn await_ready(&self) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIME;
        for _ in 0..self.sources.count {
            match self.sources.news.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(News::Ready) => {}
                Ok(News::Failed(why)) => return Err(why),
                Ok(_) | Err(RecvTimeoutError::Timeout) => return Err("a thread hangs".to_owned()),
                Err(RecvTimeoutError::Disconnected) => return Err("a thread died".to_owned()),
            }
        }
        Ok(())
    }

    pub(crate) fn threads(&self) -> usize {
        self.sources.count
    }

    /// Lets them go, together.
    pub(crate) fn start(self) -> Sources {
        let now = Instant::now();
        for go in self.go {
            // One that has died tells so through the news.
            let _ = go.send(now);
        }
        self.sources
    }
}

/// What a thread is made from.
struct Worker {
    /// Its number, that of all of them, and its CPU.
    place: (usize, usize, Option<usize>),
    plan: Plan,
    wires: Arc<[Wire]>,
    tls: Option<Handshakes>,
    address: SocketAddr,
    /// When the ring's clock began.
    epoch: Instant,
    news: SyncSender<News>,
    started: Receiver<Instant>,
    abort: Arc<AtomicBool>,
}

impl Worker {
    fn run(self) {
        let news = self.news.clone();
        if let Some(cpu) = self.place.2.filter(|&cpu| !cpu::pin(cpu)) {
            let _ = news.send(News::Failed(format!("cannot pin a thread to CPU {cpu}")));
            return;
        }
        let settings =
            Settings { buffers: 128, buffers_limit: buffers::BUFFERS_MAX / 4, epoch: self.epoch };
        let result = executor::run(settings, Arc::default(), move |ring| self.serve(ring));
        let said = match result {
            Ok(Ok(Some(tally))) => News::Ended(Box::new(tally)),
            Ok(Ok(None)) => return,
            Ok(Err(why)) => News::Failed(why),
            Err(error) => News::Failed(probe::explain(&error, 0).to_string()),
        };
        let _ = news.send(said);
    }

    /// The figures since the last report; `None` when there was no start.
    async fn serve(self, ring: Rc<Ring>) -> Result<Option<Tally>, String> {
        let failed = |error: std::io::Error| format!("timerfd: {error}");
        let mut load = self.load(&ring, Clock(Instant::now())).map_err(failed)?;
        let _ = self.news.send(News::Ready);
        let Ok(start) = self.started.recv() else { return Ok(None) };
        // The thread has slept outside the ring: the clocks begin now.
        load.clock = Clock(start);
        load.sleeper = Sleeper::new(load.clock).map_err(failed)?;
        let load = Rc::new(load);
        let sleeping = Rc::clone(&load);
        spawn(&ring, async move { sleeping.sleeper.run(&sleeping.ring).await });
        // The ring looks at its own clock only when it is entered, and timers count from there.
        while self.epoch.elapsed() > Duration::from_millis(ring.now()) + CLOCK_LAG {
            load.sleeper.sleep_until(load.clock.now() + 100_000).await;
        }
        let total = u64::from(self.plan.connections);
        let (index, count, _) = self.place;
        let mine = (index as u64..total).step_by(count);
        load.active.set(mine.clone().count());
        load.unanswered.set(load.active.get());
        for (number, _) in (0..).zip(mine) {
            let count = load.active.get() as u64;
            spawn(&ring, client::run(Rc::clone(&load), number, count));
        }
        self.watch(&load).await;
        if let Some(pace) = &load.pace {
            // An aborted run is over now.
            let over = load.end.min(load.clock.now());
            load.tally.borrow_mut().counts.unsent += pace.borrow().left_before(over);
        }
        Ok(Some(load.tally.take()))
    }

    fn load(&self, ring: &Rc<Ring>, clock: Clock) -> std::io::Result<Load> {
        let plan = &self.plan;
        let weights = plan.requests.iter().map(|entry| entry.weight);
        let (index, count) = (self.place.0 as u64, self.place.1 as u64);
        Ok(Load {
            ring: Rc::clone(ring),
            address: self.address,
            tls: self.tls.clone(),
            http2: plan.http2,
            wires: Arc::clone(&self.wires),
            turns: RefCell::new(Turns::new(weights, index << 32)),
            pace: plan.rate.map(|rate| RefCell::new(Pace::new(rate, index, count))),
            sleeper: Sleeper::new(clock)?,
            clock,
            tally: RefCell::default(),
            measure_from: plan.measure_from_ns(),
            end: plan.end_ns(),
            timeout_ms: plan.timeout_ms,
            think_ns: plan.think_ms.saturating_mul(1_000_000),
            read_rate: plan.read_rate,
            window: plan.window(),
            one_each: plan.new_connections,
            active: Cell::new(0),
            unanswered: Cell::new(0),
            ended: ringgate::ring::event::Event::default(),
        })
    }

    /// Reports from time to time until all connections are over, or the run is aborted.
    async fn watch(&self, load: &Load) {
        let timer = Timer::new(&load.ring);
        timer.set(REPORT_MS);
        loop {
            let over = std::future::poll_fn(|cx| {
                while load.ended.poll_take(cx).is_ready() {}
                if load.active.get() == 0 {
                    return Poll::Ready(true);
                }
                timer.poll_fired(cx).map(|()| false)
            })
            .await;
            if over || self.abort.load(Ordering::Relaxed) {
                return;
            }
            timer.set(REPORT_MS);
            // When nobody listens fast enough, this report goes with the next.
            let report = Box::new(load.tally.take());
            if let Err(refused) = self.news.try_send(News::Report(report))
                && let std::sync::mpsc::TrySendError::Full(News::Report(kept)) = refused
            {
                load.tally.borrow_mut().add(&kept);
            }
        }
    }
}
