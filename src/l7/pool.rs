//! One shard's side of an upstream: who is next, and the idle connections kept.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use crate::balance::hash::mix;
use crate::balance::{InFlight, Scheduler, Tried, View};
use crate::l7::channel::Channel;
use crate::l7::config::Upstream;
use crate::l7::exchange::Exchange;
use crate::l7::http2::Http2Stream;
use crate::l7::http2::client::Connections;
use crate::l7::input::Input;
use crate::l7::metrics::{ServerMetrics, UpstreamMetrics};
use crate::l7::upstream::{Endpoint, Member, MemberSet, SharedUpstream};

use crate::ring::timer::Millis;

/// Requests between two visits to the shared retry budget.
const BUDGET_BATCH: u32 = 32;

const REPORT_MS: u64 = 10_000;

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    /// What it goes through.
    pub stream: Channel,
    /// Received and not consumed.
    pub input: Input,
    /// When it was opened.
    opened: Millis,
    /// Requests it has carried.
    requests: u32,
}

impl Connection {
    /// A fresh one.
    #[must_use]
    pub fn new(stream: Channel, now: Millis) -> Self {
        Self { stream, input: Input::default(), opened: now, requests: 0 }
    }

    /// A stream of a connection that has carried others before, or not.
    #[must_use]
    pub fn of_stream(stream: Http2Stream, reused: bool, now: Millis) -> Self {
        let requests = u32::from(reused);
        Self { stream: Channel::Stream(stream), input: Input::default(), opened: now, requests }
    }

    /// True when it has carried a request before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.requests > 0
    }
}

/// One shard's view of a member set.
#[derive(Debug)]
struct Local {
    set: Arc<MemberSet>,
    scheduler: RefCell<Scheduler>,
    idle: Vec<RefCell<VecDeque<(Millis, Connection)>>>,
    /// Connections that speak HTTP/2, by member.
    http2: Vec<Rc<Connections>>,
}

/// One shard's side of one upstream.
#[derive(Debug)]
pub struct Pool {
    /// What the shards share.
    pub upstream: Arc<SharedUpstream>,
    local: RefCell<Rc<Local>>,
    shard: usize,
    seed: u64,
    /// Idle connections this shard may keep.
    idle_max: usize,
    idle: Cell<usize>,
    /// Requests not yet counted in the budget.
    uncounted: Cell<u32>,
    /// When the last report of a kind that could flood the log was made.
    reported: Cell<Option<Millis>>,
    replaced: Cell<bool>,
}

/// The right to send one request to a member; counts as in flight until dropped.
#[derive(Debug)]
pub struct Lease {
    local: Rc<Local>,
    index: usize,
    shard: usize,
}

impl Lease {
    /// The member.
    #[must_use]
    pub fn member(&self) -> &Member {
        &self.local.set.members[self.index]
    }

    /// Its index, for [`Tried`].
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// This shard's figures of the member.
    #[must_use]
    pub fn metrics(&self) -> &ServerMetrics {
        &self.member().metrics[self.shard]
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.member().in_flight.release();
    }
}

/// A place among the requests or connects of an upstream; given back when dropped.
#[derive(Debug)]
pub struct Place<'a>(Option<&'a InFlight>);

impl<'a> Place<'a> {
    /// `None` when `max` are taken; nothing is counted when it is 0.
    fn take(count: &'a InFlight, max: u32) -> Option<Self> {
        if max == 0 {
            return Some(Self(None));
        }
        count.try_acquire(max).then(|| Self(Some(count)))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.0 {
            count.release();
        }
    }
}

/// The place of a request that became a tunnel: taken for as long as that lasts.
#[derive(Debug)]
pub struct Kept(Option<Arc<InFlight>>);

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.release();
        }
    }
}

struct Health<'a> {
    upstream: &'a SharedUpstream,
    set: &'a MemberSet,
    now: Millis,
    /// The same for all questions of one pick: of the key, or of the request.
    dice: u64,
    /// Members in their slow start get whatever comes.
    whole: bool,
    /// A member was passed over because of its slow start.
    held_back: Cell<bool>,
}

