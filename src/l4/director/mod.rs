//! The verdict on one frame.

mod assign;
mod deliver;
mod foresee;
mod fragments;
mod memory;
mod reply;
mod tunnel;

use std::sync::Arc;

use self::assign::{Choice, Kind};
use self::foresee::Foreseen;
use self::fragments::{Datagram, Fate, Fragments, Held};
use super::config::{Forward, Protocol, ServiceKey};
use super::figures::{Overall, REASONS};
use super::flow::{FlowTable, Ticks, tick};
use super::hash::Tuple;
use super::tables::{Path, Server, ServerId, Service, Tables};
use crate::protocol::ethernet::{self, View};
use crate::protocol::icmp::{self, Quoted};
use crate::protocol::ip::{self, Packet};
use crate::protocol::transport::Ports;

/// Flows and datagrams that one call to [`Director::expire`] looks at.
const EXPIRE_BUDGET: usize = 256;
/// The same within [`Director::judge`], once in 128 ms.
const JUDGE_BUDGET: usize = 32;
/// Replies a second.
const REPLIES_MAX: u32 = 1000;

/// A received frame.
#[derive(Debug)]
pub struct Frame<'a> {
    /// From the Ethernet header on: the whole frame, or at least its headers.
    pub bytes: &'a mut [u8],
    /// The VLAN tag that the kernel took out of it.
    pub vlan: Option<u16>,
    /// The interface it came in through.
    pub ifindex: u32,
    /// Its length on the wire, as received: what is missing in `bytes` included.
    pub length: usize,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the kernel takes care of it, as it does anyway.
    Pass,
    /// Deliver it to this host, past whatever silences the kernel.
    Local(ServerId),
    /// Send it: the MAC addresses in it have been replaced, nothing else.
    Forward {
        /// Through this interface.
        ifindex: u32,
        /// With this VLAN tag.
        vlan: Option<u16>,
        /// To this server.
        server: ServerId,
    },
    /// Send [`Director::head`] and behind it the frame's bytes from `skip` on.
    Encapsulate {
        /// Through this interface.
        ifindex: u32,
        /// With this VLAN tag.
        vlan: Option<u16>,
        /// To this server.
        server: ServerId,
        /// Bytes of the frame to leave out.
        skip: usize,
    },
    /// Do nothing with the frame, but send [`Director::reply`] back through this interface.
    Reply {
        /// Through this interface.
        ifindex: u32,
        /// With this VLAN tag.
        vlan: Option<u16>,
    },
    /// Nothing for now: a fragment whose first one has not come. The director has a copy; see
    /// [`Director::release`].
    Hold,
    /// Nothing.
    Drop(Reason),
}

/// Why a frame for a virtual server is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not a packet, or one without whole headers.
    Malformed,
    /// Another director is the active one for the address.
    Backup,
    /// It comes from another director, and this host is none of the servers.
    Loop,
    /// No server takes new flows.
    NoServer,
    /// The server's MAC address is not known.
    NoNeighbour,
    /// A later fragment whose first one never came, or for which there was no room.
    Fragment,
    /// It would have been answered, but too much was within this second.
    ReplyLimit,
    /// Larger than the way to the server, and must not be fragmented.
    TooBig,
}

