//! Properties of every policy.

use proptest::prelude::*;

use super::super::hash::hash;
use super::*;

const ALL: [Policy; 5] =
    [Policy::RoundRobin, Policy::LeastConn, Policy::IpHash, Policy::Maglev, Policy::RandomTwo];

#[derive(Clone)]
struct Upstream {
    up: Vec<bool>,
    load: Vec<u32>,
}

impl Upstream {
    fn healthy(count: usize) -> Self {
        Self { up: vec![true; count], load: vec![0; count] }
    }
}

impl View for Upstream {
    fn available(&self, member: usize) -> bool {
        self.up[member]
    }

    fn in_flight(&self, member: usize) -> u32 {
        self.load[member]
    }
}

fn members(weights: &[u32]) -> Vec<Member> {
    weights.iter().map(|weight| Member { weight: *weight, backup: false }).collect()
}

fn keys(count: usize) -> Vec<u64> {
    (0..count).map(|i| hash(format!("server {i}").as_bytes())).collect()
}

fn scheduler(policy: Policy, members: &[Member], seed: u64) -> Scheduler {
    Scheduler::new(policy, members, &keys(members.len()), seed)
}

/// How often each member is picked in `picks` picks, each with its own key.
fn counts(scheduler: &mut Scheduler, view: &Upstream, picks: u64) -> Vec<u32> {
    let mut counts = vec![0; view.up.len()];
    for key in 0..picks {
        counts[scheduler.pick(view, hash(&key.to_le_bytes()), &Tried::new()).unwrap()] += 1;
    }
    counts
}

#[test]
fn nginx_documented_sequence() {
    // The example from nginx's commit of smooth weighted round robin: weights 5, 1, 1.
    let all = members(&[5, 1, 1]);
    let view = Upstream::healthy(3);
    // Seeds shift the cycle; one of its rotations must be the documented one.
    let mut rr = scheduler(Policy::RoundRobin, &all, 3);
    let picks: String =
        (0..14).map(|_| ['a', 'b', 'c'][rr.pick(&view, 0, &Tried::new()).unwrap()]).collect();
    let known = ["aabacaa", "aacabaa"].map(|cycle| cycle.repeat(3));
    assert!(known.iter().any(|cycles| cycles.contains(&picks)), "{picks}");
}

#[test]
fn seeds_spread_the_first_pick() {
    let all = members(&[1; 8]);
    let view = Upstream::healthy(8);
    let mut first = [0; 8];
    for seed in 0..800 {
        let mut rr = scheduler(Policy::RoundRobin, &all, seed);
        first[rr.pick(&view, 0, &Tried::new()).unwrap()] += 1;
    }
    assert!(first.iter().all(|n| (60..140).contains(n)), "{first:?}");
    // With a heavy member too: shards must not all begin with it.
    let all = members(&[6, 1, 1]);
    let mut heavy = 0;
    for seed in 0..800 {
        let mut rr = scheduler(Policy::RoundRobin, &all, seed);
        heavy += u32::from(rr.pick(&view, 0, &Tried::new()) == Some(0));
    }
    assert!((520..680).contains(&heavy), "{heavy}");
}

#[test]
fn no_burst_after_an_outage() {
    for policy in [Policy::RoundRobin, Policy::LeastConn] {
        for out_after in 0..12 {
            let all = members(&[3, 2, 1]);
            let mut view = Upstream::healthy(3);
            let mut rr = scheduler(policy, &all, 7);
            counts(&mut rr, &view, out_after);
            view.up[0] = false;
            assert_eq!(counts(&mut rr, &view, 999)[0], 0);
            view.up[0] = true;
            let back = counts(&mut rr, &view, 6);
            assert!((2..=4).contains(&back[0]), "{policy:?}, out after {out_after}: {back:?}");
        }
    }
}

#[test]
fn least_conn_takes_the_lowest_ratio() {
    let all = members(&[1, 2, u32::MAX, 4]);
    let table = [
        ([1, 1, u32::MAX, 3], 1),
        ([0, 1, 1, 1], 0),
        ([1, 2, u32::MAX - 1, 4], 2),
        ([1, 2, u32::MAX, 3], 3),
        ([u32::MAX; 4], 2),
    ];
    for (load, expected) in table {
        let view = Upstream { up: vec![true; 4], load: load.to_vec() };
        let mut least = scheduler(Policy::LeastConn, &all, 1);
        for _ in 0..5 {
            assert_eq!(least.pick(&view, 0, &Tried::new()), Some(expected), "{load:?}");
        }
    }
}

#[test]
fn least_conn_breaks_ties_by_weight() {
    let all = members(&[3, 1, 5]);
    let mut view = Upstream::healthy(3);
    view.load[2] = 1;
    assert_eq!(counts(&mut scheduler(Policy::LeastConn, &all, 5), &view, 400), [300, 100, 0]);
}

