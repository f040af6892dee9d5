//! Flows that the packet socket forwards, told to the program, and those of the program told to it.

use std::sync::Arc;

use super::tables::{schedules, timeouts, units};
use crate::balance::siphash::Key;
use crate::l4::Director;
use crate::l4::config::{Protocol, ServiceKey};
use crate::l4::flow::State;
use crate::l4::hash::Tuple;
use crate::l4::tables::{NO_SLOT, ServerId, Tables};
use crate::packet::xdp::layout::{self, Flow, FlowKey};
use crate::packet::xdp::{FlowTable, clock};
use crate::protocol::ip::Packet;
use crate::protocol::transport::{Ports, Sctp, TcpFlags};
use crate::protocol::{ethernet, icmp, ip};

/// Flows of which one frame was seen.
const SEEN: usize = 1 << 14;
/// After how long the program is told again that a flow lives, in units of its clock: about a second.
const AGAIN: u32 = 1000;
/// No server, in marks.
const NOBODY: ServerId = ServerId { slot: NO_SLOT, generation: 0 };

/// Keeps one director and the program in agreement about flows.
///
/// Flows of services that the program schedules are the program's: before a verdict the director is told what
/// the program knows, and afterwards the program what the director does. Other flows are the director's; one is told
/// when its second frame in the middle comes: one that is over after a question and an answer
/// is not worth an entry, and a flood of SYNs makes none.
#[derive(Debug)]
pub struct Learner {
    /// `None` when there is no program any more.
    table: Option<Arc<FlowTable>>,
    /// What the program before knew, and since when it is gone: flows that only it knew go on from there.
    former: Option<(Arc<FlowTable>, u32)>,
    /// By which `whole` was made.
    tables: Arc<Tables>,
    /// By slot of the virtual server, whether the program schedules.
    whole: Vec<bool>,
    /// Marks of flows, server included; the lowest bit says that a frame in the middle came. As long as a flow's
    /// mark stands, the program knows nothing else of the flow.
    seen: Box<[u32]>,
}

/// A frame between [`Learner::prepare`] and [`Learner::judged`].
#[derive(Debug)]
pub struct Note {
    frame: Seen,
    /// The program schedules the service; and what it knows of the flow.
    whole: Option<Option<Flow>>,
}

impl Learner {
    /// For a program's flows.
    #[must_use]
    pub fn new(table: Arc<FlowTable>) -> Self {
        Self {
            table: Some(table),
            former: None,
            tables: Arc::default(),
            whole: Vec::new(),
            seen: vec![0; SEEN].into(),
        }
    }

    /// Without the program: what it knew is asked for as long as a flow may rest.
    #[must_use]
    pub fn retire(mut self) -> Self {
        if let Some(table) = self.table.take() {
            self.former = Some((table, clock()));
        }
        self
    }

    /// To be called before the verdict on a frame that came up; `headers` is its beginning.
    pub fn prepare(&mut self, director: &mut Director, headers: &[u8], now: u64) -> Option<Note> {
        let frame = Seen::parse(headers)?;
        if !Arc::ptr_eq(&self.tables, director.tables()) {
            self.renew(director.tables());
        }
        let (slot, service) = self.tables.service(frame.service()?)?;
        if service.one_packet {
            return None;
        }
        if !self.whole.get(usize::from(slot)).copied().unwrap_or_default() {
            return Some(Note { frame, whole: None });
        }
        let key = frame.key();
        let known = self.table.as_ref().and_then(|table| table.flow(&key));
        let former = known.is_none() && frame.stage != Stage::Beginning;
        let former = former.then(|| self.remembered_before(director, &frame, now)).flatten();
        if let Some(flow) = known.or(former).filter(|flow| self.lives(slot, frame.protocol, *flow))
        {
            let id = ServerId { slot: flow.slot, generation: flow.generation };
            director.set_flow(&frame.tuple, (id, theirs(flow.state, frame.protocol)), now);
        }
        Some(Note { frame, whole: Some(known) })
    }

