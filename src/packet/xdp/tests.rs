use std::net::IpAddr;
use std::sync::Arc;

use super::assembler::{Assembler, Register};
use super::layout::{Action, Flow, FlowKey, Reason, Server, ServiceKey, State};
use super::program::{self, DROP, PASS, Setup, TRANSMIT};
use super::*;
use crate::balance::siphash::Key;
use crate::protocol::ethernet::Mac;
use crate::sys::bpf::{Program, Trial};

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 9]);
const VIP: &str = "192.0.2.1";

fn fast_path() -> Option<FastPath> {
    match FastPath::new(Limits { flows_v4: 4096, flows_v6: 4096, syn_limit: true }) {
        Ok(path) => Some(path),
        Err(Error::Map(_, error)) if error.raw_os_error() == Some(libc::EPERM) => None,
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn server(number: u8, shown: bool) -> Server {
    Server {
        destination: Mac([2, 0, 0, 1, 0, number]),
        source: OURS,
        action: Action::Send(1),
        generation: 1,
        vlan: 0,
        shown,
        down: false,
        timeouts: [60_000; 4],
    }
}

pub(super) fn setup() -> Setup {
    Setup {
        interface: 1,
        macs: vec![Mac([2, 0, 0, 0, 0, 7]), OURS],
        peers: vec![Mac([2, 0, 0, 0, 0, 8])],
        frame_max: 1518,
        key: Key(1, 2),
        new_flows: 0,
        syn_limit: 0,
        any_port: false,
    }
}

pub(super) fn tables(shown: bool) -> Tables {
    let key = ServiceKey { address: VIP.parse().unwrap(), port: 80, protocol: 6 };
    let places: Arc<[u16]> = if shown { Arc::default() } else { vec![3, 4].into() };
    Tables {
        services: vec![Service { key, places, by_source: false }],
        servers: vec![(3, server(3, shown)), (4, server(4, shown))],
        timeouts: [[60_000; 4]; 3],
    }
}

/// A TCP segment from a client.
pub(super) fn segment(port: u16, flags: u8) -> Vec<u8> {
    let mut frame = [OURS.0, CLIENT.0].concat();
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 9, 192, 0, 2, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}

pub(super) fn run(program: &Program, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let run = program.run(frame, &mut out, Trial::default()).expect("a run");
    out.truncate(run.length);
    (run.result, out)
}

pub(super) fn key(port: u16) -> FlowKey {
    let client: IpAddr = "10.0.0.9".parse().unwrap();
    FlowKey { source: (client, port), destination: (VIP.parse().unwrap(), 80), protocol: 6 }
}

pub(super) fn passed(path: &FastPath, reason: Reason) -> u64 {
    path.reasons().unwrap().iter().find(|(one, _)| *one == reason).map_or(0, |(_, count)| *count)
}

pub(super) const SYN: u8 = 2;
pub(super) const ACK: u8 = 16;
const FIN: u8 = 17;
const RST: u8 = 4;

#[test]
fn a_connection_from_syn_to_reset() {
    let Some(mut path) = fast_path() else { return };
    path.set_tables(tables(false), |_| setup()).expect("tables");
    let program = path.program(&setup()).expect("a program");
    // Unknown and not a beginning: up.
    assert_eq!(run(&program, &segment(1000, ACK)).0, PASS);
    assert_eq!(passed(&path, Reason::UnknownFlow), 1);
    let states = [
        (SYN, State::Opening),
        (ACK, State::Established),
        (SYN, State::Established),
        (FIN, State::Closing),
        (ACK, State::Closing),
        (SYN, State::Opening),
        (RST, State::Closed),
        (SYN, State::Opening),
    ];
    for (flags, state) in states {
        let (result, out) = run(&program, &segment(1000, flags));
        assert_eq!(result, TRANSMIT, "{flags:#x}");
        let flow = path.flows().flow(&key(1000)).expect("remembered");
        assert_eq!((flow.state, flow.generation), (state, 1), "{flags:#x}");
        let mut expected = segment(1000, flags);
        expected[..6].copy_from_slice(&[2, 0, 0, 1, 0, u8::try_from(flow.slot).unwrap()]);
        expected[6..12].copy_from_slice(&OURS.0);
        assert_eq!(out, expected, "only the MAC addresses differ");
    }
    let totals = [3, 4].map(|slot| path.totals(slot).unwrap());
    assert_eq!(totals.iter().map(|one| one.packets).sum::<u64>(), 8);
    assert_eq!(totals.iter().map(|one| one.bytes).sum::<u64>(), 320);
    assert_eq!(totals.iter().map(|one| one.flows).sum::<u64>(), 3, "two were scheduled anew");
}

#[test]
fn flows_of_the_packet_socket_are_shown_to_it() {
    let Some(mut path) = fast_path() else { return };
    path.set_tables(tables(true), |_| setup()).expect("tables");
    let program = path.program(&setup()).expect("a program");
    assert_eq!(run(&program, &segment(1000, SYN)).0, PASS);
    assert_eq!(passed(&path, Reason::Schedule), 1);
    let now = clock();
    let flow = Flow { slot: 4, generation: 1, state: State::Established, seen: now };
    let remember = |flow| assert!(path.flows().remember(&key(1000), flow, now), "no room");
    remember(flow);
    assert_eq!(run(&program, &segment(1000, ACK)).0, TRANSMIT);
    for flags in [FIN, RST, SYN] {
        assert_eq!(run(&program, &segment(1000, flags)).0, PASS, "{flags:#x}");
    }
    assert_eq!(passed(&path, Reason::Control), 3);
    // The SYN may have gone to another server: until we hear which, frames go up.
    assert_eq!(path.flows().flow(&key(1000)), None);
    assert_eq!(run(&program, &segment(1000, ACK)).0, PASS);
    // One that was not shown for a while goes up once: neither because it rested, nor though it did not.
    remember(Flow { seen: now.wrapping_sub(6000), ..flow });
    assert_eq!([0, 1, 2].map(|_| run(&program, &segment(1000, ACK)).0), [PASS, TRANSMIT, TRANSMIT]);
    remember(Flow { seen: now.wrapping_sub(6000), ..flow });
    path.flows().set_seen(&key(1000), now.wrapping_sub(100));
    assert_eq!([0, 1, 2].map(|_| run(&program, &segment(1000, ACK)).0), [PASS, TRANSMIT, TRANSMIT]);
    assert_eq!(passed(&path, Reason::Refresh), 2);
    // Of an earlier occupant of the slot, or at rest for longer than its timeout: not known.
    for stale in [Flow { generation: 0, ..flow }, Flow { seen: now.wrapping_sub(60_001), ..flow }] {
        remember(stale);
        assert_eq!(run(&program, &segment(1000, ACK)).0, PASS);
    }
    assert_eq!(passed(&path, Reason::Schedule), 4);
    let mut seen = Vec::new();
    path.flows().for_each_flow(|key, flow| seen.push((key, flow.slot)));
    assert_eq!(seen, [(key(1000), 4)]);
}

/// A program that returns its clock, which is compared with ours before and after.
#[test]
fn both_clocks_agree() {
    let mut a = Assembler::default();
    program::clock(&mut a);
    a.set(Register::R0, Register::R8);
    a.exit();
    let program = match Program::load_xdp(&a.finish().expect("no labels"), "clock") {
        Err(error) if error.error.raw_os_error() == Some(libc::EPERM) => return,
        program => program.expect("a sound program"),
    };
    for _ in 0..100 {
        let before = clock();
        let theirs = run(&program, &[0; 60]).0;
        let after = clock();
        // Ours may be less by 10 ms, ten of its units.
        assert!(
            theirs.wrapping_sub(before) <= after.wrapping_sub(before) + 10,
            "{theirs} {before}"
        );
    }
}

/// Does something within one second of the program's clock, on one CPU: that is what limits count by.
fn within_a_second(mut act: impl FnMut(), mut check: impl FnMut()) {
    let cpu = crate::sys::cpu::allowed().into_iter().next();
    assert!(cpu.is_some_and(crate::sys::cpu::pin), "pinned");
    for _ in 0..20 {
        let begin = clock();
        act();
        if clock().wrapping_sub(begin) < 900 {
            return check();
        }
    }
    panic!("never on the CPU for a second");
}

fn limited(new_flows: u32, syn_limit: u32) -> Option<(FastPath, Program)> {
    let mut path = fast_path()?;
    let setup = || Setup { new_flows, syn_limit, ..setup() };
    path.set_tables(tables(false), |_| setup()).expect("tables");
    let program = path.program(&setup()).expect("a program");
    Some((path, program))
}

#[test]
fn beyond_the_rate_of_new_flows_they_go_by_hash_alone() {
    if limited(1, 0).is_none() {
        return;
    }
    let seen = std::cell::RefCell::new(None);
    let act = || {
        let (path, program) = limited(2, 0).expect("a program");
        let frames = (1000..1005).map(|port| segment(port, SYN)).chain([segment(1004, ACK)]);
        let all: Vec<_> = frames.map(|frame| run(&program, &frame)).collect();
        *seen.borrow_mut() = Some((path, all));
    };
    within_a_second(act, || {
        let (path, all) = seen.borrow_mut().take().expect("it ran");
        assert!(all.iter().all(|(result, _)| *result == TRANSMIT), "none is lost, none goes up");
        let known = |port| path.flows().flow(&key(port)).is_some();
        assert_eq!([1000, 1001, 1002, 1003, 1004].map(known), [true, true, false, false, false]);
        assert_eq!(passed(&path, Reason::Stateless), 4);
        assert_eq!(all[4].1[..6], all[5].1[..6], "the same server without an entry");
    });
}

#[test]
fn what_began_anew_beyond_the_rate_is_forgotten() {
    if limited(1, 0).is_none() {
        return;
    }
    let seen = std::cell::RefCell::new(None);
    let act = || {
        let (path, program) = limited(1, 0).expect("a program");
        let results = [SYN, FIN, SYN].map(|flags| run(&program, &segment(1000, flags)).0);
        *seen.borrow_mut() = Some((path, results));
    };
    within_a_second(act, || {
        let (path, results) = seen.borrow_mut().take().expect("it ran");
        assert_eq!(results, [TRANSMIT; 3]);
        assert_eq!(passed(&path, Reason::Stateless), 1);
        // The new connection may be with another server than the one before.
        assert_eq!(path.flows().flow(&key(1000)), None);
    });
}

#[test]
fn too_many_connections_of_one_source_are_dropped() {
    if limited(0, 1).is_none() {
        return;
    }
    let seen = std::cell::RefCell::new(None);
    let act = || {
        let (path, program) = limited(0, 3).expect("a program");
        let mut other = segment(1000, SYN);
        other[29] = 10;
        let mut frames: Vec<_> = (1000..1005).map(|port| segment(port, SYN)).collect();
        frames.extend([segment(1000, ACK), other]);
        let results: Vec<u32> = frames.iter().map(|frame| run(&program, frame).0).collect();
        *seen.borrow_mut() = Some((path, results));
    };
    within_a_second(act, || {
        let (path, results) = seen.borrow_mut().take().expect("it ran");
        let (sent, dropped) = (TRANSMIT, DROP);
        assert_eq!(results, [sent, sent, sent, dropped, dropped, sent, sent]);
        assert_eq!(passed(&path, Reason::SynLimit), 2);
        assert_eq!(path.flows().flow(&key(1003)), None);
    });
}

#[test]
fn a_full_table_loses_no_frame() {
    const ROOM: u32 = 1024;
    let limits = Limits { flows_v4: ROOM, flows_v6: 0, syn_limit: false };
    if fast_path().is_none() {
        return;
    }
    let mut path = FastPath::new(limits).expect("maps");
    path.set_tables(tables(false), |_| setup()).expect("tables");
    let program = path.program(&setup()).expect("a program");
    let mut servers = Vec::new();
    for port in 1000..9000 {
        let (result, out) = run(&program, &segment(port, SYN));
        assert_eq!(result, TRANSMIT, "port {port}");
        servers.push(out[5]);
    }
    let mut known = std::collections::HashMap::new();
    path.flows().for_each_flow(|key, flow| {
        known.insert(key, flow);
    });
    // Five places for two flows.
    assert!(
        known.len() >= ROOM as usize && known.len() <= ROOM as usize / 2 * 5,
        "{} flows",
        known.len()
    );
    let mut forgotten = 0;
    for (port, server) in (1000..9000).zip(servers) {
        let (result, out) = run(&program, &segment(port, ACK));
        if known.contains_key(&key(port)) {
            assert_eq!((result, out[5]), (TRANSMIT, server), "port {port}");
        } else {
            // The packet socket finds it by the same hash.
            assert_eq!(result, PASS, "port {port}");
            forgotten += 1;
        }
    }
    assert_eq!(passed(&path, Reason::UnknownFlow), forgotten);
    assert!(forgotten >= 8000 - u64::from(ROOM) / 2 * 5, "{forgotten} forgotten");
}
