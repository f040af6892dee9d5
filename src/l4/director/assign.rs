//! Which server a packet's flow has, or gets.

use super::Core;
use crate::l4::config::{OnServerDown, Protocol};
use crate::l4::flow::{Flow, Gone, Key, State, tick};
use crate::l4::hash::{Tuple, network};
use crate::l4::schedule;
use crate::l4::tables::{Condition, Path, Server, ServerId, Service, Tables};
use crate::protocol::transport::{Sctp, TcpFlags};
use std::net::IpAddr;

/// What a packet is to its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tcp(TcpFlags),
    Udp,
    Sctp(Sctp),
}

impl Kind {
    /// `None` if the packet is cut off.
    pub(super) fn of(protocol: Protocol, payload: &[u8]) -> Option<Self> {
        Some(match protocol {
            Protocol::Tcp => Self::Tcp(TcpFlags::parse(payload)?),
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp(Sctp::parse(payload)?),
        })
    }

    /// Asks for a new connection.
    fn opens(self) -> bool {
        match self {
            Self::Tcp(flags) => flags.opens(),
            Self::Udp => false,
            Self::Sctp(chunk) => chunk == Sctp::Init,
        }
    }

    /// Ends its flow, so that it is no use to remember one for it.
    fn ends(self) -> bool {
        match self {
            Self::Tcp(flags) => flags.rst(),
            Self::Udp => false,
            Self::Sctp(chunk) => chunk == Sctp::End,
        }
    }

    /// The state of a flow of which this is the first packet seen.
    fn first(self) -> State {
        match self {
            Self::Udp => State::Udp,
            _ if self.opens() => State::Opening,
            Self::Tcp(flags) if flags.fin() => State::Closing,
            Self::Sctp(Sctp::Shutdown) => State::Closing,
            _ => State::Adopted,
        }
    }

    /// The state after this packet.
    fn next(self, before: State) -> State {
        if self.ends() {
            return State::Closed;
        }
        match (before, self) {
            (State::Closed | State::Closing, _) => before,
            (State::Opening, _) if self.opens() => before,
            (_, Self::Udp) => State::Udp,
            (_, Self::Tcp(flags)) if flags.fin() => State::Closing,
            (_, Self::Tcp(_)) => State::Established,
            (_, Self::Sctp(Sctp::Shutdown)) => State::Closing,
            (_, Self::Sctp(_)) => State::Sctp,
        }
    }
}

/// Where a packet goes.
pub(super) enum Choice<'t> {
    To(&'t Server),
    /// The flow's server is gone, and the client is to learn of it.
    Reset,
    /// No server takes it.
    Nobody,
}

/// Gives back what a flow held of its server's figures.
pub(super) fn leave(tables: &Tables, gone: Gone) {
    if let Some(server) = tables.server(gone.server) {
        server.figures.load.leave(gone.state.is_established());
    }
}

