//! The commands and what they take.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};
use ringgate::control::config::units;

use crate::tls::Version;

/// Bytes of the largest body, in either direction: it is held in memory.
pub(crate) const BODY_MAX: u64 = 256 * 1024 * 1024;

/// Load for HTTP/1.1 and HTTP/2 servers, in the clear and over TLS, measured with HDR histograms; and a server that is cheaper than they.
#[derive(Debug, Parser)]
#[command(name = "ringgate-bench", version)]
#[command(propagate_version = false, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer every request with the same response, as cheaply as possible
    Serve(Serve),
    /// Send requests and measure how they are answered
    #[command(after_help = RUN_NOTES)]
    Run(Box<Run>),
    /// Pass bytes on between clients and a server without reading them: the floor for a proxy
    Relay(Relay),
    /// Send UDP packets or TCP SYNs at a rate, for layer 4; at test networks only
    #[command(after_help = BLAST_NOTES)]
    Blast(Blast),
    /// Count the UDP packets that arrive
    Sink(Sink),
    /// Measure what the director's XDP program costs a frame; needs root
    #[command(after_help = XDP_NOTES)]
    Xdp(Xdp),
    /// Pass UDP packets on to one server with packet sockets, undecided: the floor for such a director; needs root
    Reflect(Reflect),
    /// Measure what the director's decision on a frame costs
    Verdict(VerdictBench),
    /// Random and mutated frames for a director, judged here or put on a wire of yours
    Hostile(Hostile),
    /// Measure how long a cache line takes from one CPU to another
    Cores(Cores),
    /// Make load for `run --agents` on another host; for trusted networks only
    #[command(after_help = AGENT_NOTES)]
    Agent(Agent),
}

const XDP_NOTES: &str = "\
The kernel runs the program on frames in memory (BPF_PROG_TEST_RUN). With --live it sends them, without socket buffers,
from one end of a veth pair; the other end drops them.

Example:
  ringgate-bench xdp --flows 1000000
  ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up
  ringgate-bench xdp --live v0 --sink v1";

/// `xdp`
#[derive(Debug, clap::Args)]
pub(crate) struct Xdp {
    /// Real servers
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) servers: u16,
    /// Flows
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8_000_000))]
    pub(crate) flows: u32,
    /// Runs on one frame for one figure
    #[arg(long, default_value_t = 1_000_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeat: u32,
    /// Send frames from this interface, whose driver runs XDP programs
    #[arg(long, value_name = "INTERFACE", requires = "sink")]
    pub(crate) live: Option<String>,
    /// Drop them at this one, its other end
    #[arg(long, value_name = "INTERFACE", requires = "live")]
    pub(crate) sink: Option<String>,
}

/// `reflect`
#[derive(Debug, clap::Args)]
pub(crate) struct Reflect {
    /// The interface that packets come in by
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) from: String,
    /// The one they leave by
    #[arg(long, value_name = "INTERFACE")]
    pub(crate) out: String,
    /// The server's hardware address
    #[arg(long, value_name = "MAC")]
    pub(crate) to: Hardware,
    /// Which packets: to this address and port
    #[arg(value_name = "ADDRESS:PORT")]
    pub(crate) address: SocketAddr,
}

/// `hostile`
#[derive(Debug, clap::Args)]
pub(crate) struct Hostile {
    /// Frames
    #[arg(long, default_value_t = 10_000_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000_000))]
    pub(crate) count: u64,
    /// Equal seeds make equal frames
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    /// The virtual address: TCP and SCTP port 80, UDP port 8080
    #[arg(long, default_value = "10.77.0.100", value_name = "ADDRESS")]
    pub(crate) address: std::net::Ipv4Addr,
    /// The same for IPv6
    #[arg(long, default_value = "fd77::100", value_name = "ADDRESS")]
    pub(crate) address6: std::net::Ipv6Addr,
    /// Send them here instead of judging them; needs root
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// At a real server: look at what the director sends to this interface until a signal comes; exit code 1 if it should not
    /// have
    #[arg(long, value_name = "NAME", conflicts_with = "interface")]
    pub(crate) watch: Option<String>,
    /// The director's hardware address
    #[arg(long, default_value = "02:00:00:00:00:01", value_name = "MAC")]
    pub(crate) to: Hardware,
}

