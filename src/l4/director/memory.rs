//! Flows that somebody else remembers too: asked for, told, and taken over.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::Range;

use super::{Core, Director, assign};
use crate::l4::config::{Protocol, ServiceKey};
use crate::l4::flow::{Gone, Passed, State, tick};
use crate::l4::hash::Tuple;
use crate::l4::tables::{ServerId, Tables};

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
    pub(in crate::l4) fn set_flow(&mut self, tuple: &Tuple, entry: (ServerId, State), now: u64) {
        let Some((slot, known)) = self.find(tuple) else { return };
        let Self { tables, core } = self;
        core.set_flow(tables, slot, tuple, (entry, known), tick(now));
    }

    /// Takes over a flow of another process, whose slots are ours too. False when its virtual server or its server is
    /// gone, or there is no room.
    pub(in crate::l4) fn take_over(&mut self, passed: &Passed, now: u64) -> bool {
        let Self { tables, core } = self;
        let Passed { key, server, state, rested } = *passed;
        let service = tables.services.get(usize::from(key.service)).and_then(Option::as_ref);
        let of = tables.server(server).map(|server| server.service);
        let Some(service) = service.filter(|_| of == Some(key.service)) else { return false };
        let client = Ipv6Addr::from_bits(key.client);
        let tuple = Tuple {
            client: match service.key.address {
                IpAddr::V4(_) => client.to_canonical(),
                IpAddr::V6(_) => client.into(),
            },
            client_port: key.client_port,
            address: service.key.address,
            port: key.port,
            protocol: service.key.protocol.number(),
        };
        let (now, known) = (tick(now), core.flows.find(tuple.hash(tables.seed), &key));
        let at = core.set_flow(tables, key.service, &tuple, ((server, state), known), now);
        at.inspect(|at| core.flows.rest(*at, now, rested)).is_some()
    }

    /// Its place among directors.
    pub(in crate::l4) fn index(&self) -> usize {
        self.core.index
    }

    /// How many places flows are in: [`Director::pass_on`] takes a part of them.
    pub(in crate::l4) fn places(&self) -> u32 {
        self.core.flows.places()
    }

    /// Hands the flows in these places to `each`, for another process; with `from`, those of which a packet was seen
    /// from that time on.
    pub(in crate::l4) fn pass_on(
        &self,
        places: Range<u32>,
        from: Option<u64>,
        now: u64,
        each: impl FnMut(Passed),
    ) {
        let (now, from) = (tick(now), from.map(tick));
        let passed = |at| self.core.flows.passed(at, now, &self.core.ticks, from);
        places.filter_map(passed).for_each(each);
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

impl Core {
    fn set_flow(
        &mut self,
        tables: &Tables,
        slot: u16,
        tuple: &Tuple,
        ((id, state), known): ((ServerId, State), Option<u32>),
        now: u32,
    ) -> Option<u32> {
        let server = tables.server(id)?;
        if let Some((at, before)) = known.and_then(|at| Some((at, *self.flows.get(at)?))) {
            self.flows.touch(at, now);
            if (before.server, before.state) != (id, state) {
                assign::leave(tables, Gone { server: before.server, state: before.state });
                server.figures.load.enter(state.is_established());
                self.flows.change(at, id, state, now);
            }
            return Some(at);
        }
        let (hash, key) = (tuple.hash(tables.seed), assign::key(slot, tuple));
        let (at, gone) = self.flows.insert(hash, &key, (id, state), now, &self.ticks);
        if let Some(gone) = gone {
            self.overall.evicted.increment();
            assign::leave(tables, gone);
        }
        if at.is_some() {
            server.figures.load.enter(state.is_established());
            self.overall.flows.set(self.flows.len() as u64);
        }
        at
    }
}
