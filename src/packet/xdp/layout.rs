//! What the program and its owner write into maps for each other: sizes, offsets, numbers.

use std::net::{IpAddr, Ipv4Addr};

use crate::protocol::ethernet::Mac;

/// The program's clock counts units of 2^20 ns, a little over a millisecond, modulo 2^32 (52 days).
pub const CLOCK_SHIFT: i32 = 20;

/// Server slots: servers beyond are left to the packet socket.
pub const SLOTS: u32 = 16_384;

/// Interfaces that frames can be redirected to.
pub const DEVICES: u32 = 64;

/// What is looked up for a frame of an unknown flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceKey {
    /// The VIP.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
}

pub(super) const SERVICE_KEY: usize = 20;
pub(super) const SERVICE_KEY_PORT: i16 = 16;
pub(super) const SERVICE_KEY_PROTOCOL: i16 = 18;
pub(super) const SERVICE_KEY_FAMILY: i16 = 19;

impl ServiceKey {
    pub(super) fn encode(&self) -> [u8; SERVICE_KEY] {
        let mut key = [0; SERVICE_KEY];
        key[19] = match self.address {
            IpAddr::V4(address) => {
                key[..4].copy_from_slice(&address.octets());
                4
            }
            IpAddr::V6(address) => {
                key[..16].copy_from_slice(&address.octets());
                6
            }
        };
        key[16..18].copy_from_slice(&self.port.to_be_bytes());
        key[18] = self.protocol;
        key
    }
}

/// How frames of unknown flows of a service are treated: where its places are in the table of all places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ServiceValue {
    /// First place, counted in groups of four.
    pub(super) at: u32,
    /// Number of places; 0 when the packet socket schedules.
    pub(super) places: u32,
    /// Whether all flows of a source go to one server: ports do not count.
    pub(super) by_source: bool,
}

pub(super) const SERVICE_VALUE: usize = 12;
pub(super) const SERVICE_AT: i16 = 0;
pub(super) const SERVICE_PLACES: i16 = 4;
pub(super) const SERVICE_BY_SOURCE: i16 = 8;

impl ServiceValue {
    pub(super) fn encode(self) -> [u8; SERVICE_VALUE] {
        let mut value = [0; SERVICE_VALUE];
        put(&mut value, SERVICE_AT, self.at);
        put(&mut value, SERVICE_PLACES, self.places);
        put(&mut value, SERVICE_BY_SOURCE, self.by_source.into());
        value
    }
}

/// What happens to a frame for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes up: to the packet socket, or to the local stack.
    Up,
    /// It goes out of the interface with this index.
    Send(u32),
}

/// A real server of a service, as the program sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Destination of the forwarded frame.
    pub destination: Mac,
    /// Its source: the address of the interface it leaves by.
    pub source: Mac,
    /// What is done.
    pub action: Action,
    /// Counts the slot's occupants: a flow of an earlier one is not this one's.
    pub generation: u16,
    /// The VLAN in which the server is, 0 for none; frames of another go up.
    pub vlan: u16,
    /// Whether the packet socket knows its flows: it then sees what begins and ends them, and a frame of
    /// each now and then.
    pub shown: bool,
    /// Whether a client that asks anew gets another server, though its flow would stay.
    pub down: bool,
    /// How long a flow in each state may rest, in units of the program's clock.
    pub timeouts: [u32; 4],
}

pub(super) const SERVER_VALUE: usize = 56;
pub(super) const SERVER_MACS: i16 = 0;
/// The interface's number in the device map, or one beyond it if frames cannot be redirected there.
pub(super) const SERVER_DEVICE: i16 = 16;
pub(super) const SERVER_VLAN: i16 = 20;
pub(super) const SERVER_SHOWN: i16 = 24;
pub(super) const SERVER_TIMEOUTS: i16 = 28;
pub(super) const SERVER_GENERATION: i16 = 44;
/// Index of the interface, 0 for [`Action::Up`].
pub(super) const SERVER_INTERFACE: i16 = 48;
pub(super) const SERVER_DOWN: i16 = 52;

