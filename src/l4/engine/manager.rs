//! The `l4` thread: facts, netlink and neighbours in; tables, rings and silence out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::keeper::Keeper;
use super::neighbours::{Change, Neighbours, Target};
use super::network::Network;
use super::real_server::{RealServer, Role};
use super::succession::{Standby, Step};
use super::worker::Order;
use super::{Board, Desk, Event, Fact, NetworkView, Reporter, needs, sleep};
use crate::l4::config::{Forward, L4, ServiceKey};
use crate::l4::offload::{Interface, Learner, Offload, Path};
use crate::l4::registry::{Registry, ServerState};
use crate::l4::tables::{Condition, Neighbour, Server, Tables};
use crate::packet::neighbour_socket::NeighbourSocket;
use crate::packet::netlink::link::Link;
use crate::packet::netlink::nft::Silence;
use crate::packet::ring::filter::{self, Service};
use crate::packet::ring::{Place, Ring, Shape};
use crate::protocol::ethernet::Mac;
use crate::sys::notify::EventFd;

/// Routes have no events here: they are looked at this often, besides when links or addresses change.
const LOOK_EVERY_MS: u64 = 2_000;
/// Longest sleep.
const SLEEP_MAX_MS: u64 = 500;
/// How often the XDP program's counters are read.
const SETTLE_EVERY_MS: u64 = 500;
/// How often its flows are counted.
const COUNT_EVERY_MS: u64 = 5_000;
/// Memory of one ring: 4096 ordinary frames.
const RING_MEMORY: usize = 8 << 20;

/// What was said of a real server.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Said {
    pub(super) checks: ServerState,
    pub(super) weight: Option<u32>,
}

/// What the registry was told of this host.
#[derive(Debug, Default, PartialEq, Eq)]
struct Host {
    /// Hardware addresses of interfaces with rings.
    own: BTreeMap<u32, Vec<Mac>>,
    local: BTreeSet<IpAddr>,
    mtus: BTreeMap<u32, u16>,
    trunks: BTreeSet<u32>,
}

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) registry: Registry,
    pub(super) said: HashMap<(ServiceKey, IpAddr), Said>,
    pub(super) desks: Vec<Desk>,
    pub(super) board: Arc<Board>,
    pub(super) reporter: Reporter,
    pub(super) network: Network,
    sockets: NeighbourSocket,
    silence: Option<Silence>,
    keeper: Option<Keeper>,
    pub(super) neighbours: Neighbours,
    /// The way to each address that frames go to.
    ways: BTreeMap<IpAddr, Target>,
    /// Interfaces with rings, by number.
    rings: BTreeMap<u32, String>,
    host: Host,
    pub(super) role: Option<Role>,
    pub(super) role_troubles: Vec<String>,
    troubles: BTreeSet<String>,
    told: BTreeSet<String>,
    began: Instant,
    looked: u64,
    pub(super) offload: Offload,
    /// As last told.
    paths: Vec<Path>,
    /// When the program's counters were last read.
    settled: u64,
    /// When its flows were last counted.
    counted: u64,
    /// Ways, rings or interfaces have to be looked at.
    pub(super) stale: bool,
    /// The tables have to be made anew.
    pub(super) dirty: bool,
    /// Rings that workers get with the next tables.
    opened: Vec<(usize, Ring)>,
    /// Nothing is forwarded yet: another process does.
    pub(super) standby: Option<Standby>,
    /// Another process's rings, by interface and director.
    pub(super) inherited: BTreeMap<(u32, usize), (OwnedFd, Place)>,
    /// It has gone on just now; what can wait, does.
    pub(super) late: Option<Duration>,
    /// When clients were passed to a successor.
    pub(super) passed: Option<u64>,
    /// Workers that take flows over.
    pub(super) taking: Vec<Receiver<Result<(), String>>>,
}

impl Manager {
    pub(super) fn open(
        registry: Registry,
        desks: Vec<Desk>,
        board: Arc<Board>,
        reporter: Reporter,
        offload: Offload,
    ) -> Result<Self, String> {
        let network = Network::open().map_err(|error| needs("netlink", &error))?;
        let sockets = NeighbourSocket::open().map_err(|error| needs("packet sockets", &error))?;
        Ok(Self {
            registry,
            said: HashMap::new(),
            desks,
            board,
            reporter,
            network,
            sockets,
            silence: None,
            keeper: None,
            neighbours: Neighbours::default(),
            ways: BTreeMap::new(),
            rings: BTreeMap::new(),
            host: Host::default(),
            role: None,
            role_troubles: Vec::new(),
            troubles: BTreeSet::new(),
            told: BTreeSet::new(),
            began: Instant::now(),
            looked: 0,
            offload,
            paths: Vec::new(),
            settled: 0,
            counted: 0,
            stale: true,
            dirty: true,
            opened: Vec::new(),
            standby: None,
            inherited: BTreeMap::new(),
            late: None,
            passed: None,
            taking: Vec::new(),
        })
    }

