//! The program's counters, which know slots only, as figures of whoever is in a slot.

use std::collections::HashMap;

use super::tables::{schedules, timeouts, units};
use crate::l4::figures::Figures;
use crate::l4::tables::Tables;
use crate::packet::xdp::layout::{Flow, State};
use crate::packet::xdp::{FastPath, Totals, clock};

/// A server's flows in the program.
struct Slot {
    generation: u16,
    timeouts: [u32; 4],
    /// Established, and others.
    flows: [u32; 2],
}

impl Slot {
    fn count(&mut self, flow: Flow, now: u32) {
        let rested = now.wrapping_sub(flow.seen);
        // More than half of the clock's range is a moment ago by another CPU's clock.
        let timeout = self.timeouts.get(flow.state as usize).copied().unwrap_or_default();
        let over = rested >= timeout && rested < 1 << 31;
        if flow.generation == self.generation && !over {
            self.flows[usize::from(flow.state != State::Established)] += 1;
        }
    }
}

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

    /// Counts the flows that only the program knows, for the views and for servers that are to keep theirs.
    pub(super) fn count_flows(fast: &FastPath, tables: &Tables) {
        let mut slots: Vec<Option<Slot>> = tables.servers.iter().map(|_| None).collect();
        for one in tables.servers.iter().flatten() {
            let service = tables.services.get(usize::from(one.service)).and_then(Option::as_ref);
            let Some(service) = service.filter(|service| schedules(tables, service)) else {
                continue;
            };
            let timeouts = timeouts(&tables.timeouts, service.key.protocol).map(units);
            if let Some(slot) = slots.get_mut(usize::from(one.id.slot)) {
                *slot = Some(Slot { generation: one.id.generation, timeouts, flows: [0; 2] });
            }
        }
        if slots.iter().all(Option::is_none) {
            return;
        }
        let now = clock();
        let counted = fast.flows().for_each_flow(|_, flow| {
            let slot = slots.get_mut(usize::from(flow.slot)).and_then(Option::as_mut);
            if let Some(slot) = slot {
                slot.count(flow, now);
            }
        });
        if counted.is_err() {
            // The old figures are better than a part of them.
            return;
        }
        for one in tables.servers.iter().flatten() {
            if let Some(Some(slot)) = slots.get(usize::from(one.id.slot)) {
                one.figures.load.set_offloaded(slot.flows[0], slot.flows[1]);
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
