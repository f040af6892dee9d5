//! The director's tables as the XDP program has them.

use std::sync::Arc;
use std::time::Duration;

use crate::l4::config::{Forward, OnServerDown, Protocol, Scheduler, Timeouts};
use crate::l4::tables::{Condition, Path, Server, Service, Tables};
use crate::packet::xdp;
use crate::packet::xdp::layout::{self, Action, ServiceKey};
use crate::protocol::ethernet::Mac;

/// What the program forwards without asking, and what it has to ask about.
#[must_use]
pub fn translate(tables: &Tables) -> xdp::Tables {
    let active = tables.services.iter().flatten().filter(|service| service.active);
    let services = active.map(|service| xdp::Service {
        key: ServiceKey {
            address: service.key.address,
            port: service.key.port,
            protocol: service.key.protocol.number(),
        },
        places: if schedules(tables, service) {
            Arc::clone(&service.maglev)
        } else {
            Arc::default()
        },
        by_source: service.scheduler == Scheduler::Sh,
    });
    let servers = tables.servers.iter().flatten().filter_map(|one| {
        let service = tables.services.get(usize::from(one.service))?.as_ref()?;
        Some((one.id.slot, server(tables, service, one)))
    });
    let timeouts = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .map(|protocol| timeouts(&tables.timeouts, protocol).map(units));
    xdp::Tables { services: services.collect(), servers: servers.collect(), timeouts }
}

/// Whether the program chooses servers for new flows: by a hash alone, which needs nothing but the table.
pub(super) fn schedules(tables: &Tables, service: &Service) -> bool {
    let bounded = |slot: &u16| tables.occupant(*slot).is_none_or(|server| server.upper != 0);
    matches!(service.scheduler, Scheduler::Mh | Scheduler::Sh)
        && service.persistence.is_none()
        && !service.one_packet
        && service.forward == Forward::Dr
        && !service.servers.iter().any(bounded)
}

fn server(tables: &Tables, service: &Service, one: &Server) -> layout::Server {
    let keeps = match one.condition {
        Condition::Up | Condition::Draining => true,
        // Rescheduled and reset by the packet socket.
        Condition::Down | Condition::Removed => service.on_server_down == OnServerDown::Drain,
    };
    let via = match one.path {
        Path::Via(neighbour) if keeps && serves(service) => Some(neighbour),
        _ => None,
    };
    layout::Server {
        destination: via.map_or(Mac::ZERO, |to| to.mac),
        source: via.map_or(Mac::ZERO, |to| to.source),
        action: via.map_or(Action::Up, |to| Action::Send(to.ifindex)),
        generation: one.id.generation,
        vlan: via.and_then(|to| to.vlan).unwrap_or_default(),
        shown: !schedules(tables, service),
        down: service.active && matches!(one.condition, Condition::Down | Condition::Removed),
        timeouts: timeouts(&tables.timeouts, service.key.protocol).map(units),
    }
}

/// Whether the program may forward frames of a service's flows.
fn serves(service: &Service) -> bool {
    service.active && !service.one_packet && service.forward == Forward::Dr
}

/// By state: opening, established, closing, closed.
pub(super) fn timeouts(of: &Timeouts, protocol: Protocol) -> [Duration; 4] {
    match protocol {
        Protocol::Tcp => [of.tcp_syn, of.tcp, of.tcp_fin, of.closed],
        Protocol::Udp => [of.udp; 4],
        Protocol::Sctp => [of.tcp_syn, of.sctp, of.tcp_fin, of.closed],
    }
}

/// In units of the program's clock; 25 days at most, since that clock wraps.
pub(super) fn units(duration: Duration) -> u32 {
    const MOST: u32 = i32::MAX.cast_unsigned();
    u32::try_from(duration.as_nanos() >> layout::CLOCK_SHIFT).map_or(MOST, |units| units.min(MOST))
}