impl Server {
    pub(super) fn encode(&self, device: u32) -> [u8; SERVER_VALUE] {
        let mut value = [0; SERVER_VALUE];
        value[..6].copy_from_slice(&self.destination.0);
        value[6..12].copy_from_slice(&self.source.0);
        let interface = match self.action {
            Action::Up => 0,
            Action::Send(interface) => interface,
        };
        put(&mut value, SERVER_INTERFACE, interface);
        put(&mut value, SERVER_DEVICE, device);
        put(&mut value, SERVER_VLAN, self.vlan.into());
        put(&mut value, SERVER_SHOWN, self.shown.into());
        put(&mut value, SERVER_DOWN, self.down.into());
        put(&mut value, SERVER_GENERATION, self.generation.into());
        for (at, timeout) in (SERVER_TIMEOUTS..).step_by(4).zip(self.timeouts) {
            put(&mut value, at, timeout);
        }
        value
    }
}

/// A flow's state. The client's half is all that a director sees with direct routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum State {
    /// Asked for: SYN or INIT.
    Opening = 0,
    /// Data went by; UDP is always here.
    Established = 1,
    /// The client has said that it has no more to say.
    Closing = 2,
    /// Reset or aborted.
    Closed = 3,
}

impl State {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Opening, Self::Established, Self::Closing, Self::Closed]
            .into_iter()
            .find(|state| *state as u32 == number)
    }
}

/// Which flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client.
    pub source: (IpAddr, u16),
    /// The VIP. Of the same family.
    pub destination: (IpAddr, u16),
    /// TCP, UDP or SCTP.
    pub protocol: u8,
}

pub(super) const FLOW_KEY_V4: usize = 16;
pub(super) const FLOW_KEY_V6: usize = 40;

impl FlowKey {
    pub(super) fn encode(&self) -> ([u8; FLOW_KEY_V6], usize) {
        let mut key = [0; FLOW_KEY_V6];
        let at = match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                key[..4].copy_from_slice(&source.octets());
                key[4..8].copy_from_slice(&destination.octets());
                8
            }
            (source, destination) => {
                key[..16].copy_from_slice(&mapped(source));
                key[16..32].copy_from_slice(&mapped(destination));
                32
            }
        };
        key[at..at + 2].copy_from_slice(&self.source.1.to_be_bytes());
        key[at + 2..at + 4].copy_from_slice(&self.destination.1.to_be_bytes());
        key[at + 4] = self.protocol;
        (key, at + 8)
    }

    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        let (addresses, rest) = key.split_at_checked(key.len().checked_sub(8)?)?;
        let [a, b, c, d, protocol, ..] = *rest else { return None };
        let (source, destination) = addresses.split_at(addresses.len() / 2);
        let ip = |bytes: &[u8]| {
            let v4 = || Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
            <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok().or_else(v4)
        };
        Some(Self {
            source: (ip(source)?, u16::from_be_bytes([a, b])),
            destination: (ip(destination)?, u16::from_be_bytes([c, d])),
            protocol,
        })
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// What is kept of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its server's slot.
    pub slot: u16,
    /// Which of the slot's occupants.
    pub generation: u16,
    /// Its state.
    pub state: State,
    /// When its last frame came.
    pub seen: u32,
    /// When its last frame went up.
    pub shown: u32,
}

/// Of keys and values of the flows' tables, which a successor goes on with: another number for another layout.
pub const FLOW_LAYOUT: u32 = 2;

pub(super) const FLOW_VALUE: usize = 16;
pub(super) const FLOW_SLOT: i16 = 0;
pub(super) const FLOW_GENERATION: i16 = 2;
pub(super) const FLOW_STATE: i16 = 4;
pub(super) const FLOW_SEEN: i16 = 8;
pub(super) const FLOW_SHOWN: i16 = 12;

impl Flow {
    pub(super) fn encode(&self) -> [u8; FLOW_VALUE] {
        let mut value = [0; FLOW_VALUE];
        put(&mut value, FLOW_SLOT, u32::from(self.slot) | u32::from(self.generation) << 16);
        put(&mut value, FLOW_STATE, self.state as u32);
        put(&mut value, FLOW_SEEN, self.seen);
        put(&mut value, FLOW_SHOWN, self.shown);
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let word = |at: i16| {
            let at = usize::try_from(at).ok()?;
            Some(u32::from_ne_bytes(*value.get(at..)?.first_chunk()?))
        };
        let [a, b, c, d] = word(FLOW_SLOT)?.to_le_bytes();
        Some(Self {
            slot: u16::from_le_bytes([a, b]),
            generation: u16::from_le_bytes([c, d]),
            state: State::from_number(word(FLOW_STATE)?)?,
            seen: word(FLOW_SEEN)?,
            shown: word(FLOW_SHOWN)?,
        })
    }
}

