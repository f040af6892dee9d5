//! Maglev's lookup table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//! Balancer", NSDI 2016, section 3.4), with weights.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::hash::{GOLDEN, below, mix};
use super::{MAX_MEMBERS, Member};

/// Sizes of tables: the largest primes below 2^12, 2^16 and 2^19. Few, because another size is
/// another table: a member more or less that crosses a step moves most keys.
const PRIMES: [u32; 3] = [4093, 65_521, 524_287];

/// Places for the lightest member, which bounds the unevenness to about a hundredth.
const PLACES_PER_MEMBER: u64 = 100;

/// Weights do not make a table larger than this; only the number of members does.
const SIZE_MAX_BY_WEIGHT: u64 = 65_521;

// The largest table has room for every member, and `u16` names them all.
const _: () = assert!(PLACES_PER_MEMBER * (MAX_MEMBERS as u64) <= 524_287);
const _: () = assert!(MAX_MEMBERS <= 1 << 16);

/// The tables of an upstream, one for the primaries and one for the backups; built once and shared
/// by all shards. It depends on the members' keys and weights, not on their order.
///
/// The size is the first of 4093, 65521 and 524287 with 100 places for the lightest member (the
/// last only for more than 655 members), two bytes a place. A member whose share is below one
/// place has none, and is reached only when others are out.
#[derive(Debug, PartialEq, Eq)]
pub struct MaglevTable {
    primaries: Box<[u16]>,
    backups: Box<[u16]>,
}

impl MaglevTable {
    /// Builds the tables; `keys` are the members' identities in the order of `members`. A member
    /// without a key is known by its index.
    #[must_use]
    pub fn new(members: &[Member], keys: &[u64]) -> Self {
        Self { primaries: fill(members, keys, false), backups: fill(members, keys, true) }
    }

    /// The member at the place of a hash.
    pub(super) fn member(&self, backup: bool, hash: u64) -> Option<usize> {
        let table = if backup { &self.backups } else { &self.primaries };
        let place = usize::try_from(below(hash, table.len() as u64)).ok()?;
        table.get(place).map(|member| usize::from(*member))
    }
}

/// A table with a given number of places, a prime, over the members that are no backups: for
/// layer 4, which has its own way around members that are out. Empty if nobody has a weight.
#[must_use]
pub fn places(members: &[Member], keys: &[u64], size: u32) -> Box<[u16]> {
    fill_sized(members, keys, false, Some(size))
}

/// Members take places in turn, each along its own permutation, until the table is full.
fn fill(members: &[Member], keys: &[u64], backup: bool) -> Box<[u16]> {
    fill_sized(members, keys, backup, None)
}

fn fill_sized(members: &[Member], keys: &[u64], backup: bool, fixed: Option<u32>) -> Box<[u16]> {
    let ranked = || {
        let rank = |(_, member): &(u16, &Member)| member.backup == backup && member.weight > 0;
        (0..).zip(members.iter().take(MAX_MEMBERS)).filter(rank)
    };
    let size = fixed.unwrap_or_else(|| size(ranked().map(|(_, member)| member.weight)));
    let mut turns: BinaryHeap<Reverse<Turn>> = ranked()
        .map(|(index, member)| {
            let key = keys.get(usize::from(index)).copied().unwrap_or_else(|| u64::from(index));
            Reverse(Turn::first(index, member.weight, key, size))
        })
        .collect();
    let mut table: Box<[Option<u16>]> =
        vec![None; if turns.is_empty() { 0 } else { size as usize }].into();
    for _ in 0..table.len() {
        let Some(mut next) = turns.peek_mut() else { break };
        next.0.take_place(&mut table, size);
    }
    table.iter().map(|place| place.unwrap_or_default()).collect()
}

/// How many places the table gets.
fn size(weights: impl Iterator<Item = u32> + Clone) -> u32 {
    let count = weights.clone().count() as u64;
    let total: u64 = weights.clone().map(u64::from).sum();
    let lightest = weights.min().map_or(1, u64::from);
    let by_weight = (PLACES_PER_MEMBER * total / lightest).min(SIZE_MAX_BY_WEIGHT);
    let wanted = by_weight.max(PLACES_PER_MEMBER * count);
    let last = PRIMES[PRIMES.len() - 1];
    PRIMES.into_iter().find(|prime| u64::from(*prime) >= wanted).unwrap_or(last)
}

/// A member's next turn, at time (2 × turns taken + 1) / (2 × weight): every member has its places
/// in proportion at any moment, rounded to the nearest.
#[derive(Debug, PartialEq, Eq)]
struct Turn {
    taken: u32,
    weight: u32,
    key: u64,
    member: u16,
    /// The next place of the permutation, and the step to the one after.
    place: u32,
    step: u32,
}

impl Turn {
    fn first(member: u16, weight: u32, key: u64, size: u32) -> Self {
        let part = |hash, bound: u32| u32::try_from(below(hash, bound.into())).unwrap_or_default();
        let place = part(mix(key), size);
        let step = 1 + part(mix(key.wrapping_add(GOLDEN)), size - 1);
        Self { taken: 0, weight, key, member, place, step }
    }

