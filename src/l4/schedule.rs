//! Who gets a new flow.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering::Relaxed;

use super::config::Scheduler;
use super::hash::Tuple;
use super::tables::{Server, Service, Tables};

/// Longest order of turns; heavier weights are scaled down to it.
const TURNS_MAX: u64 = 1 << 16;

/// The server for a new flow, by the service's scheduler; `None` when nobody takes one.
pub(super) fn pick<'a>(tables: &'a Tables, service: &Service, tuple: &Tuple) -> Option<&'a Server> {
    match service.scheduler {
        Scheduler::Rr => in_turn(tables, service, &service.available),
        Scheduler::Wrr => in_turn(tables, service, &service.turns),
        Scheduler::Lc => least(tables, service, |server| (overhead(server), 1)),
        Scheduler::Wlc => least(tables, service, |server| (overhead(server), server.weight)),
        Scheduler::Sed => least(tables, service, expected_delay),
        Scheduler::Nq => idle(tables, service).or_else(|| least(tables, service, expected_delay)),
        Scheduler::Sh | Scheduler::Mh => hashed(tables, service, tuple),
    }
}

/// The next in an order that all directors go through together.
fn in_turn<'a>(tables: &'a Tables, service: &Service, order: &[u16]) -> Option<&'a Server> {
    for _ in 0..order.len() {
        let turn = service.figures.cursor.fetch_add(1, Relaxed);
        let server = order.get(turn.checked_rem(order.len())?).and_then(|at| tables.occupant(*at));
        if let Some(server) = server.filter(|server| !is_full(server)) {
            return Some(server);
        }
    }
    None
}

/// The server with the least of a cost over a weight; of equals the one whose turn it is.
fn least<'a>(
    tables: &'a Tables,
    service: &Service,
    cost: impl Fn(&Server) -> (u64, u32),
) -> Option<&'a Server> {
    let count = service.available.len();
    let start = service.figures.cursor.fetch_add(1, Relaxed).checked_rem(count)?;
    let order = service.available.iter().cycle().skip(start).take(count);
    let mut best: Option<(&Server, (u64, u32))> = None;
    for server in order.filter_map(|slot| tables.occupant(*slot)) {
        if is_full(server) {
            continue;
        }
        let one = cost(server);
        let cheaper = |other: (u64, u32)| {
            u128::from(one.0) * u128::from(other.1) < u128::from(other.0) * u128::from(one.1)
        };
        if best.is_none_or(|(_, other)| cheaper(other)) {
            best = Some((server, one));
        }
    }
    best.map(|(server, _)| server)
}

/// The next in turn that has no established flow.
fn idle<'a>(tables: &'a Tables, service: &Service) -> Option<&'a Server> {
    let count = service.available.len();
    let start = service.figures.cursor.load(Relaxed).checked_rem(count)?;
    let order = service.available.iter().cycle().skip(start).take(count);
    let mut servers = order.filter_map(|slot| tables.occupant(*slot));
    let found = servers.find(|server| overhead(server) == 0 && !is_full(server))?;
    service.figures.cursor.fetch_add(1, Relaxed);
    Some(found)
}

/// By the Maglev table; when that server is full, by the places of further hashes, at last
/// whoever is not.
fn hashed<'a>(tables: &'a Tables, service: &Service, tuple: &Tuple) -> Option<&'a Server> {
    let first = service.stateless(tables.seed, tuple).and_then(|slot| tables.occupant(slot));
    let free = |server: &&Server| !is_full(server);
    first.filter(free).or_else(|| {
        let slots = service.available.iter();
        let after = first.map_or(0, |server| server.id.slot);
        let turned = slots.clone().filter(|slot| **slot > after).chain(slots);
        turned.filter_map(|slot| tables.occupant(*slot)).find(free)
    })
}

/// IPVS' measure: an established flow is worth 256 others.
fn overhead(server: &Server) -> u64 {
    let load = &server.figures.load;
    (u64::from(load.active()) << 8) + u64::from(load.inactive())
}

fn expected_delay(server: &Server) -> (u64, u32) {
    (overhead(server) + (1 << 8), server.weight)
}

fn is_full(server: &Server) -> bool {
    server.figures.load.is_full(server.upper, server.lower)
}

/// An order in which each slot comes as often as its weight says, as evenly spread as possible:
/// turn n of a slot is due at (2n + 1) / weight.
pub(super) fn turns(servers: impl Iterator<Item = (u16, u32)> + Clone) -> Vec<u16> {
    let divisor = servers.clone().fold(0, |divisor, (_, weight)| gcd(divisor, weight));
    let total: u64 = servers.clone().map(|(_, weight)| u64::from(weight)).sum();
    let length = total.checked_div(divisor.into()).unwrap_or_default();
    let scaled = |weight: u32| {
        let exact = u64::from(weight / divisor.max(1));
        if length <= TURNS_MAX { exact } else { (exact * TURNS_MAX / length).max(1) }
    };
    let mut due: BinaryHeap<Reverse<Due>> = servers
        .map(|(slot, weight)| Due { turn: 0, weight: scaled(weight), slot })
        .filter(|due| due.weight > 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::new();
    while let Some(mut next) = due.peek_mut() {
        if next.0.turn == next.0.weight {
            break;
        }
        order.push(next.0.slot);
        next.0.turn += 1;
    }
    order
}

#[derive(PartialEq, Eq)]
struct Due {
    turn: u64,
    weight: u64,
    slot: u16,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let at = |a: &Self, b: &Self| (2 * a.turn + 1) * b.weight;
        at(self, other).cmp(&at(other, self)).then(self.slot.cmp(&other.slot))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
