//! `ringgate-bench xdp`: what the director's XDP program costs a frame.
//!
//! The kernel runs the loaded program on frames of ours (BPF_PROG_TEST_RUN), beside an empty one; or it really sends
//! them, without socket buffers, out of an interface whose other end drops them (live frames). In both ways a few
//! instructions before the program can give each frame another flow, in an order that no cache foresees. Time is the CPU time of
//! the calling thread, in which all of it happens.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use ringgate::l4::config::{L4, Protocol, RealServer, Scheduler, ServiceKey, VirtualServer};
use ringgate::l4::offload::translate;
use ringgate::l4::registry::Registry;
use ringgate::l4::tables::Neighbour;
use ringgate::packet::xdp::assembler::Condition::{Equal, Greater};
use ringgate::packet::xdp::assembler::Operation::{Add, And, Multiply, ShiftRight};
use ringgate::packet::xdp::assembler::Register::{R0, R1, R2, R3, R4, R6, R10};
use ringgate::packet::xdp::assembler::Size::{Half, Word};
use ringgate::packet::xdp::assembler::{Assembler, Helper};
use ringgate::packet::xdp::program::{DROP, Setup, TRANSMIT};
use ringgate::packet::xdp::{FastPath, Limits};
use ringgate::protocol::ethernet::Mac;
use ringgate::sys::bpf::{Instruction, Kind, Link, Map, Mode, Program, Spec, Trial};
use ringgate::sys::cpu;

use crate::args::Xdp;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Times that a figure is taken; the median is shown.
const ROUNDS: usize = 15;

/// Prints the figures.
pub(crate) fn run(options: &Xdp) -> Result<u8, String> {
    let bench = Bench::new(options)?;
    if let Some((out, sink)) = options.live.as_ref().zip(options.sink.as_ref()) {
        return bench.live(options, out, sink);
    }
    let empty = constant(0)?;
    let warm = Trial { repeat: options.repeat, ..Trial::default() };
    let mut table = vec![("empty program", time(&empty, &udp(0), warm)?)];
    table.push(("one flow, warm", time(&bench.program, &udp(0), warm)?));
    table.push(("another address", time(&bench.program, &elsewhere(), warm)?));
    let mut out = io::stdout();
    for (what, nanoseconds) in table {
        let _ = writeln!(out, "{what}: {nanoseconds:.1} ns a frame");
    }
    let single = each(&empty, options.flows)?;
    let new = each(&bench.program, options.flows)? - single;
    let known = each(&bench.program, options.flows)? - single;
    let flows = options.flows;
    let _ = writeln!(
        out,
        "{flows} flows in turn, each new: {new:.0} ns a frame above the empty program"
    );
    let _ = writeln!(
        out,
        "{flows} flows in turn, all known: {known:.0} ns a frame above the empty program"
    );
    let varied = bench.varied.count;
    let all = Trial { repeat: varied, ..Trial::default() };
    let alone = time(&bench.varied.empty, &udp(0), all)?;
    let random = time(&bench.varied.program, &udp(0), all)? - alone;
    let _ =
        writeln!(out, "{varied} flows at random: {random:.1} ns a frame above the empty program");
    Ok(0)
}

struct Bench {
    program: Program,
    varied: Varied,
    _path: FastPath,
}

/// Programs that first make the frame one of another flow.
struct Varied {
    /// Flows, a power of two.
    count: u32,
    program: Program,
    empty: Program,
    _counter: Map,
}

impl Varied {
    fn new(path: &FastPath, setup: &Setup, flows: u32) -> Result<Self, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let spec =
            Spec { kind: Kind::Array, key_size: 4, value_size: 4, entries: 1, name: "counter" };
        let counter = Map::create(&spec).map_err(|error| text(&error))?;
        let count = flows.next_power_of_two();
        let first = vary(counter.as_fd().as_raw_fd(), count - 1)?;
        let program = path.program_after(&first, setup).map_err(|error| text(&error))?;
        let last = instructions(|a| {
            a.set(R0, TRANSMIT.cast_signed());
            a.exit();
        })?;
        let empty = Program::load_xdp(&[first, last].concat(), "empty");
        let empty = empty.map_err(|error| text(&error))?;
        Ok(Self { count, program, empty, _counter: counter })
    }
}