pub(super) fn key(slot: u16, tuple: &Tuple) -> Key {
    let client = match tuple.client {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    Key { client, service: slot, port: tuple.port, client_port: tuple.client_port }
}

impl Core {
    /// The server of a flow that is in the table and not over.
    pub(super) fn remembered<'t>(
        &self,
        tables: &'t Tables,
        slot: u16,
        tuple: &Tuple,
        now: u64,
    ) -> Option<&'t Server> {
        let at = self.flows.find(tuple.hash(tables.seed), &key(slot, tuple))?;
        if self.flows.is_over(at, tick(now), &self.ticks) {
            return None;
        }
        tables.server(self.flows.get(at)?.server)
    }

    /// The server for a packet; takes the flow in, moves it, or changes its state.
    pub(super) fn assign<'t>(
        &mut self,
        tables: &'t Tables,
        (slot, service): (u16, &Service),
        tuple: &Tuple,
        kind: Kind,
        now: u64,
    ) -> Choice<'t> {
        if service.one_packet {
            let server = schedule::pick(tables, service, tuple);
            server.inspect(|server| self.count_flow(service, server));
            return server.map_or(Choice::Nobody, Choice::To);
        }
        let hash = tuple.hash(tables.seed);
        let key = key(slot, tuple);
        let flow = Begin { service, tuple, hash, key, kind, now };
        let Some(at) = self.flows.find(hash, &key) else { return self.begin(tables, &flow) };
        match self.known(tables, at, &flow) {
            Known::Stays(server) => Choice::To(server),
            Known::Reset => {
                self.forget(tables, at);
                Choice::Reset
            }
            Known::Over => {
                self.forget(tables, at);
                self.begin(tables, &flow)
            }
            Known::Lost => self.move_on(tables, at, &flow),
        }
    }

    /// A packet of a flow that is in the table.
    fn known<'t>(&mut self, tables: &'t Tables, at: u32, begin: &Begin<'_>) -> Known<'t> {
        let now = tick(begin.now);
        let flow = match self.flows.get(at) {
            Some(flow) if !self.flows.is_over(at, now, &self.ticks) => *flow,
            _ => return Known::Over,
        };
        let Some(server) = tables.server(flow.server) else { return Known::Over };
        let down = matches!(server.condition, Condition::Down | Condition::Removed);
        if begin.kind.opens() {
            // Never lost with what was before: neither the packet nor the time.
            let finished = matches!(flow.state, State::Closing | State::Closed);
            let stuck = flow.state == State::Opening && server.path == Path::Unknown;
            if finished || stuck || down {
                return Known::Over;
            }
        } else if down {
            match (begin.service.on_server_down, begin.kind) {
                (OnServerDown::Drain, _) => {}
                (OnServerDown::Reset, Kind::Tcp(flags)) if !flags.rst() => return Known::Reset,
                _ => return Known::Lost,
            }
        }
        self.flows.touch(at, now);
        self.step(server, at, &flow, begin.kind.next(flow.state), now);
        Known::Stays(server)
    }

    /// Changes a flow's state, and what it counts as.
    fn step(&mut self, server: &Server, at: u32, flow: &Flow, state: State, now: u32) {
        if state == flow.state {
            return;
        }
        let (before, after) = (flow.state.is_established(), state.is_established());
        if before != after {
            server.figures.load.leave(before);
            server.figures.load.enter(after);
        }
        self.flows.change(at, server.id, state, now);
    }

    /// A flow whose server is gone goes to another.
    fn move_on<'t>(&mut self, tables: &'t Tables, at: u32, begin: &Begin<'_>) -> Choice<'t> {
        let Some(server) = self.pick(tables, begin) else { return Choice::Nobody };
        let Some(flow) = self.flows.get(at).copied() else { return Choice::Nobody };
        let state = begin.kind.next(flow.state);
        leave(tables, Gone { server: flow.server, state: flow.state });
        server.figures.load.enter(state.is_established());
        self.flows.touch(at, tick(begin.now));
        self.flows.change(at, server.id, state, tick(begin.now));
        self.overall.rescheduled.increment();
        self.count_flow(begin.service, server);
        Choice::To(server)
    }

    /// The first packet of a flow that nobody remembers.
    fn begin<'t>(&mut self, tables: &'t Tables, begin: &Begin<'_>) -> Choice<'t> {
        let stateless = || {
            let slot = begin.service.stateless_at(tables.seed, begin.tuple, begin.hash);
            slot.and_then(|slot| tables.occupant(slot))
        };
        let limit = tables.new_flows_per_second;
        let limited = limit > 0 && self.begun >= limit;
        let new = begin.kind.opens() || begin.kind == Kind::Udp;
        // What began before we knew of it can only be where the hash puts it.
        let server = if new && !limited { self.pick(tables, begin) } else { stateless() };
        let Some(server) = server else { return Choice::Nobody };
        if begin.kind.ends() {
            return Choice::To(server);
        }
        if limited || !self.remember(tables, begin, server.id) {
            self.overall.stateless.increment();
            let server = if limited { Some(server) } else { stateless() };
            return server.map_or(Choice::Nobody, Choice::To);
        }
        self.begun += 1;
        server.figures.load.enter(begin.kind.first().is_established());
        self.count_flow(begin.service, server);
        if !new {
            self.overall.adopted.increment();
        }
        Choice::To(server)
    }

    /// Takes a flow into the table; false if there is no room.
    fn remember(&mut self, tables: &Tables, begin: &Begin<'_>, server: ServerId) -> bool {
        let now = tick(begin.now);
        let entry = (server, begin.kind.first());
        let (at, gone) = self.flows.insert(begin.hash, &begin.key, entry, now, &self.ticks);
        if let Some(gone) = gone {
            self.overall.evicted.increment();
            leave(tables, gone);
        }
        self.overall.flows.set(self.flows.len() as u64);
        at.is_some()
    }

    /// By persistence or the scheduler.
    fn pick<'t>(&mut self, tables: &'t Tables, begin: &Begin<'_>) -> Option<&'t Server> {
        let Begin { service, tuple, now, .. } = *begin;
        let Some((persistence, templates)) = service.persistence.zip(service.templates.as_ref())
        else {
            return schedule::pick(tables, service, tuple);
        };
        let client = network(tuple.client, persistence.prefix);
        let earlier = templates.find(client, now).and_then(|id| tables.server(id));
        let takes = |server: &&Server| {
            server.condition == Condition::Up
                && server.path != Path::Unknown
                && service.available.contains(&server.id.slot)
        };
        let server = earlier.filter(takes).or_else(|| schedule::pick(tables, service, tuple))?;
        let timeout = u64::try_from(persistence.timeout.as_millis()).unwrap_or(u64::MAX);
        if !templates.store(client, server.id, now, now.saturating_add(timeout)) {
            self.overall.unremembered_clients.increment();
        }
        Some(server)
    }

    fn forget(&mut self, tables: &Tables, at: u32) {
        if let Some(gone) = self.flows.remove(at) {
            leave(tables, gone);
        }
    }

    fn count_flow(&self, service: &Service, server: &Server) {
        for figures in [&service.figures, &server.figures] {
            if let Some(traffic) = figures.traffic(self.index) {
                traffic.flows.increment();
            }
        }
    }
}

/// A packet and its flow.
struct Begin<'a> {
    service: &'a Service,
    tuple: &'a Tuple,
    hash: u64,
    key: Key,
    kind: Kind,
    now: u64,
}

enum Known<'t> {
    Stays(&'t Server),
    Reset,
    /// To be treated as if it were not there.
    Over,
    /// Its server is gone.
    Lost,
}