#[test]
fn random_two_avoids_the_loaded() {
    let all = members(&[1; 4]);
    let mut view = Upstream::healthy(4);
    view.load[1] = 10;
    let picked = counts(&mut scheduler(Policy::RandomTwo, &all, 5), &view, 4000);
    assert_eq!(picked[1], 0, "whoever is drawn beside it is better");
    assert!([0, 2, 3].iter().all(|m| (1150..1500).contains(&picked[*m])), "{picked:?}");
    // Equal ratios: by weight.
    let all = members(&[1, 3]);
    let picked = counts(&mut scheduler(Policy::RandomTwo, &all, 5), &Upstream::healthy(2), 8000);
    assert!((5700..6300).contains(&picked[1]), "{picked:?}");
    // The only one left, although loaded.
    view.up = vec![false, true, false, false];
    assert_eq!(counts(&mut scheduler(Policy::RandomTwo, &members(&[1; 4]), 5), &view, 50)[1], 50);
}

#[test]
fn random_two_differs_by_seed() {
    let all = members(&[1; 8]);
    let view = Upstream::healthy(8);
    let picks = |seed| {
        let mut two = scheduler(Policy::RandomTwo, &all, seed);
        (0..50).map(|_| two.pick(&view, 0, &Tried::new())).collect::<Vec<_>>()
    };
    assert_eq!(picks(1), picks(1));
    assert_ne!(picks(1), picks(2));
}

#[test]
fn a_shared_table_of_other_members_is_harmless() {
    let table = Arc::new(MaglevTable::new(&members(&[1; 9]), &keys(9)));
    let mut few = Scheduler::with_table(&members(&[1; 2]), Arc::clone(&table), 0);
    let picked = counts(&mut few, &Upstream::healthy(2), 100);
    assert_eq!(picked.iter().sum::<u32>(), 100);
    let mut none = Scheduler::with_table(&[], table, 0);
    assert_eq!(none.pick(&Upstream::healthy(0), 1, &Tried::new()), None);
}

#[test]
fn more_members_than_the_bound() {
    let count = super::super::MAX_MEMBERS + 3;
    let mut view = Upstream { up: vec![false; count], load: vec![0; count] };
    for policy in ALL {
        let mut scheduler = scheduler(policy, &members(&vec![1; count]), 1);
        view.up[count - 1] = true;
        assert_eq!(scheduler.pick(&view, 9, &Tried::new()), None, "{policy:?}");
        view.up[count - 4] = true;
        assert_eq!(scheduler.pick(&view, 9, &Tried::new()), Some(count - 4), "{policy:?}");
        view.up[count - 4] = false;
    }
}

proptest! {
    /// Over sum(weights) picks each member gets exactly its weight, whatever the start; and at no
    /// moment is anybody far from its share.
    #[test]
    fn round_robin_is_exact_and_smooth(
        weights in prop::collection::vec(1_u32..20, 1..12), seed in any::<u64>(),
    ) {
        let mut rr = scheduler(Policy::RoundRobin, &members(&weights), seed);
        let view = Upstream::healthy(weights.len());
        let total: u32 = weights.iter().sum();
        let mut last_of_heaviest = None;
        let heaviest = *weights.iter().max().unwrap();
        let mut picked = vec![0; weights.len()];
        for at in 0..2 * total {
            let member = rr.pick(&view, 0, &Tried::new()).unwrap();
            picked[member] += 1;
            for (picked, weight) in picked.iter().zip(&weights) {
                let owed = f64::from((at + 1) * weight) / f64::from(total);
                prop_assert!((f64::from(*picked) - owed).abs() < 3.0);
            }
            // Who has at most half of the weight is never picked three times running.
            if heaviest * 2 <= total {
                let run = match last_of_heaviest { Some((m, n)) if m == member => n + 1, _ => 1 };
                prop_assert!(run < 3);
                last_of_heaviest = Some((member, run));
            }
        }
        let twice: Vec<u32> = weights.iter().map(|weight| 2 * weight).collect();
        prop_assert_eq!(picked, twice);
    }

    /// After any history of outages and retries, shares are as if nothing had happened, to within
    /// a few picks.
    #[test]
    fn round_robin_recovers(
        weights in prop::collection::vec(1_u32..10, 2..8), seed in any::<u64>(),
        history in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let count = weights.len();
        let mut rr = scheduler(Policy::RoundRobin, &members(&weights), seed);
        for mask in history {
            let up = (0..count).map(|member| mask >> member & 1 == 1).collect();
            rr.pick(&Upstream { up, load: vec![0; count] }, 0, &Tried::new());
        }
        let total: u32 = weights.iter().sum();
        let picked = counts(&mut rr, &Upstream::healthy(count), total.into());
        for (picked, weight) in picked.into_iter().zip(weights) {
            prop_assert!(picked.abs_diff(weight) <= 3, "{} for {}", picked, weight);
        }
    }
}

