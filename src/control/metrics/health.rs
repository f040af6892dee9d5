//! Health checks, ejections, breakers.

use std::rc::Rc;

use super::Page;
use crate::control::health::Ejections;
use crate::control::state::{State, UpstreamState};
use crate::health::Row;
use crate::l7::metrics::UpstreamMetrics;
use crate::l7::upstream::Member;

/// A family, its kind, its help, and what it shows of a row.
type OfRow = (&'static str, &'static str, &'static str, fn(&Row) -> f64);

/// A family, its help, and what it shows of a server.
type OfServer = (&'static str, &'static str, fn(&Ejections) -> u64);

/// A bound of the breaker, and what it refused.
type Limit = (&'static str, fn(&UpstreamMetrics) -> u64);

const LIMITS: [Limit; 2] = [
    ("max_in_flight", |m| m.refused_in_flight.value()),
    ("max_pending", |m| m.refused_pending.value()),
];

#[allow(clippy::cast_precision_loss)] // counts stay far below 2^52
const OF_ROWS: [OfRow; 6] = [
    ("ringgate_health_check_up", "gauge", "The verdict: 1 up, 0 down, NaN not known yet.", |row| {
        row.up.map_or(f64::NAN, |up| if up { 1.0 } else { 0.0 })
    }),
    ("ringgate_health_check_successes_total", "counter", "Probes that found it good.", |row| {
        row.successes as f64
    }),
    ("ringgate_health_check_failures_total", "counter", "Probes that did not.", |row| {
        row.failures as f64
    }),
    ("ringgate_health_check_changes_total", "counter", "Times the verdict changed.", |row| {
        row.changes as f64
    }),
    ("ringgate_health_check_duration_seconds", "gauge", "How long the last probe took.", |row| {
        row.last_took.as_secs_f64()
    }),
    (
        "ringgate_health_check_age_seconds",
        "gauge",
        "How long ago the last probe ended; NaN before the first.",
        |row| row.last_ago.map_or(f64::NAN, |ago| ago.as_secs_f64()),
    ),
];

pub(super) fn write(page: &mut Page, state: &State) {
    let rows = state.checks.rows();
    for (family, kind, help, pick) in OF_ROWS.iter().filter(|_| !rows.is_empty()) {
        page.family(family, kind, help);
        each(state, |upstream, member| {
            let name = upstream.shared.config.name.as_str();
            if let Some(row) = rows.get(&(name.to_owned(), member.label.clone())) {
                let labels = [("upstream", name), ("server", &member.label), ("check", row.kind)];
                page.sample(family, &labels, pick(row));
            }
        });
    }
    prober(page, state);
    outliers(page, state);
    upstreams(page, state);
}

fn each(state: &State, mut each: impl FnMut(&UpstreamState, &Member)) {
    for upstream in state.upstreams().iter() {
        for member in &upstream.set.borrow().members {
            each(upstream, member);
        }
    }
}

fn prober(page: &mut Page, state: &State) {
    let Some(counts) = state.checks.counts() else { return };
    let endpoints = "Endpoints probed; equal checks of one endpoint count once.";
    page.single("ringgate_health_check_endpoints", "gauge", endpoints, counts.probes);
    page.single("ringgate_health_check_running", "gauge", "Probes under way.", counts.running);
    let help = "Probes put off for want of descriptors, ports, memory or processes.";
    page.single("ringgate_health_check_postponed_total", "counter", help, counts.postponed);
    let help = "Probes that began more than 100 ms late: too many at a time, or no CPU.";
    page.single("ringgate_health_check_late_total", "counter", help, counts.late);
}

fn outliers(page: &mut Page, state: &State) {
    let detecting = |upstream: &Rc<UpstreamState>| upstream.shared.config.outlier.is_some();
    if !state.upstreams().iter().any(detecting) {
        return;
    }
    let families: [OfServer; 2] = [
        ("ringgate_server_ejections_total", "Times ejected as an outlier.", |e| e.made),
        (
            "ringgate_server_ejections_spared_total",
            "Times not ejected because as many servers were as may be.",
            |e| e.spared,
        ),
    ];
    for (family, help, pick) in families {
        page.family(family, "counter", help);
        each(state, |upstream, member| {
            let config = &upstream.shared.config;
            if config.outlier.is_some() {
                let counts = state.checks.ejections(&config.name, member.address);
                let labels = [("upstream", config.name.as_str()), ("server", &member.label)];
                page.sample(family, &labels, pick(&counts));
            }
        });
    }
}

fn upstreams(page: &mut Page, state: &State) {
    const REFUSED: &str = "ringgate_upstream_breaker_refused_total";
    page.family("ringgate_upstream_panic", "gauge", "1 while too few servers are usable.");
    for upstream in state.upstreams().iter() {
        let panic = u8::from(upstream.shared.is_panicking());
        let labels = [("upstream", upstream.shared.config.name.as_str())];
        page.sample("ringgate_upstream_panic", &labels, panic);
    }
    page.family(REFUSED, "counter", "Requests refused at a bound of the breaker.");
    for upstream in state.upstreams().iter() {
        let name = upstream.shared.config.name.as_str();
        for (limit, pick) in LIMITS {
            let value: u64 = upstream.shared.metrics.iter().map(|shard| pick(shard)).sum();
            page.sample(REFUSED, &[("upstream", name), ("limit", limit)], value);
        }
    }
}
