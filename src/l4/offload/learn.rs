//! Flows that the packet socket forwards, told to the program.

use std::sync::Arc;

use crate::balance::siphash::Key;
use crate::l4::config::Protocol;
use crate::l4::hash::Tuple;
use crate::l4::tables::ServerId;
use crate::packet::xdp::layout::{Flow, FlowKey, State};
use crate::packet::xdp::{FlowTable, clock};
use crate::protocol::ip::Packet;
use crate::protocol::transport::{Ports, Sctp, TcpFlags};
use crate::protocol::{ethernet, ip};

/// Flows that are told in one go at most.
const BATCH: usize = 256;
/// Flows of which one frame was seen.
const SEEN: usize = 1 << 14;

/// Collects flows on one director's thread.
///
/// A flow is told when its second frame in the middle comes: one that is over after a question and an answer
/// is not worth an entry, and a flood of SYNs makes none.
#[derive(Debug)]
pub struct Learner {
    table: Arc<FlowTable>,
    seen: Box<[u32]>,
    pending: Vec<(FlowKey, Flow)>,
}

impl Learner {
    /// For a program's flows.
    #[must_use]
    pub fn new(table: Arc<FlowTable>) -> Self {
        Self { table, seen: vec![0; SEEN].into(), pending: Vec::with_capacity(BATCH) }
    }

    /// Takes note of a frame, and of the server that it was forwarded to if it was; `headers` is its beginning.
    pub fn judged(&mut self, headers: &[u8], server: Option<ServerId>) {
        let Some(frame) = Seen::parse(headers) else { return };
        let hash = frame.tuple.hash(Key(0, 0));
        let [a, b, c, d, e, f, ..] = hash.to_le_bytes();
        let place = usize::from(u16::from_le_bytes([e, f])) % SEEN;
        let mark = u32::from_le_bytes([a, b, c, d]);
        let Some(seen) = self.seen.get_mut(place) else { return };
        let known = *seen == mark;
        match (frame.stage, server) {
            (Stage::Middle, Some(server)) if frame.plain => {
                *seen = mark;
                if known {
                    self.learn(frame.key(), server);
                }
            }
            // The program forgets the flow when it sees this; but it does not see what is behind options or a tag of
            // priority, and what is on its way to it must not outlive this.
            (Stage::Beginning, _) => {
                *seen = 0;
                let key = frame.key();
                self.pending.retain(|(other, _)| *other != key);
                // It fails only for keys of a wrong length.
                let _ = self.table.forget(&key);
            }
            _ => {}
        }
    }

    fn learn(&mut self, key: FlowKey, server: ServerId) {
        let now = clock();
        let flow = Flow {
            slot: server.slot,
            generation: server.generation,
            state: State::Established,
            seen: now,
            shown: now,
        };
        self.pending.push((key, flow));
        if self.pending.len() == BATCH {
            self.flush();
        }
    }

    /// Tells what was collected; to be called after each batch of frames.
    pub fn flush(&mut self) {
        if !self.pending.is_empty() {
            // What is not told goes up again, and is told then.
            let _ = self.table.remember(&self.pending);
            self.pending.clear();
        }
    }
}

/// Where in its flow a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Beginning,
    Middle,
    End,
}

/// A frame of a flow.
#[derive(Debug)]
struct Seen {
    tuple: Tuple,
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
        let ports = Ports::parse(payload)?;
        let stage = match Protocol::from_number(packet.protocol)? {
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
        Some(Self { tuple, stage, plain })
    }

    fn key(&self) -> FlowKey {
        FlowKey {
            source: (self.tuple.client, self.tuple.client_port),
            destination: (self.tuple.address, self.tuple.port),
            protocol: self.tuple.protocol,
        }
    }
}
