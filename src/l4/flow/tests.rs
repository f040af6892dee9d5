use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::balance::hash::mix;

const SERVER: ServerId = ServerId { slot: 1, generation: 0 };

fn key(n: u32) -> (u64, Key) {
    let key = Key { client: n.into(), service: 3, port: 80, client_port: 7 };
    (mix(n.into()), key)
}

fn ticks() -> Ticks {
    Ticks::new(&Timeouts::default())
}

fn seconds(n: u64) -> u32 {
    tick(n * 1000)
}

fn add(table: &mut FlowTable, n: u32, state: State, now: u32) -> (Option<u32>, Option<Gone>) {
    let (hash, key) = key(n);
    table.insert(hash, &key, (SERVER, state), now, &ticks())
}

fn holds(table: &FlowTable, n: u32) -> bool {
    let (hash, key) = key(n);
    table.find(hash, &key).is_some()
}

#[test]
fn at_most_64_bytes_a_flow() {
    assert_eq!(size_of::<Flow>(), 32);
    let bytes = BYTES;
    assert!(bytes <= 64, "{bytes}");
}

#[test]
fn keys_are_told_apart() {
    let mut table = FlowTable::new(16);
    let (hash, base) = key(1);
    let others = [
        Key { client: 2, ..base },
        Key { client: 1 << 64, ..base },
        Key { service: 4, ..base },
        Key { port: 81, ..base },
        Key { client_port: 8, ..base },
    ];
    let state = (SERVER, State::Udp);
    let (at, _) = table.insert(hash, &base, state, 0, &ticks());
    // All in one chain.
    for other in &others {
        assert_eq!(table.find(hash, other), None, "{other:?}");
        table.insert(hash, other, state, 0, &ticks());
    }
    assert_eq!(table.find(hash, &base), at);
    table.remove(at.unwrap());
    assert_eq!(table.find(hash, &base), None);
    assert!(others.iter().all(|other| table.find(hash, other).is_some()));
    assert_eq!(table.len(), others.len());
}

/// More of one hash than a bucket names: all are found, whichever leaves first, and room in the bucket is used again.
#[test]
fn a_full_bucket() {
    let state = (SERVER, State::Udp);
    for step in [1, 3, 7, 39] {
        let mut table = FlowTable::new(64);
        let find = |table: &FlowTable, n| table.find(9, &key(n).1);
        for n in 0..40 {
            assert!(table.insert(9, &key(n).1, state, 0, &ticks()).0.is_some());
        }
        assert!((0..40).all(|n| find(&table, n).is_some()));
        for turn in 0..40 {
            let n = turn * step % 40;
            let at = find(&table, n).unwrap();
            assert_eq!(table.remove(at).map(|gone| gone.server), Some(SERVER));
            let left: Vec<u32> = (0..40).filter(|n| find(&table, *n).is_some()).collect();
            assert_eq!(left.len(), usize::try_from(39 - turn).unwrap(), "{step} {turn}");
            let named = table.bucket(9)[..WAYS].iter().filter(|word| **word != 0).count();
            assert_eq!(named, left.len().min(WAYS), "no place stays empty while one waits");
        }
    }
}

/// What a lookup reads is a bucket and an entry: hardly ever more.
#[test]
fn few_buckets_are_full() {
    let mut table = FlowTable::new(1 << 14);
    assert_eq!(table.bucket(0).as_ptr().align_offset(64), 0, "one cache line");
    for n in 0..1 << 14 {
        add(&mut table, n, State::Established, 0);
    }
    let named: usize = (0..1 << 14).map(|n| table.named(low(key(n).0)).count()).sum();
    let found = (0..1 << 14).filter(|n| table.named(low(key(*n).0)).any(|at| at == *n)).count();
    assert!(found > (1 << 14) * 98 / 100, "{found}");
    assert!(named - found < (1 << 14) / 100, "{named} {found}");
    assert!((0..1 << 14).all(|n| holds(&table, n)));
}

#[test]
fn timeouts_by_state() {
    let states = [
        (State::Opening, 60),
        (State::Established, 900),
        (State::Closing, 120),
        (State::Closed, 10),
        (State::Udp, 300),
        (State::Sctp, 900),
    ];
    for (state, timeout) in states {
        let mut table = FlowTable::new(4);
        let at = add(&mut table, 1, state, 0).0.unwrap();
        assert!(!table.is_over(at, seconds(timeout - 1), &ticks()), "{state:?}");
        assert!(table.is_over(at, seconds(timeout + 1), &ticks()), "{state:?}");
        table.touch(at, seconds(timeout - 1));
        assert!(!table.is_over(at, seconds(2 * timeout - 3), &ticks()), "{state:?}");
        // Looked at every quarter of the timeout, it goes at most that late.
        let mut left = 0;
        for now in 0..=3 * timeout {
            table.expire(seconds(now), &ticks(), 16, |_| left = now);
        }
        assert!(
            (2 * timeout - 1..=2 * timeout + timeout / 4 + 1).contains(&left),
            "{state:?} {left}"
        );
        assert_eq!(table.len(), 0);
    }
}