    /// What has to hold before anything is served.
    pub(super) fn begin(
        &mut self,
        role: Option<RealServer>,
        outlive: Duration,
    ) -> Result<(), String> {
        self.begin_silence()?;
        self.begin_keeper(outlive)?;
        if let Some(role) = role {
            let now = self.now();
            let role = Role::begin(role, &mut self.network, now);
            self.role = Some(role.map_err(|trouble| format!("real_server: {trouble}"))?);
        }
        self.round();
        for (target, mac) in self.network.known() {
            self.hear(target, mac);
        }
        self.round();
        Ok(())
    }

    pub(super) fn begin_silence(&mut self) -> Result<(), String> {
        if self.desks.is_empty() {
            return Ok(());
        }
        let name = format!("ringgate-{}", std::process::id());
        let mut silence = Silence::open(&name).map_err(|error| needs("nf_tables", &error))?;
        silence
            .set(&services(self.registry.config()))
            .map_err(|error| needs("nf_tables", &error))?;
        self.silence = Some(silence);
        Ok(())
    }

    pub(super) fn begin_keeper(&mut self, outlive: Duration) -> Result<(), String> {
        let Some(silence) = self.silence.as_ref().filter(|_| !outlive.is_zero()) else {
            return Ok(());
        };
        let keeper = silence.share().and_then(|fd| Keeper::start(fd, outlive));
        let keeper = keeper.map_err(|error| format!("layer 4: cannot start a child: {error}"))?;
        self.keeper = Some(keeper);
        Ok(())
    }

    pub(super) fn run(mut self, inbox: &Receiver<Fact>, steps: &Receiver<Step>, wake: &EventFd) {
        let (mut ready, mut scratch) = (Vec::new(), Vec::new());
        let [arp, nd] = self.sockets.fds();
        let fds = [wake.as_raw_fd(), self.network.as_raw_fd(), arp, nd];
        loop {
            while let Ok(fact) = inbox.try_recv() {
                if !self.learn(fact) {
                    return self.end();
                }
            }
            while let Ok(step) = steps.try_recv() {
                if !self.take(step, steps) {
                    return self.end();
                }
            }
            self.round();
            let next = self.neighbours.next().into_iter().chain(self.role.as_ref().map(Role::next));
            let wait = next.min().unwrap_or(u64::MAX).saturating_sub(self.now()).min(SLEEP_MAX_MS);
            sleep(&fds, Duration::from_millis(wait), &mut ready, &mut scratch);
            if ready.contains(&wake.as_raw_fd()) {
                wake.clear();
            }
        }
    }

    fn end(mut self) {
        if let Some(mut role) = self.role.take() {
            role.end(&mut self.network);
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.end();
        }
        for desk in &self.desks {
            desk.give(Order::Stop);
        }
    }

    /// Takes in a fact; false at the end.
    fn learn(&mut self, fact: Fact) -> bool {
        match fact {
            Fact::Configure(config) => {
                self.configure(*config);
                self.stale = true;
            }
            Fact::State(service, server, state) => {
                self.said.entry((service, server)).or_default().checks = state;
                self.tell_state(service, server);
            }
            Fact::Weight(service, server, weight) => {
                self.said.entry((service, server)).or_default().weight = weight;
                self.tell_state(service, server);
            }
            Fact::Active(address, active) => self.registry.set_active(address, active),
            Fact::Stop => return false,
        }
        self.dirty = true;
        true
    }

    /// Both what checks say and the operator's weight, which comes first.
    pub(super) fn tell_state(&mut self, service: ServiceKey, server: IpAddr) {
        let said = self.said.get(&(service, server)).copied().unwrap_or_default();
        let weight = said.weight.or(said.checks.weight);
        self.registry.set_state(service, server, ServerState { weight, ..said.checks });
    }

