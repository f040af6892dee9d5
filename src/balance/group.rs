//! Primaries or backups of an upstream: the choices among members of one rank.

use super::hash::{GOLDEN, below, mix};
use super::{MAX_MEMBERS, Member, Tried, View};

/// Draws at random places before every member is asked (nginx's figure for `ip_hash`). With half
/// of the members down, one pick in a million needs the long way.
const DRAWS: u64 = 20;

#[derive(Debug)]
struct Slot {
    member: usize,
    weight: u32,
    /// What the member is owed, in units of weight times picks (smooth weighted round robin).
    credit: i64,
}

/// Members of one rank with weight above 0.
#[derive(Debug)]
pub(super) struct Group {
    slots: Vec<Slot>,
    /// Sums of weights up to and including each slot.
    upto: Vec<u64>,
    total: u64,
    /// Where scans begin, so that ties fall differently on each shard.
    start: usize,
    /// Slots under consideration; kept to spare an allocation a pick.
    candidates: Vec<usize>,
}

/// A pick's view of the members: available and not tried.
pub(super) struct Usable<'a, V> {
    pub(super) view: &'a V,
    pub(super) tried: &'a Tried,
}

impl<V: View> Usable<'_, V> {
    fn holds(&self, member: usize) -> bool {
        !self.tried.contains(member) && self.view.available(member)
    }
}

impl Group {
    pub(super) fn new(members: &[Member], backup: bool, start: u64) -> Self {
        let slots: Vec<Slot> = (0..MAX_MEMBERS)
            .zip(members)
            .filter(|(_, member)| member.backup == backup && member.weight > 0)
            .map(|(index, member)| Slot { member: index, weight: member.weight, credit: 0 })
            .collect();
        let sum = |total: &mut u64, slot: &Slot| {
            *total += u64::from(slot.weight);
            Some(*total)
        };
        let upto: Vec<u64> = slots.iter().scan(0, sum).collect();
        let total = upto.last().copied().unwrap_or_default();
        let start = usize::try_from(below(mix(start), slots.len() as u64)).unwrap_or_default();
        let candidates = Vec::with_capacity(slots.len());
        Self { slots, upto, total, start, candidates }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn total_weight(&self) -> u64 {
        self.total
    }

    /// Slots in the order of this shard.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        (self.start..self.slots.len()).chain(0..self.start)
    }

    /// Makes the usable members the candidates.
    fn collect_usable(&mut self, usable: &Usable<'_, impl View>) {
        self.candidates.clear();
        for at in self.order() {
            if usable.holds(self.slots[at].member) {
                self.candidates.push(at);
            }
        }
    }

    /// The next member in smooth weighted round robin.
    pub(super) fn next_in_turn(&mut self, usable: &Usable<'_, impl View>) -> Option<usize> {
        self.collect_usable(usable);
        self.turn()
    }

    /// The member with the fewest requests in flight for its weight; ties in turn.
    pub(super) fn least_loaded(&mut self, usable: &Usable<'_, impl View>) -> Option<usize> {
        let mut least = Load { in_flight: u32::MAX, weight: 0 };
        self.candidates.clear();
        for at in self.order() {
            let slot = &self.slots[at];
            if !usable.holds(slot.member) {
                continue;
            }
            let load = Load { in_flight: usable.view.in_flight(slot.member), weight: slot.weight };
            if load.less_than(least) {
                least = load;
                self.candidates.clear();
            } else if least.less_than(load) {
                continue;
            }
            self.candidates.push(at);
        }
        self.turn()
    }

