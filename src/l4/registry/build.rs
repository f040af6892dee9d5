//! Tables out of facts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::quorum::quorate;
use super::slots::Occupant;
use super::{Registry, ServerState};
use crate::l4::config::{RealServer, VirtualServer};
use crate::l4::schedule;
use crate::l4::tables::{Condition, Path, Server, Service, Tables};

/// Of interfaces whose own is not known.
const MTU: u16 = 1500;

/// A real server on its way into the tables.
struct Candidate {
    server: Server,
    /// Counts for quorum.
    alive: bool,
    sorry: bool,
}

impl Registry {
    pub(super) fn build(&mut self) -> Tables {
        self.give_up();
        let mut tables = Tables {
            macs: self.interfaces.iter().map(|(index, macs)| (*index, macs.clone())).collect(),
            peers: self.peers.iter().copied().collect(),
            peers_known: self.peers_known(),
            trunks: self.trunks.iter().copied().collect(),
            overall: Arc::clone(&self.overall),
            timeouts: self.config.director.timeouts,
            seed: self.config.director.seed,
            new_flows_per_second: self.config.director.new_flows_per_second,
            ..Tables::default()
        };
        for at in 0..self.config.services.len() {
            self.build_service(at, &mut tables);
        }
        tables.servers.resize(self.servers.len(), None);
        tables.services.resize(self.services.len(), None);
        tables
    }

    /// Every other director that is configured has told its MAC address.
    fn peers_known(&self) -> bool {
        let peers = self.config.director.peers.iter();
        let others = peers.filter(|address| !self.local.contains(address)).count();
        others > 0 && self.peers.len() >= others
    }

    /// Frees slots: of virtual servers that are gone with all their servers, and of real servers
    /// that are gone and have no flows.
    fn give_up(&mut self) {
        let configured: HashMap<_, _> =
            self.config.services.iter().map(|service| (service.key, service)).collect();
        self.services.keep(|key| configured.contains_key(&key));
        self.servers.keep(|one| {
            let Some(service) = configured.get(&one.service) else { return false };
            let load = &one.figures.load;
            listed(service, one.address) || load.active() > 0 || load.inactive() > 0
        });
    }

    fn build_service(&mut self, at: usize, tables: &mut Tables) {
        let Some(config) = self.config.services.get(at).cloned() else { return };
        let Some(slot) = self.services.claim(config.key).map(|(slot, _)| slot) else { return };
        let candidates = self.candidates(&config, slot);
        let seed = self.config.director.seed;
        let active = !self.inactive.contains(&config.key.address);
        let Some((_, place)) = self.services.claim(config.key) else { return };

        let alive =
            candidates.iter().filter(|one| one.alive).map(|one| u64::from(one.server.weight));
        place.quorate = quorate(place.quorate, alive.sum(), config.quorum, config.hysteresis);
        let sorry = !place.quorate && config.sorry_server.is_some();
        let takes = |one: &&Candidate| {
            one.sorry == sorry
                && one.server.condition == Condition::Up
                && one.server.path != Path::Unknown
        };
        let available: Vec<&Candidate> = candidates.iter().filter(takes).collect();
        let members: Vec<(IpAddr, u32)> = candidates
            .iter()
            .filter(|one| one.sorry == sorry && one.server.weight > 0)
            .map(|one| (one.server.address, one.server.weight))
            .collect();
        let slots: Vec<Option<u16>> = candidates
            .iter()
            .filter(|one| one.sorry == sorry && one.server.weight > 0)
            .map(|one| takes(&one).then_some(one.server.id.slot))
            .collect();
        let maglev = place.base.effective(&members, &slots, seed, config.scheduler);
        let local = candidates.iter().find(|one| one.server.path == Path::Local);
        let service = Service {
            key: config.key,
            active,
            scheduler: config.scheduler,
            one_packet: config.one_packet,
            persistence: config.persistence,
            forward: config.forward,
            on_server_down: config.on_server_down,
            quorate: place.quorate,
            servers: candidates.iter().map(|one| one.server.id.slot).collect(),
            available: available.iter().map(|one| one.server.id.slot).collect(),
            turns: schedule::turns(
                available.iter().map(|one| (one.server.id.slot, one.server.weight)),
            ),
            maglev,
            local: local.map(|one| one.server.id.slot),
            templates: config
                .persistence
                .map(|_| Arc::clone(place.templates.get_or_insert_default())),
            figures: Arc::clone(&place.figures),
        };
        tables.vips.insert(config.key.address);
        tables.index.insert(config.key, slot);
        put(&mut tables.services, slot, service);
        for Candidate { server, .. } in candidates {
            put(&mut tables.servers, server.id.slot, server);
        }
    }