    fn configure(&mut self, config: L4) {
        let services = services(&config);
        self.change_datapath(&config);
        self.said.retain(|(key, _), _| config.services.iter().any(|one| one.key == *key));
        self.registry.configure(config);
        if let Some(silence) = &mut self.silence
            && let Err(error) = silence.set(&services)
        {
            let trouble = format!("the kernel is not silent as configured: {error}");
            self.troubles.insert(trouble);
        }
        let filter = Arc::new(filter::services(&services));
        for desk in &self.desks {
            desk.give(Order::Filter(Arc::clone(&filter)));
        }
    }

    /// Another datapath: until it is there, packet sockets forward.
    fn change_datapath(&mut self, config: &L4) {
        if self.desks.is_empty() || self.offload.is_for(config) {
            return;
        }
        let tables = self.board.tables();
        self.offload.settle(&tables);
        let known = self.offload.flows();
        self.offload.end(&tables);
        self.offload = Offload::open(config, self.desks.len());
        if let Some(known) = known {
            self.offload.inherit(&known);
        }
        for desk in &self.desks {
            desk.give(Order::Learn(
                self.offload.flows().map(|flows| Box::new(Learner::new(flows))),
            ));
        }
    }

    /// Everything once.
    pub(super) fn round(&mut self) {
        let news = self.network.update();
        for (target, mac) in news.neighbours {
            self.hear(target, mac);
        }
        let mut claims = Vec::new();
        self.sockets.read(|claim| claims.push(claim));
        for claim in claims {
            let target = Target { interface: claim.interface, address: claim.address };
            self.hear(target, claim.mac);
        }
        let now = self.now();
        if self.stale || news.changed || now.saturating_sub(self.looked) >= LOOK_EVERY_MS {
            self.look(now);
        }
        self.ask(now);
        self.renew(now);
        self.settle(now);
        self.look_at_taken();
        if std::mem::take(&mut self.dirty) {
            self.publish();
        }
        self.tell_trouble();
    }

    pub(super) fn hear(&mut self, target: Target, mac: Mac) {
        let now = self.now();
        if let Some(change) = self.neighbours.hear(target, mac, now) {
            self.apply(change);
        }
    }

    fn apply(&mut self, change: Change) {
        self.dirty = true;
        let event = match change {
            Change::Found(target, mac) => Event::Found(target.address, mac.to_string()),
            Change::Lost(target) => Event::Lost(target.address),
        };
        (self.reporter.0)(event);
        self.tell_ways();
    }

    /// Asks who is due.
    fn ask(&mut self, now: u64) {
        let (questions, changes) = self.neighbours.due(now);
        for question in questions {
            let target = question.target;
            let Some(mac) = self.network.mac(target.interface) else { continue };
            let source = self.network.source(target);
            // What cannot be sent is not answered either: it shows as lost.
            let _ = self.sockets.ask(target.interface, mac, source, target.address, question.to);
        }
        for change in changes {
            self.apply(change);
        }
    }

    fn renew(&mut self, now: u64) {
        let Some(role) = self.role.as_mut().filter(|role| role.next() <= now) else { return };
        let troubles = role.renew(&mut self.network, now);
        if troubles != self.role_troubles {
            self.role_troubles = troubles;
            self.stale = true;
            self.dirty = true;
        }
    }

    /// Looks at ways, interfaces and rings.
    fn look(&mut self, now: u64) {
        self.stale = false;
        self.looked = now;
        let before = (self.ways.clone(), std::mem::take(&mut self.troubles));
        self.find_ways(now);
        self.reconcile_rings();
        self.troubles.extend(self.role_troubles.iter().cloned());
        let own: BTreeMap<u32, Vec<Mac>> = self
            .rings
            .keys()
            .filter_map(|index| Some((*index, vec![self.network.mac(*index)?])))
            .collect();
        let local: BTreeSet<IpAddr> =
            self.network.addresses.iter().map(|one| one.address).collect();
        let mtu = |link: &Link| (link.index, u16::try_from(link.mtu).unwrap_or(u16::MAX));
        let vlans =
            self.network.links.iter().filter(|link| link.vlan && own.contains_key(&link.index));
        let trunks = vlans.filter_map(|link| link.parent).collect();
        let host = Host { own, local, trunks, mtus: self.network.links.iter().map(mtu).collect() };
        if host != self.host {
            self.registry.set_interfaces(host.own.clone().into_iter().collect());
            self.registry.set_local(host.local.iter().copied());
            self.registry.set_trunks(host.trunks.iter().copied());
            self.registry.set_mtus(host.mtus.clone().into_iter().collect());
            self.host = host;
            self.dirty = true;
        }
        self.tell_ways();
        if before != (self.ways.clone(), self.troubles.clone()) {
            self.dirty = true;
        }
    }

