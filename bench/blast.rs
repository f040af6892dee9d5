//! `ringgate-bench blast`: single packets at a rate, for what works on layer 4.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringgate::sys::{cpu, limits, socket};
use serde_json::json;

use crate::args::Blast;
use crate::pace::Pace;
use crate::run::Interruption;
use crate::syn::Syn;

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

/// What sends: a socket for each flow, or one that makes up its flows.
enum Sender {
    Udp { sockets: Vec<UdpSocket>, payload: Vec<u8> },
    Syn { socket: UdpSocket, syn: Syn, first: u32, flows: u32, sources: Sources },
}

/// Where SYNs come from.
#[derive(Clone, Copy)]
struct Sources {
    first: Ipv4Addr,
    count: u32,
    port: u16,
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
        for ((index, cpu), sender) in (0..).zip(cpus).zip(senders) {
            let pace = options.rate.map(|rate| Pace::new(rate, index, u64::from(count)));
            let (counts, over) = (&counts, &over);
            threads.push(scope.spawn(move || match cpu.filter(|&cpu| !cpu::pin(cpu)) {
                Some(cpu) => Some(cpu),
                None => {
                    send_all(sender, pace, began, counts, over);
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
        Some(libc::EPERM) => "SYNs need CAP_NET_RAW: run it as root".to_owned(),
        Some(libc::EMFILE) => "not enough open files for so many flows".to_owned(),
        _ => error.to_string(),
    }
}

fn send_all(
    mut sender: Sender,
    mut pace: Option<Pace>,
    began: Instant,
    counts: &Counts,
    over: &dyn Fn() -> bool,
) {
    let mut number = 0;
    let mut due = pace.as_mut().map(Pace::take);
    while !over() {
        let now = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut burst = 0;
        while burst < BURST && due.is_none_or(|at| at <= now) {
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

impl Sender {
    /// The share of one thread of the flows.
    fn new(options: &Blast, index: u32, threads: u32) -> io::Result<Self> {
        let flows = options.flows.div_ceil(threads);
        if options.syn {
            let source = own_address(options.to)?;
            let (SocketAddr::V4(target), IpAddr::V4(source)) = (options.to, source) else {
                return Err(io::Error::other("SYNs are sent over IPv4 only"));
            };
            let syn = Syn::new(SocketAddrV4::new(source, 0), target);
            let socket = UdpSocket::from(socket::raw_ipv4()?);
            let sources =
                Sources { first: source, count: options.sources, port: options.first_port };
            return Ok(Self::Syn { socket, syn, first: index * flows, flows, sources });
        }
        let any = any_address(options.to);
        let open =
            |_| UdpSocket::bind((any, 0)).and_then(|one| one.connect(options.to).map(|()| one));
        let sockets = (0..flows).map(open).collect::<io::Result<_>>()?;
        Ok(Self::Udp { sockets, payload: vec![0; usize::from(options.size)] })
    }

    fn send(&mut self, number: u64) -> io::Result<()> {
        match self {
            Self::Udp { sockets, payload } => {
                let flow = usize::try_from(number).unwrap_or(0) % sockets.len();
                // No two alike, for who captures them.
                if let Some(start) = payload.first_chunk_mut() {
                    *start = number.to_be_bytes();
                }
                sockets[flow].send(payload).map(|_| ())
            }
            Self::Syn { socket, syn, first, flows, sources } => {
                let ports = u64::from(u16::MAX - sources.port) + 1;
                let flow = u64::from(*first) + number % u64::from(*flows);
                let port =
                    u16::try_from(u64::from(sources.port) + flow % ports).unwrap_or(u16::MAX);
                if sources.count > 1 {
                    let turn = number / u64::from(*flows) % u64::from(sources.count);
                    let turn = u32::try_from(turn).unwrap_or_default();
                    syn.set_source(Ipv4Addr::from_bits(sources.first.to_bits().wrapping_add(turn)));
                }
                let sequence = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
                let to = syn.target();
                socket.send_to(syn.packet(port, sequence), to).map(|_| ())
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
