//! Flows that somebody else remembers too: asked for, and told.

use super::{Director, assign};
use crate::l4::config::{Protocol, ServiceKey};
use crate::l4::flow::{Gone, State, tick};
use crate::l4::hash::Tuple;
use crate::l4::tables::ServerId;

impl Director {
    /// Server and state of a flow that is remembered and not over.
    pub(in crate::l4) fn flow(&self, tuple: &Tuple, now: u64) -> Option<(ServerId, State)> {
        let at = self.find(tuple)?.1?;
        if self.core.flows.is_over(at, tick(now), &self.core.ticks) {
            return None;
        }
        self.core.flows.get(at).map(|flow| (flow.server, flow.state))
    }

    /// Remembers a flow as it is said to be, whatever was known of it. Nothing happens when the server is gone or
    /// there is no room.
    pub(in crate::l4) fn set_flow(
        &mut self,
        tuple: &Tuple,
        (id, state): (ServerId, State),
        now: u64,
    ) {
        let Some((slot, known)) = self.find(tuple) else { return };
        let Self { tables, core } = self;
        let Some(server) = tables.server(id) else { return };
        let now = tick(now);
        if let Some((at, before)) = known.and_then(|at| Some((at, *core.flows.get(at)?))) {
            core.flows.touch(at, now);
            if (before.server, before.state) != (id, state) {
                assign::leave(tables, Gone { server: before.server, state: before.state });
                server.figures.load.enter(state.is_established());
                core.flows.change(at, id, state, now);
            }
            return;
        }
        let (hash, key) = (tuple.hash(tables.seed), assign::key(slot, tuple));
        let (at, gone) = core.flows.insert(hash, &key, (id, state), now, &core.ticks);
        if let Some(gone) = gone {
            core.overall.evicted.increment();
            assign::leave(tables, gone);
        }
        if at.is_some() {
            server.figures.load.enter(state.is_established());
            core.overall.flows.set(core.flows.len() as u64);
        }
    }

    /// The slot of a flow's virtual server, and the flow's place in the table.
    fn find(&self, tuple: &Tuple) -> Option<(u16, Option<u32>)> {
        let protocol = Protocol::from_number(tuple.protocol)?;
        let key = ServiceKey { protocol, address: tuple.address, port: tuple.port };
        let (slot, _) = self.tables.service(key)?;
        let hash = tuple.hash(self.tables.seed);
        Some((slot, self.core.flows.find(hash, &assign::key(slot, tuple))))
    }
}