    /// The servers of a virtual server: configured, sorry, and removed ones with flows.
    fn candidates(&mut self, config: &VirtualServer, slot: u16) -> Vec<Candidate> {
        let mut all = Vec::new();
        for server in &config.servers {
            let Some(occupant) = self.servers.claim(config.key, server.address) else { continue };
            let state = self.states.get(&(config.key, server.address)).copied().unwrap_or_default();
            let weight = state.weight.unwrap_or(server.weight);
            let condition = condition(server, state, weight);
            let server = Server {
                condition,
                weight,
                upper: server.uthreshold,
                lower: lower(server),
                ..self.server(&occupant, slot)
            };
            all.push(Candidate { server, alive: state.up, sorry: false });
        }
        if let Some(occupant) =
            config.sorry_server.and_then(|address| self.servers.claim(config.key, address))
            && !config.servers.iter().any(|server| server.address == occupant.address)
        {
            all.push(Candidate { server: self.server(&occupant, slot), alive: false, sorry: true });
        }
        let removed = |one: &&Occupant| one.service == config.key && !listed(config, one.address);
        for one in self.servers.occupants().filter(removed) {
            let server = Server { condition: Condition::Removed, ..self.server(one, slot) };
            all.push(Candidate { server, alive: false, sorry: false });
        }
        all
    }

    fn server(&self, occupant: &Occupant, service: u16) -> Server {
        let path = if self.local.contains(&occupant.address) {
            Path::Local
        } else {
            self.neighbours.get(&occupant.address).map_or(Path::Unknown, |to| Path::Via(*to))
        };
        let mtu = match path {
            Path::Via(to) => self.mtus.get(&to.ifindex).copied(),
            _ => None,
        };
        Server {
            id: occupant.id,
            condition: Condition::Up,
            path,
            service,
            weight: 1,
            upper: 0,
            lower: 0,
            address: occupant.address,
            tunnel_source: self.tunnel_source(occupant.address),
            mtu: mtu.unwrap_or(MTU),
            figures: Arc::clone(&occupant.figures),
        }
    }
}

impl Registry {
    /// The address of this host for packets to a server: of its family, no virtual one, and with
    /// the longest prefix in common (RFC 6724 section 5, rule 8).
    fn tunnel_source(&self, server: IpAddr) -> Option<IpAddr> {
        let virtual_one =
            |ip: &IpAddr| self.config.services.iter().any(|service| service.key.address == *ip);
        let own = self.local.iter().filter(|ip| ip.is_ipv4() == server.is_ipv4());
        let own = own.filter(|ip| !ip.is_loopback() && !virtual_one(ip));
        let own = own.filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        own.copied().min_by_key(|ip| (std::cmp::Reverse(common(*ip, server)), *ip))
    }
}

/// How many leading bits two addresses share.
fn common(a: IpAddr, b: IpAddr) -> u32 {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => 0,
    }
}

fn listed(service: &VirtualServer, address: IpAddr) -> bool {
    service.servers.iter().any(|server| server.address == address)
        || service.sorry_server == Some(address)
}

fn condition(server: &RealServer, state: ServerState, weight: u32) -> Condition {
    match state.up {
        true if weight > 0 => Condition::Up,
        false if !server.inhibit_on_failure => Condition::Down,
        _ => Condition::Draining,
    }
}

/// As IPVS has it: three quarters, unless said.
fn lower(server: &RealServer) -> u32 {
    match server.lthreshold {
        0 => server.uthreshold - server.uthreshold / 4,
        lower => lower,
    }
}

fn put<T: Clone>(slots: &mut Vec<Option<T>>, at: u16, value: T) {
    let at = usize::from(at);
    if slots.len() <= at {
        slots.resize(at + 1, None);
    }
    slots[at] = Some(value);
}
