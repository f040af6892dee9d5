//! The state of the process as JSON, for `/status`.

use std::sync::atomic::Ordering::{self, Relaxed};
use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use crate::control::health;
use crate::control::metrics::connections as connections_of;
use crate::control::reload::COUNTED;
use crate::control::state::{ListenerState, Phase, State, UpstreamState};
use crate::control::vrrp;
use crate::control::{director, virtual_servers};
use crate::counter::Padded;
use crate::l7::metrics::ListenerMetrics;
use crate::l7::time::rfc3339_ms;
use crate::l7::tracing::Traces;
use crate::l7::upstream::{Member, Standing};

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
        "rates": state.history.borrow().rates(),
        "shards": shards(state),
        "listeners": listeners(state),
        "upstreams": upstreams(state),
        "certificates": certificates(state),
        "vrrp": state.ha.get().map(|ha| vrrp::status(&ha.board.read())),
        "director": state.l4.as_ref().map(|l4| director::status(&l4.board)),
        "virtual_servers": state.l4.as_ref().map(|l4| virtual_servers::status(&l4.board.tables())),
        "real_server_checks": state.l4_checks.as_ref().map(|checks| checks.status()),
        "tuning": state.tuning.as_ref().map(tuning),
        "tracing": state.tracing.borrow().as_ref().map(|traces| tracing(traces)),
        "upgrade": state.upgrade.status(),
        "hardening": crate::control::hardening::status(),
    })
}

fn tracing(traces: &Traces) -> Value {
    let figures = &traces.figures;
    let problem = figures.problem.lock().unwrap_or_else(PoisonError::into_inner);
    json!({
        "collector": traces.settings.authority,
        "exported": figures.exported.load(Relaxed),
        "failed": figures.failed.load(Relaxed),
        "dropped": figures.dropped.load(Relaxed),
        "problem": *problem,
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

pub(crate) fn tuning(tuning: &crate::control::state::TuningState) -> Value {
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

pub(crate) fn shards(state: &State) -> Vec<Value> {
    let shard = |(index, shard): (usize, &crate::shard::Shard)| {
        json!({
            "shard": index,
            "cpu": shard.cpu,
            "connections": connections_of(&shard.metrics),
            "generation": shard.generation.load(Ordering::Acquire),
            "confined": shard.is_confined,
            "stuck_seconds": state.pulses.stuck_for(index).map(|since| since.as_secs_f64()),
            "requests": state
                .listeners()
                .iter()
                .filter_map(|listener| listener.figures.get(index))
                .flat_map(|figures| figures.requests.values())
                .sum::<u64>(),
            "receive_buffers": shard.ring.buffers_allocated.value(),
            "receive_buffers_used": shard.ring.buffers_used.value(),
            "receive_buffers_limit": shard.ring.buffers_limit.value(),
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

/// Client and server connections.
pub(crate) fn connections(state: &State) -> Value {
    let shards: Vec<u64> =
        state.shards.iter().map(|shard| connections_of(&shard.metrics)).collect();
    let open = |listener: &ListenerState| {
        let of_shard = |figures: &Padded<ListenerMetrics>| {
            figures.accepted.value().saturating_sub(figures.closed.value())
        };
        listener.figures.iter().map(of_shard).sum::<u64>()
    };
    let (all_listeners, all_upstreams) = (state.listeners(), state.upstreams());
    let listeners = all_listeners.iter().map(|listener| {
        let address = listener.bind.to_string();
        json!({ "name": listener.name, "address": address, "open": open(listener) })
    });
    let upstreams = all_upstreams.iter().map(|upstream| {
        let set = upstream.set.borrow();
        let idle = set.members.iter().flat_map(|m| &m.metrics).map(|m| m.idle.value());
        json!({
            "name": upstream.shared.config.name,
            "in_flight": set.members.iter().map(|m| u64::from(m.in_flight.count())).sum::<u64>(),
            "idle_connections": idle.sum::<u64>(),
        })
    });
    json!({
        "clients": shards.iter().sum::<u64>(),
        "shards": shards,
        "listeners": listeners.collect::<Vec<_>>(),
        "upstreams": upstreams.collect::<Vec<_>>(),
    })
}

/// Upstreams with their servers.
pub(crate) fn upstreams(state: &State) -> Vec<Value> {
    let rows = state.checks.rows();
    state.upstreams().iter().map(|one| upstream_of(state, &rows, one)).collect()
}

/// One of them.
pub(crate) fn upstream(state: &State, upstream: &UpstreamState) -> Value {
    upstream_of(state, &state.checks.rows(), upstream)
}

fn upstream_of(state: &State, rows: &health::Rows, upstream: &UpstreamState) -> Value {
    let (set, servers) = (upstream.set.borrow(), upstream.servers.borrow());
    let drift = servers.drift();
    let member = |(index, member): (usize, &Arc<Member>)| {
        let mut value = server(member, set.weight(index), servers.now());
        for (key, more) in health::server_status(&state.checks, rows, upstream, member) {
            value[key] = more;
        }
        value
    };
    // Names that no address is known for are servers all the same.
    let nowhere = |standing: &&Standing| set.members.iter().all(|m| m.server != standing.id);
    let unresolved = servers.now().iter().filter(nowhere).map(|standing| {
        json!({
            "address": standing.server.address.to_string(),
            "server": standing.server.address.to_string(),
            "state": "unresolved",
            "why": "the name has no address yet",
            "weight": standing.server.weight,
            "backup": standing.server.backup,
            "in_flight": 0,
            "idle_connections": 0,
            "responses": 0,
        })
    });
    let list: Vec<Value> = set.members.iter().enumerate().map(member).chain(unresolved).collect();
    json!({
        "name": upstream.shared.config.name,
        "panic": upstream.shared.is_panicking(),
        "servers": list,
        "drift": drift
            .iter()
            .map(|drift| json!({ "server": drift.server, "what": drift.what }))
            .collect::<Vec<_>>(),
    })
}

fn server(member: &Member, weight: u32, servers: &[Standing]) -> Value {
    let standing = servers.iter().find(|standing| standing.id == member.server);
    let (state, why) = match (weight, member.config.down) {
        (_, true) => ("down", "`down` in the file"),
        (0, _) => ("drained", "by the operator: no new requests"),
        _ if member.gate.is_down() => ("unhealthy", "its health check fails"),
        _ if member.gate.is_ejected() => ("ejected", "does worse than the others"),
        _ if member.passive.is_out() => ("failed", "failures of requests: out for fail_timeout"),
        _ => ("up", ""),
    };
    json!({
        "address": member.label,
        "server": standing.map(|standing| standing.server.address.to_string()),
        "state": state,
        "why": why,
        "weight": standing.map(|standing| standing.server.weight),
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