impl Reason {
    /// All of them with their names in metrics.
    pub const ALL: [(Self, &'static str); REASONS] = [
        (Self::Malformed, "malformed"),
        (Self::Backup, "backup"),
        (Self::Loop, "loop"),
        (Self::NoServer, "no_server"),
        (Self::NoNeighbour, "no_neighbour"),
        (Self::Fragment, "fragment"),
        (Self::ReplyLimit, "reply_limit"),
        (Self::TooBig, "too_big"),
    ];

    /// Its place in [`ALL`](Self::ALL).
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Decides about the frames of one CPU.
#[derive(Debug)]
pub struct Director {
    tables: Arc<Tables>,
    core: Core,
}

/// All of a director but the tables, so that both can be borrowed.
#[derive(Debug)]
struct Core {
    index: usize,
    overall: Arc<Overall>,
    flows: FlowTable,
    ticks: Ticks,
    fragments: Fragments,
    foreseen: Foreseen,
    head: Vec<u8>,
    reply: Vec<u8>,
    released: Vec<u8>,
    /// The second in which `begun` flows began to be remembered and `replies` were sent.
    second: u64,
    begun: u32,
    replies: u32,
    /// When `judge` last forgot flows.
    swept: u32,
}

/// A packet for a virtual address on its way through the decision.
struct Seen {
    view: View,
    packet: Packet,
    now: u64,
}

impl Director {
    /// The director with this index (from 0, below the number the registry was made with) and room
    /// for so many flows.
    #[must_use]
    pub fn new(index: usize, tables: Arc<Tables>, flows_max: u32) -> Self {
        let core = Core {
            index,
            overall: tables.overall.get(index).map(Arc::clone).unwrap_or_default(),
            flows: FlowTable::new(usize::try_from(flows_max).unwrap_or(usize::MAX)),
            ticks: Ticks::new(&tables.timeouts),
            fragments: Fragments::default(),
            foreseen: Foreseen::default(),
            head: Vec::new(),
            reply: Vec::new(),
            released: Vec::new(),
            second: 0,
            begun: 0,
            replies: 0,
            swept: 0,
        };
        Self { tables, core }
    }

    /// Decides by other tables from now on.
    pub fn swap(&mut self, tables: Arc<Tables>) {
        self.core.ticks = Ticks::new(&tables.timeouts);
        self.core.foreseen = Foreseen::default();
        self.tables = tables;
    }

    /// The tables it decides by.
    #[must_use]
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Looks at frames that will be judged soon: memory that the verdicts on them will read is loaded for all of
    /// them at once. This changes no verdict, and neither does leaving it out.
    pub fn foresee<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) {
        let Self { tables, core } = self;
        core.foreseen.look(tables, &core.flows, frames);
    }

    /// The next frame to be judged is the one with this place, from 0, among those that were foreseen.
    pub fn select(&mut self, place: usize) {
        self.core.foreseen.select(place);
    }

    /// Whether this frame is for a virtual server whose servers are reached through a tunnel, which carries packets one by
    /// one.
    #[must_use]
    pub fn tunnels(&self, frame: &[u8]) -> bool {
        let service = || {
            let bytes = frame.get(View::parse(frame)?.payload..)?;
            let packet = Packet::parse(bytes, usize::MAX).ok()?;
            let port = Ports::parse(bytes.get(packet.payload..)?)?.destination;
            let protocol = Protocol::from_number(packet.protocol)?;
            let key = ServiceKey { protocol, address: packet.destination, port };
            self.tables.service(key)
        };
        service().is_some_and(|(_, service)| service.forward != Forward::Dr)
    }

    /// What is to be done with a frame; `now` is any steady clock in milliseconds.
    pub fn judge(&mut self, now: u64, frame: &mut Frame<'_>) -> Verdict {
        let Self { tables, core } = self;
        core.pace(tables, now);
        let verdict = core.decide(tables, frame, now);
        core.count(verdict);
        verdict
    }

    /// A held fragment that may go now, with the verdict on it (Forward, Encapsulate, Local, Pass
    /// or Drop) and its bytes; call until `None` after each batch, and now and then without
    /// traffic.
    pub fn release(&mut self, now: u64) -> Option<(Verdict, &mut [u8])> {
        let Self { tables, core } = self;
        let (fate, held) = core.fragments.release(now)?;
        core.count_fragment(tables, fate, held.length);
        core.released = held.bytes;
        let mut bytes = std::mem::take(&mut core.released);
        let verdict = core.carry_out(tables, fate, &mut bytes, None);
        core.released = bytes;
        core.count(verdict);
        Some((verdict, &mut core.released))
    }

    /// The headers that [`Verdict::Encapsulate`] puts in front.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.core.head
    }

    /// The frame that [`Verdict::Reply`] sends.
    #[must_use]
    pub fn reply(&self) -> &[u8] {
        &self.core.reply
    }

    /// Forgets flows that are over; a bounded piece of work, to be called a few times a second,
    /// also without traffic.
    pub fn expire(&mut self, now: u64) {
        self.core.expire(&self.tables, now, EXPIRE_BUDGET);
        self.core.fragments.expire(now, EXPIRE_BUDGET);
    }

    /// Flows in its table.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.core.flows.len()
    }
}

impl Core {
    /// What is due with time.
    fn pace(&mut self, tables: &Tables, now: u64) {
        if tick(now) != self.swept {
            self.swept = tick(now);
            self.expire(tables, now, JUDGE_BUDGET);
            self.fragments.expire(now, JUDGE_BUDGET);
        }
        if now / 1000 != self.second {
            self.second = now / 1000;
            (self.begun, self.replies) = (0, 0);
        }
    }

    fn expire(&mut self, tables: &Tables, now: u64, budget: usize) {
        let expired = &self.overall.expired;
        self.flows.expire(tick(now), &self.ticks, budget, |gone| {
            expired.increment();
            assign::leave(tables, gone);
        });
        self.overall.flows.set(self.flows.len() as u64);
    }

    fn count(&self, verdict: Verdict) {
        let all = &self.overall;
        match verdict {
            Verdict::Pass => all.passed.increment(),
            Verdict::Local(_) => all.local.increment(),
            Verdict::Forward { .. } => all.forwarded.increment(),
            Verdict::Encapsulate { .. } => all.encapsulated.increment(),
            Verdict::Reply { .. } => all.replied.increment(),
            Verdict::Hold => all.held.increment(),
            Verdict::Drop(reason) => all.dropped[reason.index()].increment(),
        }
    }

