//! What is shown of virtual and real servers: a snapshot out of [`Tables`] and their figures.

use std::net::IpAddr;

use super::config::{Forward, Persistence, Scheduler, ServiceKey};
use super::figures::Totals;
use super::tables::{Condition, Path, Server, Service, Tables};

/// A virtual server.
#[derive(Debug, Clone)]
pub struct ServiceStatus {
    /// Address, port and protocol.
    pub key: ServiceKey,
    /// This director is the active one for the address.
    pub active: bool,
    /// Who gets new flows.
    pub scheduler: Scheduler,
    /// Clients come back to their server.
    pub persistence: Option<Persistence>,
    /// Clients that are remembered for that.
    pub persistent_clients: usize,
    /// Enough servers live.
    pub quorate: bool,
    /// What was counted.
    pub totals: Totals,
    /// Its real servers, those still to be drained of flows included.
    pub servers: Vec<ServerStatus>,
}

/// A real server of a virtual server.
#[derive(Debug, Clone)]
pub struct ServerStatus {
    /// Its address.
    pub address: IpAddr,
    /// Effective weight.
    pub weight: u32,
    /// How it stands.
    pub standing: Standing,
    /// How frames reach it, in `ipvsadm`'s word.
    pub forward: &'static str,
    /// Established flows.
    pub active: u32,
    /// Other flows that are remembered.
    pub inactive: u32,
    /// What was counted.
    pub totals: Totals,
}

/// How a real server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Takes new flows.
    Up,
    /// Would, but its hardware address is not known.
    NoNeighbour,
    /// Would, but has as many flows as it may.
    Full,
    /// Takes none and keeps those it has.
    Draining,
    /// Dead.
    Down,
    /// No longer configured, but still with flows.
    Removed,
}

impl Standing {
    /// All of them, with their names.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Up, "up"),
        (Self::NoNeighbour, "no_neighbour"),
        (Self::Full, "full"),
        (Self::Draining, "draining"),
        (Self::Down, "down"),
        (Self::Removed, "removed"),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(one, _)| *one == self).map_or("", |(_, name)| name)
    }

    fn of(server: &Server) -> Self {
        match server.condition {
            Condition::Draining => Self::Draining,
            Condition::Down => Self::Down,
            Condition::Removed => Self::Removed,
            Condition::Up if server.path == Path::Unknown => Self::NoNeighbour,
            Condition::Up if server.figures.load.is_full(server.upper, server.lower) => Self::Full,
            Condition::Up => Self::Up,
        }
    }
}

/// Every virtual server, in the order of addresses.
#[must_use]
pub fn services(tables: &Tables) -> Vec<ServiceStatus> {
    let mut all: Vec<ServiceStatus> =
        tables.services.iter().flatten().map(|service| one(tables, service)).collect();
    all.sort_by_key(|service| (service.key.address, service.key.port, service.key.protocol));
    all
}

fn one(tables: &Tables, service: &Service) -> ServiceStatus {
    let servers = service.servers.iter().filter_map(|slot| tables.occupant(*slot));
    let server = |server: &Server| ServerStatus {
        address: server.address,
        weight: server.weight,
        standing: Standing::of(server),
        forward: match (server.path, service.forward) {
            (Path::Local, _) => "Local",
            (_, Forward::Dr) => "Route",
            (_, Forward::Ipip | Forward::Gue { .. }) => "Tunnel",
        },
        active: server.figures.load.active(),
        inactive: server.figures.load.inactive(),
        totals: server.figures.totals(),
    };
    ServiceStatus {
        key: service.key,
        active: service.active,
        scheduler: service.scheduler,
        persistence: service.persistence,
        persistent_clients: service.templates.as_ref().map_or(0, |templates| templates.len()),
        quorate: service.quorate,
        totals: service.figures.totals(),
        servers: servers.map(server).collect(),
    }
}
