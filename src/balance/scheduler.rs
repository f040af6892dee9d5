//! The pick, for every policy.

use std::sync::Arc;

use super::group::{Group, Usable};
use super::hash::{GOLDEN, below, mix};
use super::{MaglevTable, Member, Policy, Tried, View};

/// Most steps times members a new scheduler spends on its random start: under 1 ms, since a reload
/// builds one for each upstream on each shard.
const ADVANCE_WORK: u64 = 1 << 16;

/// Chooses members for the requests of one shard.
///
/// A pick is O(members) under [`Policy::RoundRobin`] and [`Policy::LeastConn`], O(log members)
/// otherwise as long as few members are out. It does not allocate.
#[derive(Debug)]
pub struct Scheduler {
    policy: Policy,
    members: Vec<Member>,
    primaries: Group,
    backups: Group,
    table: Option<Arc<MaglevTable>>,
    random: u64,
}

impl Scheduler {
    /// A scheduler over `members`, which are called by their index from then on.
    ///
    /// `keys` has each member's identity as a stable hash ([`super::hash::hash`] of its address,
    /// say); only [`Policy::Maglev`] uses it. `seed` should differ on each shard, lest all shards
    /// begin with the same member. Shards should share a Maglev table: see
    /// [`with_table`](Self::with_table).
    #[must_use]
    pub fn new(policy: Policy, members: &[Member], keys: &[u64], seed: u64) -> Self {
        let table = (policy == Policy::Maglev).then(|| Arc::new(MaglevTable::new(members, keys)));
        Self::build(policy, members, table, seed)
    }

    /// A [`Policy::Maglev`] scheduler on a table built before, from the same members.
    #[must_use]
    pub fn with_table(members: &[Member], table: Arc<MaglevTable>, seed: u64) -> Self {
        Self::build(Policy::Maglev, members, Some(table), seed)
    }

    fn build(
        policy: Policy,
        members: &[Member],
        table: Option<Arc<MaglevTable>>,
        seed: u64,
    ) -> Self {
        let mut primaries = Group::new(members, false, seed);
        let mut backups = Group::new(members, true, seed);
        if matches!(policy, Policy::RoundRobin | Policy::LeastConn) {
            let turns = mix(seed.wrapping_add(GOLDEN));
            for group in [&mut primaries, &mut backups] {
                let most = ADVANCE_WORK / (group.len() as u64).max(1);
                group.advance(below(turns, group.total_weight().min(most)));
            }
        }
        Self { policy, members: members.to_vec(), primaries, backups, table, random: mix(seed) }
    }

    /// The member for the next attempt; `None` when no member is left.
    ///
    /// A backup is picked only when no primary is available and untried. `key` is the hash of the
    /// client ([`Policy::IpHash`]) or of the chosen key ([`Policy::Maglev`]); other policies ignore
    /// it. The pick does not reserve anything: see the module's text for what comes next.
    pub fn pick(&mut self, view: &impl View, key: u64, tried: &Tried) -> Option<usize> {
        let usable = Usable { view, tried };
        self.pick_rank(&usable, key, false).or_else(|| self.pick_rank(&usable, key, true))
    }

    fn pick_rank(
        &mut self,
        usable: &Usable<'_, impl View>,
        key: u64,
        backup: bool,
    ) -> Option<usize> {
        let group = if backup { &mut self.backups } else { &mut self.primaries };
        match self.policy {
            Policy::RoundRobin => group.next_in_turn(usable),
            Policy::LeastConn => group.least_loaded(usable),
            Policy::IpHash => group.draw(usable, key, Group::at_point),
            Policy::Maglev => {
                let table = self.table.as_deref()?;
                let count = self.members.len();
                let choose = |_: &Group, hash| table.member(backup, hash).filter(|m| *m < count);
                group.draw(usable, key, choose)
            }
            Policy::RandomTwo => {
                self.random = self.random.wrapping_add(GOLDEN);
                group.better_of_two(usable, &self.members, mix(self.random))
            }
        }
    }
}

#[cfg(test)]
mod tests;