/// Steps a counter through all numbers up to `mask` in an order of no pattern (x ← 1664525 x + 1013904223 mod 2^n goes through
/// all, for the factor is 1 mod 4 and the summand odd), and writes them where [`udp`] has the flow.
fn vary(counter: i32, mask: u32) -> Result<Vec<Instruction>, String> {
    instructions(|a| {
        let end = a.label();
        a.set(R6, R1);
        a.store(Word, R10, -4, 0);
        a.map(R1, counter);
        a.set(R2, R10);
        a.alu(Add, R2, -4);
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, end);
        a.load(Word, R3, R0, 0);
        a.alu32(Multiply, R3, 1_664_525);
        a.alu32(Add, R3, 1_013_904_223);
        a.alu32(And, R3, mask.cast_signed());
        a.store(Word, R0, 0, R3);
        a.load(Word, R1, R6, 0);
        a.load(Word, R2, R6, 4);
        a.set(R4, R1);
        a.alu(Add, R4, 38);
        a.jump_if(Greater, R4, R2, end);
        a.set(R4, R3);
        a.alu(ShiftRight, R4, 16);
        a.store(Half, R1, 28, R4);
        a.store(Half, R1, 34, R3);
        a.place(end);
        a.set(R1, R6);
    })
}

impl Bench {
    fn new(options: &Xdp) -> Result<Self, String> {
        let interface = match &options.live {
            Some(name) => index(name)?,
            None => 1,
        };
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut registry = Registry::new(configuration(options.servers), 1);
        for number in 0..options.servers {
            let neighbour = Neighbour {
                // The kernel repeats a run on the frame as the last run left it: it has to be for us again.
                mac: OURS,
                source: OURS,
                ifindex: interface,
                vlan: None,
            };
            registry.set_neighbour(server(number), Some(neighbour));
        }
        registry.set_interfaces(HashMap::from([(interface, vec![OURS])]));
        let tables = registry.tables();
        let setup = Setup {
            interface,
            macs: vec![OURS],
            peers: Vec::new(),
            frame_max: 1518,
            key: tables.seed,
            new_flows: u32::MAX,
            syn_limit: 0,
            any_port: false,
        };
        let limits = Limits { flows_v4: options.flows, flows_v6: 0, syn_limit: false };
        let mut path = FastPath::new(limits).map_err(|error| text(&error))?;
        path.set_tables(translate(&tables), |_| setup.clone()).map_err(|error| text(&error))?;
        let program = path.program(&setup).map_err(|error| text(&error))?;
        let varied = Varied::new(&path, &setup, options.flows)?;
        Ok(Self { program, varied, _path: path })
    }

