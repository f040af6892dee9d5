//! The same frames through the Rust verdict and the loaded program.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::balance::hash::mix;
use crate::l4::config::{
    Forward, L4, OnServerDown, Persistence, Protocol, RealServer, Scheduler, ServiceKey,
    VirtualServer,
};
use crate::l4::engine::forwarded_to;
use crate::l4::registry::{Registry, ServerState};
use crate::l4::tables::{Neighbour, Tables};
use crate::l4::{Director, Frame, Verdict};
use crate::packet::xdp::layout::Reason;
use crate::packet::xdp::program::{PASS, REDIRECT, Setup, TRANSMIT};
use crate::packet::xdp::{Error, FastPath, Limits};

use crate::protocol::ethernet::Mac;
use crate::sys::bpf::{Program, Trial};

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 8]);
/// The loopback: frames are redirected there without being sent in a test run.
const HERE: u32 = 7;

/// Random numbers from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn chance(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(protocol: Protocol, vip: &str, port: u16, scheduler: Scheduler) -> VirtualServer {
    let server = |last: u8| RealServer {
        address: match address(vip) {
            IpAddr::V4(_) => [10, 0, 0, last].into(),
            IpAddr::V6(_) => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
        },
        weight: u32::from(last % 3),
        uthreshold: 0,
        lthreshold: 0,
        inhibit_on_failure: last == 6,
    };
    VirtualServer {
        key: ServiceKey { protocol, address: address(vip), port },
        scheduler,
        one_packet: false,
        persistence: None,
        forward: Forward::Dr,
        on_server_down: OnServerDown::Reschedule,
        quorum: 1,
        hysteresis: 0,
        sorry_server: None,
        servers: (1..9).map(server).collect(),
    }
}

const V4: &str = "192.0.2.1";
const V6: &str = "2001:db8::1";

fn configuration() -> L4 {
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
        let any = service(Protocol::Tcp, vip, 0, Scheduler::Mh);
        services.extend([persistent, drained, any]);
    }
    L4 { services, ..L4::default() }
}

fn registry() -> Registry {
    let mut registry = Registry::new(configuration(), 1);
    registry.set_interfaces(HashMap::from([(HERE, vec![OURS])]));
    registry.set_peers([PEER]);
    for last in 1..8 {
        // The eighth does not answer, the fourth is on another interface, the fifth in a VLAN.
        let neighbour = Neighbour {
            mac: Mac([2, 0, 0, 1, 0, last]),
            source: OURS,
            ifindex: if last == 4 { 1 } else { HERE },
            vlan: (last == 5).then_some(5),
        };
        for ip in [[10, 0, 0, last].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into()] {
            registry.set_neighbour(ip, Some(neighbour));
        }
    }
    registry.set_local([address("10.0.0.2"), address("fd00::2")]);
    registry
}

/// A frame as a client might send it, then perhaps not quite.
fn frame(random: &mut Random) -> Vec<u8> {
    let mut frame = Vec::with_capacity(200);
    let destination = if random.chance(50) { Mac([2, 0, 0, 0, 0, 2]) } else { OURS };
    let source = if random.chance(50) { PEER } else { Mac([2, 0, 0, 0, 9, 9]) };
    frame.extend([destination.0, source.0].concat());
    if random.chance(6) {
        frame.extend([0x81, 0, 0, random.pick(&[0, 5, 5, 5, 5, 6])]);
    }
    let protocol = random.pick(&[6, 6, 6, 6, 6, 17, 17, 132, 132, 1]);
    let mut transport = Vec::new();
    // Few clients, so that flows get many frames.
    transport.extend([0x80, random.byte() & 3]);
    transport.extend([0, random.pick(&[80, 81, 82, 83, 84, 85, 86, 87, 84, 85, 90, 91, 99])]);
    match protocol {
        6 => {
            transport.extend([0; 8]);
            transport.extend([
                0x50,
                random.pick(&[2, 2, 2, 16, 16, 16, 24, 24, 24, 17, 4, 20, 18, 3, 0xc2, 0]),
            ]);
            transport.extend([0; 6]);
        }
        17 => transport.extend([0, 8, 0, 0]),
        _ => {
            transport.extend([0; 8]);
            transport.extend([random.pick(&[1, 1, 0, 0, 10, 3, 6, 7, 8, 14]), 0, 0, 4]);
        }
    }
    transport.extend((0..random.below(40)).map(|_| 0x55));
    let client = random.byte() & 3;
    if random.chance(2) {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(u16::try_from(20 + transport.len()).unwrap().to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 198, 51, 100, client, 192, 0, 2]);
        frame.push(if random.chance(30) { 2 } else { 1 });
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend(u16::try_from(transport.len()).unwrap().to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, client]);
        frame.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
    frame.extend(transport);
    if random.chance(4) {
        mutate(&mut frame, random);
    }
    frame
}

fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = usize::try_from(random.below(frame.len() as u64)).unwrap();
        match random.below(5) {
            // The headers' own bytes are the interesting ones.
            0 | 1 => {
                let at = 12 + at % 48;
                if let Some(byte) = frame.get_mut(at) {
                    *byte = random.pick(&[0, 1, 5, 6, 16, 0x20, 0x45, 0x46, 0x80, 0xff]);
                }
            }
            2 => frame[at] ^= 1 << random.below(8),
            3 => frame.truncate(at.max(14)),
            _ => frame.extend((0..random.below(30)).map(|_| 0)),
        }
    }
}

/// Both sides, and what they did so far.
struct Pair {
    director: Director,
    path: FastPath,
    program: Program,
    learner: Learner,
    forwarded: HashMap<u16, u64>,
    frames: u64,
    /// By reason, of the programs before this one.
    before: Vec<u64>,
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
        any_port: true,
    }
}

impl Pair {
    fn new(tables: &Arc<Tables>) -> Option<Self> {
        let limits = Limits { flows_v4: 1 << 17, flows_v6: 1 << 17, syn_limit: false };
        let mut path = match FastPath::new(limits) {
            Err(Error::Map(_, error)) if error.raw_os_error() == Some(libc::EPERM) => {
                return None;
            }
            path => path.expect("maps"),
        };
        path.set_tables(translate(tables), |_| setup(tables)).expect("tables");
        let program = path.program(&setup(tables)).expect("a program");
        let learner = Learner::new(Arc::clone(path.flows()));
        let director = Director::new(0, Arc::clone(tables), 1 << 18);
        let forwarded = HashMap::new();
        Some(Self {
            director,
            path,
            program,
            learner,
            forwarded,
            frames: 0,
            before: vec![0; Reason::ALL.len()],
        })
    }

    /// Other tables, and no flow remembered on either side: what a flow does that outlives a change of the
    /// tables is not compared here.
    fn begin_anew(&mut self, tables: &Arc<Tables>) {
        let (frames, forwarded) = (self.frames, std::mem::take(&mut self.forwarded));
        let before = Reason::ALL.iter().map(|reason| self.passed(*reason)).collect();
        if let Some(pair) = Self::new(tables) {
            *self = Self { frames, forwarded, before, ..pair };
        }
    }