/// `cores`
#[derive(Debug, clap::Args)]
pub(crate) struct Cores {
    /// Two CPUs, as in 0,1
    #[arg(value_name = "CPUS", value_parser = cpu_list)]
    pub(crate) cpus: CpuList,
}

/// A hardware address as text has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hardware(pub(crate) ringgate::protocol::ethernet::Mac);

impl std::str::FromStr for Hardware {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes: Result<Vec<u8>, _> =
            text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        let mac = bytes.map(ringgate::protocol::ethernet::Mac);
        mac.map(Self).ok_or_else(|| "write six bytes like 02:00:00:00:00:01".to_owned())
    }
}

/// `verdict`
#[derive(Debug, clap::Args)]
pub(crate) struct VerdictBench {
    /// Established flows in the table
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000, 1_000_000], value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=8_000_000))]
    pub(crate) flows: Vec<u32>,
    /// Real servers
    #[arg(long, value_delimiter = ',', default_values_t = [3, 100, 1_000], value_name = "N,...", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) servers: Vec<u16>,
    /// Verdicts for a figure
    #[arg(long, default_value_t = 400_000, value_name = "N", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) verdicts: u32,
    /// Figures of each case; the median is shown
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const AGENT_NOTES: &str = "\
Whoever can reach it can have it send requests anywhere: there is no authentication. Bind it to an
address that only the load hosts see. It serves one run at a time and refuses others meanwhile.

Example, on two hosts and a third that drives them:
  ringgate-bench agent --bind 10.0.0.1:7000
  ringgate-bench agent --bind 10.0.0.2:7000
  ringgate-bench run http://10.0.1.1/ --agents 10.0.0.1:7000,10.0.0.2:7000 --connections 512";

const BLAST_NOTES: &str = "\
Packets go out one a system call on each thread, in small bursts if there is a rate. SYNs and --raw need CAP_NET_RAW and IPv4; their source
is the host's own address, so its kernel answers a SYN-ACK with a reset. With --sources the addresses behind it are used too: they must be
nobody's. Nothing is read.

SIGINT and SIGTERM end it early with the result so far; exit code 130 or 143.

Example:
  ringgate-bench sink --bind 10.0.0.2:9000
  ringgate-bench blast 10.0.0.1:9000 --rate 500000 --flows 4096
  ringgate-bench blast 10.0.0.1:9000 --raw --flows 15625 --sources 64 --random
  ringgate-bench blast 10.0.0.1:80 --syn --rate 100000";

const RUN_NOTES: &str = "\
Closed loop (the default): each connection sends its next request when the last is answered, so a
slow server is asked less. Latency counts from sending.

Open loop (--rate): requests are due at even distances, whatever the server does. A free connection
sends the next that is due; when none is free, requests wait. Latency counts from when a request was
due, so a stall shows in every request that it held up (no coordinated omission). Sending itself may
come in bursts of some 50 µs; that, too, counts as latency. What waited longer than --timeout is not
sent and counted as overdue; what is left at the end is counted as unsent.

TLS (https URLs): X25519 and AES-128-GCM are offered first. Unless --resume is given each connection
makes a full handshake; with it, those after the first resume. --insecure spares the generator the
verification. HTTP/2 is asked for by ALPN, or spoken at once to http URLs.

Errors: connect (not opened), tls (no handshake, or another protocol than asked for), closed (before
the whole response, or the stream reset), timeout, malformed, 4xx, 5xx, overdue; over the whole run, warm-up included. Exit code 0 even then; 1 when nothing was answered or
an agent failed, 2 for wrong usage. SIGINT and SIGTERM end the run early: the result of what was
measured until then is printed, marked as interrupted, and the exit code is 130 or 143.

