//! What directors decide by: an immutable snapshot, made by [`super::registry::Registry`] and
//! shared by all of them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use super::config::{Forward, OnServerDown, Persistence, Scheduler, ServiceKey, Timeouts};
use super::figures::{Figures, Overall};
use super::hash::{Tuple, place};
use super::persistence::Templates;
use crate::balance::hash::mix;
use crate::balance::siphash::Key;
use crate::protocol::ethernet::Mac;

/// "No server" among slots.
pub const NO_SLOT: u16 = u16::MAX;

/// A real server as flows remember it: its slot in [`Tables`], and which of the slot's occupants
/// it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ServerId {
    /// Index into [`Tables::servers`].
    pub slot: u16,
    /// Counts the slot's occupants.
    pub generation: u16,
}

/// The way to a server that is another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: Mac,
    /// Ours on that interface.
    pub source: Mac,
    /// The interface that frames leave through.
    pub ifindex: u32,
    /// The VLAN tag they get; `None`: none, or the interface is a VLAN and tags what it sends by itself.
    pub vlan: Option<u16>,
}

/// How a server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// It is this host.
    Local,
    /// Through a neighbour: itself, or with a tunnel possibly a router.
    Via(Neighbour),
    /// Not known yet, or the neighbour does not answer.
    Unknown,
}

/// Whether a server takes new flows, and what becomes of those it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Takes new flows.
    Up,
    /// Takes none and keeps those it has: weight 0, or dead with `inhibit_on_failure`.
    Draining,
    /// Dead.
    Down,
    /// No longer in the configuration, but still with flows.
    Removed,
}

/// A real server of one virtual server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its name in flows.
    pub id: ServerId,
    /// Whether it takes flows.
    pub condition: Condition,
    /// The way to it.
    pub path: Path,
    /// Slot of its virtual server.
    pub service: u16,
    /// Effective weight.
    pub weight: u32,
    /// Flows from which on it gets no new ones; 0: no limit.
    pub upper: u32,
    /// Flows below which it gets new ones again.
    pub lower: u32,
    /// Its address.
    pub address: IpAddr,
    /// The address of this host that tunnels to it begin at.
    pub tunnel_source: Option<IpAddr>,
    /// Bytes that fit into a packet on the way to it.
    pub mtu: u16,
    /// What is counted of it.
    pub figures: Arc<Figures>,
}

/// A virtual server.
#[derive(Debug, Clone)]
pub struct Service {
    /// Address, port and protocol.
    pub key: ServiceKey,
    /// This director is the active one for the address; otherwise nothing is forwarded.
    pub active: bool,
    /// Who gets new flows.
    pub scheduler: Scheduler,
    /// No flows are remembered.
    pub one_packet: bool,
    /// Clients come back to their server.
    pub persistence: Option<Persistence>,
    /// How frames reach the servers.
    pub forward: Forward,
    /// What becomes of flows whose server is dead or removed.
    pub on_server_down: OnServerDown,
    /// Whether there is a quorum; without one, new flows go to the sorry server if there is one.
    pub quorate: bool,
    /// Slots of all its servers, the sorry server included.
    pub servers: Vec<u16>,
    /// Slots of those that take new flows.
    pub available: Vec<u16>,
    /// The order in which `wrr` goes over them.
    pub turns: Vec<u16>,
    /// Maglev's table, with those that take no new flows already replaced: slots by
    /// [`place`]`(hash, len)`. Empty if nobody does.
    pub maglev: Arc<[u16]>,
    /// The slot of the server that is this host.
    pub local: Option<u16>,
    /// Its clients and their servers, with persistence.
    pub templates: Option<Arc<Templates>>,
    /// What is counted of it.
    pub figures: Arc<Figures>,
}

impl Service {
    /// The server that this flow has without anybody remembering it.
    #[must_use]
    pub fn stateless(&self, seed: Key, tuple: &Tuple) -> Option<u16> {
        self.stateless_at(seed, tuple, tuple.hash(seed))
    }

    /// The same, with the tuple's hash at hand.
    pub(super) fn stateless_at(&self, seed: Key, tuple: &Tuple, hash: u64) -> Option<u16> {
        let hash = match (self.persistence, self.scheduler) {
            (None, Scheduler::Sh) | (Some(_), _) => self.key_of(tuple).hash(seed),
            (None, _) => hash,
        };
        self.maglev.get(place(hash, self.maglev.len())).copied()
    }

    /// The flow as far as its hash counts: with `sh` or persistence, only the client.
    pub(super) fn key_of(&self, tuple: &Tuple) -> Tuple {
        match (self.persistence, self.scheduler) {
            (Some(persistence), _) => tuple.of_client(persistence.prefix),
            (None, Scheduler::Sh) => tuple.of_client(128),
            (None, _) => *tuple,
        }
    }
}

/// A map whose keys are the configuration's: outsiders cannot choose them to collide, so a fast
/// hash will do.
pub type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;
/// A set as [`Map`].
pub type Set<K> = HashSet<K, BuildHasherDefault<Mixer>>;

/// The hasher of [`Map`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        let (words, tail) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !tail.is_empty() {
            let mut last = [0; 8];
            last.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
            self.write_u64(u64::from_le_bytes(last));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(word.into());
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }

    fn finish(&self) -> u64 {
        mix(self.0)
    }
}

/// Everything that directors decide by.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Virtual servers by slot.
    pub services: Vec<Option<Service>>,
    /// Real servers by slot.
    pub servers: Vec<Option<Server>>,
    /// Slots of virtual servers by key.
    pub index: Map<ServiceKey, u16>,
    /// Addresses of virtual servers.
    pub vips: Set<IpAddr>,
    /// MAC addresses by which frames are for us, by interface.
    pub macs: Map<u32, Vec<Mac>>,
    /// Interfaces of which a VLAN is an interface of its own that frames are taken from: tagged frames are its.
    pub trunks: Set<u32>,
    /// MAC addresses of the other directors.
    pub peers: Set<Mac>,
    /// These are all that are configured: a frame that another director forwards has one of them.
    pub peers_known: bool,
    /// What directors count of everything, by their index.
    pub overall: Arc<[Arc<Overall>]>,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// Key of every hash.
    pub seed: Key,
    /// New flows a second that a director remembers; 0: no limit.
    pub new_flows_per_second: u32,
}

impl Tables {
    /// The virtual server for a destination: one with this port, else one for all ports.
    #[must_use]
    pub fn service(&self, mut key: ServiceKey) -> Option<(u16, &Service)> {
        let slot = self.index.get(&key).or_else(|| {
            key.port = 0;
            self.index.get(&key)
        })?;
        Some((*slot, self.services.get(usize::from(*slot))?.as_ref()?))
    }

    /// The occupant of a slot.
    #[must_use]
    pub fn occupant(&self, slot: u16) -> Option<&Server> {
        self.servers.get(usize::from(slot))?.as_ref()
    }

    /// The server that a flow remembers, unless it is gone.
    #[must_use]
    pub fn server(&self, id: ServerId) -> Option<&Server> {
        self.occupant(id.slot).filter(|server| server.id == id)
    }
}