    fn decide(&mut self, tables: &Tables, frame: &mut Frame<'_>, now: u64) -> Verdict {
        let Some(view) = View::parse(frame.bytes) else { return Verdict::Pass };
        let ours =
            tables.macs.get(&frame.ifindex).is_some_and(|own| own.contains(&view.destination));
        let version = match view.ether_type {
            ethernet::IPV4 => 4,
            ethernet::IPV6 => 6,
            _ => return Verdict::Pass,
        };
        // A tag that only has a priority (VLAN 0) is the interface's own.
        let of_vlan = frame.vlan.is_some_and(|control| control & 0xfff != 0)
            && tables.trunks.contains(&frame.ifindex);
        if !ours || of_vlan {
            return Verdict::Pass;
        }
        let bytes = frame.bytes.get(view.payload..).unwrap_or_default();
        let wire = frame.length.saturating_sub(view.payload);
        let Ok(packet) = Packet::parse(bytes, wire) else {
            return self.malformed(tables, version, bytes);
        };
        if !tables.vips.contains(&packet.destination) {
            return Verdict::Pass;
        }
        if packet.destination.is_ipv4() != (version == 4) {
            return Verdict::Drop(Reason::Malformed);
        }
        let payload = bytes.get(packet.payload..).unwrap_or_default();
        let seen = Seen { view, packet, now };
        let Some(datagram) = Datagram::of(&packet) else {
            if matches!(packet.protocol, ip::ICMP | ip::ICMPV6) {
                let about = icmp::quoted(packet.protocol, payload);
                return self.related(tables, &seen, about, frame);
            }
            let decision = self.judge_packet(tables, &seen, payload);
            return self.finish(tables, decision, frame, &seen);
        };
        if packet.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return self.later_fragment(tables, datagram, frame, &seen);
        }
        let decision = self.judge_packet(tables, &seen, payload);
        let fate = match decision {
            Decision::Fate(fate) => fate,
            // The rest of a segment that is answered with a reset.
            Decision::Reset => Fate::Drop(Reason::NoServer),
        };
        self.fragments.learn(datagram, fate, now);
        self.finish(tables, decision, frame, &seen)
    }

    /// Not a packet; counted if it was meant for a virtual address.
    fn malformed(&self, tables: &Tables, version: u8, bytes: &[u8]) -> Verdict {
        let destination = match version {
            4 => bytes.get(16..20).and_then(|b| b.first_chunk::<4>()).map(|b| (*b).into()),
            _ => bytes.get(24..40).and_then(|b| b.first_chunk::<16>()).map(|b| (*b).into()),
        };
        match destination.is_some_and(|address| tables.vips.contains(&address)) {
            true => Verdict::Drop(Reason::Malformed),
            false => Verdict::Pass,
        }
    }

    /// A whole packet or a first fragment: which server, or why none.
    fn judge_packet(&mut self, tables: &Tables, seen: &Seen, payload: &[u8]) -> Decision {
        let packet = &seen.packet;
        let Some(protocol) = Protocol::from_number(packet.protocol) else {
            return Decision::Fate(Fate::Pass);
        };
        let Some(ports) = Ports::parse(payload) else {
            return Decision::Fate(Fate::Drop(Reason::Malformed));
        };
        let key = ServiceKey { protocol, address: packet.destination, port: ports.destination };
        let Some((slot, service)) = tables.service(key) else {
            return Decision::Fate(Fate::Pass);
        };
        let Some(kind) = Kind::of(protocol, payload) else {
            return self.refuse(service, Reason::Malformed);
        };
        let tuple = Tuple {
            client: packet.source,
            client_port: ports.source,
            address: packet.destination,
            port: ports.destination,
            protocol: packet.protocol,
        };
        let local = service.local.and_then(|slot| tables.occupant(slot));
        if tables.peers.contains(&seen.view.source) {
            return match local {
                Some(server) => self.to(service, server, packet.length),
                None => self.refuse(service, Reason::Loop),
            };
        }
        if !service.active {
            // What no director sent came by somebody's stale neighbour table; and a flow that was ours and went to
            // another server must not meet our own.
            let elsewhere = tables.peers_known
                || self
                    .remembered(tables, slot, &tuple, seen.now)
                    .is_some_and(|server| server.path != Path::Local);
            return match local.filter(|_| !elsewhere) {
                Some(server) => self.to(service, server, packet.length),
                None => self.refuse(service, Reason::Backup),
            };
        }
        match self.assign(tables, (slot, service), &tuple, kind, seen.now) {
            Choice::To(server) if server.path == Path::Unknown => {
                self.refuse(service, Reason::NoNeighbour)
            }
            Choice::To(server) => self.to(service, server, packet.length),
            Choice::Reset => {
                self.count_packet(service, None, packet.length);
                Decision::Reset
            }
            Choice::Nobody => self.refuse(service, Reason::NoServer),
        }
    }

    fn to(&self, service: &Service, server: &Server, length: usize) -> Decision {
        self.count_packet(service, Some(server), length);
        Decision::Fate(Fate::To(server.id))
    }

    fn refuse(&self, service: &Service, reason: Reason) -> Decision {
        if let Some(traffic) = service.figures.traffic(self.index) {
            traffic.dropped[reason.index()].increment();
        }
        Decision::Fate(Fate::Drop(reason))
    }

    fn count_packet(&self, service: &Service, server: Option<&Server>, bytes: usize) {
        for figures in [Some(&service.figures), server.map(|server| &server.figures)] {
            if let Some(traffic) = figures.and_then(|figures| figures.traffic(self.index)) {
                traffic.packets.increment();
                traffic.bytes.add(bytes as u64);
            }
        }
    }

    /// An ICMP error goes to the server of the flow that it is about; all else is the kernel's.
    fn related(
        &mut self,
        tables: &Tables,
        seen: &Seen,
        about: Option<Quoted>,
        frame: &mut Frame<'_>,
    ) -> Verdict {
        let packet = &seen.packet;
        let Some(about) = about else { return Verdict::Pass };
        let Some(protocol) = Protocol::from_number(about.packet.protocol) else {
            return Verdict::Pass;
        };
        // The packet it is about was a server's answer, from the virtual address.
        let address = about.packet.source;
        let key = ServiceKey { protocol, address, port: about.ports.source };
        let Some((slot, service)) = tables.service(key) else { return Verdict::Pass };
        if address != packet.destination
            || !service.active
            || tables.peers.contains(&seen.view.source)
        {
            return Verdict::Pass;
        }
        let tuple = Tuple {
            client: about.packet.destination,
            client_port: about.ports.destination,
            address,
            port: about.ports.source,
            protocol: about.packet.protocol,
        };
        let server = self.remembered(tables, slot, &tuple, seen.now).or_else(|| {
            service.stateless(tables.seed, &tuple).and_then(|slot| tables.occupant(slot))
        });
        // The kernel has its copy, which nothing silences.
        let Some(server) = server.filter(|server| server.path != Path::Local) else {
            return Verdict::Pass;
        };
        let (length, id) = (packet.length, server.id);
        self.count_packet(service, Some(server), length);
        self.carry_out(tables, Fate::To(id), frame.bytes, None)
    }

    fn later_fragment(
        &mut self,
        tables: &Tables,
        datagram: Datagram,
        frame: &mut Frame<'_>,
        seen: &Seen,
    ) -> Verdict {
        let length = seen.packet.length;
        if let Some(fate) = self.fragments.fate(&datagram, seen.now) {
            self.count_fragment(tables, fate, length);
            return self.carry_out(tables, fate, frame.bytes, None);
        }
        if frame.bytes.len() < frame.length {
            // A copy of a part would be no use.
            return Verdict::Drop(Reason::Fragment);
        }
        let held = Held { bytes: frame.bytes.to_vec(), length };
        match self.fragments.hold(datagram, held, seen.now) {
            true => Verdict::Hold,
            false => Verdict::Drop(Reason::Fragment),
        }
    }

    fn count_fragment(&self, tables: &Tables, fate: Fate, length: usize) {
        let Fate::To(id) = fate else { return };
        let Some(server) = tables.server(id) else { return };
        let service = tables.services.get(usize::from(server.service)).and_then(Option::as_ref);
        if let Some(service) = service {
            self.count_packet(service, Some(server), length);
        }
    }

    fn finish(
        &mut self,
        tables: &Tables,
        decision: Decision,
        frame: &mut Frame<'_>,
        seen: &Seen,
    ) -> Verdict {
        match decision {
            Decision::Fate(fate) => {
                let origin = Some((frame.ifindex, frame.vlan));
                self.carry_out(tables, fate, frame.bytes, origin)
            }
            Decision::Reset if self.replies >= REPLIES_MAX => Verdict::Drop(Reason::ReplyLimit),
            Decision::Reset => {
                let payload = seen.view.payload;
                match reply::reset(frame.bytes, payload, &seen.packet, &mut self.reply) {
                    Some(()) => {
                        self.replies += 1;
                        Verdict::Reply { ifindex: frame.ifindex, vlan: frame.vlan }
                    }
                    None => Verdict::Drop(Reason::NoServer),
                }
            }
        }
    }
}

/// What is decided about a packet with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Fate(Fate),
    /// Answer with a reset.
    Reset,
}

#[cfg(test)]
mod tests;
