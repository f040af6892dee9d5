//! Program and userland at the same table.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::packet::xdp::layout::Reason;
use crate::packet::xdp::program::TRANSMIT;
use crate::packet::xdp::tests::{ACK, SYN, key, passed, run, segment, server, setup, tables};
use crate::packet::xdp::{FastPath, Tables, clock};
use crate::sys::bpf::Program;

const HOUR: u32 = 3600 * 954;

/// A path for so many flows of each family, with a program.
fn world(flows: u32) -> Option<(FastPath, Program)> {
    let limits = Limits { flows_v4: flows, flows_v6: flows, syn_limit: false };
    let mut path = match FastPath::new(limits) {
        Err(Error::Map(_, error)) if error.raw_os_error() == Some(libc::EPERM) => return None,
        path => path.expect("maps"),
    };
    let lasting = |number| {
        let mut server = server(number, false);
        server.timeouts = [HOUR; 4];
        (u16::from(number), server)
    };
    let tables =
        Tables { servers: vec![lasting(3), lasting(4)], timeouts: [[HOUR; 4]; 3], ..tables(false) };
    path.set_tables(tables, |_| setup()).expect("tables");
    let program = path.program(&setup()).expect("a program");
    Some((path, program))
}

fn established(slot: u16, seen: u32) -> Flow {
    Flow { slot, generation: 1, state: State::Established, seen }
}

fn all(path: &FastPath) -> BTreeMap<u16, (u16, State)> {
    let mut all = BTreeMap::new();
    path.flows().for_each_flow(|key, flow| {
        let before = all.insert(key.source.1, (flow.slot, flow.state));
        assert_eq!(before, None, "{key:?} is there twice");
    });
    all
}

/// What either side has put into the table the other finds, and in the same place.
#[test]
fn both_sides_choose_the_same_places() {
    let Some((theirs, program)) = world(64) else { return };
    let (ours, _) = world(64).expect("another");
    let begin = clock();
    let (mut state, mut evicted) = (9_u32, 0);
    for port in 1000..3000 {
        let place = |path: &FastPath| {
            let mut before = all(path);
            before.retain(|port, _| path.flows().flow(&key(*port)).is_some());
            before
        };
        assert_eq!(run(&program, &segment(port, SYN)).0, TRANSMIT);
        let flow = theirs.flows().flow(&key(port));
        let told = flow.is_some_and(|flow| ours.flows().remember(&key(port), flow, flow.seen));
        // Where there is room on one side there is room on the other.
        assert_eq!(told, flow.is_some());
        let (left, right) = (place(&theirs), place(&ours));
        assert_eq!(left, right, "after {port}");
        evicted += u32::from(left.len() <= usize::from(port - 1000));
        // Some of it ages, differently enough for clocks that are apart by a tick.
        for (port, (slot, _)) in left {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if state >> 28 == 0 {
                let seen =
                    begin.wrapping_sub((state >> 8 & 0xfff) * 1000 + u32::from(port - 1000) * 30);
                let flow = established(slot, seen);
                for path in [&theirs, &ours] {
                    assert!(path.flows().remember(&key(port), flow, begin));
                }
            }
        }
    }
    assert!(evicted > 1000, "{evicted}");
}

#[test]
fn what_is_told_is_gone_by_and_what_is_forgotten_is_not() {
    let Some((path, program)) = world(1 << 16) else { return };
    let now = clock();
    for port in 1000..5000 {
        // Half of them against the hash.
        assert!(path.flows().remember(&key(port), established(3 + port % 2, now), now));
    }
    assert_eq!(all(&path).len(), 4000);
    for port in 1000..5000 {
        let (result, out) = run(&program, &segment(port, ACK));
        assert_eq!((result, u16::from(out[5])), (TRANSMIT, 3 + port % 2));
    }
    for port in (1000..5000).step_by(2) {
        path.flows().forget(&key(port));
        assert_eq!(path.flows().flow(&key(port)), None);
    }
    assert_eq!(all(&path).len(), 2000);
    let known = passed(&path, Reason::UnknownFlow);
    (1000..5000).for_each(|port| drop(run(&program, &segment(port, ACK))));
    assert_eq!(passed(&path, Reason::UnknownFlow) - known, 2000);
}

