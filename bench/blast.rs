//! `ringgate-bench blast`: single packets at a rate, for what works on layer 4.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringgate::sys::{cpu, limits, socket};
use serde_json::json;

use crate::args::Blast;
use crate::pace::Pace;
use crate::packet::Packet;
use crate::run::Interruption;

/// Rest when nothing is due, and after the kernel had no room for a packet.
const REST: Duration = Duration::from_micros(100);
/// Packets between two looks at the clock and at signals.
const BURST: u64 = 64;

/// Figures of all threads.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    /// The kernel had no room: ENOBUFS, EAGAIN.
    full: AtomicU64,
    /// Other errors: an ICMP message in answer to an earlier packet, a firewall.
    failed: AtomicU64,
}

/// What sends the flows of one thread.
struct Sender {
    order: Order,
    means: Means,
}

/// A socket for each flow, or one whose packets are made up.
enum Means {
    Sockets { sockets: Vec<UdpSocket>, payload: Vec<u8> },
    Made { socket: UdpSocket, packet: Packet, sources: Sources },
}

/// Where made up packets come from: each address in turn has all the flows.
#[derive(Clone, Copy)]
struct Sources {
    address: Ipv4Addr,
    port: u16,
    first: u32,
    flows: u32,
}

/// Which flow comes next.
#[derive(Clone, Copy)]
struct Order {
    flows: u64,
    random: bool,
}

/// Sends until the time is over or a signal comes; returns the exit code.
pub(crate) fn run(options: &Blast) -> Result<u8, String> {
    let interruption = Interruption::watch()?;
    let _ = limits::raise_open_files();
    let cpus = options.placement.cpus();
    let count = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
    let mut senders = Vec::new();
    for index in 0..count {
        senders.push(Sender::new(options, index, count).map_err(|error| explain(&error))?);
    }
    let (counts, began) = (Counts::default(), Instant::now());
    let over = || interruption.code() != 0 || began.elapsed() >= options.duration;
    let unpinned = thread::scope(|scope| {
        let mut threads = Vec::new();
        for ((index, cpu), sender) in (0_u32..).zip(cpus).zip(senders) {
            let (index, all) = (u64::from(index), u64::from(count));
            let pace = options.rate.map(|rate| Pace::new(rate, index, all));
            // The first threads send what is left over.
            let share = |packets: u64| packets / all + u64::from(index < packets % all);
            let most = options.packets.map_or(u64::MAX, share);
            let (counts, over) = (&counts, &over);
            threads.push(scope.spawn(move || match cpu.filter(|&cpu| !cpu::pin(cpu)) {
                Some(cpu) => Some(cpu),
                None => {
                    send_all(sender, pace, most, began, counts, over);
                    None
                }
            }));
        }
        threads.into_iter().find_map(|thread| thread.join().ok().flatten())
    });
    if let Some(cpu) = unpinned {
        return Err(format!("cannot pin a thread to CPU {cpu}"));
    }
    report(options, &counts, began.elapsed());
    if counts.sent.load(Ordering::Relaxed) == 0 {
        return Err("nothing could be sent".to_owned());
    }
    Ok(interruption.code())
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "SYNs and --raw need CAP_NET_RAW: run it as root".to_owned(),
        Some(libc::EMFILE) => "not enough open files for so many flows".to_owned(),
        _ => error.to_string(),
    }
}

fn send_all(
    mut sender: Sender,
    mut pace: Option<Pace>,
    most: u64,
    began: Instant,
    counts: &Counts,
    over: &dyn Fn() -> bool,
) {
    let mut number = 0;
    let mut due = pace.as_mut().map(Pace::take);
    while number < most && !over() {
        let now = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut burst = 0;
        while burst < BURST && number < most && due.is_none_or(|at| at <= now) {
            let count = match sender.send(number) {
                Ok(()) => &counts.sent,
                Err(error) if is_full(&error) => &counts.full,
                Err(_) => &counts.failed,
            };
            count.fetch_add(1, Ordering::Relaxed);
            due = pace.as_mut().map(Pace::take);
            number += 1;
            burst += 1;
        }
        if burst == 0 {
            thread::sleep(REST);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN))
}

impl Order {
    /// The flow of the packet with this number.
    fn flow(self, number: u64) -> u64 {
        if !self.random {
            return number % self.flows;
        }
        // SplitMix64 (Steele, Lea and Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
        let mut bits = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^= bits >> 31;
        u64::try_from((u128::from(bits) * u128::from(self.flows)) >> 64).unwrap_or(0)
    }
}