Slow clients (--read-rate): after each piece it takes (16 KiB at most) a connection rests for as long
as the rate asks. Up to 128 KiB of a response are received ahead of that, and the kernel's receive
buffer holds some more: the server feels the rate only in responses larger than these.

Examples:
  ringgate-bench serve --bind 127.0.0.1:9000 &
  ringgate-bench run http://127.0.0.1:9000/ --connections 64 --duration 10s
  ringgate-bench run http://127.0.0.1:9000/ --rate 20000 --json result.json
  ringgate-bench run https://127.0.0.1:8443/ --insecure --http2 --streams 10
  ringgate-bench run https://127.0.0.1:8443/ --insecure --new-connections --resume";

/// Which threads there are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Placement {
    /// Threads, each with a ring of its own [default: one for each CPU it may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// CPUs to pin the threads to, in turn, as in 0-3,6 [default: not pinned]
    #[arg(long, value_name = "LIST", value_parser = cpu_list)]
    pub(crate) cpus: Option<CpuList>,
}

/// CPU numbers; a type of its own because clap takes a bare vector for several values.
#[derive(Debug, Clone)]
pub(crate) struct CpuList(pub(crate) Vec<usize>);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Serve {
    /// Where to listen, one address or several; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDRESS:PORT", required = true, value_delimiter = ',')]
    pub(crate) bind: Vec<SocketAddr>,
    /// Size of the response body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=BODY_MAX))]
    pub(crate) body: u64,
    #[command(flatten)]
    pub(crate) placement: Placement,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Run {
    /// Where to send requests, as in http://127.0.0.1:8080/path or `https://shop.example/`
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// Connections, over all threads
    #[arg(long, short, value_name = "N", default_value_t = 64)]
    pub(crate) connections: u32,
    /// How long to measure
    #[arg(long, short, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub(crate) duration: Duration,
    /// Load before that, which is not measured
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::duration)]
    pub(crate) warmup: Duration,
    /// Longest wait for a connection or a response; with --pipeline or --streams, from one response
    /// to the next
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub(crate) timeout: Duration,
    /// Open loop: requests a second over all connections, at even distances
    #[arg(long, value_name = "N")]
    pub(crate) rate: Option<u64>,
    /// Requests on their way on one connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) pipeline: u16,
    /// HTTP/2
    #[arg(long)]
    pub(crate) http2: bool,
    /// HTTP/2: streams on one connection
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) streams: u16,
    /// https: take any certificate, and verify nothing
    #[arg(long, conflicts_with = "ca")]
    pub(crate) insecure: bool,
    /// https: authorities that certificates are verified with, in PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// https: the name to ask for and to verify [default: the URL's host]
    #[arg(long, value_name = "NAME")]
    pub(crate) server_name: Option<String>,
    /// https: only this version
    #[arg(long, value_name = "VERSION")]
    pub(crate) tls_version: Option<Version>,
    /// https: resume sessions, each connection those of the one it replaces
    #[arg(long)]
    pub(crate) resume: bool,
    /// Open a connection for each request
    #[arg(long)]
    pub(crate) new_connections: bool,
    /// Closed loop: time between a response and the next request
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = units::duration)]
    pub(crate) think: Duration,
    /// Slow clients: bytes a second that each connection reads at most [default: no limit]
    #[arg(long, value_name = "BYTES")]
    pub(crate) read_rate: Option<u64>,
    /// Method of the requests
    #[arg(long, value_name = "METHOD", default_value = "GET", conflicts_with = "requests")]
    pub(crate) method: String,
    /// Size of the request body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, conflicts_with = "requests")]
    pub(crate) body: u64,
    /// A header field to add, as in "Name: value"; may be repeated
    #[arg(long = "header", short = 'H', value_name = "FIELD")]
    pub(crate) headers: Vec<String>,
    /// A file with a mix of requests in place of the path: lines of `weight METHOD PATH [body bytes]`
    #[arg(long, value_name = "FILE")]
    pub(crate) requests: Option<PathBuf>,
    /// Write the whole result as JSON to a file, or to standard output (-) in place of the summary
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<String>,
    /// Agents that make the load, as host:port; connections and rate are divided among them
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    #[arg(conflicts_with_all = ["threads", "cpus"])]
    pub(crate) agents: Vec<String>,
    /// No line a second on standard error
    #[arg(long)]
    pub(crate) no_live: bool,
    /// Lines `measuring` and `measured` on standard error at those moments, for who looks meanwhile
    #[arg(long)]
    pub(crate) marks: bool,
    #[command(flatten)]
    pub(crate) placement: Placement,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Relay {
    /// Where to listen; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) bind: SocketAddr,
    /// The server
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) to: SocketAddr,
    #[command(flatten)]
    pub(crate) placement: Placement,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Blast {
    /// Where to
    #[arg(value_name = "ADDRESS:PORT")]
    pub(crate) to: SocketAddr,
    /// TCP SYNs instead of UDP packets
    #[arg(long, conflicts_with = "size", group = "made")]
    pub(crate) syn: bool,
    /// UDP packets that are made up, as SYNs are: a flow takes no socket
    #[arg(long, group = "made")]
    pub(crate) raw: bool,
    /// Packets a second over all threads [default: as many as go]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) rate: Option<u64>,
    /// Flows: source ports that take turns. A UDP flow is a socket, but with --raw
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub(crate) flows: u32,
    /// Source addresses that SYNs and --raw come from in turn, each with all flows: the host's own and those behind it
    #[arg(long, value_name = "N", default_value_t = 1, requires = "made")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) sources: u32,
    /// Flows of all sources in an order without a pattern, the same in each run, instead of in turn
    #[arg(long)]
    pub(crate) random: bool,
    /// The first source port of SYNs and --raw
    #[arg(long, value_name = "PORT", default_value_t = 1024, requires = "made")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) first_port: u16,
    /// Bytes of UDP payload
    #[arg(long, value_name = "BYTES", default_value_t = 18)]
    #[arg(value_parser = clap::value_parser!(u16).range(8..=65_507))]
    pub(crate) size: u16,
    /// How long
    #[arg(long, short, value_name = "TIME", default_value = "10s", value_parser = units::duration)]
    pub(crate) duration: Duration,
    /// Ends after so many packets, if the time is not over before
    #[arg(long, value_name = "N")]
    pub(crate) packets: Option<u64>,
    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) placement: Placement,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sink {
    /// Where to receive; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) bind: SocketAddr,
    /// How long [default: until a signal, which is an orderly end with exit code 0]
    #[arg(long, short, value_name = "TIME", value_parser = units::duration)]
    pub(crate) duration: Option<Duration>,
    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Agent {
    /// Where to listen for runs; port 0 takes a free one, which is printed
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) bind: SocketAddr,
    #[command(flatten)]
    pub(crate) placement: Placement,
}

