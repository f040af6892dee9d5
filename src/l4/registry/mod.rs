//! The control side's one object: it is told facts and makes [`Tables`] of them.

mod build;
mod maglev;
mod quorum;
mod slots;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use self::slots::{Occupant, ServerSlots, ServiceSlots};
use super::config::{L4, ServiceKey};
use super::figures::{Figures, Overall};
use super::handoff::{Places, ServerPlace, ServicePlace};
use super::tables::{Neighbour, ServerId, Tables};
use crate::protocol::ethernet::Mac;

pub use self::maglev::PLACES as MAGLEV_PLACES;

/// What checks and operators say of a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerState {
    /// Passes its checks.
    pub up: bool,
    /// Replaces the configured weight: a check's verdict, warm-up, an operator's order.
    pub weight: Option<u32>,
}

impl Default for ServerState {
    fn default() -> Self {
        Self { up: true, weight: None }
    }
}

/// Facts in, tables out.
#[derive(Debug)]
pub struct Registry {
    config: L4,
    servers: ServerSlots,
    services: ServiceSlots,
    states: HashMap<(ServiceKey, IpAddr), ServerState>,
    neighbours: HashMap<IpAddr, Neighbour>,
    local: HashSet<IpAddr>,
    inactive: HashSet<IpAddr>,
    interfaces: HashMap<u32, Vec<Mac>>,
    peers: Vec<Mac>,
    mtus: HashMap<u32, u16>,
    trunks: HashSet<u32>,
    overall: Arc<[Arc<Overall>]>,
    /// Of servers that keep their slot until flows have been taken over.
    held: Vec<Arc<Figures>>,
}

impl Registry {
    /// For so many directors, which are called by their index from 0. Every virtual address
    /// begins active, every server up, no neighbour known.
    #[must_use]
    pub fn new(config: L4, directors: usize) -> Self {
        let mut registry = Self {
            config: L4::default(),
            servers: ServerSlots::new(directors),
            services: ServiceSlots::new(directors),
            states: HashMap::new(),
            neighbours: HashMap::new(),
            local: HashSet::new(),
            inactive: HashSet::new(),
            interfaces: HashMap::new(),
            peers: Vec::new(),
            mtus: HashMap::new(),
            trunks: HashSet::new(),
            overall: (0..directors).map(|_| Arc::default()).collect(),
            held: Vec::new(),
        };
        registry.configure(config);
        registry
    }

    /// Takes another configuration; virtual and real servers that stay keep flows and figures, and
    /// what was said of them.
    pub fn configure(&mut self, config: L4) {
        self.config = config;
        let listed = |key: ServiceKey, address: IpAddr| {
            self.config.services.iter().any(|service| {
                let mut servers = service.servers.iter().map(|server| server.address);
                service.key == key
                    && (servers.any(|one| one == address) || service.sorry_server == Some(address))
            })
        };
        self.states.retain(|(key, address), _| listed(*key, *address));
    }

    /// The configuration as it stands.
    #[must_use]
    pub fn config(&self) -> &L4 {
        &self.config
    }

    /// What checks and operators say of a server.
    pub fn set_state(&mut self, service: ServiceKey, server: IpAddr, state: ServerState) {
        self.states.insert((service, server), state);
    }

    /// The way to a real server's address; `None`: it does not answer.
    pub fn set_neighbour(&mut self, address: IpAddr, neighbour: Option<Neighbour>) {
        match neighbour {
            Some(neighbour) => self.neighbours.insert(address, neighbour),
            None => self.neighbours.remove(&address),
        };
    }

    /// Which addresses are this host's own.
    pub fn set_local(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.local = addresses.into_iter().collect();
    }

    /// Whether this host is the active director of a virtual address.
    pub fn set_active(&mut self, address: IpAddr, active: bool) {
        if active {
            self.inactive.remove(&address)
        } else {
            self.inactive.insert(address)
        };
    }

    /// MAC addresses by which frames are for this host, by interface index.
    pub fn set_interfaces(&mut self, interfaces: HashMap<u32, Vec<Mac>>) {
        self.interfaces = interfaces;
    }

    /// The MTU of interfaces by index; one that is not told has 1500.
    pub fn set_mtus(&mut self, mtus: HashMap<u32, u16>) {
        self.mtus = mtus;
    }

    /// Interfaces of which a VLAN is one of [`set_interfaces`](Self::set_interfaces) too.
    pub fn set_trunks(&mut self, trunks: impl IntoIterator<Item = u32>) {
        self.trunks = trunks.into_iter().collect();
    }

    /// What is known of the other directors' MAC addresses: the configured peers that answer.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = Mac>) {
        self.peers = peers.into_iter().collect();
    }

    /// Who has which slot, for a process that goes on with them.
    pub(super) fn places(&self) -> Places {
        let services: Vec<_> = self.services.places().collect();
        let slot = |key| services.iter().find(|one| one.key() == Some(key)).map(|one| one.slot);
        let server = |one: &Occupant| {
            Some(ServerPlace {
                slot: one.id.slot,
                generation: one.id.generation,
                service: slot(one.service)?,
                address: one.address,
                up: true,
                weight: None,
            })
        };
        let servers = self.servers.occupants().filter_map(server).collect();
        let vacant = self.servers.vacancies().map(|id| (id.slot, id.generation)).collect();
        Places { services, servers, vacant }
    }

    /// Gives everybody the slot that another process had for them; to be called before there are tables. A server
    /// that is no longer configured keeps its slot as if it had a flow, until [`Registry::let_go`].
    pub(super) fn restore(&mut self, places: &Places) {
        let mut keys = HashMap::new();
        for place in &places.services {
            if let Some(key) = place.key() {
                keys.insert(place.slot, key);
                self.services.restore(place.slot, key, place.quorate);
            }
        }
        self.take_turns(&places.services);
        for place in &places.servers {
            let Some(service) = keys.get(&place.service) else { continue };
            let id = ServerId { slot: place.slot, generation: place.generation };
            if let Some(figures) = self.servers.restore(id, *service, place.address) {
                figures.load.enter(false);
                self.held.push(figures);
            }
        }
        for (slot, generation) in places.vacant.iter().copied() {
            self.servers.restore_vacancy(ServerId { slot, generation });
        }
    }

    /// Turns go on where another process was.
    pub(super) fn take_turns(&self, services: &[ServicePlace]) {
        for place in services {
            if let Some(key) = place.key() {
                self.services.set_turns(key, place.turns);
            }
        }
    }

    /// Whether servers keep their slots until [`Registry::let_go`].
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Flows have been taken over: servers that have none need no slot.
    pub(super) fn let_go(&mut self) {
        for figures in self.held.drain(..) {
            figures.load.leave(false);
        }
    }

    /// Virtual addresses that another director has.
    pub(super) fn inactive(&self) -> impl Iterator<Item = IpAddr> {
        self.inactive.iter().copied()
    }

    /// What follows from everything that was told.
    #[must_use]
    pub fn tables(&mut self) -> Arc<Tables> {
        Arc::new(self.build())
    }
}

#[cfg(test)]
mod tests;
