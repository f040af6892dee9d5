//! A director alone beside a program with a director, both under tables that change.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::frames::{Random, Target, untag};
use super::{HERE, OURS, PEER};
use crate::l4::config::{
    L4, OnServerDown, Persistence, Protocol, RealServer, Scheduler, ServiceKey, Settings, Timeouts,
    VirtualServer,
};
use crate::l4::engine::forwarded_to;
use crate::l4::offload::{Learner, tables, translate};
use crate::l4::registry::{Registry, ServerState};
use crate::l4::tables::{Neighbour, Tables};
use crate::l4::{Director, Frame, Verdict};
use crate::packet::xdp::layout::Reason;
use crate::packet::xdp::program::{PASS, REDIRECT, Setup, TRANSMIT};
use crate::packet::xdp::{Error, FastPath, Limits};
use crate::protocol::ethernet::Mac;
use crate::sys::bpf::{Program, Trial};

const V4: &str = "192.0.2.1";
const V6: &str = "2001:db8::1";
const NOW: u64 = 1_000;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A server's address in a service of this family.
fn server(vip: IpAddr, last: u8) -> IpAddr {
    match vip {
        IpAddr::V4(_) => [10, 0, 0, last].into(),
        IpAddr::V6(_) => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
    }
}

fn service(protocol: Protocol, vip: &str, port: u16, scheduler: Scheduler) -> VirtualServer {
    let vip = address(vip);
    let server = |last: u8| RealServer {
        inhibit_on_failure: last == 6,
        ..RealServer::new(server(vip, last), u32::from(last % 3))
    };
    let key = ServiceKey { protocol, address: vip, port };
    VirtualServer::new(key, scheduler, (1..9).map(server).collect())
}

fn services() -> Vec<VirtualServer> {
    let mut services = Vec::new();
    for vip in [V4, V6] {
        for (port, (_, scheduler)) in (80..).zip(Scheduler::ALL) {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                services.push(service(protocol, vip, port, scheduler));
            }
        }
        let mut persistent = service(Protocol::Tcp, vip, 90, Scheduler::Mh);
        persistent.persistence = Some(Persistence { timeout: Duration::from_secs(60), prefix: 24 });
        let mut drained = service(Protocol::Tcp, vip, 91, Scheduler::Mh);
        drained.on_server_down = OnServerDown::Drain;
        let mut reset = service(Protocol::Tcp, vip, 92, Scheduler::Mh);
        reset.on_server_down = OnServerDown::Reset;
        let mut both = [93, 94].map(|port| service(Protocol::Tcp, vip, port, Scheduler::Wlc));
        both[0].on_server_down = OnServerDown::Drain;
        both[1].on_server_down = OnServerDown::Reset;
        let any = service(Protocol::Tcp, vip, 0, Scheduler::Mh);
        services.extend([persistent, drained, reset, any]);
        services.extend(both);
    }
    services
}

/// Some of them: making the tables of all takes long. The first is scheduled by the program.
fn some_services(seed: u64, count: usize) -> Vec<VirtualServer> {
    let (mut all, mut random) = (services(), Random(seed));
    let hashed = |one: &VirtualServer| matches!(one.scheduler, Scheduler::Mh | Scheduler::Sh);
    let mut some = Vec::new();
    while some.len() < count && !all.is_empty() {
        let at = usize::try_from(random.below(all.len() as u64)).expect("an index");
        if hashed(&all[at]) || !some.is_empty() {
            some.push(all.swap_remove(at));
        }
    }
    some
}

/// Something that tables are made of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// What checks say of a server, in all services.
    State { last: u8, up: bool, weight: Option<u32> },
    /// A server is added to all services, or removed.
    Server(u8),
    /// A service is added, or removed.
    Service(u16),
    /// A neighbour answers, or no longer.
    Neighbour(u8),
    /// Whether this host has a server's address.
    Local(u8),
    /// Whether this host is the active director of an address.
    Active(bool),
}

impl Change {
    pub(super) fn random(random: &mut Random) -> Self {
        let last = random.byte() % 8 + 1;
        match random.below(16) {
            0..8 => {
                let weight = random.chance(2).then(|| u32::from(random.byte() % 4));
                Self::State { last, up: !random.chance(3), weight }
            }
            8..11 => Self::Server(last),
            11 => Self::Service(u16::from(random.byte())),
            12..14 => Self::Neighbour(last),
            14 => Self::Local(last),
            _ => Self::Active(!random.chance(4)),
        }
    }
}

/// What both are given.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Frame(Vec<u8>),
    Change(Change),
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Whether it leaves by the interface it came in by, its VLAN and its bytes without a tag.
    Sent(bool, Option<u16>, Vec<u8>),
    Local(Vec<u8>),
    Reply(Vec<u8>),
    /// By its name: nothing is sent.
    Kept(String),
}

/// A director with what it is told.
struct Side {
    registry: Registry,
    director: Director,
}

impl Side {
    fn new() -> Self {
        let mut registry = Registry::new(L4::default(), 1);
        registry.set_interfaces(HashMap::from([(HERE, vec![OURS])]));
        registry.set_peers([PEER]);
        let director = Director::new(0, registry.tables(), 1 << 18);
        Self { registry, director }
    }

