use std::net::IpAddr;
use std::sync::Arc;

use super::layout::{Action, Flow, FlowKey, Reason, Server, ServiceKey, State};
use super::program::{PASS, Setup, TRANSMIT};
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

fn server(number: u8, shown: bool) -> Server {
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

fn setup() -> Setup {
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

fn tables(shown: bool) -> Tables {
    let key = ServiceKey { address: VIP.parse().unwrap(), port: 80, protocol: 6 };
    let places: Arc<[u16]> = if shown { Arc::default() } else { vec![3, 4].into() };
    Tables {
        services: vec![Service { key, places, by_source: false }],
        servers: vec![(3, server(3, shown)), (4, server(4, shown))],
    }
}

/// A TCP segment from a client.
fn segment(port: u16, flags: u8) -> Vec<u8> {
    let mut frame = [OURS.0, CLIENT.0].concat();
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 9, 192, 0, 2, 1]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame
}

fn run(program: &Program, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; frame.len() + 64];
    let run = program.run(frame, &mut out, Trial::default()).expect("a run");
    out.truncate(run.length);
    (run.result, out)
}

fn key(port: u16) -> FlowKey {
    let client: IpAddr = "10.0.0.9".parse().unwrap();
    FlowKey { source: (client, port), destination: (VIP.parse().unwrap(), 80), protocol: 6 }
}

fn passed(path: &FastPath, reason: Reason) -> u64 {
    path.reasons().unwrap().iter().find(|(one, _)| *one == reason).map_or(0, |(_, count)| *count)
}

const SYN: u8 = 2;
const ACK: u8 = 16;
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
        let flow = path.flows().flow(&key(1000)).unwrap().expect("remembered");
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
    let flow = Flow { slot: 4, generation: 1, state: State::Established, seen: now, shown: now };
    path.flows().remember(&[(key(1000), flow)]).expect("room");
    assert_eq!(run(&program, &segment(1000, ACK)).0, TRANSMIT);
    for flags in [FIN, RST, SYN] {
        assert_eq!(run(&program, &segment(1000, flags)).0, PASS, "{flags:#x}");
    }
    assert_eq!(passed(&path, Reason::Control), 3);
    // The SYN may have gone to another server: until we hear which, frames go up.
    assert_eq!(path.flows().flow(&key(1000)).unwrap(), None);
    assert_eq!(run(&program, &segment(1000, ACK)).0, PASS);
    // One that was not shown for a while goes up once.
    let old = Flow { shown: now.wrapping_sub(6000), ..flow };
    path.flows().remember(&[(key(1000), old)]).expect("room");
    assert_eq!([0, 1, 2].map(|_| run(&program, &segment(1000, ACK)).0), [PASS, TRANSMIT, TRANSMIT]);
    assert_eq!(passed(&path, Reason::Refresh), 1);
    // Of an earlier occupant of the slot, or at rest for longer than its timeout: not known.
    for stale in [Flow { generation: 0, ..flow }, Flow { seen: now.wrapping_sub(60_001), ..flow }] {
        path.flows().remember(&[(key(1000), stale)]).expect("room");
        assert_eq!(run(&program, &segment(1000, ACK)).0, PASS);
    }
    assert_eq!(passed(&path, Reason::Schedule), 4);
    let mut seen = Vec::new();
    path.flows().for_each_flow(|key, flow| seen.push((key, flow.slot))).expect("all");
    assert_eq!(seen, [(key(1000), 4)]);
}