/// Entries of the table of recent flows of one CPU, a power of two; see [`super::program`].
pub(super) const RECENT: u32 = 1 << RECENT_BITS;
pub(super) const RECENT_BITS: i32 = 12;
/// What follows on the flow's key there: when and under which count of changes it was true, and what was.
pub(super) const RECENT_VALUE: usize = 16;
pub(super) const RECENT_STAMP: i16 = 0;
pub(super) const RECENT_SLOT: i16 = 8;
pub(super) const RECENT_GENERATION: i16 = 12;

/// What is counted for each slot: three words of 64 bits.
pub(super) const COUNTERS_VALUE: usize = 24;
pub(super) const COUNTER_PACKETS: i16 = 0;
pub(super) const COUNTER_BYTES: i16 = 8;
pub(super) const COUNTER_FLOWS: i16 = 16;

/// Why a frame was not forwarded by the program, or was in a special way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// To another address than the interface's: broadcasts, what a bridge floods.
    OtherMac,
    /// Neither IPv4 nor IPv6, or below a second VLAN tag.
    NotIp,
    /// Larger than the interface's MTU: several packets in one, which the kernel has to cut.
    Large,
    /// Headers that contradict the frame's length.
    Malformed,
    /// IPv4 options or IPv6 extension headers.
    Options,
    /// A fragment.
    Fragment,
    /// Neither TCP, UDP nor SCTP, ICMP above all.
    Protocol,
    /// No service of ours.
    NoService,
    /// From a director that has already scheduled it.
    Peer,
    /// The first frames of a flow of which the packet socket chooses the server.
    Schedule,
    /// A flow that is not known here, and not at its beginning.
    UnknownFlow,
    /// Begin or end of a flow that the packet socket keeps account of.
    Control,
    /// A frame of such a flow now and then, so that it is known to live.
    Refresh,
    /// To a server that is local, unreachable or in another VLAN.
    Server,
    /// Forwarded without being remembered: too many new flows.
    Stateless,
    /// Dropped: too many connections from one source.
    SynLimit,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::OtherMac,
        Self::NotIp,
        Self::Large,
        Self::Malformed,
        Self::Options,
        Self::Fragment,
        Self::Protocol,
        Self::NoService,
        Self::Peer,
        Self::Schedule,
        Self::UnknownFlow,
        Self::Control,
        Self::Refresh,
        Self::Server,
        Self::Stateless,
        Self::SynLimit,
    ];

    /// Its name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OtherMac => "other_mac",
            Self::NotIp => "not_ip",
            Self::Large => "large",
            Self::Malformed => "malformed",
            Self::Options => "options",
            Self::Fragment => "fragment",
            Self::Protocol => "protocol",
            Self::NoService => "no_service",
            Self::Peer => "peer",
            Self::Schedule => "schedule",
            Self::UnknownFlow => "unknown_flow",
            Self::Control => "control",
            Self::Refresh => "refresh",
            Self::Server => "server",
            Self::Stateless => "stateless",
            Self::SynLimit => "syn_limit",
        }
    }
}

fn put(value: &mut [u8], at: i16, word: u32) {
    let place = usize::try_from(at).ok().and_then(|at| value.get_mut(at..at + 4));
    if let Some(place) = place {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_survive_the_map() {
        let keys = [("192.0.2.1", "198.51.100.2", 16), ("2001:db8::1", "2001:db8::2", 40)];
        for (source, destination, length) in keys {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let key =
                FlowKey { source: (source, 4711), destination: (destination, 80), protocol: 6 };
            let (bytes, used) = key.encode();
            assert_eq!(used, length);
            assert_eq!(FlowKey::decode(&bytes[..used]), Some(key));
        }
        let flow = Flow { slot: 7, generation: 9, state: State::Closing, seen: u32::MAX, shown: 3 };
        assert_eq!(Flow::decode(&flow.encode()), Some(flow));
        assert_eq!((FlowKey::decode(&[0; 7]), Flow::decode(&[0; 15])), (None, None));
    }

    #[test]
    fn reasons_are_numbered_as_listed() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }
}
