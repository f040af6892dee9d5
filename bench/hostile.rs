//! `ringgate-bench hostile`: random and mutated frames, by the million, for a director.
//!
//! Without `--interface` they are judged here, and what must hold for any frame is checked: nothing but packets for the
//! virtual addresses is forwarded, with nothing but MAC addresses changed, and every frame is counted once. With it
//! they are put on the wire, for a director that runs; its counters tell what became of them.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use ringgate::l4::config::{
    Forward, L4, OnServerDown, Protocol, RealServer, Scheduler, ServiceKey, Settings, VirtualServer,
};
use ringgate::l4::figures::Overall;
use ringgate::l4::registry::Registry;
use ringgate::l4::tables::Neighbour;
use ringgate::l4::{Director, Frame, Verdict};
use ringgate::packet::ring::{Refusal, Sender};
use ringgate::protocol::checksum::Sum;
use ringgate::protocol::ethernet::{Mac, View};
use ringgate::protocol::ip::Packet;

use crate::args::Hostile;
use crate::watch;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const HERE: u32 = 2;
/// Little room, so that flows have to go for others.
const FLOWS: u32 = 4096;

/// Prints what became of the frames.
pub(crate) fn run(options: &Hostile) -> Result<u8, String> {
    if let Some(name) = &options.watch {
        return watch::run(options, name);
    }
    let began = Instant::now();
    let told = match &options.interface {
        None => judged(options)?,
        Some(name) => sent(options, name)?,
    };
    let seconds = began.elapsed().as_secs_f64();
    let _ = writeln!(io::stdout(), "{} frames in {seconds:.1} s: {told}", options.count);
    Ok(0)
}

/// An interface's number.
pub(crate) fn index(name: &str) -> Result<u32, String> {
    let path = format!("/sys/class/net/{name}/ifindex");
    let index = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    index.trim().parse().map_err(|error| format!("{path}: {error}"))
}

/// Puts them on the wire.
fn sent(options: &Hostile, name: &str) -> Result<String, String> {
    let index = index(name)?;
    let mut sender = Sender::new().map_err(|error| format!("packet socket: {error}"))?;
    let mut frames = Frames::new(options, options.to.0);
    let (mut refused, mut full) = (0_u64, 0_u64);
    for _ in 0..options.count {
        match sender.send(frames.next(), index) {
            Ok(()) => {}
            Err(Refusal::Full) => full += 1,
            Err(_) => refused += 1,
        }
    }
    let sent = options.count - refused - full;
    Ok(format!(
        "{sent} sent, {full} found the queue full, {refused} refused (too short or too long)"
    ))
}

/// Judges them.
fn judged(options: &Hostile) -> Result<String, String> {
    let mut registry = registry(options);
    let tables = registry.tables();
    let mut director = Director::new(0, tables.clone(), FLOWS);
    let mut frames = Frames::new(options, OURS);
    let (mut now, mut judged) = (1_000_000, 0);
    let mut bytes = Vec::new();
    for number in 0..options.count {
        now += number & 1;
        let before = frames.next();
        bytes.clear();
        bytes.extend_from_slice(before);
        if number % 3 == 0 {
            director.foresee([before].into_iter());
        }
        let length = bytes.len();
        let mut frame = Frame { bytes: &mut bytes, vlan: None, ifindex: HERE, length };
        director.select(0);
        let verdict = director.judge(now, &mut frame);
        judged += 1;
        holds(options, verdict, before, &bytes).ok_or_else(|| {
            format!("frame {number} of seed {}: {verdict:?} on {before:02x?}", options.seed)
        })?;
        while director.release(now).is_some() {
            judged += 1;
        }
    }
    let all = tables.overall.first().ok_or("no figures")?;
    let counted = total(all);
    if counted != judged || director.flows() > FLOWS as usize {
        return Err(format!("{judged} verdicts, {counted} counted, {} flows", director.flows()));
    }
    Ok(format!(
        "{judged} verdicts, all counted: {} passed, {} local, {} forwarded, {} encapsulated, {} replied, {} held, {} dropped; {} flows evicted",
        all.passed.value(),
        all.local.value(),
        all.forwarded.value(),
        all.encapsulated.value(),
        all.replied.value(),
        all.held.value(),
        all.dropped.iter().map(|one| one.value()).sum::<u64>(),
        all.evicted.value(),
    ))
}

