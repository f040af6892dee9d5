//! The state of the process as JSON, for `/status`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::control::director;
use crate::control::health;
use crate::control::metrics::connections as connections_of;
use crate::control::state::{Phase, State, UpstreamState};
use crate::control::vrrp;
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
        "shards": shards(state),
        "listeners": listeners(state),
        "upstreams": upstreams(state),
        "real_server_checks": health::real_servers_status(&state.checks),
        "certificates": certificates(state),
        "vrrp": state.ha.as_ref().map(|ha| vrrp::status(&ha.board.read())),
        "director": state.l4.as_ref().map(|l4| director::status(&l4.board)),
        "tuning": state.tuning.as_ref().map(tuning),
        "upgrade": state.upgrade.status(),
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
            "requests": shard
                .metrics
                .listeners
                .iter()
                .flat_map(|listener| listener.requests.values())
                .sum::<u64>(),
            "receive_buffers": shard.ring.buffers_allocated.value(),
        })
    };
    state.shards.iter().enumerate().map(shard).collect()
}

fn listeners(state: &State) -> Vec<Value> {
    let sum = |pick: &dyn Fn(&crate::l7::metrics::Metrics) -> u64| {
        state.shards.iter().map(|shard| pick(&shard.metrics)).sum::<u64>()
    };
    let listener = |(index, (name, address)): (usize, &(String, std::net::SocketAddr))| {
        json!({
            "name": name,
            "address": address.to_string(),
            "accepted": sum(&|metrics| metrics.listeners[index].accepted.value()),
            "requests": sum(&|metrics| metrics.listeners[index].requests.values().iter().sum()),
        })
    };
    state.listeners.iter().enumerate().map(listener).collect()
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
    let open = |index: usize| {
        let of_shard = |shard: &crate::shard::Shard| {
            let listener = &shard.metrics.listeners[index];
            listener.accepted.value().saturating_sub(listener.closed.value())
        };
        state.shards.iter().map(of_shard).sum::<u64>()
    };
    let listeners = state.listeners.iter().enumerate().map(|(index, (name, address))| {
        json!({ "name": name, "address": address.to_string(), "open": open(index) })
    });
    let upstreams = state.upstreams.iter().map(|upstream| {
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
    state.upstreams.iter().map(|upstream| upstream_of(state, &rows, upstream)).collect()
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