impl Placement {
    /// The CPU of each thread, `None` where the scheduler may choose.
    pub(crate) fn cpus(&self) -> Vec<Option<usize>> {
        let listed = self.cpus.as_ref().map(|list| list.0.as_slice()).unwrap_or_default();
        let count = match self.threads {
            Some(threads) => usize::from(threads),
            None if listed.is_empty() => ringgate::sys::cpu::allowed().len().max(1),
            None => listed.len(),
        };
        (0..count).map(|thread| listed.get(thread % listed.len().max(1)).copied()).collect()
    }
}

fn cpu_list(text: &str) -> Result<CpuList, String> {
    let cpus = units::cpus(text)?;
    let allowed = ringgate::sys::cpu::allowed();
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(format!("CPU {cpu} is not among those this process may use")),
        None => Ok(CpuList(cpus)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn threads_take_the_cpus_in_turn() {
        let cpus = Some(CpuList(vec![2, 5]));
        let placed = |threads, cpus| Placement { threads, cpus }.cpus();
        assert_eq!(placed(None, cpus.clone()), [Some(2), Some(5)]);
        assert_eq!(placed(Some(3), cpus), [Some(2), Some(5), Some(2)]);
        assert_eq!(placed(Some(2), None), [None, None]);
        assert!(!placed(None, None).is_empty());
    }
}