impl Sources {
    /// Address and port of a flow.
    fn of(self, flow: u64) -> (Ipv4Addr, u16) {
        let ports = u64::from(u16::MAX - self.port) + 1;
        let (turn, flow) = (flow / u64::from(self.flows), flow % u64::from(self.flows));
        let port = u64::from(self.port) + (u64::from(self.first) + flow) % ports;
        let address = self.address.to_bits().wrapping_add(u32::try_from(turn).unwrap_or(0));
        (Ipv4Addr::from_bits(address), u16::try_from(port).unwrap_or(u16::MAX))
    }
}

impl Sender {
    /// The share of one thread of the flows.
    fn new(options: &Blast, index: u32, threads: u32) -> io::Result<Self> {
        let flows = options.flows.div_ceil(threads);
        let order =
            Order { flows: u64::from(flows) * u64::from(options.sources), random: options.random };
        if options.syn || options.raw {
            let source = own_address(options.to)?;
            let (SocketAddr::V4(target), IpAddr::V4(source)) = (options.to, source) else {
                return Err(io::Error::other("packets are made up for IPv4 only"));
            };
            let packet = if options.syn {
                Packet::syn(source, target)
            } else {
                Packet::datagram(source, target, options.size)
            };
            let socket = UdpSocket::from(socket::raw_ipv4()?);
            let first = index * flows;
            let sources = Sources { address: source, port: options.first_port, first, flows };
            return Ok(Self { order, means: Means::Made { socket, packet, sources } });
        }
        let any = any_address(options.to);
        let open =
            |_| UdpSocket::bind((any, 0)).and_then(|one| one.connect(options.to).map(|()| one));
        let sockets = (0..flows).map(open).collect::<io::Result<_>>()?;
        let payload = vec![0; usize::from(options.size)];
        Ok(Self { order, means: Means::Sockets { sockets, payload } })
    }

    fn send(&mut self, number: u64) -> io::Result<()> {
        let flow = self.order.flow(number);
        match &mut self.means {
            Means::Sockets { sockets, payload } => {
                let flow = usize::try_from(flow).unwrap_or(0);
                // No two alike, for who captures them.
                if let Some(start) = payload.first_chunk_mut() {
                    *start = number.to_be_bytes();
                }
                sockets[flow].send(payload).map(|_| ())
            }
            Means::Made { socket, packet, sources } => {
                let (address, port) = sources.of(flow);
                packet.set_source(address);
                let to = packet.target();
                socket.send_to(packet.bytes(port, number), to).map(|_| ())
            }
        }
    }
}

fn any_address(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// The address that the route to the target gives this host.
fn own_address(to: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind((any_address(to), 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

fn report(options: &Blast, counts: &Counts, elapsed: Duration) {
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (sent, full, failed) = (of(&counts.sent), of(&counts.full), of(&counts.failed));
    let per_second = sent as f64 / elapsed.as_secs_f64().max(1e-9);
    let kind = if options.syn { "syn" } else { "udp" };
    let text = if options.json {
        let result = json!({ "tool": "ringgate-bench blast", "kind": kind, "to": options.to, "rate": options.rate,
                             "flows": options.flows, "seconds": elapsed.as_secs_f64(), "sent": sent,
                             "no_room": full, "errors": failed, "packets_per_second": per_second });
        format!("{result:#}\n")
    } else {
        let seconds = elapsed.as_secs_f64();
        format!(
            "{sent} {kind} packets in {seconds:.2} s: {per_second:.0}/s; no room {full}, errors {failed}\n"
        )
    };
    let _ = io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_turn_each_source_has_all_flows_one_after_the_other() {
        let order = Order { flows: 6, random: false };
        let sources = Sources { address: [10, 0, 0, 9].into(), port: 65_534, first: 0, flows: 3 };
        let seen: Vec<_> = (0..7).map(|number| sources.of(order.flow(number))).collect();
        let flow = |last, port| (Ipv4Addr::new(10, 0, 0, last), port);
        let all = [(9, 65_534), (9, 65_535), (9, 65_534), (10, 65_534), (10, 65_535), (10, 65_534)];
        let all: Vec<_> = all.into_iter().map(|(last, port)| flow(last, port)).collect();
        assert_eq!(seen[..6], all);
        assert_eq!(seen[6], all[0]);
    }

    #[test]
    fn at_random_all_flows_come_equally_often_and_not_one_after_the_other() {
        let order = Order { flows: 1000, random: true };
        let mut counts = vec![0; 1000];
        let (mut next, mut before) = (0, 0);
        for number in 0..100_000 {
            let flow = order.flow(number);
            counts[usize::try_from(flow).unwrap()] += 1;
            next += u32::from(flow.abs_diff(before) < 3);
            before = flow;
        }
        // A hundred each, with a deviation of ten.
        assert!(counts.iter().all(|count| (50..=150).contains(count)), "{counts:?}");
        assert!(next < 1000, "{next} of 100,000 beside the one before");
    }
}
