//! Virtual and real servers on the status page, in the words of `ipvsadm -L -n --stats`.

use serde_json::{Map, Value, json};

use crate::l4::Reason;
use crate::l4::figures::{Overall, Totals};
use crate::l4::status::{ServerStatus, ServiceStatus, services};
use crate::l4::tables::Tables;

/// Every virtual server with its real servers.
#[must_use]
pub fn status(tables: &Tables) -> Value {
    services(tables).iter().map(service).collect()
}

/// What each director remembers and dropped.
#[must_use]
pub fn directors(tables: &Tables) -> Value {
    let one = |all: &Overall| {
        json!({
            "flows": all.flows.value(),
            "expired": all.expired.value(),
            "evicted": all.evicted.value(),
            "rescheduled": all.rescheduled.value(),
            "adopted": all.adopted.value(),
            "stateless_packets": all.stateless.value(),
            "dropped": by_reason(|at| all.dropped[at].value()),
        })
    };
    tables.overall.iter().map(|all| one(all)).collect()
}

fn service(service: &ServiceStatus) -> Value {
    let mut value = json!({
        "protocol": service.key.protocol.to_string(),
        "address": service.key.address.to_string(),
        "port": service.key.port,
        "scheduler": service.scheduler.name(),
        "active": service.active,
        "quorum": service.quorate,
        "dropped": by_reason(|at| service.totals.dropped[at]),
        "servers": service.servers.iter().map(server).collect::<Vec<_>>(),
    });
    if let Some(persistence) = service.persistence {
        value["persistence"] = json!({
            "timeout_seconds": persistence.timeout.as_secs(),
            "prefix": persistence.prefix,
            "clients": service.persistent_clients,
        });
    }
    with_totals(value, &service.totals)
}

fn server(server: &ServerStatus) -> Value {
    let value = json!({
        "address": server.address.to_string(),
        "forward": server.forward,
        "weight": server.weight,
        "state": server.standing.name(),
        "active_conns": server.active,
        "inactive_conns": server.inactive,
    });
    with_totals(value, &server.totals)
}

fn with_totals(mut value: Value, totals: &Totals) -> Value {
    value["conns"] = json!(totals.flows);
    value["in_packets"] = json!(totals.packets);
    value["in_bytes"] = json!(totals.bytes);
    value
}

/// Reasons that occurred.
fn by_reason(count: impl Fn(usize) -> u64) -> Map<String, Value> {
    let some = Reason::ALL.iter().map(|(reason, name)| (*name, count(reason.index())));
    some.filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), json!(n))).collect()
}
