//! The program's counters, which know slots only, as figures of whoever is in a slot.

use std::collections::HashMap;

use crate::l4::figures::Figures;
use crate::l4::tables::Tables;
use crate::packet::xdp::{FastPath, Totals};

/// What was already added to figures.
#[derive(Debug)]
pub(super) struct Account {
    writer: usize,
    settled: HashMap<u16, Totals>,
    forwarded: u64,
}

impl Account {
    pub(super) fn new(writer: usize) -> Self {
        Self { writer, settled: HashMap::new(), forwarded: 0 }
    }

    /// Frames forwarded by the program, as of the last time.
    pub(super) fn forwarded(&self) -> u64 {
        self.forwarded
    }

    /// Adds what came since the last time. Before a slot gets another occupant this has to be called with the
    /// tables that have the old one.
    pub(super) fn settle(&mut self, fast: &FastPath, tables: &Tables) {
        for server in tables.servers.iter().flatten() {
            let slot = server.id.slot;
            let Ok(now) = fast.totals(slot) else { continue };
            let before = self.settled.insert(slot, now).unwrap_or_default();
            let new = Totals {
                packets: now.packets.wrapping_sub(before.packets),
                bytes: now.bytes.wrapping_sub(before.bytes),
                flows: now.flows.wrapping_sub(before.flows),
            };
            if new == Totals::default() {
                continue;
            }
            self.forwarded = self.forwarded.wrapping_add(new.packets);
            self.add(&server.figures, new);
            let service = tables.services.get(usize::from(server.service));
            if let Some(service) = service.and_then(Option::as_ref) {
                self.add(&service.figures, new);
            }
        }
    }

    fn add(&self, figures: &Figures, new: Totals) {
        if let Some(traffic) = figures.traffic(self.writer) {
            traffic.packets.add(new.packets);
            traffic.bytes.add(new.bytes);
            traffic.flows.add(new.flows);
        }
    }
}
