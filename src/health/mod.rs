//! Active health checks: one prober for all layers, on a thread of its own.
//!
//! The thread waits in epoll(7) and holds all probes at once, as sockets or child processes, so thousands of
//! endpoints take neither threads nor anything of the shards. Each layer gives the whole list of what it wants
//! watched ([`Prober::set_targets`]); equal ones, of both layers too, are one probe and keep their state. A verdict
//! goes to the target's [`Sink`] at once, to the operator as an [`Event`], and into the table that [`Prober::rows`] shows.
//!
//! What decides is pure ([`course`], [`http`], `balance::RiseFall`); what touches sockets is in `attempt`.

mod attempt;
pub mod check;
pub mod course;
mod engine;
pub mod http;
mod table;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;

pub use self::check::Check;
use self::engine::Engine;
pub use self::table::{Counts, Row};
use self::table::{Table, Totals};
use crate::sys::notify::EventFd;

/// How long [`Prober::finish`] waits.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Whose endpoints they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Servers of upstreams.
    Proxy,
    /// Real servers of virtual servers.
    Director,
}

/// Takes the verdicts on a target. Called from the prober's thread; must not block.
pub trait Sink: Send + Sync {
    /// The endpoint is up or down. `change`: it was the other before, and not merely unknown to this sink.
    fn set(&self, up: bool, change: bool);

    /// A probe has found the endpoint well, which was up already; it is up after `rise` in a row.
    fn well(&self, rise: u32) {
        let _ = rise;
    }
}

/// An endpoint to be watched.
#[derive(Clone)]
pub struct Target {
    /// Who asks: the upstream or virtual server, as the operator knows it.
    pub group: String,
    /// The endpoint, as the operator knows it.
    pub server: String,
    /// Where it is; the check may have another port or address.
    pub address: SocketAddr,
    /// Its name, for TLS; `None`: it is known by its address.
    pub name: Option<String>,
    /// What is done.
    pub check: Arc<Check>,
    /// What handshakes are made with, for checks with TLS.
    pub tls: Option<Arc<ClientConfig>>,
    /// Where verdicts go.
    pub sink: Arc<dyn Sink>,
    /// How it stood with another prober; counts only for what this one does not probe yet.
    pub before: Option<Verdict>,
}

/// How an endpoint stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What it is.
    pub up: bool,
    /// Why.
    pub why: String,
    /// For how long.
    pub since: Duration,
    /// Results in a row that speak against it.
    pub row: u32,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("group", &self.group)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Target {
    /// Where probes go.
    #[must_use]
    pub fn probed(&self) -> SocketAddr {
        let ip = self.check.address.unwrap_or_else(|| self.address.ip());
        SocketAddr::new(ip, self.check.port.unwrap_or_else(|| self.address.port()))
    }
}

/// What the operator should hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An endpoint came up or went down.
    Verdict {
        /// Whose it is.
        layer: Layer,
        /// Who asked.
        group: String,
        /// The endpoint.
        server: String,
        /// What it is now.
        up: bool,
        /// Why.
        why: String,
    },
    /// Probes cannot be made for want of something here; verdicts stay as they are.
    Starved(String),
    /// Probes can be made again.
    Fed,
}

/// Takes events; must not block. False when it was lost.
pub type Tell = Arc<dyn Fn(Event) -> bool + Send + Sync>;

/// The prober's thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Prober {
    orders: Sender<(Layer, Vec<Target>)>,
    wake: Arc<EventFd>,
    table: Arc<Table>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
}

impl Prober {
    /// Starts the thread. It makes `concurrent` probes at a time; more wait for their turn.
    ///
    /// # Errors
    /// When the thread or its files cannot be made.
    pub fn start(concurrent: usize, tell: Tell) -> io::Result<Self> {
        let (orders, inbox) = channel();
        let wake = Arc::new(EventFd::new()?);
        let table = Arc::new(Table::default());
        let engine =
            Engine::new(inbox, Arc::clone(&wake), Arc::clone(&table), concurrent.max(1), tell)?;
        let (over, ended) = channel();
        thread::Builder::new().name("health".into()).spawn(move || {
            engine.run();
            drop(over);
        })?;
        Ok(Self { orders, wake, table, ended })
    }

    /// Watches these endpoints of a layer, and no others of it, from now on. Targets with the same check and
    /// endpoint as before keep their state, and their sinks hear of it at once; new ones are probed at once, or
    /// within their warm-up.
    pub fn set_targets(&self, layer: Layer, targets: Vec<Target>) {
        self.table.totals.orders.fetch_add(1, AcqRel);
        if self.orders.send((layer, targets)).is_err() {
            // The thread is gone, and with it everybody who could wait for it.
            self.table.totals.orders.fetch_sub(1, AcqRel);
        }
        self.wake.notify();
    }

    /// True once every target without warm-up has a first verdict, and its sink has heard of it.
    #[must_use]
    pub fn is_first_round_over(&self) -> bool {
        self.table.totals.orders.load(Acquire) == 0 && self.table.is_first_round_over()
    }

    /// Every target of a layer and how it stands, in the order they were given.
    #[must_use]
    pub fn rows(&self, layer: Layer) -> Vec<Row> {
        self.table.rows(layer)
    }

    /// Ends the thread and waits for that, a second at most: commands under way are killed by then.
    pub fn finish(mut self) {
        self.end();
        let _ = self.ended.recv_timeout(END_PATIENCE);
    }

    fn end(&mut self) {
        // The end of the channel is what the thread looks for.
        let (orders, _) = channel();
        self.orders = orders;
        self.wake.notify();
    }

    /// What is not of one target.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Totals { running, postponed, late, probes, orders: _ } = &self.table.totals;
        Counts {
            probes: probes.load(Relaxed),
            running: running.load(Relaxed),
            postponed: postponed.load(Relaxed),
            late: late.load(Relaxed),
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests;