    /// How each server and each peer is reached.
    fn find_ways(&mut self, now: u64) {
        let config = self.registry.config();
        let mut wanted: BTreeMap<IpAddr, bool> = BTreeMap::new();
        for service in &config.services {
            let tunnel = service.forward != Forward::Dr;
            let servers = service.servers.iter().map(|server| server.address);
            for address in servers.chain(service.sorry_server) {
                *wanted.entry(address).or_insert(true) &= tunnel;
            }
        }
        for peer in &config.director.peers {
            wanted.entry(*peer).or_insert(false);
        }
        self.ways.clear();
        for (address, tunnel) in wanted {
            match self.network.route(address) {
                Ok(route) if route.local => {}
                Ok(route) => {
                    let (interface, hop) = (route.interface, route.gateway);
                    if let Some(gateway) = hop.filter(|_| !tunnel) {
                        self.troubles.insert(format!(
                            "{address} is behind the router {gateway}: direct routing reaches only \
                             servers on a network of this host; use forward = \"tunnel\""
                        ));
                        continue;
                    }
                    let target = Target { interface, address: hop.unwrap_or(address) };
                    self.ways.insert(address, target);
                }
                Err(error) => {
                    self.troubles.insert(format!("there is no route to {address}: {error}"));
                }
            }
        }
        let targets: BTreeSet<Target> = self.ways.values().copied().collect();
        self.neighbours.watch(&targets.into_iter().collect::<Vec<_>>(), now);
    }

    /// What is known of the ways, to the registry.
    fn tell_ways(&mut self) {
        let peers = self.registry.config().director.peers.clone();
        let mut macs = Vec::new();
        let mut found = Vec::new();
        for service in &self.registry.config().services {
            let servers = service.servers.iter().map(|server| server.address);
            found.extend(servers.chain(service.sorry_server));
        }
        for address in found.into_iter().chain(peers.iter().copied()) {
            let way = self.ways.get(&address).copied();
            let neighbour = way.and_then(|target| {
                let mac = self.neighbours.mac(target)?;
                let source = self.network.mac(target.interface)?;
                Some(Neighbour { mac, source, ifindex: target.interface, vlan: None })
            });
            if peers.contains(&address) {
                macs.extend(neighbour.map(|one| one.mac));
            }
            self.registry.set_neighbour(address, neighbour);
        }
        self.registry.set_peers(macs);
    }

    /// The interfaces that frames come in by: as configured, or as found.
    fn wanted_interfaces(&mut self) -> BTreeSet<u32> {
        let names = self.registry.config().director.interfaces.clone();
        if !names.is_empty() {
            let mut wanted = BTreeSet::new();
            for name in names {
                match self.network.links.iter().find(|link| link.name == name) {
                    Some(link) => {
                        wanted.insert(link.index);
                    }
                    None => {
                        self.troubles.insert(format!("director.interfaces: there is no {name}"));
                    }
                }
            }
            return wanted;
        }
        let ways = self.ways.values().map(|way| way.interface).collect();
        self.network.frames_come_by(self.registry.config(), ways)
    }

    fn reconcile_rings(&mut self) {
        if self.desks.is_empty() || self.standby.is_some() {
            return;
        }
        let wanted = self.wanted_interfaces();
        let gone: Vec<u32> =
            self.rings.keys().copied().filter(|index| !wanted.contains(index)).collect();
        for index in gone {
            self.rings.remove(&index);
            for desk in &self.desks {
                desk.give(Order::Close(index));
            }
        }
        for index in wanted {
            if self.rings.contains_key(&index) {
                continue;
            }
            let Some(link) = self.network.link(index).cloned() else { continue };
            if link.mac.is_none() {
                let trouble = format!("{} has no hardware address: it is left out", link.name);
                self.troubles.insert(trouble);
                continue;
            }
            match self.open_rings(index, link.mtu) {
                Ok(()) => {
                    self.rings.insert(index, link.name);
                    self.dirty = true;
                }
                Err(error) => {
                    self.troubles.insert(format!("no ring on {}: {error}", link.name));
                }
            }
        }
    }

    /// One for each worker, which share the interface's frames.
    fn open_rings(&mut self, interface: u32, mtu: u32) -> std::io::Result<()> {
        let filter = filter::services(&services(self.registry.config()));
        let shape = Shape { interface, mtu, memory: RING_MEMORY, filter };
        if let Some(rings) = self.adopt_rings(&shape) {
            self.opened.extend(rings.into_iter().enumerate());
            return Ok(());
        }
        let spread = filter::by_client();
        let mut rings = Vec::new();
        let mut group = None;
        for _ in &self.desks {
            let ring = Ring::open(&shape)?;
            if self.desks.len() > 1 {
                group = Some(ring.join(group, &spread)?);
            }
            rings.push(ring);
        }
        self.opened.extend(rings.into_iter().enumerate());
        Ok(())
    }

