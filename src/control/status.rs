//! The state of the process as JSON, for `/status`.

use serde_json::{Value, json};

use crate::control::health;
use crate::control::metrics::connections;
use crate::control::state::{Phase, State};
use crate::control::vrrp;
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
        "shards": shards(state),
        "listeners": listeners(state),
        "upstreams": upstreams(state),
        "certificates": certificates(state),
        "vrrp": state.ha.as_ref().map(|ha| vrrp::status(&ha.board.read())),
        "tuning": state.tuning.as_ref().map(tuning),
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

fn upstreams(state: &State) -> Vec<Value> {
    let rows = state.checks.rows();
    let upstream = |upstream: &crate::control::state::UpstreamState| {
        let set = upstream.set.borrow();
        let server = |member: &std::sync::Arc<Member>| {
            let mut value = server(member);
            let more = health::server_status(&state.checks, &rows, upstream, member);
            for (key, more) in more {
                value[key] = more;
            }
            value
        };
        json!({
            "name": upstream.shared.config.name,
            "panic": upstream.shared.is_panicking(),
            "servers": set.members.iter().map(server).collect::<Vec<_>>(),
        })
    };
    state.upstreams.iter().map(upstream).collect()
}

fn server(member: &Member) -> Value {
    json!({
        "address": member.label,
        "state": health::state_name(member),
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
