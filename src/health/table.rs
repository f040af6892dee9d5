//! What the prober shows: how each target stands, for whoever asks.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Layer, Verdict};

/// How an endpoint stands.
#[derive(Debug, Clone)]
pub struct Row {
    /// Who asks for it.
    pub group: String,
    /// The endpoint.
    pub server: String,
    /// The kind of check.
    pub kind: &'static str,
    /// Where probes go.
    pub probed: String,
    /// `None` before the first verdict.
    pub up: Option<bool>,
    /// What the probe that decided found.
    pub why: String,
    /// How long the verdict has held.
    pub since: Duration,
    /// What the last probe found.
    pub last: String,
    /// How long ago it ended; `None`: there was none.
    pub last_ago: Option<Duration>,
    /// How long it took.
    pub last_took: Duration,
    /// Results in a row that speak against the verdict.
    pub pending: u32,
    /// Probes that found it good.
    pub successes: u64,
    /// Probes that did not.
    pub failures: u64,
    /// Times the verdict changed.
    pub changes: u64,
}

/// What is not of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Endpoints probed: equal targets count once.
    pub probes: usize,
    /// Probes under way.
    pub running: usize,
    /// Probes that could not be made for want of something here.
    pub postponed: u64,
    /// Probes that began more than 100 ms after their time: too many at a time, or no CPU.
    pub late: u64,
}

#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Lists that have not been taken in yet.
    pub(super) orders: AtomicUsize,
    pub(super) probes: AtomicUsize,
    pub(super) running: AtomicUsize,
    pub(super) postponed: AtomicU64,
    pub(super) late: AtomicU64,
}

/// One probe's figures, shared by its targets.
#[derive(Debug, Default)]
pub(super) struct Record(Mutex<Standing>);

#[derive(Debug, Clone, Default)]
pub(super) struct Standing {
    pub(super) up: Option<bool>,
    /// Its sinks have heard of the first verdict.
    pub(super) told: bool,
    pub(super) why: String,
    pub(super) since: Option<Instant>,
    pub(super) last: String,
    pub(super) last_at: Option<Instant>,
    pub(super) last_took: Duration,
    pub(super) pending: u32,
    pub(super) successes: u64,
    pub(super) failures: u64,
    pub(super) changes: u64,
}

impl Record {
    /// How it stands with another prober.
    pub(super) fn of(verdict: &Verdict) -> Self {
        Self(Mutex::new(Standing {
            up: Some(verdict.up),
            told: true,
            why: verdict.why.clone(),
            since: Instant::now().checked_sub(verdict.since),
            pending: verdict.row,
            ..Standing::default()
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Standing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A target's line: what does not change, and its probe's figures.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) group: String,
    pub(super) server: String,
    pub(super) kind: &'static str,
    pub(super) probed: String,
    /// The start waits for its first verdict.
    pub(super) awaited: bool,
    pub(super) record: Arc<Record>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) totals: Totals,
    proxy: Mutex<Vec<Line>>,
    director: Mutex<Vec<Line>>,
}

impl Table {
    fn lines(&self, layer: Layer) -> MutexGuard<'_, Vec<Line>> {
        let lines = match layer {
            Layer::Proxy => &self.proxy,
            Layer::Director => &self.director,
        };
        lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn replace(&self, layer: Layer, lines: Vec<Line>) {
        *self.lines(layer) = lines;
    }

    pub(super) fn rows(&self, layer: Layer) -> Vec<Row> {
        self.lines(layer).iter().map(Line::row).collect()
    }

    pub(super) fn is_first_round_over(&self) -> bool {
        let known = |line: &Line| !line.awaited || line.record.lock().told;
        [Layer::Proxy, Layer::Director].into_iter().all(|layer| self.lines(layer).iter().all(known))
    }
}

impl Line {
    fn row(&self) -> Row {
        let now = self.record.lock().clone();
        Row {
            group: self.group.clone(),
            server: self.server.clone(),
            kind: self.kind,
            probed: self.probed.clone(),
            up: now.up,
            why: now.why,
            since: now.since.map(|since| since.elapsed()).unwrap_or_default(),
            last: now.last,
            last_ago: now.last_at.map(|at| at.elapsed()),
            last_took: now.last_took,
            pending: now.pending,
            successes: now.successes,
            failures: now.failures,
            changes: now.changes,
        }
    }
}
