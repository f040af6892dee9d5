//! Virtual and real servers.

use super::Page;
use crate::counter::Counter;
use crate::l4::Reason;
use crate::l4::figures::{Overall, Totals};
use crate::l4::status::{ServerStatus, ServiceStatus, Standing, services};
use crate::l4::tables::Tables;

/// A family of both kinds of servers, its help, and the figure.
type OfServers = (&'static str, &'static str, fn(&Totals) -> u64);

const OF_BOTH: [OfServers; 3] = [
    ("flows_total", "Flows begun (ipvsadm: Conns).", |totals| totals.flows),
    ("packets_total", "Packets from clients (InPkts).", |totals| totals.packets),
    ("bytes_total", "Bytes from clients, from the IP header on (InBytes).", |totals| totals.bytes),
];

/// A family that each director counts, its type, its help, and the counter.
type OfDirector = (&'static str, &'static str, &'static str, fn(&Overall) -> &Counter);

const OF_DIRECTORS: [OfDirector; 7] = [
    ("ringgate_director_flows", "gauge", "Flows that are remembered.", |all| &all.flows),
    ("ringgate_director_flows_expired_total", "counter", "Flows forgotten in time.", |all| {
        &all.expired
    }),
    ("ringgate_director_flows_evicted_total", "counter", "Flows forgotten for others.", |all| {
        &all.evicted
    }),
    (
        "ringgate_director_flows_rescheduled_total",
        "counter",
        "Flows that went to another server because theirs was gone.",
        |all| &all.rescheduled,
    ),
    (
        "ringgate_director_flows_adopted_total",
        "counter",
        "Flows that began elsewhere and were found by hash.",
        |all| &all.adopted,
    ),
    (
        "ringgate_director_stateless_packets_total",
        "counter",
        "Packets sent by hash because their flow was not taken in.",
        |all| &all.stateless,
    ),
    (
        "ringgate_director_unremembered_clients_total",
        "counter",
        "New flows whose client found no room for persistence.",
        |all| &all.unremembered_clients,
    ),
];

pub(super) fn write(page: &mut Page, tables: &Tables) {
    let all = services(tables);
    let named: Vec<(String, &ServiceStatus)> =
        all.iter().map(|service| (service.key.to_string(), service)).collect();
    of_services(page, &named);
    of_servers(page, &named);
    let directors =
        || tables.overall.iter().enumerate().map(|(index, all)| (index.to_string(), all));
    for (name, kind, help, pick) in OF_DIRECTORS {
        page.family(name, kind, help);
        for (index, all) in directors() {
            page.sample(name, &[("director", &index)], pick(all).value());
        }
    }
    const DROPPED: &str = "ringgate_director_dropped_total";
    page.family(DROPPED, "counter", "Frames dropped, by reason.");
    for (index, all) in directors() {
        for (reason, name) in Reason::ALL {
            let labels = [("director", index.as_str()), ("reason", name)];
            page.sample(DROPPED, &labels, all.dropped[reason.index()].value());
        }
    }
}

fn of_services(page: &mut Page, services: &[(String, &ServiceStatus)]) {
    for (suffix, help, pick) in OF_BOTH {
        let name = format!("ringgate_virtual_server_{suffix}");
        page.family(&name, "counter", help);
        for (key, service) in services {
            page.sample(&name, &[("virtual_server", key)], pick(&service.totals));
        }
    }
    for (name, help, pick) in [
        (
            "ringgate_virtual_server_active",
            "1 while this director is the active one for the address.",
            (|service| service.active) as fn(&ServiceStatus) -> bool,
        ),
        ("ringgate_virtual_server_quorum", "1 while enough servers live.", |service| {
            service.quorate
        }),
    ] {
        page.family(name, "gauge", help);
        for (key, service) in services {
            page.sample(name, &[("virtual_server", key)], u8::from(pick(service)));
        }
    }
    const DROPPED: &str = "ringgate_virtual_server_dropped_total";
    page.family(DROPPED, "counter", "Packets for it that were dropped, by reason.");
    for (key, service) in services {
        for (reason, name) in Reason::ALL {
            let labels = [("virtual_server", key.as_str()), ("reason", name)];
            page.sample(DROPPED, &labels, service.totals.dropped[reason.index()]);
        }
    }
}

fn of_servers(page: &mut Page, services: &[(String, &ServiceStatus)]) {
    let all: Vec<(&str, String, &ServerStatus)> = services
        .iter()
        .flat_map(|(key, service)| {
            service.servers.iter().map(|one| (key.as_str(), one.address.to_string(), one))
        })
        .collect();
    for (suffix, help, pick) in OF_BOTH {
        let name = format!("ringgate_real_server_{suffix}");
        page.family(&name, "counter", help);
        for (key, address, server) in &all {
            let labels = [("virtual_server", *key), ("server", address)];
            page.sample(&name, &labels, pick(&server.totals));
        }
    }
    for (name, help, pick) in [
        (
            "ringgate_real_server_active_flows",
            "Established flows (ActiveConn).",
            (|server| server.active) as fn(&ServerStatus) -> u32,
        ),
        (
            "ringgate_real_server_inactive_flows",
            "Other flows that are remembered (InActConn).",
            |server| server.inactive,
        ),
        ("ringgate_real_server_weight", "Effective weight.", |server| server.weight),
    ] {
        page.family(name, "gauge", help);
        for (key, address, server) in &all {
            page.sample(name, &[("virtual_server", *key), ("server", address)], pick(server));
        }
    }
    const STATE: &str = "ringgate_real_server_state";
    page.family(STATE, "gauge", "1 for how it stands now.");
    for (key, address, server) in &all {
        for (standing, name) in Standing::ALL {
            let labels = [("virtual_server", *key), ("server", address), ("state", name)];
            page.sample(STATE, &labels, u8::from(server.standing == standing));
        }
    }
}
