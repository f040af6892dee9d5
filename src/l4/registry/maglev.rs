//! Maglev tables over slots.

use std::net::IpAddr;
use std::sync::Arc;

use crate::balance::hash::{GOLDEN, mix};
use crate::balance::siphash::{Key, hash_words};
use crate::balance::{Member, maglev_places};
use crate::l4::config::Scheduler;
use crate::l4::hash::place;
use crate::l4::tables::NO_SLOT;

/// Places of the table for the scheduler `mh`; a prime.
pub const PLACES: u32 = 65_537;
/// Places of the table by which other schedulers find flows that nobody remembers; a prime.
const FALLBACK_PLACES: u32 = 4093;
/// Places that are tried for one whose server takes no new flows.
const DRAWS: usize = 20;

/// The table of all servers with a weight, dead or alive; kept until their weights change.
#[derive(Debug, Default)]
pub(super) struct Base {
    made_from: (Vec<(IpAddr, u32)>, Key, u32),
    table: Box<[u16]>,
}

impl Base {
    /// Makes the table unless it stands; entries are indices into `members`.
    fn table(&mut self, members: &[(IpAddr, u32)], seed: Key, scheduler: Scheduler) -> &[u16] {
        let size = if scheduler == Scheduler::Mh { PLACES } else { FALLBACK_PLACES };
        if self.made_from.0 != members || (self.made_from.1, self.made_from.2) != (seed, size) {
            let keys: Vec<u64> = members.iter().map(|(address, _)| key(seed, *address)).collect();
            let weighted: Vec<Member> = members
                .iter()
                .map(|(_, weight)| Member {
                    // Those that do not look at weights should not begin to without state.
                    weight: match scheduler {
                        Scheduler::Rr | Scheduler::Lc => (*weight).min(1),
                        _ => *weight,
                    },
                    backup: false,
                })
                .collect();
            self.table = maglev_places(&weighted, &keys, size);
            self.made_from = (members.to_vec(), seed, size);
        }
        &self.table
    }

    /// The table with those that take no new flows replaced: each of their places by that of
    /// another place, which depends on the place alone. So nobody else's flows move, and directors
    /// that agree on who is alive agree on all places. `slots` has, for each member, its slot if
    /// it takes new flows.
    pub(super) fn effective(
        &mut self,
        members: &[(IpAddr, u32)],
        slots: &[Option<u16>],
        seed: Key,
        scheduler: Scheduler,
    ) -> Arc<[u16]> {
        let alive: Vec<u16> = slots.iter().copied().flatten().collect();
        if alive.is_empty() {
            return Arc::default();
        }
        let table = self.table(members, seed, scheduler);
        if table.is_empty() {
            return Arc::default();
        }
        let slot_at =
            |at: usize| table.get(at).and_then(|member| *slots.get(usize::from(*member))?);
        let settle = |at: usize| {
            let mut hash = at as u64;
            let mut found = slot_at(at);
            for _ in 0..DRAWS {
                if found.is_some() {
                    break;
                }
                hash = mix(hash.wrapping_add(GOLDEN));
                found = slot_at(place(hash, table.len()));
            }
            found.or_else(|| alive.get(place(mix(hash), alive.len())).copied()).unwrap_or(NO_SLOT)
        };
        (0..table.len()).map(settle).collect()
    }
}

/// A server's identity: its address alone, so that all directors have the same.
fn key(seed: Key, address: IpAddr) -> u64 {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let bits = u128::from_be_bytes(octets);
    let low = u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
    let high = u64::try_from(bits >> 64).unwrap_or_default();
    hash_words(seed, [high, low])
}