    /// Takes the first free place; there is one as long as the table is not full, since a step
    /// below a prime size visits every place.
    fn take_place(&mut self, table: &mut [Option<u16>], size: u32) {
        for _ in 0..size {
            let free = table.get_mut(self.place as usize).filter(|place| place.is_none());
            self.place = (self.place + self.step) % size;
            if let Some(place) = free {
                *place = Some(self.member);
                break;
            }
        }
        self.taken += 1;
    }
}

impl Ord for Turn {
    fn cmp(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| (2 * u64::from(a.taken) + 1) * u64::from(b.weight);
        // Ties by identity, lest the order in the file matter.
        let identity = |turn: &Self| (turn.key, turn.member);
        cross(self, other).cmp(&cross(other, self)).then(identity(self).cmp(&identity(other)))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        weights.iter().map(|weight| Member { weight: *weight, backup: false }).collect()
    }

    fn keys(count: usize) -> Vec<u64> {
        (0..count).map(|i| super::super::hash::hash(format!("10.0.0.{i}:80").as_bytes())).collect()
    }

    fn places(table: &MaglevTable, count: usize) -> Vec<usize> {
        let mut places = vec![0; count];
        table.primaries.iter().for_each(|member| places[usize::from(*member)] += 1);
        places
    }

    #[test]
    fn sizes() {
        let table = [
            (vec![], 4093),
            (vec![1], 4093),
            (vec![7; 40], 4093),
            (vec![7; 41], 65_521),
            (vec![1, 40], 65_521),
            (vec![1; 655], 65_521),
            (vec![1; 656], 524_287),
            (vec![1, u32::MAX], 65_521),
            (vec![1; MAX_MEMBERS], 524_287),
        ];
        for (weights, expected) in table {
            assert_eq!(size(weights.iter().copied()), expected, "{} members", weights.len());
        }
        let prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!(PRIMES.into_iter().all(prime));
    }

    #[test]
    fn primaries_and_backups_are_apart() {
        let mut all = members(&[1, 1, 1, 0]);
        all[1].backup = true;
        let table = MaglevTable::new(&all, &keys(4));
        assert!(table.primaries.iter().all(|m| [0, 2].contains(m)));
        assert!(table.backups.iter().all(|m| *m == 1) && table.backups.len() == 4093);
        let none = MaglevTable::new(&[], &[]);
        assert_eq!((none.member(false, 5), none.member(true, 5)), (None, None));
        // Without keys, and with equal ones: still everybody is there.
        assert!(places(&MaglevTable::new(&members(&[1; 5]), &[]), 5).iter().all(|n| *n > 800));
        assert!(places(&MaglevTable::new(&members(&[1; 5]), &[7; 5]), 5).iter().all(|n| *n > 800));
    }

    #[test]
    fn largest_table_is_even() {
        let table = MaglevTable::new(&members(&[3; MAX_MEMBERS]), &keys(MAX_MEMBERS));
        let places = places(&table, MAX_MEMBERS);
        let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
        assert!(most - least <= 1, "{least} to {most}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Each member has its share of the places to within one.
        #[test]
        fn shares_follow_weights(weights in prop::collection::vec(1_u32..50, 1..40)) {
            let table = MaglevTable::new(&members(&weights), &keys(weights.len()));
            let total: u32 = weights.iter().sum();
            for (places, weight) in places(&table, weights.len()).into_iter().zip(&weights) {
                let exact = table.primaries.len() as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((places as f64 - exact).abs() < 2.0, "{} for {}", places, exact);
            }
        }

        /// When one of n equals leaves, its places move and few others do.
        #[test]
        fn few_places_move(count in 3_usize..60, leaver in any::<prop::sample::Index>()) {
            let leaver = leaver.index(count);
            let all = keys(count);
            let mut weights = vec![1; count];
            let before = MaglevTable::new(&members(&weights), &all);
            weights[leaver] = 0;
            let after = MaglevTable::new(&members(&weights), &all);
            // The size may step down with the count: compare only where it does not.
            prop_assume!(before.primaries.len() == after.primaries.len());
            let moved = before.primaries.iter().zip(&after.primaries)
                .filter(|(old, new)| old != new && usize::from(**old) != leaver).count();
            let share = moved as f64 / before.primaries.len() as f64;
            prop_assert!(share < 0.15, "{} of places moved needlessly", share);
        }

        /// The order in the configuration does not matter.
        #[test]
        fn order_is_irrelevant(
            weights in prop::collection::vec(1_u32..5, 1..20), turn in any::<prop::sample::Index>(),
        ) {
            let count = weights.len();
            let turn = turn.index(count);
            let (mut turned, mut turned_keys) = (weights.clone(), keys(count));
            turned.rotate_left(turn);
            turned_keys.rotate_left(turn);
            let plain = MaglevTable::new(&members(&weights), &keys(count));
            let other = MaglevTable::new(&members(&turned), &turned_keys);
            for (a, b) in plain.primaries.iter().zip(&other.primaries) {
                prop_assert_eq!(usize::from(*a), (usize::from(*b) + turn) % count);
            }
        }
    }
}