    /// One step of smooth weighted round robin among the candidates: each is credited its weight,
    /// the richest is picked and pays what was handed out.
    ///
    /// Who is no candidate neither earns nor pays, so nobody comes back with a claim to a burst.
    /// Changing sets of candidates could let credits drift (slowly: by the logarithm of the
    /// number of members), hence the bound; a constant set never reaches it.
    fn turn(&mut self) -> Option<usize> {
        let bound = i64::try_from(self.total).unwrap_or(i64::MAX).saturating_mul(2);
        let mut handed_out = 0;
        let mut richest: Option<(usize, i64)> = None;
        for &at in &self.candidates {
            let slot = &mut self.slots[at];
            let weight = i64::from(slot.weight);
            slot.credit = slot.credit.saturating_add(weight).min(bound);
            handed_out += weight;
            if richest.is_none_or(|(_, credit)| slot.credit > credit) {
                richest = Some((at, slot.credit));
            }
        }
        let slot = &mut self.slots[richest?.0];
        slot.credit = slot.credit.saturating_sub(handed_out).max(-bound);
        Some(slot.member)
    }

    /// Runs the round robin forward, as if everybody were available.
    pub(super) fn advance(&mut self, steps: u64) {
        self.candidates.clear();
        self.candidates.extend(self.order());
        for _ in 0..steps {
            self.turn();
        }
    }

    /// The member at a point of the line on which each takes up its weight.
    pub(super) fn at_point(&self, hash: u64) -> Option<usize> {
        let point = below(hash, self.total);
        let at = self.upto.partition_point(|upto| *upto <= point);
        self.slots.get(at).map(|slot| slot.member)
    }

    /// The first usable member among those that `choose` names for the hashes derived from `key`.
    ///
    /// When those draws all fail, one is drawn by weight among all that are usable, so that
    /// `None` means that there is none. A key always takes the same way, and members which are
    /// usable keep the keys they had.
    pub(super) fn draw(
        &mut self,
        usable: &Usable<'_, impl View>,
        key: u64,
        choose: impl Fn(&Self, u64) -> Option<usize>,
    ) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut hash = key;
        for _ in 0..DRAWS {
            hash = mix(hash.wrapping_add(GOLDEN));
            if let Some(member) = choose(self, hash).filter(|member| usable.holds(*member)) {
                return Some(member);
            }
        }
        self.collect_usable(usable);
        self.candidates.sort_unstable();
        self.candidate_at_point(mix(hash.wrapping_add(GOLDEN)))
    }

    fn candidate_at_point(&self, hash: u64) -> Option<usize> {
        let weight = |at: &usize| u64::from(self.slots[*at].weight);
        let mut point = below(hash, self.candidates.iter().map(weight).sum());
        let found = self.candidates.iter().find(|at| match point.checked_sub(weight(at)) {
            Some(rest) => {
                point = rest;
                false
            }
            None => true,
        });
        found.map(|at| self.slots[*at].member)
    }

    /// The less loaded of two members drawn by weight.
    pub(super) fn better_of_two(
        &mut self,
        usable: &Usable<'_, impl View>,
        members: &[Member],
        random: u64,
    ) -> Option<usize> {
        let first = self.draw(usable, random, Self::at_point)?;
        if self.slots.len() == 1 {
            return Some(first);
        }
        let other = Except { view: usable.view, member: first };
        let other = Usable { view: &other, tried: usable.tried };
        let Some(second) = self.draw(&other, mix(random ^ GOLDEN), Self::at_point) else {
            return Some(first);
        };
        let load = |member: usize| Load {
            in_flight: usable.view.in_flight(member),
            weight: members.get(member).map_or(1, |member| member.weight),
        };
        Some(if load(second).less_than(load(first)) { second } else { first })
    }
}

/// A view in which one member more is unavailable.
struct Except<'a, V> {
    view: &'a V,
    member: usize,
}

impl<V: View> View for Except<'_, V> {
    fn available(&self, member: usize) -> bool {
        member != self.member && self.view.available(member)
    }

    fn in_flight(&self, member: usize) -> u32 {
        self.view.in_flight(member)
    }
}

/// Requests in flight over weight, compared without division; weight 0 is infinite load.
#[derive(Clone, Copy)]
struct Load {
    in_flight: u32,
    weight: u32,
}

impl Load {
    fn less_than(self, other: Self) -> bool {
        let cross = |a: Self, b: Self| u64::from(a.in_flight) * u64::from(b.weight);
        cross(self, other) < cross(other, self)
    }
}
