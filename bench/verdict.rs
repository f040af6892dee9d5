//! `ringgate-bench verdict`: what the director's decision on a frame costs, without any socket.
//!
//! For each number of flows and of real servers a director whose table holds so many established flows. Their packets
//! come in an order that caches cannot guess, judged as a ring has them: looked at in batches, then judged one after
//! the other; and, beside it, one after the other only. What making the frames costs is taken off. Rounds of
//! all cases are interleaved; medians are shown.

use std::collections::HashMap;
use std::fs;
use std::hint::black_box;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use ringgate::l4::config::{
    L4, Protocol, RealServer, Scheduler, ServiceKey, Settings, VirtualServer,
};
use ringgate::l4::registry::Registry;
use ringgate::l4::tables::Neighbour;
use ringgate::l4::{Director, Frame, Verdict};
use ringgate::protocol::ethernet::Mac;
use serde_json::json;

use crate::args::VerdictBench;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Frames of a batch, as in the director's thread.
const BATCH: usize = 64;
const LENGTH: usize = 60;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Any time will do; it stands still.
const NOW: u64 = 1_000_000;

type Frames = [[u8; LENGTH]; BATCH];

/// A director with its flows, and the figures of each round in nanoseconds a frame.
struct Case {
    flows: u32,
    servers: u16,
    director: Director,
    batched: Vec<f64>,
    single: Vec<f64>,
}

/// Prints the figures.
pub(crate) fn run(options: &VerdictBench) -> Result<u8, String> {
    let capacity = options.flows.iter().copied().max().unwrap_or(1).max(1 << 20);
    let mut frames = [[0; LENGTH]; BATCH];
    let (mut cases, mut grown) = (Vec::new(), None);
    for &flows in &options.flows {
        for &servers in &options.servers {
            let before = resident()?;
            let case = Case::new(flows, servers, capacity, &mut frames);
            // Huge pages and allocators round up: only many flows tell the size of one.
            if flows >= capacity / 2 {
                grown = Some((resident()? - before) / f64::from(flows));
            }
            cases.push(case);
        }
    }
    let mut making = Vec::new();
    for round in 0..options.rounds {
        let seed = round.wrapping_mul(7919).wrapping_add(1);
        making.push(make(options.verdicts, seed, &mut frames));
        for case in &mut cases {
            let batched = case.measure(options.verdicts, seed, &mut frames, true);
            let single = case.measure(options.verdicts, seed, &mut frames, false);
            case.batched.push(batched);
            case.single.push(single);
        }
    }
    let making = median(&making);
    let opening = Case::new(0, 100, capacity, &mut frames).open(capacity, &mut frames) - making;
    let mut full = Case::new(capacity, 100, capacity, &mut frames);
    let evicting = full.open(capacity / 4, &mut frames) - making;
    report(options, &cases, making, (opening, evicting), grown);
    Ok(0)
}

fn report(
    options: &VerdictBench,
    cases: &[Case],
    making: f64,
    (opening, evicting): (f64, f64),
    grown: Option<f64>,
) {
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            json!({ "flows": case.flows, "servers": case.servers,
                    "ns_batched": median(&case.batched) - making, "ns_single": median(&case.single) - making })
        })
        .collect();
    let mut out = io::stdout();
    if options.json {
        let result = json!({ "tool": "ringgate-bench verdict", "rounds": options.rounds, "verdicts": options.verdicts,
            "ns_frame_made": making, "cases": rows, "ns_new_flow": opening, "ns_new_flow_full_table": evicting,
            "bytes_per_flow": grown });
        let _ = writeln!(out, "{result:#}");
        return;
    }
    let _ = writeln!(
        out,
        "{:>9} {:>8} {:>16} {:>12}",
        "flows", "servers", "ns in batches", "ns singly"
    );
    for case in cases {
        let (batched, single) = (median(&case.batched) - making, median(&case.single) - making);
        let _ =
            writeln!(out, "{:>9} {:>8} {batched:>16.1} {single:>12.1}", case.flows, case.servers);
    }
    let _ = writeln!(out, "new flow: {opening:.1} ns; in a full table: {evicting:.1} ns");
    if let Some(bytes) = grown {
        let _ = writeln!(out, "resident memory grew by {bytes:.1} bytes a flow");
    }
    let _ = writeln!(
        out,
        "making a frame ({making:.1} ns) is taken off; medians of {} rounds",
        options.rounds
    );
}