    /// Another process's rings on an interface, if it had as many directors.
    fn adopt_rings(&mut self, shape: &Shape) -> Option<Vec<Ring>> {
        let inherited: Vec<_> =
            self.inherited.extract_if(.., |key, _| key.0 == shape.interface).collect();
        if inherited.len() != self.desks.len() {
            return None;
        }
        let adopted = inherited.into_iter().map(|(_, (fd, place))| Ring::adopt(fd, shape, place));
        adopted.map(|ring| ring.ok().flatten()).collect()
    }

    fn publish(&mut self) {
        // The program's counters know slots: they are read while the old occupants are known.
        let before = self.board.tables();
        if self.standby.is_none() {
            self.offload.settle(&before);
            self.offload.count_flows(&before);
        }
        let tables = self.registry.tables();
        for desk in &self.desks {
            desk.give(Order::Tables(Arc::clone(&tables)));
        }
        for (index, ring) in self.opened.drain(..) {
            if let Some(desk) = self.desks.get(index) {
                desk.give(Order::Open(Box::new(ring)));
            }
        }
        self.offload_tables(&tables);
        let removed = |one: &Server| one.condition == Condition::Removed;
        let gone = |one: &Server| !removed(one) && tables.server(one.id).is_none_or(removed);
        if before.servers.iter().flatten().any(gone) && !self.paths.is_empty() {
            // The flows of who is gone would keep others out until they have rested for a while.
            self.offload.tidy_flows(&tables);
        }
        let view = NetworkView {
            neighbours: self
                .neighbours
                .view(|number| Some(self.network.link(number)?.name.clone())),
            interfaces: self.rings.values().cloned().collect(),
            troubles: self.troubles.iter().cloned().collect(),
            real_server: self.role.as_ref().map(Role::held).unwrap_or_default(),
            datapaths: self.paths.clone(),
            xdp: self.offload.frames(),
        };
        self.board.publish(tables, view);
    }

    /// The XDP program follows, unless it is still another process's.
    fn offload_tables(&mut self, tables: &Tables) {
        if self.standby.is_some() || self.late.is_some() {
            return;
        }
        let settings = &self.registry.config().director;
        let interfaces: Vec<Interface> =
            self.rings.keys().filter_map(|index| self.interface(*index)).collect();
        self.offload.set_interfaces(&interfaces, tables, settings);
        self.offload.publish(tables, settings);
        self.troubles.extend(self.offload.troubles().iter().cloned());
        self.tell_paths();
    }

    fn interface(&self, index: u32) -> Option<Interface> {
        let link = self.network.link(index)?;
        let (name, mac) = (link.name.clone(), Mac(link.mac?));
        Some(Interface { index, name, mac, mtu: link.mtu })
    }

    fn tell_paths(&mut self) {
        let paths = self.offload.paths();
        for path in paths.iter().filter(|path| !self.paths.contains(path)) {
            (self.reporter.0)(Event::Datapath(path.clone()));
        }
        self.paths = paths;
    }

    /// Brings the figures up to date with what the program counted.
    fn settle(&mut self, now: u64) {
        if now.saturating_sub(self.settled) < SETTLE_EVERY_MS || self.paths.is_empty() {
            return;
        }
        self.settled = now;
        let tables = self.board.tables();
        self.offload.settle(&tables);
        if self.offload.retry(&tables, &self.registry.config().director) {
            self.dirty = true;
        }
        if now.saturating_sub(self.counted) >= COUNT_EVERY_MS {
            self.counted = now;
            self.offload.tidy_flows(&tables);
        }
        self.board.set_xdp(self.offload.frames());
    }

    /// Tells what is wrong, once as long as it lasts.
    fn tell_trouble(&mut self) {
        for trouble in self.troubles.difference(&self.told) {
            (self.reporter.0)(Event::Trouble(trouble.clone()));
        }
        self.told.clone_from(&self.troubles);
    }

    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What filter and silence are about.
fn services(config: &L4) -> Vec<Service> {
    let service = |one: &crate::l4::config::VirtualServer| Service {
        address: one.key.address,
        protocol: one.key.protocol.number(),
        port: one.key.port,
    };
    config.services.iter().map(service).collect()
}