impl Health<'_> {
    /// For a member that something is in the way of.
    #[cold]
    fn lets_in(&self, index: usize, member: &Member) -> bool {
        if self.upstream.is_panicking() {
            return true;
        }
        let share = member.gate.share(self.now, millis(self.upstream.config.slow_start));
        if share == 0 || share >= 100 || self.whole {
            return share > 0;
        }
        let drawn = mix(self.dice ^ mix(index as u64)) % 100 < share;
        if !drawn {
            self.held_back.set(true);
        }
        drawn
    }
}

impl View for Health<'_> {
    fn available(&self, member: usize) -> bool {
        let index = member;
        self.set.members.get(member).is_some_and(|member| {
            let config = &member.config;
            let full = member.in_flight.is_full(config.max_conns);
            let open = member.gate.is_open() || self.lets_in(index, member);
            open && !config.down && !full && member.passive.available(self.now)
        })
    }

    fn in_flight(&self, member: usize) -> u32 {
        self.set.members.get(member).map_or(u32::MAX, |member| member.in_flight.count())
    }
}

impl Pool {
    /// The side of shard number `shard` of `shards`.
    #[must_use]
    pub fn new(
        upstream: Arc<SharedUpstream>,
        set: Arc<MemberSet>,
        shard: usize,
        shards: usize,
        seed: u64,
    ) -> Self {
        let idle_max = idle_max(&upstream, shards);
        let local = RefCell::new(Rc::new(Local::new(&upstream, set, seed)));
        Self {
            upstream,
            local,
            shard,
            seed,
            idle_max,
            idle: Cell::new(0),
            uncounted: Cell::new(0),
            reported: Cell::new(None),
            replaced: Cell::new(false),
        }
    }