    /// What the program before this one knew of a flow that the director does not know.
    fn remembered_before(&self, director: &Director, frame: &Seen, now: u64) -> Option<Flow> {
        let (table, since) = self.former.as_ref()?;
        let rests = timeouts(&self.tables.timeouts, frame.protocol).map(units);
        let long_ago = clock().wrapping_sub(*since) > rests.into_iter().max()?;
        if long_ago || director.flow(&frame.tuple, now).is_some() {
            return None;
        }
        table.flow(&frame.key())
    }

    /// To be called after the verdict, with the server that the frame was forwarded to if it was.
    pub fn judged(&mut self, director: &Director, note: Note, server: Option<ServerId>, now: u64) {
        let Note { frame, whole } = note;
        if frame.stage == Stage::About || self.table.is_none() {
            return;
        }
        let known = director.flow(&frame.tuple, now);
        match whole {
            Some(told) => self.mirror(&frame, told, known),
            None => self.learn(&frame, known.map_or(NOBODY, |(id, _)| id), server),
        }
    }

    /// The program is to know what the director knows.
    fn mirror(&mut self, frame: &Seen, told: Option<Flow>, known: Option<(ServerId, State)>) {
        let Some((id, state)) = known else {
            if told.is_some() {
                self.forget(&frame.key());
            }
            return;
        };
        let flow = flow(id, ours(state));
        let as_told = |told: Flow| {
            let fresh = flow.seen.wrapping_sub(told.seen).cast_signed() < AGAIN.cast_signed();
            fresh
                && (told.slot, told.generation, told.state)
                    == (flow.slot, flow.generation, flow.state)
        };
        if !told.is_some_and(as_told) {
            self.tell(&frame.key(), flow);
        }
    }

    /// A flow that the director schedules. Each frame makes what the program knows of it right or takes it away:
    /// the program does not see what is behind options, a tag of priority or a size above the MTU.
    fn learn(&mut self, frame: &Seen, id: ServerId, server: Option<ServerId>) {
        let hash = frame.tuple.hash(Key(0, 0));
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        let place = usize::from(u16::from_le_bytes([e, f])) % SEEN;
        let occupant = u32::from(id.slot) | u32::from(id.generation) << 16;
        let mark = (u32::from_le_bytes([a, b, c, d]) ^ occupant.rotate_left(8)) | 1;
        let Some(seen) = self.seen.get_mut(place) else { return };
        let before = *seen;
        if frame.stage == Stage::Beginning || before | 1 != mark {
            let middle = u32::from(frame.stage == Stage::Middle && frame.plain);
            *seen = mark & !1 | middle;
            // A question of its own for each SYN, and for the first frame in the middle where a SYN was not seen.
            self.forget(&frame.key());
        } else if frame.stage == Stage::Middle && frame.plain {
            *seen = mark;
            if before == mark && server == Some(id) {
                self.tell(&frame.key(), flow(id, layout::State::Established));
            }
        }
    }

    /// Whether the program would go by what it knows of a flow.
    fn lives(&self, service: u16, protocol: Protocol, flow: Flow) -> bool {
        let id = ServerId { slot: flow.slot, generation: flow.generation };
        let timeouts = timeouts(&self.tables.timeouts, protocol).map(units);
        let timeout = timeouts.get(flow.state as usize).copied().unwrap_or_default();
        let rested = clock().wrapping_sub(flow.seen);
        let over = rested >= timeout && rested < 1 << 31;
        self.tables.server(id).is_some_and(|server| server.service == service) && !over
    }

    fn renew(&mut self, tables: &Arc<Tables>) {
        self.tables = Arc::clone(tables);
        let whole = |service: &Option<_>| {
            service.as_ref().is_some_and(|service| schedules(tables, service))
        };
        self.whole = tables.services.iter().map(whole).collect();
    }

    /// A flow for which the program has no room goes up again, and is told then.
    fn tell(&self, key: &FlowKey, flow: Flow) {
        if let Some(table) = &self.table {
            table.remember(key, flow, flow.seen);
        }
    }

    fn forget(&self, key: &FlowKey) {
        if let Some(table) = &self.table {
            table.forget(key);
        }
    }
}

