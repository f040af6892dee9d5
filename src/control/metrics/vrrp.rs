//! VRRP instances and what tracks them.

use super::Page;
use crate::ha::status::{InstanceStatus, Snapshot};
use crate::protocol::vrrp::{Error, HandOver, State as Role};

/// A family of VRRP instances, its kind, its help, and its value.
type OfInstance = (&'static str, &'static str, &'static str, fn(&InstanceStatus) -> u64);

const OF_INSTANCES: [OfInstance; 12] = [
    ("ringgate_vrrp_priority", "gauge", "Effective priority.", |one| one.priority.into()),
    ("ringgate_vrrp_healthy", "gauge", "1 while nothing keeps this node from serving.", |one| {
        one.healthy.into()
    }),
    ("ringgate_vrrp_addresses_held", "gauge", "Addresses on an interface through us.", |one| {
        one.addresses.iter().filter(|(_, held)| *held).count() as u64
    }),
    ("ringgate_vrrp_misconfigurations", "gauge", "Misconfigurations and faults seen now.", |one| {
        (one.findings.len() + one.problems.len()) as u64
    }),
    ("ringgate_vrrp_adverts_sent_total", "counter", "Advertisements sent.", |one| one.counts.sent),
    ("ringgate_vrrp_send_errors_total", "counter", "Copies that could not be sent.", |one| {
        one.counts.send_errors
    }),
    ("ringgate_vrrp_adverts_received_total", "counter", "Advertisements accepted.", |one| {
        one.counts.received
    }),
    (
        "ringgate_vrrp_announcements_total",
        "counter",
        "Gratuitous ARPs and neighbour advertisements sent.",
        |one| one.counts.announcements,
    ),
    (
        "ringgate_vrrp_foreign_claims_total",
        "counter",
        "ARP messages and neighbour advertisements in which others claimed an address held here.",
        |one| one.counts.claims,
    ),
    (
        "ringgate_vrrp_leases_total",
        "counter",
        "Times the addresses were leased or renewed.",
        |one| one.counts.leases,
    ),
    ("ringgate_vrrp_lease_errors_total", "counter", "Addresses that could not be.", |one| {
        one.counts.lease_errors
    }),
    (
        "ringgate_vrrp_late_wakeups_total",
        "counter",
        "Claims put off because this process had not been running.",
        |one| one.counts.late,
    ),
];

pub(super) fn write(page: &mut Page, snapshot: &Snapshot) {
    const STATE: &str = "ringgate_vrrp_state";
    const TRANSITIONS: &str = "ringgate_vrrp_transitions_total";
    const HAND_OVERS: &str = "ringgate_vrrp_hand_over_requests_total";
    const DROPPED: &str = "ringgate_vrrp_packets_dropped_total";
    let roles = [Role::Initialize, Role::Backup, Role::Active];
    page.family(STATE, "gauge", "1 for the state that the instance is in.");
    for one in &snapshot.instances {
        for role in roles {
            let labels = [("instance", one.name.as_str()), ("state", role.name())];
            page.sample(STATE, &labels, u8::from(one.state == role));
        }
    }
    page.family(TRANSITIONS, "counter", "Changes of state, by the new one.");
    for one in &snapshot.instances {
        for (role, count) in roles.into_iter().zip(one.counts.transitions) {
            let labels = [("instance", one.name.as_str()), ("to", role.name())];
            page.sample(TRANSITIONS, &labels, count);
        }
    }
    page.family(
        HAND_OVERS,
        "counter",
        "Requests to hand over, sent and received, by what became of them.",
    );
    for one in &snapshot.instances {
        for (news, count) in HandOver::ALL.into_iter().zip(one.counts.hand_overs) {
            let labels = [("instance", one.name.as_str()), ("result", news.name())];
            page.sample(HAND_OVERS, &labels, count);
        }
    }
    page.family(DROPPED, "counter", "Packets that were not believed, by reason.");
    for one in &snapshot.instances {
        for (error, count) in Error::ALL.into_iter().zip(one.counts.dropped) {
            let labels = [("instance", one.name.as_str()), ("reason", error.name())];
            page.sample(DROPPED, &labels, count);
        }
    }
    for (error, count) in Error::ALL.into_iter().zip(snapshot.dropped) {
        page.sample(DROPPED, &[("instance", ""), ("reason", error.name())], count);
    }
    for (family, kind, help, pick) in OF_INSTANCES {
        page.family(family, kind, help);
        for one in &snapshot.instances {
            page.sample(family, &[("instance", &one.name)], pick(one));
        }
    }
    page.single(
        "ringgate_vrrp_foreign_packets_total",
        "counter",
        "Packets with a virtual router ID that is not configured on their interface.",
        snapshot.foreign,
    );
    page.family(
        "ringgate_vrrp_script_up",
        "gauge",
        "1 while a check script says that all is well.",
    );
    for script in &snapshot.scripts {
        let up = u8::from(script.good == Some(true));
        page.sample("ringgate_vrrp_script_up", &[("script", &script.name)], up);
    }
    page.family("ringgate_vrrp_notifications_total", "counter", "Commands and webhooks.");
    for (result, count) in ["done", "failed", "dropped"].iter().zip(snapshot.notifications) {
        page.sample("ringgate_vrrp_notifications_total", &[("result", result)], count);
    }
}
