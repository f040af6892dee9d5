//! The flow table of one director: bounded, without locks, 60 bytes a flow at most.
//!
//! Entries are found by buckets of one cache line, half full when the table is: each word of a bucket has an entry's
//! number and, in the bits that are left, some of its hash, so that hardly ever another flow's entry is
//! looked at. What a packet touches is the bucket and the entry (32 bytes); the links (20 bytes) are touched only where a
//! bucket is full and where a flow changes its state. Each state has a queue in which flows wait to be looked at: a quarter of
//! the state's timeout after they were queued they are forgotten if over, and queued again if not.
//! So no packet moves a queue, and a flow is forgotten at most a quarter late; a packet that finds
//! an entry which is over treats it as gone.

use std::time::Duration;

use super::config::Timeouts;
use super::tables::ServerId;
use crate::sys::memory::{prefer_huge_pages, prefetch};

/// Of [`Flow::seen`] and all times here: `now` in milliseconds shifted by this, 128 ms.
const TICK_SHIFT: u32 = 7;
/// Words of a bucket: a cache line.
const WORDS: usize = 16;
/// Entries that a bucket names; its last word begins the chain of those that found no room.
const WAYS: usize = WORDS - 1;
/// Entries to a bucket when the table is full: with a mean of 8, fewer than 1 % of buckets have more than 15.
const SHARE: usize = 8;
/// Entries of a queue that making room looks at.
const VICTIMS: usize = 8;
const NONE: u32 = u32::MAX;

/// What a flow is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// The client's address; IPv4 mapped.
    pub(super) client: u128,
    /// Slot of the virtual server.
    pub(super) service: u16,
    /// Port that the client asked for.
    pub(super) port: u16,
    /// The client's port.
    pub(super) client_port: u16,
}

/// What a flow is doing, as far as the client's half shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// SYN or INIT, and nothing since.
    Opening,
    /// TCP: the client has answered the server.
    Established,
    /// The client has ended its direction.
    Closing,
    /// Over.
    Closed,
    /// UDP.
    Udp,
    /// SCTP, as `Established`.
    Sctp,
    /// Began elsewhere: a single packet of it was seen. A second one makes it established.
    Adopted,
}

const STATES: usize = 7;

/// Who makes room for others first, and how long such a flow must have been silent: a part of its
/// timeout (0: not at all).
const VICTIMS_ORDER: [(State, u32); STATES] = [
    (State::Closed, 0),
    (State::Opening, 0),
    (State::Adopted, 0),
    (State::Closing, 16),
    (State::Udp, 8),
    (State::Sctp, 8),
    (State::Established, 8),
];

impl State {
    pub(super) const ALL: [Self; STATES] = [
        Self::Opening,
        Self::Established,
        Self::Closing,
        Self::Closed,
        Self::Udp,
        Self::Sctp,
        Self::Adopted,
    ];

    /// Counts as `ActiveConn`.
    pub(super) const fn is_established(self) -> bool {
        matches!(self, Self::Established | Self::Sctp)
    }
}

/// A flow: half a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
pub(super) struct Flow {
    client: [u64; 2],
    pub(super) server: ServerId,
    seen: u32,
    pub(super) service: u16,
    port: u16,
    client_port: u16,
    pub(super) state: State,
    live: bool,
}

#[derive(Debug, Clone, Copy)]
struct Links {
    /// The next that found no room in the same bucket, or the next free one.
    chain: u32,
    prev: u32,
    next: u32,
    queued: u32,
    hash: u32,
}

/// What a flow takes, with its share of the buckets.
#[cfg(test)]
pub(super) const BYTES: usize =
    size_of::<Flow>() + size_of::<Links>() + size_of::<[u32; WORDS]>() / SHARE;

#[derive(Debug, Clone, Copy)]
struct Queue {
    first: u32,
    last: u32,
}

/// How each state's flows time out, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticks([u32; STATES]);

impl Ticks {
    pub(super) fn new(timeouts: &Timeouts) -> Self {
        let ticks = |time: Duration| {
            u32::try_from(time.as_millis() >> TICK_SHIFT).unwrap_or(u32::MAX / 2).max(1)
        };
        let mut all = [0; STATES];
        for (state, time) in [
            (State::Opening, timeouts.tcp_syn),
            (State::Established, timeouts.tcp),
            (State::Closing, timeouts.tcp_fin),
            (State::Closed, timeouts.closed),
            (State::Udp, timeouts.udp),
            (State::Sctp, timeouts.sctp),
            (State::Adopted, timeouts.tcp),
        ] {
            all[state as usize] = ticks(time);
        }
        Self(all)
    }

    fn of(&self, state: State) -> u32 {
        self.0[state as usize]
    }
}

/// A flow that left the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gone {
    pub(super) server: ServerId,
    pub(super) state: State,
}

