//! Upstreams as all shards share them: members with their in-flight counts and passive health.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::balance::hash::hash;
use crate::balance::{
    Gate, InFlight, MaglevTable, Member as Weight, Passive, Policy, RetryBudget, Scheduler, outlier,
};
use crate::counter::Padded;
use crate::l7::config::{Server, ServerAddress, Upstream};
use crate::l7::metrics::ServerMetrics;

/// One address of a server, with everything that must agree across shards.
pub struct Member {
    /// The address.
    pub address: SocketAddr,
    /// The address as text, for logs and metrics.
    pub label: String,
    /// Index into the upstream's servers in the configuration.
    pub server: usize,
    /// What the configuration says of the server.
    pub config: Server,
    /// Requests being served, over all shards.
    pub in_flight: InFlight,
    /// Failures, over all shards.
    pub passive: Passive,
    /// Verdicts of health checks and outlier detection. Changes seldom, so it may share a cache line with what
    /// never does.
    pub gate: Gate,
    /// Figures by shard.
    pub metrics: Box<[Padded<ServerMetrics>]>,
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Member {
    /// Nobody has taken it out: not by hand, not its failures, health checks or outlier detection.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.config.down && !self.passive.is_out() && !self.gate.is_out()
    }

    /// What requests have seen of it, over all shards.
    #[must_use]
    pub fn totals(&self) -> outlier::Totals {
        let mut totals = outlier::Totals::default();
        for shard in &self.metrics {
            let classes = shard.responses.values();
            let (responses, failed) = (
                classes.iter().sum::<u64>(),
                shard.failures.value() + shard.connect_failures.value(),
            );
            totals.requests += responses + failed;
            totals.responses += responses;
            totals.errors += classes[4] + failed;
            totals.latency_ms += shard.response_ms.value();
        }
        totals
    }
}

/// The members of an upstream at one time; replaced as a whole when names resolve anew.
#[derive(Debug)]
pub struct MemberSet {
    /// Members in the order of the configuration.
    pub members: Vec<Arc<Member>>,
    /// The table of [`Policy::Maglev`].
    table: Option<Arc<MaglevTable>>,
}

/// An upstream and what its shards share.
#[derive(Debug)]
pub struct SharedUpstream {
    /// The configuration.
    pub config: Upstream,
    /// Retries allowed.
    pub budget: RetryBudget,
    /// Requests being served; counted with `breaker.max_in_flight` only.
    pub in_flight: InFlight,
    /// Connections being opened; counted with `breaker.max_pending` only.
    pub pending: InFlight,
    /// Too few members are usable: health checks and ejections are ignored.
    panic: AtomicBool,
    shards: usize,
}

impl SharedUpstream {
    /// For as many shards.
    #[must_use]
    pub fn new(config: Upstream, shards: usize) -> Self {
        Self {
            config,
            budget: RetryBudget::new(),
            in_flight: InFlight::new(),
            pending: InFlight::new(),
            panic: AtomicBool::new(false),
            shards,
        }
    }

    /// True while too few members are usable (`panic_threshold`).
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.panic.load(Relaxed)
    }

    /// Judges whether too few members are usable; true when that has changed.
    pub fn judge_panic(&self, set: &MemberSet) -> bool {
        let usable = set.members.iter().filter(|member| member.is_usable()).count() as u64;
        let all = set.members.iter().filter(|member| !member.config.down).count() as u64;
        let panic = usable * 100 < all * u64::from(self.config.panic_threshold);
        self.panic.swap(panic, Relaxed) != panic
    }

    /// Builds the member set for these addresses of each server (ignored for address literals).
    /// Members that `previous` has already keep their state.
    #[must_use]
    pub fn members(&self, resolved: &[Vec<SocketAddr>], previous: Option<&MemberSet>) -> MemberSet {
        let mut members = Vec::new();
        for (index, server) in self.config.servers.iter().enumerate() {
            let literal;
            let addresses = match &server.address {
                ServerAddress::Socket(address) => {
                    literal = [*address];
                    &literal[..]
                }
                ServerAddress::Name(..) => resolved.get(index).map_or(&[][..], Vec::as_slice),
            };
            for &address in addresses {
                members.push(self.member(index, address, previous));
            }
        }
        let table = matches!(self.config.balance, Policy::Maglev)
            .then(|| Arc::new(MaglevTable::new(&weights(&members), &keys(&members))));
        MemberSet { members, table }
    }

    fn member(
        &self,
        server: usize,
        address: SocketAddr,
        previous: Option<&MemberSet>,
    ) -> Arc<Member> {
        let known = previous.and_then(|set| {
            set.members.iter().find(|known| known.server == server && known.address == address)
        });
        known.map_or_else(
            || {
                Arc::new(Member {
                    address,
                    label: address.to_string(),
                    server,
                    config: self.config.servers[server].clone(),
                    in_flight: InFlight::new(),
                    passive: Passive::new(),
                    gate: Gate::new(),
                    metrics: (0..self.shards).map(|_| Padded::default()).collect(),
                })
            },
            Arc::clone,
        )
    }

    /// `max_fails` of a member: a member that is alone is never taken out, as in nginx.
    #[must_use]
    pub fn max_fails(&self, set: &MemberSet, member: &Member) -> u32 {
        if set.members.len() == 1 { 0 } else { member.config.max_fails }
    }
}

impl MemberSet {
    /// A scheduler over these members; `seed` keeps shards from marching in step.
    #[must_use]
    pub fn scheduler(&self, policy: Policy, seed: u64) -> Scheduler {
        let weights = weights(&self.members);
        match &self.table {
            Some(table) => Scheduler::with_table(&weights, Arc::clone(table), seed),
            None => Scheduler::new(policy, &weights, &keys(&self.members), seed),
        }
    }
}

fn weights(members: &[Arc<Member>]) -> Vec<Weight> {
    let weight = |member: &Arc<Member>| Weight {
        weight: member.config.weight,
        backup: member.config.backup,
    };
    members.iter().map(weight).collect()
}

/// What identifies a member in a consistent hash: its address, so that order and other members do
/// not matter.
fn keys(members: &[Arc<Member>]) -> Vec<u64> {
    members.iter().map(|member| hash(member.label.as_bytes())).collect()
}