impl Case {
    fn new(flows: u32, servers: u16, capacity: u32, frames: &mut Frames) -> Self {
        let mut registry = Registry::new(configuration(servers), 1);
        registry.set_interfaces(HashMap::from([(2, vec![OURS])]));
        for number in 0..servers {
            let way = Neighbour { mac: OURS, source: OURS, ifindex: 3, vlan: None };
            registry.set_neighbour(server(number), Some(way));
        }
        let director = Director::new(0, registry.tables(), capacity);
        let mut case = Self { flows, servers, director, batched: Vec::new(), single: Vec::new() };
        for flow in 0..flows {
            case.judge_one(flow, SYN, frames);
            case.judge_one(flow, ACK, frames);
        }
        case
    }

    fn judge_one(&mut self, flow: u32, flags: u8, frames: &mut Frames) {
        write(&mut frames[0], flow, flags);
        judge(&mut self.director, 0, &mut frames[0]);
    }

    /// Nanoseconds a frame, with making it.
    fn measure(&mut self, verdicts: u32, seed: u32, frames: &mut Frames, batched: bool) -> f64 {
        let (mut random, began) = (seed, Instant::now());
        for _ in 0..verdicts / 64 {
            fill(frames, self.flows, &mut random);
            if batched {
                self.director.foresee(frames.iter().map(<[u8; LENGTH]>::as_slice));
            }
            for (place, frame) in frames.iter_mut().enumerate() {
                judge(&mut self.director, place, frame);
            }
        }
        each(began, verdicts)
    }

    /// Nanoseconds for a SYN of a flow that is not there, of so many.
    fn open(&mut self, count: u32, frames: &mut Frames) -> f64 {
        let began = Instant::now();
        for batch in 0..count / 64 {
            for (place, frame) in (0..).zip(frames.iter_mut()) {
                write(frame, self.flows + batch * 64 + place, SYN);
            }
            self.director.foresee(frames.iter().map(<[u8; LENGTH]>::as_slice));
            for (place, frame) in frames.iter_mut().enumerate() {
                judge(&mut self.director, place, frame);
            }
        }
        each(began, count)
    }
}

fn judge(director: &mut Director, place: usize, bytes: &mut [u8; LENGTH]) {
    let mut frame = Frame { bytes, vlan: None, ifindex: 2, length: LENGTH };
    director.select(place);
    let verdict = director.judge(NOW, &mut frame);
    assert!(matches!(black_box(verdict), Verdict::Forward { .. }), "{verdict:?}");
}

/// What making frames costs alone.
fn make(verdicts: u32, seed: u32, frames: &mut Frames) -> f64 {
    let (mut random, began) = (seed, Instant::now());
    for _ in 0..verdicts / 64 {
        fill(frames, 1 << 20, &mut random);
        black_box(&frames);
    }
    each(began, verdicts)
}

/// Packets of flows by chance.
fn fill(frames: &mut Frames, flows: u32, random: &mut u32) {
    for frame in frames {
        *random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let flow = (u64::from(*random) * u64::from(flows)) >> 32;
        write(frame, u32::try_from(flow).unwrap_or_default(), ACK);
    }
}

/// The segment of a flow: 16 of each client.
fn write(frame: &mut [u8; LENGTH], flow: u32, flags: u8) {
    frame[..6].copy_from_slice(&OURS.0);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    frame[26..30].copy_from_slice(&(0x0a00_0000 + (flow >> 4)).to_be_bytes());
    frame[30..34].copy_from_slice(&VIP.octets());
    let port = 1024 + u16::try_from(flow & 15).unwrap_or_default();
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&[0, 80]);
    frame[46..48].copy_from_slice(&[0x50, flags]);
}

fn configuration(servers: u16) -> L4 {
    let key = ServiceKey { protocol: Protocol::Tcp, address: VIP.into(), port: 80 };
    let servers = (0..servers).map(|number| RealServer::new(server(number), 1)).collect();
    let service = VirtualServer::new(key, Scheduler::Rr, servers);
    let director = Settings { new_flows_per_second: 0, ..Settings::default() };
    L4 { director, services: vec![service] }
}

fn server(number: u16) -> IpAddr {
    let [a, b] = number.to_be_bytes();
    [172, 16, a, b].into()
}

fn each(began: Instant, count: u32) -> f64 {
    began.elapsed().as_secs_f64() * 1e9 / f64::from(count.max(1))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Bytes of memory that this process has.
fn resident() -> Result<f64, String> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").map_err(|error| error.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    number.map(|kilobytes| kilobytes * 1024.0).ok_or_else(|| "no Rss in smaps_rollup".to_owned())
}
