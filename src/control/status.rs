//! The state of the process as JSON, for `/status`.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use crate::control::metrics::connections;
use crate::control::reload::COUNTED;
use crate::control::state::{ListenerState, Phase, State, UpstreamState};
use crate::control::vrrp;
use crate::l7::metrics::ListenerMetrics;
use crate::l7::time::rfc3339_ms;
use crate::l7::upstream::Member;

/// The document.
#[must_use]
pub fn render(state: &State) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": state.started.elapsed().as_secs(),
        "phase": match state.phase.get() {
            Phase::Serving => "serving",
            Phase::Draining => "draining",
        },
        "configuration": configuration(state),
        "shards": shards(state),
        "listeners": listeners(state),
        "upstreams": upstreams(state),
        "certificates": certificates(state),
        "vrrp": state.ha.get().map(|ha| vrrp::status(&ha.board.read())),
        "tuning": state.tuning.as_ref().map(tuning),
    })
}

fn configuration(state: &State) -> Value {
    let reload = &state.reload;
    let refused = reload.refused.borrow();
    let counts = COUNTED.iter().zip(&reload.counts);
    json!({
        "generation": reload.generation.get(),
        "sha256": *reload.hash.borrow(),
        "last_reload_successful": refused.is_none(),
        "last_refusal": *refused,
        "last_good_at": String::from_utf8_lossy(&rfc3339_ms(reload.good_ms.get())),
        "reloads": counts
            .map(|(outcome, count)| (outcome.name().to_owned(), json!(count.get())))
            .collect::<serde_json::Map<_, _>>(),
    })
}

fn tuning(tuning: &crate::control::state::TuningState) -> Value {
    let standing = tuning.standing.borrow();
    let counts = standing.counts.iter().map(|(status, count)| (status.name(), *count));
    let drift = standing.drift.iter().map(|drift| {
        json!({
            "key": drift.key, "now": drift.now, "wanted": drift.wanted, "reason": drift.reason,
        })
    });
    json!({
        "profiles": tuning.profiles,
        "changed_at_start": tuning.changed,
        "checked_seconds_ago": standing.checked.elapsed().as_secs(),
        "counts": counts.collect::<std::collections::BTreeMap<_, _>>(),
        "drift": drift.collect::<Vec<_>>(),
    })
}

fn shards(state: &State) -> Vec<Value> {
    let shard = |(index, shard): (usize, &crate::shard::Shard)| {
        json!({
            "shard": index,
            "cpu": shard.cpu,
            "connections": connections(&shard.metrics),
            "generation": shard.generation.load(Ordering::Acquire),
            "receive_buffers": shard.ring.buffers_allocated.value(),
        })
    };
    state.shards.iter().enumerate().map(shard).collect()
}

fn listeners(state: &State) -> Vec<Value> {
    let listener = |listener: &ListenerState| {
        let sum = |pick: fn(&ListenerMetrics) -> u64| {
            listener.figures.iter().map(|shard| pick(shard)).sum::<u64>()
        };
        json!({
            "name": listener.name,
            "address": listener.bind.to_string(),
            "accepted": sum(|figures| figures.accepted.value()),
            "requests": sum(|figures| figures.requests.values().iter().sum()),
        })
    };
    state.listeners().iter().map(listener).collect()
}

fn certificates(state: &State) -> Vec<Value> {
    let certificate = |certificate: crate::control::certificates::InForce| {
        json!({
            "listener": certificate.listener,
            "file": certificate.file,
            "names": certificate.names,
            "not_after": certificate.not_after,
        })
    };
    state.tls.certificates().into_iter().map(certificate).collect()
}

fn upstreams(state: &State) -> Vec<Value> {
    let upstream = |upstream: &std::rc::Rc<UpstreamState>| {
        let set = upstream.set.borrow();
        json!({
            "name": upstream.shared.config.name,
            "servers": set.members.iter().map(|member| server(member)).collect::<Vec<_>>(),
        })
    };
    state.upstreams().iter().map(upstream).collect()
}

fn server(member: &Member) -> Value {
    let state = match (member.config.down, member.passive.is_out()) {
        (true, _) => "down",
        (false, true) => "failed",
        (false, false) => "up",
    };
    json!({
        "address": member.label,
        "state": state,
        "weight": member.config.weight,
        "backup": member.config.backup,
        "in_flight": member.in_flight.count(),
        "idle_connections": member.metrics.iter().map(|shard| shard.idle.value()).sum::<u64>(),
        "responses": member
            .metrics
            .iter()
            .map(|shard| shard.responses.values().iter().sum::<u64>())
            .sum::<u64>(),
    })
}