/// The same for addresses of 128 bits, from this side alone; the program's are in `l4::offload::tests`.
#[test]
fn a_table_of_its_size_is_filled() {
    const FLOWS: u32 = 20_000;
    let Some((path, _)) = world(FLOWS) else { return };
    let now = clock();
    for six in [false, true] {
        let key = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            let client = if six {
                std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, u16::from(a), u16::from(b), 0, 1)
                    .into()
            } else {
                std::net::Ipv4Addr::new(10, 0, a, b).into()
            };
            let vip = if six { "2001:db8::1" } else { "192.0.2.1" }.parse().expect("an address");
            let port = u16::from_be_bytes([c, d]);
            FlowKey { source: (client, port), destination: (vip, 80), protocol: 6 }
        };
        let told = (0..FLOWS).filter(|n| path.flows().remember(&key(*n), established(3, now), now));
        let told = told.count();
        // All are in use: one finds no room when both its buckets are full.
        let least = if six { 0.995 } else { 0.9999 };
        assert!(told as f64 >= f64::from(FLOWS) * least, "{told} of {FLOWS}, six {six}");
        let found = (0..FLOWS).filter(|n| path.flows().flow(&key(*n)).is_some()).count();
        assert_eq!(found, told, "none has pushed another out");
    }
}

/// A flood takes the places of what is no connection yet, and of nothing else.
#[test]
fn connections_in_use_stay() {
    // One bucket of five places.
    let Some((path, program)) = world(2) else { return };
    for port in 1000..1004 {
        let [(_, opened), (_, used)] = [SYN, ACK].map(|flags| run(&program, &segment(port, flags)));
        assert_eq!(opened[..6], used[..6]);
    }
    let before = all(&path);
    assert_eq!(before.len(), 4);
    for port in 2000..3000 {
        assert_eq!(run(&program, &segment(port, SYN)).0, TRANSMIT);
        assert!(path.flows().flow(&key(port)).is_some(), "the fifth place");
    }
    assert_eq!(run(&program, &segment(2999, ACK)).0, TRANSMIT);
    assert_eq!(passed(&path, Reason::Full), 0);
    for port in 3000..4000 {
        let (result, out) = run(&program, &segment(port, SYN));
        assert_eq!(result, TRANSMIT);
        assert!(matches!(out[5], 3 | 4), "by its hash");
        assert_eq!(path.flows().flow(&key(port)), None);
    }
    assert_eq!(passed(&path, Reason::Full), 1000);
    assert!(before.into_iter().all(|one| all(&path).contains_key(&one.0)));
    // One that has rested for an eighth of its timeout makes room; the one that has rested longest.
    let now = clock();
    for (port, rested) in [(1000, HOUR / 9), (1001, HOUR / 7), (1002, HOUR / 4), (1003, HOUR / 5)] {
        path.flows().set_seen(&key(port), now.wrapping_sub(rested));
    }
    for (new, gone) in [(5000, 1002), (5001, 1003), (5002, 1001)] {
        assert!(path.flows().flow(&key(gone)).is_some());
        for flags in [SYN, ACK] {
            assert_eq!(run(&program, &segment(new, flags)).0, TRANSMIT);
        }
        assert_eq!(path.flows().flow(&key(gone)), None, "for {new}");
    }
    assert_eq!(run(&program, &segment(5003, SYN)).0, TRANSMIT);
    assert_eq!(path.flows().flow(&key(5003)), None);
    assert!(path.flows().flow(&key(1000)).is_some());
}

