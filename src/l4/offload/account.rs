//! The program's counters, which know slots only, as figures of whoever is in a slot.

use std::collections::HashMap;

use super::tables::{schedules, timeouts, units};
use crate::l4::config::OnServerDown;
use crate::l4::figures::Figures;
use crate::l4::tables::{Condition, Server, Tables};
use crate::packet::xdp::layout::{Flow, State};
use crate::packet::xdp::{FastPath, Totals, clock};

/// A server's flows in the program.
struct Slot {
    generation: u16,
    timeouts: [u32; 4],
    /// Whether the packet socket does not know them.
    alone: bool,
    /// Whether they go to others anyway, wherever the hash says.
    void: bool,
    /// Established, and others.
    flows: [u32; 2],
}

impl Slot {
    /// Counts a flow, unless it is over or of an earlier server: then false.
    fn count(&mut self, flow: Flow, now: u32) -> bool {
        let rested = now.wrapping_sub(flow.seen);
        // More than half of the clock's range is a moment ago by another CPU's clock.
        let timeout = self.timeouts.get(flow.state as usize).copied().unwrap_or_default();
        let over = rested >= timeout && rested < 1 << 31;
        let lives = flow.generation == self.generation && !over && !self.void;
        self.flows[usize::from(flow.state != State::Established)] += u32::from(lives);
        lives
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

    /// Counts the flows that only the program knows, for the views and for servers that are to keep theirs. With `tidy`, flows
    /// that are over, or whose server is gone, make room.
    pub(super) fn count_flows(fast: &FastPath, tables: &Tables, tidy: bool) {
        let slot = |one: &Server| {
            let service = tables.services.get(usize::from(one.service))?.as_ref()?;
            let timeouts = timeouts(&tables.timeouts, service.key.protocol).map(units);
            let alone = schedules(tables, service);
            let void = alone
                && one.condition == Condition::Removed
                && service.on_server_down == OnServerDown::Reschedule;
            Some(Slot { generation: one.id.generation, timeouts, alone, void, flows: [0; 2] })
        };
        let mut slots: Vec<Option<Slot>> =
            tables.servers.iter().map(|one| one.as_ref().and_then(slot)).collect();
        let now = clock();
        fast.flows().retain(|_, flow| {
            let slot = slots.get_mut(usize::from(flow.slot)).and_then(Option::as_mut);
            slot.is_some_and(|slot| slot.count(flow, now)) || !tidy
        });
        for one in tables.servers.iter().flatten() {
            let slot = slots.get(usize::from(one.id.slot)).and_then(Option::as_ref);
            if let Some(slot) = slot.filter(|slot| slot.alone) {
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
