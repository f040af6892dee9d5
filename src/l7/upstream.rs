//! Upstreams as all shards share them: members with their in-flight counts and passive health.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::balance::hash::hash;
use crate::balance::{
    Gate, InFlight, MaglevTable, Member as Weight, Passive, Policy, RetryBudget, Scheduler, outlier,
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
    /// Verdicts of health checks and outlier detection. Changes seldom, so it may share a cache line with what
    /// never does.
    pub gate: Gate,
    /// Figures by shard.
    pub metrics: Box<[Padded<ServerMetrics>]>,
}

/// One address of a server, as the configuration has it.
pub struct Member {
    /// What lasts.
    pub endpoint: Arc<Endpoint>,
    /// Which of the upstream's servers it is ([`Standing::id`]).
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
        for shard in self.metrics.iter() {
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

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A server as it stands now: as in the file, or as the operator has it since.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Names it among the servers of its upstream.
    pub id: usize,
    /// What it is; the weight is the one in force.
    pub server: Server,
    /// Takes no new requests.
    pub drained: bool,
}

impl Standing {
    /// The servers of a configuration, in its order.
    #[must_use]
    pub fn of(servers: &[Server]) -> Vec<Self> {
        let standing =
            |(id, server): (usize, &Server)| Self { id, server: server.clone(), drained: false };
        servers.iter().enumerate().map(standing).collect()
    }
}

/// The members of an upstream at one time; replaced as a whole when names resolve anew.
#[derive(Debug)]
pub struct MemberSet {
    /// Members in the order of the configuration.
    pub members: Vec<Arc<Member>>,
    /// The weight of each now; 0: takes no new requests.
    weights: Vec<u32>,
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
    /// Requests being served; counted with `breaker.max_in_flight` only.
    pub in_flight: Arc<InFlight>,
    /// Connections being opened; counted with `breaker.max_pending` only.
    pub pending: Arc<InFlight>,
    /// Too few members are usable: health checks and ejections are ignored.
    panic: AtomicBool,
    /// Figures by shard.
    pub metrics: ByShard<UpstreamMetrics>,
}

impl SharedUpstream {
    /// For as many shards.
    #[must_use]
    pub fn new(config: Upstream, shards: usize) -> Self {
        Self {
            config,
            budget: Arc::new(RetryBudget::new()),
            in_flight: Arc::new(InFlight::new()),
            pending: Arc::new(InFlight::new()),
            panic: AtomicBool::new(false),
            metrics: by_shard(shards),
        }
    }

    /// The same upstream with another configuration: what is counted goes on.
    #[must_use]
    pub fn succeed(&self, config: Upstream) -> Self {
        Self {
            config,
            budget: Arc::clone(&self.budget),
            in_flight: Arc::clone(&self.in_flight),
            pending: Arc::clone(&self.pending),
            panic: AtomicBool::new(self.is_panicking()),
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// True while too few members are usable (`panic_threshold`).
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.panic.load(Relaxed)
    }

    /// Judges whether too few members are usable; true when that has changed.
    pub fn judge_panic(&self, set: &MemberSet) -> bool {
        let taking = set.members.iter().zip(&set.weights);
        let taking = taking.filter(|(member, weight)| **weight > 0 && !member.config.down);
        let (all, usable) = taking.fold((0_u64, 0_u64), |(all, usable), (member, _)| {
            (all + 1, usable + u64::from(member.is_usable()))
        });
        let panic = usable * 100 < all * u64::from(self.config.panic_threshold);
        self.panic.swap(panic, Relaxed) != panic
    }

    /// Builds the member set for these addresses of each server (ignored for address literals).
    /// Endpoints that `previous` has already keep their state.
    #[must_use]
    pub fn members(&self, resolved: &[Vec<SocketAddr>], previous: Option<&MemberSet>) -> MemberSet {
        self.members_of(&Standing::of(&self.config.servers), resolved, previous)
    }

    /// The same for servers that may differ from the configuration's; `resolved` is by
    /// [`Standing::id`].
    #[must_use]
    pub fn members_of(
        &self,
        servers: &[Standing],
        resolved: &[Vec<SocketAddr>],
        previous: Option<&MemberSet>,
    ) -> MemberSet {
        let mut known = Known::new(previous);
        let (mut members, mut weights) = (Vec::new(), Vec::new());
        for standing in servers {
            let literal;
            let addresses = match &standing.server.address {
                ServerAddress::Socket(address) => {
                    literal = [*address];
                    &literal[..]
                }
                ServerAddress::Name(..) => resolved.get(standing.id).map_or(&[][..], Vec::as_slice),
            };
            for &address in addresses {
                let previous = known.take(&standing.server.address, address);
                members.push(self.member(standing, address, previous));
                weights.push(if standing.drained { 0 } else { standing.server.weight });
            }
        }
        let mut set = MemberSet { members, weights, table: None };
        if matches!(self.config.balance, Policy::Maglev) {
            set.table = Some(Arc::new(MaglevTable::new(&set.shares(), &keys(&set.members))));
        }
        set
    }

    fn member(
        &self,
        standing: &Standing,
        address: SocketAddr,
        previous: Option<&Arc<Member>>,
    ) -> Arc<Member> {
        let server = &standing.server;
        let endpoint = match previous {
            Some(known) if known.server == standing.id && known.config == *server => {
                return Arc::clone(known);
            }
            Some(known) => Arc::clone(&known.endpoint),
            None => Arc::new(Endpoint {
                address,
                label: address.to_string(),
                in_flight: InFlight::new(),
                passive: Passive::new(),
                gate: Gate::new(),
                metrics: self.metrics.iter().map(|_| Padded::default()).collect(),
            }),
        };
        Arc::new(Member { endpoint, server: standing.id, config: server.clone() })
    }

    /// `max_fails` of a member: a member that is alone is never taken out, as in nginx.
    #[must_use]
    pub fn max_fails(&self, set: &MemberSet, member: &Member) -> u32 {
        let taking = set.weights.iter().filter(|weight| **weight > 0).count();
        if taking <= 1 { 0 } else { member.config.max_fails }
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
        let weights = self.shares();
        match &self.table {
            Some(table) => Scheduler::with_table(&weights, Arc::clone(table), seed),
            None => Scheduler::new(policy, &weights, &keys(&self.members), seed),
        }
    }

    /// The weight of the member at this index now; 0: it takes no new requests.
    #[must_use]
    pub fn weight(&self, index: usize) -> u32 {
        self.weights.get(index).copied().unwrap_or_default()
    }

    fn shares(&self) -> Vec<Weight> {
        let share = |(member, &weight): (&Arc<Member>, &u32)| Weight {
            weight,
            backup: member.config.backup,
        };
        self.members.iter().zip(&self.weights).map(share).collect()
    }
}

/// What identifies a member in a consistent hash: its address, so that order and other members do
/// not matter.
fn keys(members: &[Arc<Member>]) -> Vec<u64> {
    members.iter().map(|member| hash(member.label.as_bytes())).collect()
}
