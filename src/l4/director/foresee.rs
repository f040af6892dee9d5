//! What can be done for frames before their turn. A lookup waits for memory, and one after the other each wait is
//! paid in full; for the frames of a batch together, the waits overlap. So all are looked at first, one step of
//! the lookup at a time: each step only touches what the step before has begun to load.

use crate::balance::siphash::Key;
use crate::l4::flow::FlowTable;
use crate::l4::hash::Tuple;
use crate::l4::tables::Tables;
use crate::protocol::ethernet::View;
use crate::protocol::ip::Packet;
use crate::protocol::transport::Ports;
use crate::sys::memory::prefetch;

/// The flow that a frame seems to be of.
#[derive(Debug, Clone, Copy)]
struct Hint {
    tuple: Tuple,
    hash: u64,
}

/// What is known of the frames of a batch.
#[derive(Debug, Default)]
pub(super) struct Foreseen {
    hints: Vec<Option<Hint>>,
    selected: usize,
}

impl Foreseen {
    /// Looks at the frames of a new batch.
    pub(super) fn look<'a>(
        &mut self,
        tables: &Tables,
        flows: &FlowTable,
        frames: impl Iterator<Item = &'a [u8]>,
    ) {
        self.selected = usize::MAX;
        self.hints.clear();
        self.hints.extend(frames.map(|frame| {
            let tuple = tuple(frame)?;
            let hash = tuple.hash(tables.seed);
            flows.prefetch_bucket(hash);
            Some(Hint { tuple, hash })
        }));
        for hint in self.hints.iter().flatten() {
            flows.prefetch_flow(hint.hash);
        }
        for hint in self.hints.iter().flatten() {
            let server = flows.peek(hint.hash);
            if let Some(server) = server.and_then(|id| tables.servers.get(usize::from(id.slot))) {
                prefetch(server);
            }
        }
    }

    pub(super) fn select(&mut self, place: usize) {
        self.selected = place;
    }

    /// A tuple's hash, which may be known already.
    pub(super) fn hash(&self, seed: Key, tuple: &Tuple) -> u64 {
        match self.hints.get(self.selected) {
            Some(Some(hint)) if hint.tuple == *tuple => hint.hash,
            _ => tuple.hash(seed),
        }
    }
}

/// As the verdict will read it from a whole packet.
fn tuple(frame: &[u8]) -> Option<Tuple> {
    let view = View::parse(frame)?;
    let bytes = frame.get(view.payload..)?;
    let packet = Packet::parse(bytes, bytes.len()).ok()?;
    if packet.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return None;
    }
    let ports = Ports::parse(bytes.get(packet.payload..)?)?;
    Some(Tuple {
        client: packet.source,
        client_port: ports.source,
        address: packet.destination,
        port: ports.destination,
        protocol: packet.protocol,
    })
}