    /// Gives a frame to both, as if the program had passed it up whatever it does.
    fn judge(&mut self, frame: &[u8], context: &str) {
        let mut out = vec![0; frame.len() + 64];
        let run = self.program.run(frame, &mut out, Trial::default()).expect("a run");
        out.truncate(run.length);
        let (bytes, vlan) = untag(frame);
        let mut rewritten = bytes.clone();
        let length = rewritten.len();
        let verdict = self
            .director
            .judge(1_000, &mut Frame { bytes: &mut rewritten, vlan, ifindex: HERE, length });
        self.frames += 1;
        let context = format!("{context}, frame {}: {frame:02x?}\n{verdict:?}", self.frames);
        match run.result {
            PASS => assert_eq!(out, frame, "passed up unchanged; {context}"),
            TRANSMIT | REDIRECT => {
                let Verdict::Forward { ifindex, vlan: to, server } = verdict else {
                    panic!("the program forwards; {context}");
                };
                let here = run.result == TRANSMIT;
                assert_eq!(here, ifindex == HERE, "the interface; {context}");
                // Back out of a trunk, a frame keeps the tag it came with.
                assert_eq!(to.or_else(|| vlan.filter(|_| here)), vlan, "the VLAN; {context}");
                assert_eq!(untag(&out), (rewritten.clone(), vlan), "the bytes; {context}");
                *self.forwarded.entry(server.slot).or_default() += 1;
            }
            other => panic!("the program returns {other}; {context}"),
        }
        if run.result == PASS {
            self.learner.judged(&rewritten, forwarded_to(verdict));
            self.learner.flush();
        }
    }

    fn passed(&self, reason: Reason) -> u64 {
        let counts = self.path.reasons().expect("counters");
        let now = counts.iter().find(|(one, _)| *one == reason).map_or(0, |(_, count)| *count);
        let before = Reason::ALL.iter().zip(&self.before).find(|(one, _)| **one == reason);
        now + before.map_or(0, |(_, count)| *count)
    }
}

/// A frame as the kernel gives it to a packet socket: without its outermost VLAN tag.
fn untag(frame: &[u8]) -> (Vec<u8>, Option<u16>) {
    if frame.len() < 18 || frame[12..14] != [0x81, 0] {
        return (frame.to_vec(), None);
    }
    let tag = u16::from_be_bytes([frame[14], frame[15]]) & 0xfff;
    ([&frame[..12], &frame[16..]].concat(), Some(tag))
}

/// How long, and from where: `XDP_SECONDS` and `XDP_SEED` replace the defaults.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn program_and_verdict_agree() {
    let seconds = number("XDP_SECONDS", 5);
    let entropy = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = number("XDP_SEED", mix(entropy.expect("after 1970").subsec_nanos().into()));
    println!("XDP_SEED={seed}");
    let mut random = Random(seed);
    let mut registry = registry();
    let Some(mut pair) = Pair::new(&registry.tables()) else { return };
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut next_change = 0;
    while Instant::now() < end {
        if pair.frames >= next_change {
            next_change += 20_000;
            change(&mut registry, &mut random);
            pair.begin_anew(&registry.tables());
        }
        let frame = frame(&mut random);
        pair.judge(&frame, &format!("XDP_SEED={seed}"));
    }
    let forwarded: u64 = pair.forwarded.values().sum();
    println!("{} frames, {forwarded} forwarded by the program", pair.frames);
    for reason in Reason::ALL {
        println!("{}: {}", reason.as_str(), pair.passed(reason));
    }
    // It would also agree if it passed everything up.
    assert!(forwarded * 12 > pair.frames, "{forwarded} of {}", pair.frames);
    let slots: HashSet<u16> =
        registry.tables().servers.iter().flatten().map(|one| one.id.slot).collect();
    assert!(pair.forwarded.len() * 3 > slots.len(), "{} servers got frames", pair.forwarded.len());
    for reason in Reason::ALL {
        let rare = matches!(
            reason,
            Reason::Large | Reason::Stateless | Reason::SynLimit | Reason::Refresh
        );
        assert!(rare || pair.passed(reason) > 0, "no frame of kind {}", reason.as_str());
    }
}

/// Servers come and go.
fn change(registry: &mut Registry, random: &mut Random) {
    let last = random.byte() % 8 + 1;
    let state = ServerState { up: random.chance(2), weight: None };
    for service in registry.config().services.clone() {
        let server = service.servers[usize::from(last) - 1].address;
        registry.set_state(service.key, server, state);
    }
}