fn flow(id: ServerId, state: layout::State) -> Flow {
    Flow { slot: id.slot, generation: id.generation, state, seen: clock() }
}

/// A state as the program has it.
fn ours(state: State) -> layout::State {
    match state {
        State::Opening => layout::State::Opening,
        State::Established | State::Udp | State::Sctp | State::Adopted => {
            layout::State::Established
        }
        State::Closing => layout::State::Closing,
        State::Closed => layout::State::Closed,
    }
}

/// A state as the director has it.
fn theirs(state: layout::State, protocol: Protocol) -> State {
    match (protocol, state) {
        (Protocol::Udp, _) => State::Udp,
        (_, layout::State::Opening) => State::Opening,
        (Protocol::Tcp, layout::State::Established) => State::Established,
        (Protocol::Sctp, layout::State::Established) => State::Sctp,
        (_, layout::State::Closing) => State::Closing,
        (_, layout::State::Closed) => State::Closed,
    }
}

/// Where in its flow a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Beginning,
    Middle,
    End,
    /// An error about it.
    About,
}

/// A frame of a flow.
#[derive(Debug)]
struct Seen {
    tuple: Tuple,
    protocol: Protocol,
    stage: Stage,
    /// The program recognises it too: no options, extension headers or fragments.
    plain: bool,
}

impl Seen {
    fn parse(frame: &[u8]) -> Option<Self> {
        let view = ethernet::View::parse(frame)?;
        let bytes = frame.get(view.payload..)?;
        // There may be more on the wire.
        let packet = Packet::parse(bytes, usize::MAX).ok()?;
        let header = if packet.source.is_ipv4() { ip::V4_HEADER } else { ip::V6_HEADER };
        if packet.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return None;
        }
        let payload = bytes.get(packet.payload..)?;
        if matches!(packet.protocol, ip::ICMP | ip::ICMPV6) {
            return Self::about(&icmp::quoted(packet.protocol, payload)?);
        }
        let ports = Ports::parse(payload)?;
        let protocol = Protocol::from_number(packet.protocol)?;
        let stage = match protocol {
            Protocol::Tcp => match TcpFlags::parse(payload)? {
                flags if flags.opens() => Stage::Beginning,
                flags if flags.fin() || flags.rst() => Stage::End,
                _ => Stage::Middle,
            },
            Protocol::Sctp => match Sctp::parse(payload)? {
                Sctp::Init => Stage::Beginning,
                Sctp::End | Sctp::Shutdown => Stage::End,
                Sctp::Other => Stage::Middle,
            },
            Protocol::Udp => Stage::Middle,
        };
        let tuple = Tuple {
            client: packet.source,
            client_port: ports.source,
            address: packet.destination,
            port: ports.destination,
            protocol: packet.protocol,
        };
        let plain = packet.fragment.is_none() && packet.payload == header;
        Some(Self { tuple, protocol, stage, plain })
    }

    /// The flow that an error is about: it quotes a server's answer.
    fn about(quoted: &icmp::Quoted) -> Option<Self> {
        let tuple = Tuple {
            client: quoted.packet.destination,
            client_port: quoted.ports.destination,
            address: quoted.packet.source,
            port: quoted.ports.source,
            protocol: quoted.packet.protocol,
        };
        let protocol = Protocol::from_number(tuple.protocol)?;
        Some(Self { tuple, protocol, stage: Stage::About, plain: false })
    }

    fn service(&self) -> Option<ServiceKey> {
        let Tuple { client, address, port, .. } = self.tuple;
        // An error may quote anything.
        let one_family = client.is_ipv4() == address.is_ipv4();
        one_family.then_some(ServiceKey { protocol: self.protocol, address, port })
    }

    fn key(&self) -> FlowKey {
        FlowKey {
            source: (self.tuple.client, self.tuple.client_port),
            destination: (self.tuple.address, self.tuple.port),
            protocol: self.tuple.protocol,
        }
    }
}

/// The flow of a frame.
#[cfg(test)]
pub(super) fn key_of(frame: &[u8]) -> Option<FlowKey> {
    Seen::parse(frame).map(|seen| seen.key())
}
