//! Request rate and latency of the last minutes, kept on the control thread: one point a second, and a
//! bound on how many.

use std::collections::VecDeque;
use std::rc::Rc;

use serde_json::{Value, json};

use crate::control::metrics::connections;
use crate::control::state::State;
use crate::l7::metrics::LATENCY_BOUNDS_MS;
use crate::l7::worker::unix_ms;
use crate::ring::{Ring, Timer};

/// Points kept: five minutes.
const POINTS_MAX: usize = 300;
const STEP_MS: u64 = 1_000;
/// Points that make up "now".
const RECENT: usize = 10;
/// Buckets of a latency histogram.
const BUCKETS: usize = LATENCY_BOUNDS_MS.len() + 1;

/// What has been counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Totals {
    requests: u64,
    errors: u64,
    latency: [u64; BUCKETS],
}

impl Totals {
    fn of(state: &State) -> Self {
        let mut totals = Self::default();
        for listener in &*state.listeners() {
            for shard in &*listener.figures {
                let classes = shard.requests.values();
                totals.requests += classes.iter().sum::<u64>();
                totals.errors += classes.last().copied().unwrap_or_default();
                for (sum, count) in totals.latency.iter_mut().zip(shard.latency.buckets()) {
                    *sum += count;
                }
            }
        }
        totals
    }

    /// What was counted in between; nothing of what a removed listener takes with it.
    fn since(&self, before: &Self) -> Self {
        let mut latency = [0; BUCKETS];
        for ((delta, now), then) in latency.iter_mut().zip(self.latency).zip(before.latency) {
            *delta = now.saturating_sub(then);
        }
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            latency,
        }
    }

    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.latency.iter_mut().zip(other.latency).for_each(|(sum, more)| *sum += more);
    }
}

#[derive(Debug, Clone, Copy)]
struct Point {
    counted: Totals,
    connections: u64,
}

/// The last minutes.
#[derive(Debug, Default)]
pub struct History {
    before: Totals,
    points: VecDeque<Point>,
    /// When the last point was made, in milliseconds since 1970.
    at_ms: u64,
}

impl History {
    fn note(&mut self, totals: Totals, connections: u64, at_ms: u64) {
        let counted = totals.since(&self.before);
        (self.before, self.at_ms) = (totals, at_ms);
        if self.points.len() >= POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(Point { counted, connections });
    }

    /// The points as columns, the oldest first.
    #[must_use]
    pub fn json(&self) -> Value {
        let column =
            |value: &dyn Fn(&Point) -> Value| self.points.iter().map(value).collect::<Vec<Value>>();
        json!({
            "step_seconds": STEP_MS / 1000,
            "points_max": POINTS_MAX,
            "end_unix_ms": self.at_ms,
            "requests": column(&|point| json!(point.counted.requests)),
            "errors": column(&|point| json!(point.counted.errors)),
            "p50_ms": column(&|point| json!(quantile(&point.counted.latency, 0.5))),
            "p99_ms": column(&|point| json!(quantile(&point.counted.latency, 0.99))),
            "connections": column(&|point| json!(point.connections)),
        })
    }

    /// The last seconds in one.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // figures for people
    pub fn rates(&self) -> Value {
        let mut sum = Totals::default();
        let count = self.points.len().min(RECENT);
        self.points.iter().rev().take(RECENT).for_each(|point| sum.add(&point.counted));
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        json!({
            "seconds": count,
            "requests_per_second": share(sum.requests, count as u64),
            "errors_percent": 100.0 * share(sum.errors, sum.requests),
            "p50_ms": quantile(&sum.latency, 0.5),
            "p90_ms": quantile(&sum.latency, 0.9),
            "p99_ms": quantile(&sum.latency, 0.99),
        })
    }
}

/// The value that this share of the durations stays below, in milliseconds, as if they were spread evenly
/// inside a bucket (as Prometheus' `histogram_quantile`); `None` without any.
#[allow(clippy::cast_precision_loss)] // bucket counts of a few seconds
fn quantile(buckets: &[u64; BUCKETS], share: f64) -> Option<f64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    let wanted = share * total as f64;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, bound) in buckets.iter().zip(LATENCY_BOUNDS_MS) {
        let (count, bound) = (*count as f64, bound as f64);
        if below + count >= wanted && count > 0.0 {
            let exact = lower + (bound - lower) * ((wanted - below) / count);
            return Some((exact * 1000.0).round() / 1000.0);
        }
        below += count;
        lower = bound;
    }
    Some(lower)
}

/// Makes a point every second, as long as the process runs.
pub async fn watch(ring: Rc<Ring>, state: Rc<State>) {
    let timer = Timer::new(&ring);
    state.history.borrow_mut().before = Totals::of(&state);
    loop {
        timer.set(STEP_MS);
        timer.fired().await;
        let open = state.shards.iter().map(|shard| connections(&shard.metrics)).sum();
        state.history.borrow_mut().note(Totals::of(&state), open, unix_ms());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64, errors: u64, bucket: usize) -> Totals {
        let mut totals = Totals { requests, errors, ..Totals::default() };
        totals.latency[bucket] = requests;
        totals
    }

    #[test]
    fn points_are_differences_and_bounded() {
        let mut history = History::default();
        for second in 1..=400 {
            history.note(totals(second * 10, second, 3), second, second * 1000);
        }
        let json = history.json();
        let requests = json["requests"].as_array().unwrap();
        assert_eq!((requests.len(), requests[0].as_u64()), (POINTS_MAX, Some(10)));
        assert_eq!(json["connections"][POINTS_MAX - 1], 400);
        let rates = history.rates();
        assert_eq!(rates["requests_per_second"], 10.0);
        assert_eq!(rates["errors_percent"], 10.0);
        assert!(rates["p99_ms"].as_f64().unwrap() <= 10.0, "{rates}");
    }

    #[test]
    fn a_listener_that_went_away_is_no_negative_rate() {
        let mut history = History::default();
        history.note(totals(100, 0, 0), 0, 1);
        history.note(totals(40, 0, 0), 0, 2);
        assert_eq!(history.json()["requests"][1], 0);
    }

    #[test]
    fn quantiles() {
        let mut buckets = [0; BUCKETS];
        assert_eq!(quantile(&buckets, 0.5), None);
        buckets[0] = 100;
        assert_eq!(quantile(&buckets, 0.5), Some(0.5));
        buckets[3] = 100; // 5 to 10 ms
        assert_eq!(quantile(&buckets, 0.75), Some(7.5));
        buckets = [0; BUCKETS];
        buckets[BUCKETS - 1] = 1;
        assert_eq!(quantile(&buckets, 0.5), Some(60_000.0));
        assert_eq!(History::default().rates()["p50_ms"], Value::Null);
    }
}