/// What must hold of any verdict.
fn holds(options: &Hostile, verdict: Verdict, before: &[u8], after: &[u8]) -> Option<()> {
    let leaves = matches!(verdict, Verdict::Forward { .. } | Verdict::Encapsulate { .. });
    if !leaves {
        return (before == after).then_some(());
    }
    let view = View::parse(before)?;
    let packet = Packet::parse(before.get(view.payload..)?, before.len() - view.payload).ok()?;
    let ours = packet.destination == options.address || packet.destination == options.address6;
    (before.get(12..) == after.get(12..) && view.destination == OURS && ours).then_some(())
}

fn total(all: &Overall) -> u64 {
    let some =
        [&all.passed, &all.local, &all.forwarded, &all.encapsulated, &all.replied, &all.held];
    some.into_iter().chain(&all.dropped).map(|one| one.value()).sum()
}

fn registry(options: &Hostile) -> Registry {
    let addresses = [IpAddr::from(options.address), IpAddr::from(options.address6)];
    let ports = [(Protocol::Tcp, 80), (Protocol::Udp, 8080), (Protocol::Sctp, 80)];
    let services = addresses
        .iter()
        .flat_map(|address| ports.map(|(protocol, port)| service(*address, protocol, port)))
        .collect();
    let mut registry = Registry::new(L4 { director: Settings::default(), services }, 1);
    registry.set_interfaces(HashMap::from([(HERE, vec![OURS])]));
    registry.set_local(addresses.iter().map(|address| server(*address, 1)));
    for address in addresses {
        for number in 2..=3 {
            let mac = Mac([2, 0, 0, 0, 1, number]);
            let way = Neighbour { mac, source: OURS, ifindex: HERE, vlan: None };
            registry.set_neighbour(server(address, number), Some(way));
        }
    }
    registry
}

fn server(of: IpAddr, number: u8) -> IpAddr {
    match of {
        IpAddr::V4(_) => [10, 0, 0, number].into(),
        IpAddr::V6(_) => [0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()].into(),
    }
}

fn service(address: IpAddr, protocol: Protocol, port: u16) -> VirtualServer {
    let servers = (1..=3).map(|number| RealServer::new(server(address, number), 1)).collect();
    VirtualServer {
        forward: if protocol == Protocol::Udp { Forward::Ipip } else { Forward::Dr },
        on_server_down: OnServerDown::Reset,
        ..VirtualServer::new(ServiceKey { protocol, address, port }, Scheduler::Wlc, servers)
    }
}

/// Makes frames: meant ones with a few bytes changed, cut, tagged, or with something behind.
struct Frames {
    meant: Vec<Vec<u8>>,
    random: u64,
    frame: Vec<u8>,
}

impl Frames {
    fn new(options: &Hostile, to: Mac) -> Self {
        let meant = corpus(to, options.address, options.address6);
        Self { meant, random: options.seed | 1, frame: Vec::new() }
    }

    /// A number below `bound` (xorshift64*).
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(high).unwrap_or_default() % bound.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or_default()
    }

    fn next(&mut self) -> &[u8] {
        let which = self.below(self.meant.len());
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend_from_slice(self.meant.get(which).map(Vec::as_slice).unwrap_or_default());
        for _ in 0..self.below(4) {
            let at = 14 + self.below(frame.len() - 14);
            frame[at] = self.byte();
        }
        // A header that was changed would else be dropped for its checksum alone.
        if frame.get(12..14) == Some(&[8, 0]) && self.below(2) == 0 {
            complete(&mut frame[14..]);
        }
        match self.below(16) {
            0..3 => frame.truncate(14 + self.below(frame.len() - 14)),
            3 => drop(frame.splice(12..12, [0x81, 0, 0, 7])),
            4 => (0..self.below(1200)).for_each(|_| frame.push(self.byte())),
            5 => frame[14..].fill_with(|| self.byte()),
            _ => {}
        }
        self.frame = frame;
        &self.frame
    }
}

