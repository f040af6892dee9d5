//! Upstreams as all shards share them: members with their in-flight counts and passive health.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use crate::balance::hash::hash;
use crate::balance::{
    InFlight, MaglevTable, Member as Weight, Passive, Policy, RetryBudget, Scheduler,
};
use crate::counter::Padded;
use crate::l7::config::{Server, ServerAddress, Upstream};
use crate::l7::metrics::{ByShard, ServerMetrics, UpstreamMetrics, by_shard};

/// One address of a server, with everything that must agree across shards and that outlives changes of
/// the configuration.
pub struct Endpoint {
    /// The address.
    pub address: SocketAddr,
    /// The address as text, for logs and metrics.
    pub label: String,
    /// Requests being served, over all shards.
    pub in_flight: InFlight,
    /// Failures, over all shards.
    pub passive: Passive,
    /// Figures by shard.
    pub metrics: Box<[Padded<ServerMetrics>]>,
}

/// One address of a server, as the configuration has it.
pub struct Member {
    /// What lasts.
    pub endpoint: Arc<Endpoint>,
    /// Index into the upstream's servers in the configuration.
    pub server: usize,
    /// What the configuration says of the server.
    pub config: Server,
}

impl Deref for Member {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Member {
    /// Whether connections to one are connections to the other.
    #[must_use]
    pub fn is_same_endpoint(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoint, &other.endpoint)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("address", &self.address).finish_non_exhaustive()
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
    pub budget: Arc<RetryBudget>,
    /// Figures by shard.
    pub metrics: ByShard<UpstreamMetrics>,
}

impl SharedUpstream {
    /// For as many shards.
    #[must_use]
    pub fn new(config: Upstream, shards: usize) -> Self {
        Self { config, budget: Arc::new(RetryBudget::new()), metrics: by_shard(shards) }
    }

    /// The same upstream with another configuration: what is counted goes on.
    #[must_use]
    pub fn succeed(&self, config: Upstream) -> Self {
        Self { config, budget: Arc::clone(&self.budget), metrics: Arc::clone(&self.metrics) }
    }

    /// Builds the member set for these addresses of each server (ignored for address literals).
    /// Endpoints that `previous` has already keep their state.
    #[must_use]
    pub fn members(&self, resolved: &[Vec<SocketAddr>], previous: Option<&MemberSet>) -> MemberSet {
        let mut known = Known::new(previous);
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
                let previous = known.take(&server.address, address);
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
        previous: Option<&Arc<Member>>,
    ) -> Arc<Member> {
        let config = &self.config.servers[server];
        let endpoint = match previous {
            Some(known) if known.server == server && known.config == *config => {
                return Arc::clone(known);
            }
            Some(known) => Arc::clone(&known.endpoint),
            None => Arc::new(Endpoint {
                address,
                label: address.to_string(),
                in_flight: InFlight::new(),
                passive: Passive::new(),
                metrics: self.metrics.iter().map(|_| Padded::default()).collect(),
            }),
        };
        Arc::new(Member { endpoint, server, config: config.clone() })
    }

    /// `max_fails` of a member: a member that is alone is never taken out, as in nginx.
    #[must_use]
    pub fn max_fails(&self, set: &MemberSet, member: &Member) -> u32 {
        if set.members.len() == 1 { 0 } else { member.config.max_fails }
    }
}

/// Members of an earlier set, each of which is found once.
struct Known<'a>(HashMap<(ServerAddress, SocketAddr), VecDeque<&'a Arc<Member>>>);

impl<'a> Known<'a> {
    fn new(previous: Option<&'a MemberSet>) -> Self {
        let mut known: HashMap<_, VecDeque<_>> = HashMap::new();
        for member in previous.into_iter().flat_map(|set| &set.members) {
            let key = (member.config.address.clone(), member.address);
            known.entry(key).or_default().push_back(member);
        }
        Self(known)
    }

    fn take(&mut self, server: &ServerAddress, address: SocketAddr) -> Option<&'a Arc<Member>> {
        self.0.get_mut(&(server.clone(), address))?.pop_front()
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
