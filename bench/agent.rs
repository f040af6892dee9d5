//! Several hosts: `ringgate-bench agent` makes load for a run elsewhere, `run --agents` drives them.
//!
//! For trusted networks only: whoever can reach an agent can have it send requests anywhere.

use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::args::{self, Placement};
use crate::fleet::{Fleet, News, Sources};
use crate::machine::Machine;
use crate::plan::Plan;
use crate::tally::Tally;
use crate::wire::{Answer, Line, Order};

/// For a message that the other side has no reason to wait with.
const PROMPT: Duration = Duration::from_secs(10);
/// For getting ready, which includes resolving the name of the server.
const PREPARE: Duration = Duration::from_secs(60);
/// How often an agent reports.
const REPORT: Duration = Duration::from_millis(500);
/// What an agent may be late with a report, in either direction, before it counts as lost.
const SILENCE: Duration = Duration::from_secs(15);
/// Conversations of an agent at a time; all but one are told that it is busy.
const CONVERSATIONS_MAX: usize = 16;
/// News that may wait to be added up.
const NEWS_MAX: usize = 1024;
/// Agents of one run.
const AGENTS_MAX: usize = 256;

/// Serves one run after the other until the process is killed.
pub(crate) fn serve(options: &args::Agent) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot listen on {}: {error}", options.bind);
    let listener = TcpListener::bind(options.bind).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let _ = writeln!(io::stdout(), "agent on {address}; for trusted networks only");
    let (busy, conversations) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    loop {
        let Ok((stream, peer)) = listener.accept() else {
            thread::sleep(Duration::from_millis(100)); // no descriptors, most likely
            continue;
        };
        if conversations.fetch_add(1, Ordering::Relaxed) >= CONVERSATIONS_MAX {
            conversations.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (busy, open) = (Arc::clone(&busy), Arc::clone(&conversations));
        let placement = options.placement.clone();
        thread::spawn(move || {
            let result = Line::new(stream)
                .map_err(|error| error.to_string())
                .and_then(|line| converse(line, &placement, &busy));
            let said = result.err().unwrap_or_else(|| "run is over".to_owned());
            let _ = writeln!(io::stderr(), "{peer}: {said}");
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Clears the mark of a run when it ends, however it does.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn converse(mut line: Line, placement: &Placement, busy: &AtomicBool) -> Result<(), String> {
    let order: Order = line.receive(PROMPT)?;
    let taken = busy.swap(true, Ordering::Acquire);
    let mark = (!taken).then(|| Busy(busy));
    let result = match mark {
        Some(_) => order.into_plan().and_then(|plan| serve_run(&mut line, &plan, placement)),
        None => Err("this agent is busy with another run".to_owned()),
    };
    if let Err(why) = &result {
        let _ = line.send(&Answer::Failed { why: why.clone() }, PROMPT);
    }
    result
}

fn serve_run(line: &mut Line, plan: &Plan, placement: &Placement) -> Result<(), String> {
    let fleet = Fleet::prepare(plan, placement)?;
    line.send(&Answer::Ready { machine: Machine::this(fleet.threads()) }, PROMPT)?;
    let Order::Start = line.receive(PREPARE)? else { return Err("prepare twice".to_owned()) };
    let sources = fleet.start();
    let abort = Arc::clone(&sources.abort);
    let result = forward(line, sources);
    abort.store(true, Ordering::Relaxed);
    result
}

/// Adds up what the threads tell and reports it, until all are over.
fn forward(line: &mut Line, sources: Sources) -> Result<(), String> {
    let (mut part, mut left) = (Tally::default(), sources.count);
    let mut next = Instant::now() + REPORT;
    while left > 0 {
        match sources.news.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(News::Ready) => {}
            Ok(News::Report(more)) => part.add(&more),
            Ok(News::Ended(more)) => {
                part.add(&more);
                left -= 1;
            }
            Ok(News::Failed(why)) => return Err(why),
            Err(RecvTimeoutError::Timeout) => {
                // Fails when the other side has gone, which ends the run here.
                line.send_report(&std::mem::take(&mut part), false, PROMPT)?;
                next = Instant::now() + REPORT;
            }
            Err(RecvTimeoutError::Disconnected) => return Err("a thread died".to_owned()),
        }
    }
    line.send_report(&part, true, PROMPT)
}

/// Agents that wait for the start.
pub(crate) struct Agents {
    lines: Vec<(String, Line)>,
    pub(crate) machines: Vec<(String, Machine)>,
}

impl Agents {
    /// Divides the plan among the agents and has them get ready.
    pub(crate) fn prepare(plan: &Plan, addresses: &[String]) -> Result<Self, String> {
        if addresses.len() > AGENTS_MAX {
            return Err(format!("at most {AGENTS_MAX} agents"));
        }
        let hosts = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let mut lines = Vec::new();
        // All are asked before the first is waited for.
        for (index, address) in (0..).zip(addresses) {
            let part = plan.share(index, hosts)?;
            let named = |why: String| format!("agent {address}: {why}");
            let mut line = connect(address).map_err(named)?;
            line.send(&Order::prepare(part), PROMPT).map_err(named)?;
            lines.push((address.clone(), line));
        }
        let mut machines = Vec::new();
        for (address, line) in &mut lines {
            let named = |why: String| format!("agent {address}: {why}");
            match line.receive(PREPARE).map_err(named)? {
                Answer::Ready { machine } => machines.push((address.clone(), machine)),
                Answer::Failed { why } => return Err(named(why)),
                Answer::Report { .. } => return Err(named("a report before the start".to_owned())),
            }
        }
        Ok(Self { lines, machines })
    }

    /// Lets them go, together but for the way of the message.
    pub(crate) fn start(self) -> Result<Sources, String> {
        let (sender, news) = sync_channel(NEWS_MAX);
        let count = self.lines.len();
        for (address, mut line) in self.lines {
            let named = |why: String| format!("agent {address}: {why}");
            line.send(&Order::Start, PROMPT).map_err(named)?;
            let news = sender.clone();
            thread::spawn(move || {
                let said = listen(&mut line, &news)
                    .unwrap_or_else(|why| News::Failed(format!("agent {address}: {why}")));
                let _ = news.send(said);
            });
        }
        let abort = Arc::new(AtomicBool::new(false));
        Ok(Sources { news, count, abort })
    }
}

fn connect(address: &str) -> Result<Line, String> {
    let found: Vec<SocketAddr> =
        address.to_socket_addrs().map_err(|error| format!("{error}: write host:port"))?.collect();
    let first = found.first().ok_or_else(|| "no address".to_owned())?;
    let stream = TcpStream::connect_timeout(first, PROMPT).map_err(|error| error.to_string())?;
    Line::new(stream).map_err(|error| error.to_string())
}

/// Passes an agent's reports on; returns what ended them.
fn listen(line: &mut Line, news: &SyncSender<News>) -> Result<News, String> {
    loop {
        let (counts, seconds, bytes, last) = match line.receive(SILENCE)? {
            Answer::Report { counts, seconds, histogram_bytes, last } => {
                (counts, seconds, histogram_bytes, last)
            }
            Answer::Failed { why } => return Err(why),
            Answer::Ready { .. } => return Err("ready twice".to_owned()),
        };
        let histogram = line.receive_histogram(bytes, PROMPT)?;
        let tally = Box::new(Tally::from_parts(counts, seconds, &histogram)?);
        if last {
            return Ok(News::Ended(tally));
        }
        if news.send(News::Report(tally)).is_err() {
            return Err("the run is over".to_owned());
        }
    }
}