/// A flow on its way to another process's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) key: Key,
    pub(super) server: ServerId,
    pub(super) state: State,
    /// Ticks since its last packet.
    pub(super) rested: u32,
}

/// Flows by key.
#[derive(Debug)]
pub(super) struct FlowTable {
    /// Buckets, and in front as many words as it takes to begin with a cache line.
    words: Vec<u32>,
    begin: usize,
    buckets: usize,
    /// Bits of a bucket's word that are an entry's number and one; above them are as many of its hash as fit.
    bits: u32,
    flows: Vec<Flow>,
    links: Vec<Links>,
    capacity: usize,
    free: u32,
    live: usize,
    queues: [Queue; STATES],
    /// The state whose queue is looked at next.
    turn: usize,
}

/// `now` as the table counts it.
pub(super) fn tick(now: u64) -> u32 {
    // Wraps after 17 years; differences are taken modulo that.
    u32::try_from((now >> TICK_SHIFT) & u64::from(u32::MAX)).unwrap_or_default()
}

/// Ticks from `then` to `now`; none if the clock has gone backwards.
fn since(now: u32, then: u32) -> u32 {
    Some(now.wrapping_sub(then)).filter(|ticks| *ticks < 1 << 31).unwrap_or_default()
}

impl FlowTable {
    /// For so many flows. Addresses are reserved for all of them, so that nothing is ever moved; the kernel
    /// gives memory as they come.
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 30);
        let buckets = capacity.div_ceil(SHARE);
        let words = vec![0; (buckets + 1) * WORDS];
        let mut table = Self {
            begin: words.as_ptr().align_offset(size_of::<[u32; WORDS]>()).min(WORDS),
            words,
            buckets,
            bits: usize::BITS - capacity.leading_zeros(),
            flows: Vec::with_capacity(capacity),
            links: Vec::with_capacity(capacity),
            capacity,
            free: NONE,
            live: 0,
            queues: [Queue { first: NONE, last: NONE }; STATES],
            turn: 0,
        };
        prefer_huge_pages(&table.words);
        prefer_huge_pages(table.flows.spare_capacity_mut());
        prefer_huge_pages(table.links.spare_capacity_mut());
        table
    }

    /// Starts to load where the search for a flow begins.
    pub(super) fn prefetch_bucket(&self, hash: u64) {
        prefetch(self.bucket(low(hash)));
    }

    /// Starts to load the flow with this hash; its bucket should be there by now.
    pub(super) fn prefetch_flow(&self, hash: u64) {
        for at in self.named(low(hash)) {
            if let Some(flow) = self.flows.get(at as usize) {
                prefetch(flow);
            }
        }
    }

    /// The server of the flow that seems to have this hash.
    pub(super) fn peek(&self, hash: u64) -> Option<ServerId> {
        let at = self.named(low(hash)).next()?;
        Some(self.flows.get(at as usize)?.server)
    }

    /// Flows in the table, those included that are over but not yet forgotten.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// The flow with this key, over or not.
    pub(super) fn find(&self, hash: u64, key: &Key) -> Option<u32> {
        let is = |at: u32| {
            self.flows.get(at as usize).is_some_and(|flow| {
                flow.client == halves(key.client)
                    && flow.client_port == key.client_port
                    && (flow.service, flow.port) == (key.service, key.port)
            })
        };
        if let Some(at) = self.named(low(hash)).find(|at| is(*at)) {
            return Some(at);
        }
        let mut at = self.bucket(low(hash))[WAYS].wrapping_sub(1);
        // A chain has no loop; the bound is against a bug that would make one.
        for _ in 0..=self.live {
            let links = self.links.get(at as usize)?;
            if is(at) {
                return Some(at);
            }
            at = links.chain;
        }
        None
    }

    pub(super) fn get(&self, at: u32) -> Option<&Flow> {
        self.flows.get(at as usize).filter(|flow| flow.live)
    }

    pub(super) fn is_over(&self, at: u32, now: u32, ticks: &Ticks) -> bool {
        self.get(at).is_none_or(|flow| since(now, flow.seen) >= ticks.of(flow.state))
    }

    /// A packet of it was seen.
    pub(super) fn touch(&mut self, at: u32, now: u32) {
        if let Some(flow) = self.flows.get_mut(at as usize)
            && flow.seen != now
        {
            flow.seen = now;
        }
    }

    /// Its last packet was so long ago.
    pub(super) fn rest(&mut self, at: u32, now: u32, rested: u32) {
        if let Some(flow) = self.flows.get_mut(at as usize) {
            flow.seen = now.wrapping_sub(rested);
        }
    }

    /// Places that flows are, or were, in.
    pub(super) fn places(&self) -> u32 {
        u32::try_from(self.flows.len()).unwrap_or(NONE)
    }

    /// The flow in a place, unless it is over; with `since`, only if a packet of it was seen from then on. Whatever is
    /// changed about a flow, a packet of it was seen then.
    pub(super) fn passed(
        &self,
        at: u32,
        now: u32,
        ticks: &Ticks,
        from: Option<u32>,
    ) -> Option<Passed> {
        let flow = self.get(at)?;
        let rested = since(now, flow.seen);
        if rested >= ticks.of(flow.state) || from.is_some_and(|from| rested > since(now, from)) {
            return None;
        }
        let [high, low] = flow.client.map(u128::from);
        let key = Key {
            client: high << 64 | low,
            service: flow.service,
            port: flow.port,
            client_port: flow.client_port,
        };
        Some(Passed { key, server: flow.server, state: flow.state, rested })
    }

    /// Changes state and server; the caller has to account for both.
    pub(super) fn change(&mut self, at: u32, server: ServerId, state: State, now: u32) {
        let Some(flow) = self.flows.get_mut(at as usize) else { return };
        flow.server = server;
        let before = std::mem::replace(&mut flow.state, state);
        if before != state {
            self.unqueue(at, before);
            self.queue(at, state, now);
        }
    }

    /// Takes a flow in; the key must not be there. `gone` is what had to leave for it; `None` in
    /// place of an index if nobody could.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: &Key,
        (server, state): (ServerId, State),
        now: u32,
        ticks: &Ticks,
    ) -> (Option<u32>, Option<Gone>) {
        let mut gone = None;
        if self.live >= self.capacity {
            gone = self.make_room(now, ticks);
            if gone.is_none() {
                return (None, None);
            }
        }
        let flow = Flow {
            client: halves(key.client),
            server,
            seen: now,
            service: key.service,
            port: key.port,
            client_port: key.client_port,
            state,
            live: true,
        };
        let links = Links { chain: NONE, prev: NONE, next: NONE, queued: now, hash: low(hash) };
        let at = self.place(flow, links);
        self.chain(at, low(hash));
        self.queue(at, state, now);
        self.live += 1;
        (Some(at), gone)
    }

    /// Looks at up to `budget` flows whose turn it is; those that are over leave.
    pub(super) fn expire(
        &mut self,
        now: u32,
        ticks: &Ticks,
        budget: usize,
        mut gone: impl FnMut(Gone),
    ) {
        let mut idle = 0;
        for _ in 0..budget {
            if idle == STATES {
                return;
            }
            let queue = self.turn;
            let at = self.queues[queue].first;
            let timeout = ticks.0[queue];
            let waits = |links: &Links| since(now, links.queued) < timeout.div_ceil(4);
            if self.links.get(at as usize).is_none_or(waits) {
                self.turn = (queue + 1) % STATES;
                idle += 1;
                continue;
            }
            idle = 0;
            if self.is_over(at, now, ticks) {
                self.remove(at).into_iter().for_each(&mut gone);
            } else {
                self.requeue(at, now);
            }
        }
    }

    /// Takes a flow out.
    pub(super) fn remove(&mut self, at: u32) -> Option<Gone> {
        let flow = *self.get(at)?;
        let links = *self.links.get(at as usize)?;
        self.unqueue(at, flow.state);
        self.unchain(at, links);
        if let (Some(flow), Some(links)) =
            (self.flows.get_mut(at as usize), self.links.get_mut(at as usize))
        {
            flow.live = false;
            // No packet finds it: no client is `::` at port 0 of service 65535.
            flow.client = [0; 2];
            flow.service = u16::MAX;
            links.chain = self.free;
        }
        self.free = at;
        self.live -= 1;
        Some(Gone { server: flow.server, state: flow.state })
    }

    /// Takes out the one that is missed least: never a flow that is established and not idle.
    fn make_room(&mut self, now: u32, ticks: &Ticks) -> Option<Gone> {
        for (state, part) in VICTIMS_ORDER {
            let silent = ticks.of(state).checked_div(part).unwrap_or_default();
            for _ in 0..VICTIMS {
                let at = self.queues[state as usize].first;
                let Some(flow) = self.get(at) else { break };
                if since(now, flow.seen) >= silent {
                    return self.remove(at);
                }
                self.requeue(at, now);
            }
        }
        None
    }

    fn place(&mut self, flow: Flow, links: Links) -> u32 {
        let at = self.free;
        if let (Some(free), Some(its)) =
            (self.flows.get_mut(at as usize), self.links.get_mut(at as usize))
        {
            self.free = its.chain;
            (*free, *its) = (flow, links);
            return at;
        }
        self.flows.push(flow);
        self.links.push(links);
        // Below the capacity, which is below 2^32.
        u32::try_from(self.flows.len() - 1).unwrap_or(NONE)
    }

    /// Where the entries with this hash are named.
    fn bucket(&self, hash: u32) -> &[u32; WORDS] {
        const NO_BUCKET: [u32; WORDS] = [0; WORDS];
        let begin = self.bucket_begin(hash);
        self.words.get(begin..).and_then(<[u32]>::first_chunk).unwrap_or(&NO_BUCKET)
    }

    fn bucket_mut(&mut self, hash: u32) -> Option<&mut [u32; WORDS]> {
        let begin = self.bucket_begin(hash);
        self.words.get_mut(begin..)?.first_chunk_mut()
    }

    /// By the hash's high bits; its low ones tell the entries of a bucket apart.
    fn bucket_begin(&self, hash: u32) -> usize {
        let number = (u64::from(hash) * self.buckets as u64) >> 32;
        // Below the number of buckets, which is a usize.
        self.begin + usize::try_from(number).unwrap_or_default() * WORDS
    }

    /// Entries that a bucket names with what of the hash has room there.
    fn named(&self, hash: u32) -> impl Iterator<Item = u32> + use<> {
        let tag = hash.unbounded_shl(self.bits);
        let mask = 1_u32.unbounded_shl(self.bits).wrapping_sub(1);
        let [words @ .., _] = *self.bucket(hash);
        let mut found = 0_u32;
        // Without branches: one in 2,000 of the others looks the same.
        for (way, word) in words.iter().enumerate() {
            let alike = (word ^ tag) & !mask == 0 && *word & mask != 0;
            found |= u32::from(alike) << way;
        }
        std::iter::from_fn(move || {
            let way = usize::try_from(found.trailing_zeros()).ok()?;
            let word = words.get(way)?;
            found &= found.wrapping_sub(1);
            Some((word & mask).wrapping_sub(1))
        })
    }

    /// What a bucket's word says of an entry: its number and one (zero is none, so that untouched memory is an
    /// empty table), and what has room of its hash.
    fn word(&self, at: u32, hash: u32) -> u32 {
        hash.unbounded_shl(self.bits) | at.wrapping_add(1)
    }

    /// Enters an entry where its hash leads.
    fn chain(&mut self, at: u32, hash: u32) {
        let word = self.word(at, hash);
        let Some(bucket) = self.bucket_mut(hash) else { return };
        if let Some(free) = bucket[..WAYS].iter_mut().find(|word| **word == 0) {
            *free = word;
            return;
        }
        let behind = std::mem::replace(&mut bucket[WAYS], at.wrapping_add(1)).wrapping_sub(1);
        if let Some(links) = self.links.get_mut(at as usize) {
            links.chain = behind;
        }
    }

    fn unchain(&mut self, at: u32, links: Links) {
        let word = self.word(at, links.hash);
        let Some(bucket) = self.bucket_mut(links.hash) else { return };
        let first = bucket[WAYS].wrapping_sub(1);
        if let Some(named) = bucket[..WAYS].iter_mut().find(|one| **one == word) {
            *named = 0;
            // One that had found no room takes the place.
            if let Some(waits) = self.links.get(first as usize).copied() {
                self.set_overflow(links.hash, waits.chain);
                self.chain(first, waits.hash);
            }
            return;
        }
        if first == at {
            self.set_overflow(links.hash, links.chain);
            return;
        }
        let mut before = first;
        for _ in 0..=self.live {
            let Some(one) = self.links.get_mut(before as usize) else { return };
            if one.chain == at {
                one.chain = links.chain;
                return;
            }
            before = one.chain;
        }
    }

    fn set_overflow(&mut self, hash: u32, at: u32) {
        if let Some(bucket) = self.bucket_mut(hash) {
            bucket[WAYS] = at.wrapping_add(1);
        }
    }

    fn queue(&mut self, at: u32, state: State, now: u32) {
        let queue = &mut self.queues[state as usize];
        let last = std::mem::replace(&mut queue.last, at);
        if queue.first == NONE {
            queue.first = at;
        }
        if let Some(before) = self.links.get_mut(last as usize) {
            before.next = at;
        }
        if let Some(links) = self.links.get_mut(at as usize) {
            (links.prev, links.next, links.queued) = (last, NONE, now);
        }
    }

    fn unqueue(&mut self, at: u32, state: State) {
        let Some(Links { prev, next, .. }) = self.links.get(at as usize).copied() else { return };
        match self.links.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.queues[state as usize].first = next,
        }
        match self.links.get_mut(next as usize) {
            Some(after) => after.prev = prev,
            None => self.queues[state as usize].last = prev,
        }
    }

    fn requeue(&mut self, at: u32, now: u32) {
        if let Some(state) = self.get(at).map(|flow| flow.state) {
            self.unqueue(at, state);
            self.queue(at, state, now);
        }
    }
}

fn low(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).unwrap_or_default()
}

fn halves(client: u128) -> [u64; 2] {
    let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    [half(client >> 64), half(client)]
}

#[cfg(test)]
mod tests;
