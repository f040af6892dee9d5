//! What the layer-4 director is configured with, validated.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::balance::siphash::Key;
use crate::protocol::ip;

/// Most real servers of one virtual server.
pub const SERVERS_MAX: usize = 4096;
/// Most virtual servers.
pub const SERVICES_MAX: usize = 4096;

/// `[director]` and every `[[virtual_server]]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct L4 {
    /// `[director]`
    pub director: Settings,
    /// In the order of the file; no two with equal [`ServiceKey`].
    pub services: Vec<VirtualServer>,
}

/// `[director]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// CPUs that forward, one director on each; empty: one director, not pinned.
    pub cpus: Vec<usize>,
    /// Interfaces that frames are taken from; empty: those with a virtual address, and all that
    /// can be found.
    pub interfaces: Vec<String>,
    /// Addresses of the other directors, whose frames are delivered locally.
    pub peers: Vec<IpAddr>,
    /// Where frames are forwarded.
    pub datapath: Datapath,
    /// Connections a second that one client may ask for; what is beyond is dropped by the XDP program.
    /// 0: no limit.
    pub syns_per_source: u32,
    /// Flows that all directors remember together.
    pub flows_max: u32,
    /// New flows a second that a director remembers; beyond, they go by Maglev without an entry.
    /// 0: no limit.
    pub new_flows_per_second: u32,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// Key of every hash, equal on directors that should choose alike.
    pub seed: Key,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cpus: Vec::new(),
            interfaces: Vec::new(),
            peers: Vec::new(),
            datapath: Datapath::Packet,
            syns_per_source: 0,
            flows_max: 1 << 20,
            new_flows_per_second: 125_000,
            timeouts: Timeouts::default(),
            seed: Key(0x7269_6e67_6761_7465, 0x6469_7265_6374_6f72),
        }
    }
}

/// Where frames are forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// By an XDP program where interface and kernel allow it, else by packet sockets.
    Auto,
    /// By an XDP program, and it is trouble where that is not possible.
    Xdp,
    /// The same, and only in the driver.
    Native,
    /// The same, and only in the kernel's receive path.
    Generic,
    /// By packet sockets.
    Packet,
}

impl Datapath {
    /// All of them with their names.
    pub const ALL: [(&'static str, Self); 5] = [
        ("auto", Self::Auto),
        ("xdp", Self::Xdp),
        ("native", Self::Native),
        ("generic", Self::Generic),
        ("packet", Self::Packet),
    ];
}

/// How long a flow is remembered after its last packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, once the client has answered the server's SYN (`ipvsadm --set`'s first).
    pub tcp: Duration,
    /// TCP, after the client's FIN (its second).
    pub tcp_fin: Duration,
    /// TCP, after a SYN that nothing has followed.
    pub tcp_syn: Duration,
    /// TCP after RST, SCTP after ABORT.
    pub closed: Duration,
    /// UDP (its third).
    pub udp: Duration,
    /// SCTP.
    pub sctp: Duration,
}

impl Default for Timeouts {
    /// IPVS' own figures.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            tcp: seconds(900),
            tcp_fin: seconds(120),
            tcp_syn: seconds(60),
            closed: seconds(10),
            udp: seconds(300),
            sctp: seconds(900),
        }
    }
}

/// What a virtual server is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its address, never an IPv4-mapped one.
    pub address: IpAddr,
    /// Its port; 0: all that no other virtual server of the address has.
    pub port: u16,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, std::net::SocketAddr::new(self.address, self.port))
    }
}