#[test]
fn work_is_bounded() {
    let mut table = FlowTable::new(1000);
    for n in 0..1000 {
        add(&mut table, n, State::Closed, 0);
    }
    let mut gone = 0;
    table.expire(seconds(100), &ticks(), 10, |_| gone += 1);
    assert!(gone <= 10 && gone > 0, "{gone}");
    for _ in 0..200 {
        table.expire(seconds(100), &ticks(), 10, |_| gone += 1);
    }
    assert_eq!((gone, table.len()), (1000, 0));
}

/// What leaves when there is no room: first what is over, then what never began, then what is
/// silent; an established flow that is not idle never.
#[test]
fn who_makes_room() {
    let mut table = FlowTable::new(6);
    let states = [
        State::Established,
        State::Udp,
        State::Closing,
        State::Adopted,
        State::Opening,
        State::Closed,
    ];
    for (n, state) in (0..).zip(states) {
        add(&mut table, n, state, 0);
    }
    let now = seconds(200);
    let mut left = Vec::new();
    for n in 10..15 {
        let (at, gone) = add(&mut table, n, State::Established, now);
        assert!(at.is_some());
        left.push(gone.unwrap().state);
    }
    assert_eq!(left, [State::Closed, State::Opening, State::Adopted, State::Closing, State::Udp]);
    // The old established one has been idle for 200 s; those from now on have not.
    assert!(holds(&table, 0));
    assert_eq!(add(&mut table, 20, State::Opening, now).1.unwrap().state, State::Established);
    assert!(!holds(&table, 0) && holds(&table, 20));
    assert_eq!(add(&mut table, 21, State::Opening, now).1.unwrap().state, State::Opening);
    let (hash, one) = key(21);
    let at = table.find(hash, &one).unwrap();
    table.change(at, SERVER, State::Established, now);
    let (at, gone) = add(&mut table, 22, State::Opening, now + 1);
    assert!(at.is_none() && gone.is_none(), "nobody leaves for it");
    assert!((10..15).chain([21]).all(|n| holds(&table, n)));
}

#[derive(Debug, Clone)]
enum Step {
    Insert(u32, u8),
    Touch(u32),
    Change(u32, u8),
    Remove(u32),
    Expire(u8),
    Wait(u16),
}

fn state(n: u8) -> State {
    VICTIMS_ORDER[usize::from(n) % STATES].0
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0_u32..24;
    prop_oneof![
        4 => (n.clone(), any::<u8>()).prop_map(|(n, s)| Step::Insert(n, s)),
        2 => n.clone().prop_map(Step::Touch),
        2 => (n.clone(), any::<u8>()).prop_map(|(n, s)| Step::Change(n, s)),
        1 => n.prop_map(Step::Remove),
        1 => any::<u8>().prop_map(Step::Expire),
        1 => any::<u16>().prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a map: what is in, and every flow that leaves is told exactly once.
    #[test]
    fn as_a_map(steps in prop::collection::vec(step(), 0..300), collide in any::<bool>()) {
        let mut table = FlowTable::new(16);
        let mut model: HashMap<u32, State> = HashMap::new();
        let hashed = |n| if collide { (5, key(n).1) } else { key(n) };
        let mut now = u32::MAX - 1000;
        let (mut entered, mut left) = (0_usize, 0_usize);
        for one in steps {
            match one {
                Step::Insert(n, s) if !model.contains_key(&n) => {
                    let (hash, key) = hashed(n);
                    let (at, gone) = table.insert(hash, &key, (SERVER, state(s)), now, &ticks());
                    left += usize::from(gone.is_some());
                    entered += usize::from(at.is_some());
                    if gone.is_some() {
                        model.retain(|n, _| { let (h, k) = hashed(*n); table.find(h, &k).is_some() });
                    }
                    if at.is_some() { model.insert(n, state(s)); }
                }
                Step::Touch(n) => if let Some(at) = { let (h, k) = hashed(n); table.find(h, &k) } {
                    table.touch(at, now);
                },
                Step::Change(n, s) => if let Some(at) = { let (h, k) = hashed(n); table.find(h, &k) } {
                    table.change(at, SERVER, state(s), now);
                    model.insert(n, state(s));
                },
                Step::Remove(n) => if let Some(at) = { let (h, k) = hashed(n); table.find(h, &k) } {
                    prop_assert!(table.remove(at).is_some());
                    left += 1;
                    model.remove(&n);
                },
                Step::Expire(budget) => {
                    table.expire(now, &ticks(), budget.into(), |_| left += 1);
                    model.retain(|n, _| { let (h, k) = hashed(*n); table.find(h, &k).is_some() });
                }
                Step::Wait(time) => now = now.wrapping_add(time.into()),
                Step::Insert(..) => {}
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(entered, left + table.len());
        }
        for n in 0..24 {
            let (hash, key) = hashed(n);
            let found = table.find(hash, &key).and_then(|at| table.get(at)).map(|flow| flow.state);
            prop_assert_eq!(found, model.get(&n).copied());
        }
    }
}