/// Few places, many flows, both CPUs and userland at once: whoever finds a flow finds its own server.
#[test]
fn a_place_that_changes_hands_misleads_nobody() {
    let Some((path, program)) = world(8) else { return };
    const PORTS: std::ops::Range<u16> = 1000..1200;
    // By the hash alone, which never changes.
    let (calm, expected) = world(1 << 12).expect("another");
    let expected: Vec<u8> = PORTS.map(|port| run(&expected, &segment(port, SYN)).1[5]).collect();
    drop(calm);
    let done = AtomicBool::new(false);
    let cpus = crate::sys::cpu::allowed();
    let (path, program, expected, done) = (&path, &program, &expected, &done);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..3_usize)
            .map(|number| {
                let cpu = cpus[number % cpus.len()];
                scope.spawn(move || {
                    assert!(crate::sys::cpu::pin(cpu));
                    let mut state = 77 + u32::try_from(number).expect("few");
                    for _ in 0..40_000 {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let at = state >> 8 & 0xff;
                        let Some(server) = expected.get(at as usize) else { continue };
                        let port = PORTS.start + u16::try_from(at).expect("small");
                        let flags = if state >> 30 == 0 { ACK } else { SYN };
                        let (result, out) = run(program, &segment(port, flags));
                        assert!(result != TRANSMIT || out[5] == *server, "port {port}");
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            while !done.load(Relaxed) {
                for (port, server) in PORTS.zip(expected) {
                    let flow = established((*server).into(), clock().wrapping_sub(HOUR / 2));
                    path.flows().remember(&key(port), flow, clock());
                    if let Some(flow) = path.flows().flow(&key(port)) {
                        assert_eq!(flow.slot, u16::from(*server), "port {port}");
                    }
                    path.flows().forget(&key(port.wrapping_add(7)));
                }
            }
        });
        let results: Vec<_> = senders.into_iter().map(|one| one.join()).collect();
        done.store(true, Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    path.flows().for_each_flow(|key, flow| {
        assert_eq!(flow.slot, u16::from(expected[usize::from(key.source.1 - PORTS.start)]));
    });
    assert!(passed(path, Reason::UnknownFlow) > 0);
}

#[test]
fn another_process_goes_on_with_them() {
    let Some((path, _)) = world(1 << 10) else { return };
    let now = clock();
    for port in 1000..1500 {
        assert!(path.flows().remember(&key(port), established(3, now), now));
    }
    let heirs = FlowTable::adopt(path.flows().share().expect("descriptors")).expect("flows");
    let limits = |flows_v4| Limits { flows_v4, flows_v6: 1 << 10, syn_limit: false };
    assert!(heirs.fits(limits(1 << 10)) && !heirs.fits(limits(1 << 11)));
    for port in 1000..1500 {
        assert_eq!(heirs.flow(&key(port)), Some(established(3, now)));
    }
    heirs.forget(&key(1000));
    assert_eq!(path.flows().flow(&key(1000)), None);
    let [four, _] = path.flows().share().expect("descriptors");
    let [_, six] = path.flows().share().expect("descriptors");
    assert!(FlowTable::adopt([six, four]).is_err(), "the wrong way round");
}

#[test]
fn what_is_not_kept_makes_room() {
    let Some((path, _)) = world(1 << 10) else { return };
    let now = clock();
    for port in 1000..1500 {
        assert!(path.flows().remember(&key(port), established(3 + port % 2, now), now));
    }
    path.flows().retain(|key, flow| {
        assert_eq!(flow, established(3 + key.source.1 % 2, now));
        flow.slot == 4
    });
    let left = all(&path);
    assert!(left.len() == 250 && left.values().all(|(slot, _)| *slot == 4), "{left:?}");
    assert_eq!(path.flows().flow(&key(1000)), None);
}

/// Before it is known how long flows may rest, none makes room for another.
#[test]
fn without_timeouts_free_places_are_taken_and_no_others() {
    let limits = Limits { flows_v4: 2, flows_v6: 0, syn_limit: false };
    let path = match FastPath::new(limits) {
        Err(Error::Map(_, error)) if error.raw_os_error() == Some(libc::EPERM) => return,
        path => path.expect("maps"),
    };
    let told = |port: u16| path.flows().remember(&key(port), established(3, 1), clock());
    assert_eq!((1000..1100).filter(|port| told(*port)).count(), 5);
    assert_eq!(all(&path).len(), 5);
}