/// What is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Its number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => ip::TCP,
            Self::Udp => ip::UDP,
            Self::Sctp => ip::SCTP,
        }
    }

    /// By its number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            ip::TCP => Some(Self::Tcp),
            ip::UDP => Some(Self::Udp),
            ip::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// `[[virtual_server]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualServer {
    /// Address, port and protocol.
    pub key: ServiceKey,
    /// Who gets new flows.
    pub scheduler: Scheduler,
    /// Every packet is scheduled anew and none remembered; UDP only (IPVS' `--ops`).
    pub one_packet: bool,
    /// Clients come back to their server.
    pub persistence: Option<Persistence>,
    /// How frames reach the servers.
    pub forward: Forward,
    /// What becomes of flows whose server is dead or removed.
    pub on_server_down: OnServerDown,
    /// Sum of the weights of living servers below which the service counts as down.
    pub quorum: u32,
    /// How far above and below `quorum` the sum has to go for a change.
    pub hysteresis: u32,
    /// Gets the new flows while there is no quorum.
    pub sorry_server: Option<IpAddr>,
    /// In the order of the file; no address twice.
    pub servers: Vec<RealServer>,
}

/// An element of `servers`: a real server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealServer {
    /// Its address. Its port is the virtual server's, since only MAC addresses are rewritten.
    pub address: IpAddr,
    /// Share of new flows; 0: none, but flows it has stay.
    pub weight: u32,
    /// Flows from which on it gets no new ones; 0: no limit.
    pub uthreshold: u32,
    /// Flows below which it gets new ones again; 0: three quarters of `uthreshold`.
    pub lthreshold: u32,
    /// Dead, it keeps its flows as with weight 0, whatever `on_server_down` says.
    pub inhibit_on_failure: bool,
}

impl VirtualServer {
    /// With everything else as in a file that says no more: direct routing, no persistence.
    #[must_use]
    pub fn new(key: ServiceKey, scheduler: Scheduler, servers: Vec<RealServer>) -> Self {
        Self {
            key,
            scheduler,
            one_packet: false,
            persistence: None,
            forward: Forward::Dr,
            on_server_down: OnServerDown::Reschedule,
            quorum: 1,
            hysteresis: 0,
            sorry_server: None,
            servers,
        }
    }
}

impl RealServer {
    /// Without thresholds.
    #[must_use]
    pub const fn new(address: IpAddr, weight: u32) -> Self {
        Self { address, weight, uthreshold: 0, lthreshold: 0, inhibit_on_failure: false }
    }
}

/// Who gets new flows; the names are `ipvsadm`'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduler {
    /// Each in turn.
    Rr,
    /// Each in turn as often as its weight says.
    Wrr,
    /// Fewest flows.
    Lc,
    /// Fewest flows for the weight.
    Wlc,
    /// By the client's address.
    Sh,
    /// By addresses and ports.
    Mh,
    /// Shortest expected delay: fewest flows for the weight, the new one counted.
    Sed,
    /// One without flows, else as `Sed`.
    Nq,
}

impl Scheduler {
    /// All of them with their names.
    pub const ALL: [(&'static str, Self); 8] = [
        ("rr", Self::Rr),
        ("wrr", Self::Wrr),
        ("lc", Self::Lc),
        ("wlc", Self::Wlc),
        ("sh", Self::Sh),
        ("mh", Self::Mh),
        ("sed", Self::Sed),
        ("nq", Self::Nq),
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, scheduler)| *scheduler == self).map_or("", |(name, _)| name)
    }
}

/// How frames reach the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Direct routing: by their MAC address.
    Dr,
    /// In an IP tunnel: IPIP, IPv6 in IPv4 and so on.
    Ipip,
    /// In GUE (draft-ietf-intarea-gue) over UDP.
    Gue {
        /// Where the servers listen, usually 6080.
        port: u16,
    },
}

/// What becomes of flows whose server is dead or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnServerDown {
    /// They stay where they are: the server may come back.
    Drain,
    /// Their next packet goes to another server.
    Reschedule,
    /// Their next packet is answered with RST (TCP; others are rescheduled).
    Reset,
}

/// Clients come back to their server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Persistence {
    /// How long after a client's latest new flow.
    pub timeout: Duration,
    /// Clients with this prefix in common are one (`ipvsadm -M`): of 32 bits, or of 128.
    pub prefix: u8,
}
