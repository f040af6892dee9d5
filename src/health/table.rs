//! What the prober shows: how each target stands, for whoever asks.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Verdict;

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
    /// Endpoints and orders without a first verdict.
    pub(super) unknown: AtomicUsize,
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
    pub(super) record: Arc<Record>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) totals: Totals,
    lines: Mutex<Vec<Line>>,
}

impl Table {
    pub(super) fn replace(&self, lines: Vec<Line>) {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) = lines;
    }

    pub(super) fn rows(&self) -> Vec<Row> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(Line::row).collect()
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