/// Makes the checksum of an IPv4 header right.
fn complete(packet: &mut [u8]) {
    let length = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
    let Some(header) = packet.get_mut(..length).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum = Sum::new().bytes(header).finish();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// TCP, UDP, SCTP and ICMP errors; whole, as fragments, with IP options, with extension headers.
fn corpus(to: Mac, four: Ipv4Addr, six: Ipv6Addr) -> Vec<Vec<u8>> {
    let ethernet = [to.0, [2, 0, 0, 0, 0, 99]].concat();
    let client = [198, 51, 100, 7];
    let tcp = [&[0x9c, 0x40, 0, 80][..], &[0; 8], &[0x50, 2, 0x20, 0], &[0; 12]].concat();
    let udp = [&[0x9c, 0x40, 0x1f, 0x90, 0, 16, 0, 0][..], &[7; 8]].concat();
    let mut about = vec![3, 4, 0, 0, 0, 0, 5, 0, 0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    about.extend(four.octets().into_iter().chain(client).chain([0, 80, 0x9c, 0x40, 0, 0, 0, 1]));
    let mut all = Vec::new();
    for (protocol, body) in [(6, &tcp), (17, &udp), (1, &about), (132, &tcp)] {
        let mut v4 = |first: u8, flags: [u8; 2], options: &[u8]| {
            let length = u16::try_from(20 + options.len() + body.len()).unwrap_or_default();
            let [high, low] = length.to_be_bytes();
            let head = [first, 0, high, low, 0, 1, flags[0], flags[1], 64, protocol, 0, 0];
            let mut packet = [&head[..], &client, &four.octets(), options, body].concat();
            complete(&mut packet);
            all.push([&ethernet[..], &[8, 0], &packet].concat());
        };
        v4(0x45, [0, 0], &[]);
        v4(0x45, [0x20, 0], &[]);
        v4(0x45, [0, 2], &[]);
        v4(0x47, [0, 0], &[0; 8]);
        let next = if protocol == 1 { 58 } else { protocol };
        for (first, extension) in [(next, &[][..]), (44, &[next, 0, 0, 1, 0, 0, 0, 1])] {
            let length = u16::try_from(extension.len() + body.len()).unwrap_or_default();
            let [high, low] = length.to_be_bytes();
            let head = [0x60, 0, 0, 0, high, low, first, 64, 0x20, 1, 0x0d, 0xb8, 9, 0, 0, 0];
            let rest = [[0; 7].as_slice(), &[1], &six.octets(), extension, body].concat();
            all.push([&ethernet[..], &[0x86, 0xdd], &head, &rest].concat());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_mean_something_and_others() {
        let count = 20_000;
        let address6 = "fd77::100".parse().unwrap();
        let options = Hostile {
            count,
            seed: 7,
            address: [10, 77, 0, 100].into(),
            address6,
            interface: None,
            watch: None,
            to: crate::args::Hardware(OURS),
        };
        let told = judged(&options).unwrap();
        for word in ["passed", "local", "forwarded", "encapsulated", "replied", "held", "dropped"] {
            let number = told
                .split(' ')
                .zip(told.split(' ').skip(1))
                .find(|(_, next)| next.trim_matches([',', ';']) == word);
            let (number, _) = number.unwrap_or_else(|| panic!("{word} in {told}"));
            let reached = number.parse::<u64>().unwrap() > 0;
            // Servers stay up: nobody is answered with a reset.
            assert!(reached || word == "replied", "{told}");
        }
    }
}