    fn judge(&mut self, frame: &[u8]) -> (Outcome, Verdict) {
        let (mut bytes, vlan) = untag(frame);
        let length = bytes.len();
        let mut seen = Frame { bytes: &mut bytes, vlan, ifindex: HERE, length };
        let verdict = self.director.judge(NOW, &mut seen);
        let outcome = match verdict {
            Verdict::Forward { ifindex, vlan: to, .. } => {
                let here = ifindex == HERE;
                // Back out of a trunk, a frame keeps the tag it came with.
                Outcome::Sent(here, to.or_else(|| vlan.filter(|_| here)), bytes)
            }
            Verdict::Local(_) => Outcome::Local(bytes),
            Verdict::Reply { .. } => Outcome::Reply(self.director.reply().to_vec()),
            other => Outcome::Kept(format!("{other:?}")),
        };
        (outcome, verdict)
    }

    /// Fragments that may go.
    fn released(&mut self) -> Vec<Outcome> {
        let mut all = Vec::new();
        while let Some((verdict, bytes)) = self.director.release(NOW) {
            all.push(match verdict {
                Verdict::Forward { ifindex, vlan, .. } => {
                    Outcome::Sent(ifindex == HERE, vlan, bytes.to_vec())
                }
                Verdict::Local(_) => Outcome::Local(bytes.to_vec()),
                other => Outcome::Kept(format!("{other:?}")),
            });
        }
        all
    }
}

/// Both, and what they did so far.
pub(super) struct World {
    alone: Side,
    behind: Side,
    path: FastPath,
    program: Program,
    learner: Learner,
    services: Vec<VirtualServer>,
    absent_services: BTreeSet<usize>,
    absent_servers: BTreeSet<u8>,
    silent: BTreeSet<u8>,
    local: BTreeSet<u8>,
    /// By the server's address.
    pub(super) forwarded: HashMap<[u8; 6], u64>,
}

fn setup(tables: &Tables) -> Setup {
    Setup {
        interface: HERE,
        macs: vec![OURS],
        peers: vec![PEER],
        frame_max: 1518,
        key: tables.seed,
        new_flows: 0,
        syn_limit: 0,
        any_port: tables.index.keys().any(|key| key.port == 0),
    }
}

impl World {
    /// With so many of all services, which of them by a seed; `None` without the right to load programs.
    pub(super) fn new(seed: u64, count: usize) -> Option<Self> {
        let limits = Limits { flows_v4: 1 << 17, flows_v6: 1 << 17, syn_limit: false };
        let path = match FastPath::new(limits) {
            Err(Error::Map(_, error)) if error.raw_os_error() == Some(libc::EPERM) => {
                return None;
            }
            path => path.expect("maps"),
        };
        let (alone, behind) = (Side::new(), Side::new());
        let program = path.program(&setup(behind.director.tables())).expect("a program");
        let mut world = Self {
            alone,
            behind,
            learner: Learner::new(Arc::clone(path.flows())),
            path,
            program,
            services: some_services(seed, count),
            absent_services: BTreeSet::new(),
            absent_servers: BTreeSet::new(),
            silent: BTreeSet::from([8]),
            local: BTreeSet::from([2]),
            forwarded: HashMap::new(),
        };
        world.tell();
        world.renew();
        Some(world)
    }

    /// Where frames may go.
    pub(super) fn targets(&self) -> Vec<Target> {
        let target = |one: &VirtualServer| {
            let port = if one.key.port == 0 { 99 } else { one.key.port };
            Target(one.key.address.is_ipv6(), one.key.protocol.number(), port)
        };
        self.services.iter().map(target).collect()
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Frame(frame) => self.judge(frame),
            Step::Change(change) => {
                self.change(*change);
                Ok(())
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::State { last, up, weight } => {
                for side in [&mut self.alone, &mut self.behind] {
                    for service in &self.services {
                        let server = server(service.key.address, last);
                        side.registry.set_state(service.key, server, ServerState { up, weight });
                    }
                }
            }
            Change::Active(active) => {
                for side in [&mut self.alone, &mut self.behind] {
                    side.registry.set_active(address(V4), active);
                }
            }
            Change::Server(last) => toggle(&mut self.absent_servers, last),
            Change::Service(number) => {
                // While there is a service for all ports, no other one of its protocol goes: flows would change over.
                let may_go = |key: ServiceKey| key.protocol != Protocol::Tcp || key.port == 0;
                let may_go: Vec<usize> =
                    (0..self.services.len()).filter(|at| may_go(self.services[*at].key)).collect();
                if let Some(at) = usize::from(number).checked_rem(may_go.len()) {
                    toggle(&mut self.absent_services, may_go[at]);
                }
            }
            Change::Neighbour(last) => toggle(&mut self.silent, last),
            Change::Local(last) => toggle(&mut self.local, last),
        }
        self.tell();
        self.renew();
    }

