//! Which server takes the next request: pure schedulers over members, weights and a health view.
//!
//! A [`Scheduler`] belongs to one shard; [`Passive`], [`InFlight`], [`RetryBudget`] and
//! [`MaglevTable`] are shared by all of them. An attempt goes: [`Scheduler::pick`], then
//! [`Passive::admit`] and [`InFlight::try_acquire`] on the member picked; when either refuses
//! (another shard was faster), the member is added to [`Tried`] and the pick repeated.

mod budget;
mod gate;
mod group;
pub mod hash;
mod in_flight;
mod maglev;
pub mod outlier;
mod passive;
mod rise_fall;
mod scheduler;
pub mod siphash;
mod tried;

pub use budget::RetryBudget;
pub use gate::Gate;
pub use in_flight::InFlight;
pub use maglev::{MaglevTable, places as maglev_places};
pub use passive::Passive;
pub use rise_fall::RiseFall;
pub use scheduler::Scheduler;
pub use tried::Tried;

/// Most members of an upstream; members beyond it are never picked (the configuration refuses
/// them).
pub const MAX_MEMBERS: usize = 4096;

/// How a server is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Smooth weighted round robin.
    RoundRobin,
    /// Fewest requests in flight for the weight.
    LeastConn,
    /// By client address.
    IpHash,
    /// Consistent hash over a chosen key, by a Maglev table.
    Maglev,
    /// The better of two random picks.
    RandomTwo,
}

/// What a scheduler has to know of a member; its index in the slice given is its name from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Share of requests relative to the other members. 0: takes nothing new, under any policy.
    pub weight: u32,
    /// Used only when no other member is available.
    pub backup: bool,
}

/// The state of the members at the moment of a pick. It may change during the pick; then the pick
/// is as good as the answers it got.
pub trait View {
    /// Healthy, not full, not taken out by hand.
    fn available(&self, member: usize) -> bool;
    /// Requests in flight over all shards.
    fn in_flight(&self, member: usize) -> u32;
}