    /// The upstream's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.upstream.config.name
    }

    /// This shard's figures of the upstream.
    #[must_use]
    pub fn metrics(&self) -> &UpstreamMetrics {
        &self.upstream.metrics[self.shard]
    }

    /// The pool of the same upstream with another configuration. Idle connections to members that are
    /// still there move over, unless they would be made in another way now; the others are closed.
    #[must_use]
    pub fn succeed(
        &self,
        upstream: Arc<SharedUpstream>,
        set: Arc<MemberSet>,
        shards: usize,
    ) -> Self {
        if !connects_alike(&self.upstream.config, &upstream.config) {
            self.clear();
        }
        let new = Self {
            idle_max: idle_max(&upstream, shards),
            idle: Cell::new(self.idle.get()),
            uncounted: Cell::new(self.uncounted.take()),
            reported: Cell::new(self.reported.get()),
            replaced: Cell::new(false),
            local: RefCell::new(Rc::clone(&self.local.borrow())),
            shard: self.shard,
            seed: self.seed,
            upstream,
        };
        new.replace(set);
        self.idle.set(0);
        self.replaced.set(true);
        new
    }

    /// Whether another has succeeded it, and gets its connections.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.replaced.get()
    }

    /// Whether connections of the other, which succeeded it, are made as its own.
    #[must_use]
    pub fn connects_as(&self, other: &Self) -> bool {
        connects_alike(&self.upstream.config, &other.upstream.config)
    }

    /// Takes over a new member set. Requests under way stay with the old one; idle connections to
    /// members that are still there and take requests move over, the others are closed.
    pub fn replace(&self, set: Arc<MemberSet>) {
        let mut new = Local::new(&self.upstream, set, self.seed);
        let old = self.local.borrow();
        let places: HashMap<*const Endpoint, usize> = (old.set.members.iter().enumerate())
            .map(|(place, known)| (Arc::as_ptr(&known.endpoint), place))
            .collect();
        for (index, member) in new.set.members.iter().enumerate() {
            let known = places.get(&Arc::as_ptr(&member.endpoint)).copied();
            // Who takes nothing new needs no idle connections.
            if let Some(known) = known.filter(|_| new.set.weight(index) > 0) {
                new.idle[index].replace(old.idle[known].take());
                new.http2[index] = Rc::clone(&old.http2[known]);
            }
        }
        for (index, idle) in old.idle.iter().enumerate() {
            let closed = idle.take().len();
            self.idle.set(self.idle.get() - closed);
            if closed > 0 {
                old.set.members[index].metrics[self.shard].idle.set(0);
            }
        }
        let kept: HashSet<_> = new.http2.iter().map(Rc::as_ptr).collect();
        for connections in old.http2.iter().filter(|one| !kept.contains(&Rc::as_ptr(one))) {
            connections.clear();
        }
        drop(old);
        self.local.replace(Rc::new(new));
    }

    /// The members now.
    #[must_use]
    pub fn set(&self) -> Arc<MemberSet> {
        Arc::clone(&self.local.borrow().set)
    }

    /// Counts a request for the retry budget. The shared count is touched once in
    /// 32 requests, or when the budget is asked.
    pub fn count_request(&self, now: Millis) {
        self.uncounted.set(self.uncounted.get() + 1);
        if self.uncounted.get() >= BUDGET_BATCH {
            self.upstream.budget.requests(now, self.uncounted.take());
        }
    }

    /// True once in ten seconds: for reports that every request could cause.
    #[must_use]
    pub fn may_report(&self, now: Millis) -> bool {
        let due = self.reported.get().is_none_or(|last| now.saturating_sub(last) >= REPORT_MS);
        if due {
            self.reported.set(Some(now));
        }
        due
    }

    /// Asks the budget for a retry.
    #[must_use]
    pub fn may_retry(&self, now: Millis) -> bool {
        self.upstream.budget.requests(now, self.uncounted.take());
        self.upstream.budget.try_retry(now, self.upstream.config.retry.budget_percent)
    }

    /// A place among the requests being served; `None` at `breaker.max_in_flight`.
    #[must_use]
    pub fn admit(&self) -> Option<Place<'_>> {
        Place::take(&self.upstream.in_flight, self.upstream.config.breaker.max_in_flight)
    }

    /// Keeps a place of [`Pool::admit`] beyond the request.
    #[must_use]
    pub fn keep(&self, mut place: Place<'_>) -> Kept {
        // What was taken is given back by the other one.
        Kept(place.0.take().map(|_| Arc::clone(&self.upstream.in_flight)))
    }

    /// A place among the connections being opened; `None` at `breaker.max_pending`.
    #[must_use]
    pub fn admit_connect(&self) -> Option<Place<'_>> {
        Place::take(&self.upstream.pending, self.upstream.config.breaker.max_pending)
    }

    /// Chooses a member; `None` when nobody is available that was not tried.
    #[must_use]
    pub fn lease(&self, key: u64, tried: &mut Tried, now: Millis) -> Option<Lease> {
        let local = Rc::clone(&self.local.borrow());
        let upstream = &*self.upstream;
        let dice = if key == 0 { now << 8 | u64::from(self.uncounted.get()) } else { key };
        let held_back = Cell::new(false);
        let mut view = Health { upstream, set: &local.set, now, dice, whole: false, held_back };
        loop {
            let index = match local.scheduler.borrow_mut().pick(&view, key, tried) {
                // Better a member in its slow start than nobody.
                None if view.held_back.get() && !view.whole => {
                    view.whole = true;
                    continue;
                }
                picked => picked?,
            };
            let member = local.set.members.get(index)?;
            let fail_timeout = millis(member.config.fail_timeout);
            if member.in_flight.try_acquire(member.config.max_conns) {
                let lease = Lease { local: Rc::clone(&local), index, shard: self.shard };
                if lease.member().passive.admit(now, fail_timeout) {
                    return Some(lease);
                }
            }
            // Another shard was faster: it took the last place, or the probe.
            tried.insert(index);
        }
    }

    /// An idle connection to the leased member that is still good, and how many the server turned
    /// out to have closed.
    #[must_use]
    pub fn take(&self, lease: &Lease, now: Millis) -> (Option<Connection>, usize) {
        let mut stale = 0;
        let mut idle = lease.local.idle[lease.index].borrow_mut();
        let mut found = None;
        while let Some((since, connection)) = idle.pop_back() {
            self.idle.set(self.idle.get() - 1);
            if connection.stream.is_quiet() && !self.is_over_age(&connection, since, now) {
                found = Some(connection);
                break;
            }
            stale += usize::from(!connection.stream.is_quiet());
        }
        lease.metrics().idle.set(idle.len() as u64);
        (found, stale)
    }

    fn is_over_age(&self, connection: &Connection, since: Millis, now: Millis) -> bool {
        let config = &self.upstream.config;
        now.saturating_sub(since) > millis(config.keepalive_timeout)
            || now.saturating_sub(connection.opened) > millis(config.keepalive_time)
    }

    /// Keeps a connection for the next request, or closes it when it may not be kept.
    pub fn put(&self, lease: &Lease, mut connection: Connection, now: Millis) {
        connection.requests += 1;
        let worn = connection.requests >= self.upstream.config.keepalive_requests
            || now.saturating_sub(connection.opened) > millis(self.upstream.config.keepalive_time)
            || connection.stream.transport().is_nearly_worn();
        let current = self.local.borrow();
        // After a change of members the lease may be of an older set: look the member up again.
        let index = if Rc::ptr_eq(&current, &lease.local) {
            Some(lease.index)
        } else {
            let member = &lease.local.set.members[lease.index];
            current.set.members.iter().position(|known| known.is_same_endpoint(member))
        };
        let index = index.filter(|index| current.set.weight(*index) > 0);
        let usable = connection.input.is_empty() && connection.stream.is_quiet();
        let Some(index) = index.filter(|_| usable && !worn && self.idle_max > 0) else { return };
        connection.stream.end_bulk();
        connection.stream.watch();
        let mut idle = current.idle[index].borrow_mut();
        if self.idle.get() >= self.idle_max {
            // The oldest of this member makes room; if it has none, others keep theirs.
            if idle.pop_front().is_none() {
                return;
            }
            self.idle.set(self.idle.get() - 1);
        }
        idle.push_back((now, connection));
        self.idle.set(self.idle.get() + 1);
        current.set.members[index].metrics[self.shard].idle.set(idle.len() as u64);
    }

    /// Whether a response of this status is one to ask another server for instead: its status is listed in
    /// `on_status`, there are tries and servers left, and the request can be sent again.
    #[must_use]
    pub fn wants_repeated(&self, x: &Exchange, status: u16) -> bool {
        let retry = &self.upstream.config.retry;
        retry.on_status.contains(&status)
            && x.request.framing.is_empty()
            && (x.request.method.is_idempotent() || retry.non_idempotent)
            && x.outcome.tries < retry.tries
            && self.local.borrow().set.members.len() > 1
    }

    /// The HTTP/2 connections to the leased member.
    #[must_use]
    pub fn http2(&self, lease: &Lease) -> Rc<Connections> {
        Rc::clone(&lease.local.http2[lease.index])
    }

    /// Idle connections.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.idle.get()
    }

    /// Closes idle connections that are over their time or that the server has closed; returns how
    /// many of the latter there were.
    pub fn sweep(&self, now: Millis) -> usize {
        let local = Rc::clone(&self.local.borrow());
        let mut stale = 0;
        for (index, idle) in local.idle.iter().enumerate() {
            let mut idle = idle.borrow_mut();
            let before = idle.len();
            idle.retain(|(since, connection)| {
                let quiet = connection.stream.is_quiet();
                stale += usize::from(!quiet);
                quiet && !self.is_over_age(connection, *since, now)
            });
            self.idle.set(self.idle.get() - (before - idle.len()));
            local.set.members[index].metrics[self.shard].idle.set(idle.len() as u64);
        }
        stale
    }

    /// Closes all idle connections.
    pub fn clear(&self) {
        let local = Rc::clone(&self.local.borrow());
        for (idle, member) in local.idle.iter().zip(&local.set.members) {
            idle.borrow_mut().clear();
            member.metrics[self.shard].idle.set(0);
        }
        for connections in &local.http2 {
            connections.clear();
        }
        self.idle.set(0);
    }
}

fn idle_max(upstream: &SharedUpstream, shards: usize) -> usize {
    (upstream.config.keepalive as usize).div_ceil(shards.max(1))
}

/// Whether connections made for the one can serve the other.
fn connects_alike(one: &Upstream, other: &Upstream) -> bool {
    one.http2 == other.http2 && one.proxy_protocol == other.proxy_protocol && one.tls == other.tls
}

impl Local {
    fn new(upstream: &SharedUpstream, set: Arc<MemberSet>, seed: u64) -> Self {
        let scheduler = RefCell::new(set.scheduler(upstream.config.balance, seed));
        let idle = set.members.iter().map(|_| RefCell::default()).collect();
        let http2 = set.members.iter().map(|_| Rc::default()).collect();
        Self { set, scheduler, idle, http2 }
    }
}

/// Whole milliseconds of a duration, which the configuration bounds far below overflow.
#[must_use]
pub fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