    /// The facts, to both registries.
    fn tell(&mut self) {
        let present = |at: &usize| !self.absent_services.contains(at);
        let mut services: Vec<VirtualServer> =
            (0..self.services.len()).filter(present).map(|at| self.services[at].clone()).collect();
        for service in &mut services {
            let vip = service.key.address;
            let absent: Vec<IpAddr> =
                self.absent_servers.iter().map(|last| server(vip, *last)).collect();
            service.servers.retain(|one| !absent.contains(&one.address));
        }
        let day = Duration::from_secs(86_400);
        let timeouts =
            Timeouts { tcp: day, tcp_fin: day, tcp_syn: day, closed: day, udp: day, sctp: day };
        let director = Settings { timeouts, new_flows_per_second: 0, ..Settings::default() };
        let vips = [V4, V6].map(address);
        let both = |of: &BTreeSet<u8>| -> Vec<IpAddr> {
            of.iter().flat_map(|last| vips.map(|vip| server(vip, *last))).collect()
        };
        let (silent, local) = (both(&self.silent), both(&self.local));
        for side in [&mut self.alone, &mut self.behind] {
            side.registry.set_local(local.iter().copied());
            for last in 1..9 {
                // The fourth is on another interface, the fifth in a VLAN.
                let neighbour = Neighbour {
                    mac: Mac([2, 0, 0, 1, 0, last]),
                    source: OURS,
                    ifindex: if last == 4 { 1 } else { HERE },
                    vlan: (last == 5).then_some(5),
                };
                for address in vips.map(|vip| server(vip, last)) {
                    let neighbour = (!silent.contains(&address)).then_some(neighbour);
                    side.registry.set_neighbour(address, neighbour);
                }
            }
            side.registry.configure(L4 { services: services.clone(), director: director.clone() });
        }
    }

    /// Other tables take effect, for all at once.
    fn renew(&mut self) {
        self.keep_alike();
        for side in [&mut self.alone, &mut self.behind] {
            side.director.swap(side.registry.tables());
        }
        let tables = Arc::clone(self.behind.director.tables());
        self.path.set_tables(translate(&tables), |_| setup(&tables)).expect("tables");
        self.program = self.path.program(&setup(&tables)).expect("a program");
    }

    /// A removed server stays as long as it has flows. The program's flows are counted only now and then, so how long is
    /// not compared: it stays until both say that it has none.
    fn keep_alike(&self) {
        let [alone, behind] = [&self.alone, &self.behind].map(|side| side.director.tables());
        for one in behind.servers.iter().flatten() {
            let service = behind.services[usize::from(one.service)].as_ref().expect("its service");
            if !tables::schedules(behind, service) {
                continue;
            }
            let key_of = |slot: u16| alone.services[usize::from(slot)].as_ref().map(|one| one.key);
            let mut others = alone.servers.iter().flatten();
            let other = others.find(|other| {
                other.address == one.address && key_of(other.service) == Some(service.key)
            });
            let loads = [&one.figures.load, &other.expect("the same servers").figures.load];
            loads.iter().for_each(|load| load.set_offloaded(0, 0));
            let held = loads.iter().any(|load| load.active() + load.inactive() > 0);
            loads.iter().for_each(|load| load.set_offloaded(0, held.into()));
        }
    }

    fn judge(&mut self, frame: &[u8]) -> Result<(), String> {
        let (expected, _) = self.alone.judge(frame);
        let mut out = vec![0; frame.len() + 64];
        let run = self.program.run(frame, &mut out, Trial::default()).expect("a run");
        out.truncate(run.length);
        let outcome = match run.result {
            PASS if out != frame => return Err(format!("passed up as {out:02x?}")),
            PASS => self.judge_behind(frame),
            TRANSMIT | REDIRECT => {
                let (bytes, vlan) = untag(&out);
                let server = *bytes.first_chunk().expect("an address");
                *self.forwarded.entry(server).or_default() += 1;
                Outcome::Sent(run.result == TRANSMIT, vlan, bytes)
            }
            other => return Err(format!("the program returns {other}")),
        };
        let (mut all, mut both) = (vec![expected], vec![outcome]);
        all.extend(self.alone.released());
        both.extend(self.behind.released());
        if all == both {
            return Ok(());
        }
        Err(format!("the program returns {}\nalone: {all:02x?}\nboth:  {both:02x?}", run.result))
    }

    fn judge_behind(&mut self, frame: &[u8]) -> Outcome {
        let (headers, _) = untag(frame);
        let note = self.learner.prepare(&mut self.behind.director, &headers, NOW);
        let (outcome, verdict) = self.behind.judge(frame);
        if let Some(note) = note {
            self.learner.judged(&self.behind.director, note, forwarded_to(verdict), NOW);
        }
        outcome
    }

    /// Frames that the program passed up for this reason.
    pub(super) fn passed(&self, reason: Reason) -> u64 {
        let counts = self.path.reasons().expect("counters");
        counts.iter().find(|(one, _)| *one == reason).map_or(0, |(_, count)| *count)
    }
}

fn toggle<T: Ord>(set: &mut BTreeSet<T>, one: T) {
    if !set.remove(&one) {
        set.insert(one);
    }
}