proptest! {
    // Tables are built in each case.
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every policy, tried to the end: each available member once, primaries before backups,
    /// nobody who is out, then `None`.
    #[test]
    fn exhausts_primaries_then_backups(
        all in prop::collection::vec((0_u32..4, any::<bool>(), any::<bool>(), 0_u32..9), 0..40),
        key in any::<u64>(), seed in any::<u64>(),
    ) {
        let members: Vec<Member> =
            all.iter().map(|m| Member { weight: m.0, backup: m.1 }).collect();
        let view = Upstream {
            up: all.iter().map(|m| m.2).collect(), load: all.iter().map(|m| m.3).collect(),
        };
        for policy in ALL {
            let mut scheduler = scheduler(policy, &members, seed);
            let (mut tried, mut backup) = (Tried::new(), false);
            while let Some(member) = scheduler.pick(&view, key, &tried) {
                prop_assert!(view.up[member] && members[member].weight > 0, "{:?}", policy);
                prop_assert!(tried.insert(member), "{:?} picked {} twice", policy, member);
                prop_assert!(members[member].backup >= backup, "{:?}: backup too early", policy);
                backup = members[member].backup;
            }
            let expected = (0..all.len()).filter(|m| view.up[*m] && members[*m].weight > 0).count();
            prop_assert_eq!(tried.len() as usize, expected, "{:?}", policy);
        }
    }

    /// Keyed policies: the same on every shard, and an outage moves only the keys of who is out.
    #[test]
    fn keyed_choices_are_stable(
        weights in prop::collection::vec(1_u32..6, 2..20), key in any::<u64>(),
        seeds in any::<[u64; 2]>(), out in any::<prop::sample::Index>(),
    ) {
        let (all, count) = (members(&weights), weights.len());
        for policy in [Policy::IpHash, Policy::Maglev] {
            let mut one = scheduler(policy, &all, seeds[0]);
            let mut other = scheduler(policy, &all, seeds[1]);
            let mut view = Upstream::healthy(count);
            let before = one.pick(&view, key, &Tried::new());
            let out = out.index(count);
            view.up[out] = false;
            let after = one.pick(&view, key, &Tried::new());
            prop_assert_eq!(after, other.pick(&view, key, &Tried::new()));
            if before != Some(out) {
                prop_assert_eq!(after, before);
            }
            view.up = vec![false; count];
            view.up[out] = true;
            prop_assert_eq!(one.pick(&view, key, &Tried::new()), Some(out));
            view.up = vec![true; count];
            prop_assert_eq!(other.pick(&view, key, &Tried::new()), before);
        }
    }
}

/// Keyed policies follow the weights, also when the keys of a lost member are spread.
#[test]
fn keyed_choices_follow_weights() {
    let weights = [1, 2, 3, 4, 2];
    for policy in [Policy::IpHash, Policy::Maglev] {
        let mut scheduler = scheduler(policy, &members(&weights), 0);
        let mut view = Upstream::healthy(5);
        for (lost, total) in [(None, 12), (Some(3_usize), 8)] {
            view.up.fill(true);
            lost.into_iter().for_each(|member| view.up[member] = false);
            let picked = counts(&mut scheduler, &view, 60_000);
            for (member, weight) in weights.iter().enumerate() {
                let exact = if view.up[member] { 60_000 / total * weight } else { 0 };
                let off = picked[member].abs_diff(exact);
                assert!(off * 100 <= exact * 6, "{policy:?}, lost {lost:?}: {picked:?}");
            }
        }
    }
}

/// With nearly everybody out the draws fail; the choice is the same on every shard all the same.
#[test]
fn keyed_choices_agree_in_a_great_outage() {
    let all = members(&[1; 200]);
    let mut view = Upstream::healthy(200);
    view.up.fill(false);
    [17, 90, 143].into_iter().for_each(|member: usize| view.up[member] = true);
    for policy in [Policy::IpHash, Policy::Maglev] {
        let mut shards = [1, 2, 3, 4].map(|seed| scheduler(policy, &all, seed));
        let mut picked = [0; 200];
        for key in 0..300 {
            let picks = shards.each_mut().map(|shard| shard.pick(&view, key, &Tried::new()));
            assert!(picks.iter().all(|pick| *pick == picks[0]), "{policy:?}: {picks:?}");
            picked[picks[0].unwrap()] += 1;
        }
        assert!([17, 90, 143].iter().all(|member| picked[*member] > 60), "{policy:?}");
    }
}