    /// Frames that really leave, to be dropped at the other end: no socket buffer anywhere.
    fn live(&self, options: &Xdp, out: &str, sink: &str) -> Result<u8, String> {
        let drop = constant(DROP)?;
        let attached = Link::attach_xdp(&drop, index(sink)?, Mode::Native);
        let _attached = attached.map_err(|error| format!("{sink}: {error}"))?;
        let here = Link::attach_xdp(&self.program, index(out)?, Mode::Native);
        let _here = here.map_err(|error| format!("{out}: {error}"))?;
        let (before, interface) = (received(sink)?, index(out)?);
        let trial = |repeat| Trial { repeat, interface, live: true };
        let run = |program: &Program, repeat| {
            let began = cpu::thread_time();
            let ran = program.run(&udp(0), &mut [], trial(repeat));
            ran.map(|_| cpu::thread_time() - began).map_err(|error| error.to_string())
        };
        let Varied { count, program: varied, empty, .. } = &self.varied;
        // Each flow once, so that all are known.
        run(varied, *count)?;
        let (alone, mut sent) = (constant(TRANSMIT)?, u64::from(*count));
        let runs = [
            ("live frames", &self.program),
            ("live frames, sent back at once", &alone),
            (&*format!("live frames, {count} flows at random"), varied),
            (&*format!("live frames, {count} flows at random, sent back at once"), empty),
        ];
        let mut rates = runs.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for ((_, program), rates) in runs.iter().zip(&mut rates) {
                let elapsed = run(program, options.repeat)?;
                rates.push(f64::from(options.repeat) / elapsed.as_secs_f64() / 1e6);
                sent += u64::from(options.repeat);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        let arrived = received(sink)? - before;
        let mut out = io::stdout();
        for ((what, _), rates) in runs.iter().zip(rates) {
            let _ = writeln!(out, "{what}: {:.2} million/s on one CPU", median(rates));
        }
        let _ = writeln!(out, "arrived: {arrived} of {sent}");
        Ok(0)
    }
}

fn configuration(servers: u16) -> L4 {
    let key = ServiceKey { protocol: Protocol::Udp, address: VIP.into(), port: 80 };
    let servers = (0..servers).map(|number| RealServer::new(server(number), 1)).collect();
    let service = VirtualServer::new(key, Scheduler::Mh, servers);
    L4 { services: vec![service], ..L4::default() }
}

fn server(number: u16) -> IpAddr {
    let [a, b] = number.to_be_bytes();
    [10, 1, a, b].into()
}

/// A datagram of 60 bytes in one of 2^32 flows.
fn udp(flow: u32) -> Vec<u8> {
    let [a, b, c, d] = flow.to_be_bytes();
    let mut frame = [OURS.0, [2, 0, 0, 0, 0, 9]].concat();
    frame.extend([8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, a, b]);
    frame.extend(VIP.octets());
    frame.extend([c, d, 0, 80, 0, 26, 0, 0]);
    frame.resize(60, 0);
    frame
}

fn elsewhere() -> Vec<u8> {
    let mut frame = udp(0);
    frame[33] = 99;
    frame
}

/// A program that does nothing.
fn constant(result: u32) -> Result<Program, String> {
    let instructions = instructions(|a| {
        a.set(R0, result.cast_signed());
        a.exit();
    })?;
    Program::load_xdp(&instructions, "constant").map_err(|error| error.to_string())
}

fn instructions(write: impl FnOnce(&mut Assembler)) -> Result<Vec<Instruction>, String> {
    let mut a = Assembler::default();
    write(&mut a);
    a.finish().map_err(|error| error.to_string())
}

/// Nanoseconds of CPU of a run among many on the same frame.
fn time(program: &Program, frame: &[u8], trial: Trial) -> Result<f64, String> {
    let mut out = vec![0; frame.len() + 64];
    let mut times = Vec::new();
    // Many flows make a run long enough.
    let rounds = if trial.repeat > 500_000 { ROUNDS / 3 } else { ROUNDS };
    for _ in 0..rounds {
        let began = cpu::thread_time();
        program.run(frame, &mut out, trial).map_err(|error| error.to_string())?;
        times.push((cpu::thread_time() - began).as_secs_f64() * 1e9 / f64::from(trial.repeat));
    }
    Ok(median(times))
}

/// Mean nanoseconds of single runs, each on a frame of the next flow; reading the clock is in it.
fn each(program: &Program, flows: u32) -> Result<f64, String> {
    let mut out = [0; 128];
    let mut all = Duration::ZERO;
    for flow in 0..flows {
        let run = program.run(&udp(flow), &mut out, Trial::default());
        all += run.map_err(|error| error.to_string())?.duration;
    }
    Ok(all.as_secs_f64() * 1e9 / f64::from(flows))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn index(interface: &str) -> Result<u32, String> {
    let text = fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"));
    let text = text.map_err(|error| format!("{interface}: {error}"))?;
    text.trim().parse().map_err(|error| format!("{interface}: {error}"))
}

/// Packets that an interface has received, dropped ones included.
fn received(interface: &str) -> Result<u64, String> {
    let read = |name: &str| {
        let path = format!("/sys/class/net/{interface}/statistics/{name}");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        text.trim().parse::<u64>().map_err(|error| format!("{path}: {error}"))
    };
    read("rx_packets")
}
