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
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 4] =
        [Self::Opening, Self::Established, Self::Closing, Self::Closed];

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u32 == number)
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

impl FlowKey {
    pub(super) fn family(&self) -> Family {
        match (self.source.0, self.destination.0) {
            (IpAddr::V4(_), IpAddr::V4(_)) => Family::V4,
            _ => Family::V6,
        }
    }

    /// The words of its hash, of which the first [`Family::key_words`] count: addresses, ports, protocol.
    pub(super) fn words(&self) -> [u64; 5] {
        let mut bytes = [0; 40];
        let at = match (self.source.0, self.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes[..4].copy_from_slice(&source.octets());
                bytes[4..8].copy_from_slice(&destination.octets());
                8
            }
            (source, destination) => {
                bytes[..16].copy_from_slice(&mapped(source));
                bytes[16..32].copy_from_slice(&mapped(destination));
                32
            }
        };
        bytes[at..at + 2].copy_from_slice(&self.source.1.to_be_bytes());
        bytes[at + 2..at + 4].copy_from_slice(&self.destination.1.to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&u32::from(self.protocol).to_ne_bytes());
        let mut words = [0; 5];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }

    /// Of a place's addresses and ports.
    pub(super) fn of_place(addresses: &[u64], ports: [u8; 4], protocol: u8) -> Option<Self> {
        let halves = |words: &[u64]| -> Option<IpAddr> {
            let [first, second] = words else { return None };
            let (first, second) = (first.to_ne_bytes(), second.to_ne_bytes());
            let bytes: [u8; 16] = [first, second].concat().try_into().ok()?;
            Some(bytes.into())
        };
        let (source, destination) = match addresses {
            [both] => {
                let [a, b, c, d, rest @ ..] = both.to_ne_bytes();
                (Ipv4Addr::new(a, b, c, d).into(), Ipv4Addr::from(rest).into())
            }
            _ => {
                let (source, destination) = addresses.split_at_checked(2)?;
                (halves(source)?, halves(destination)?)
            }
        };
        let [a, b, c, d] = ports;
        Some(Self {
            source: (source, u16::from_be_bytes([a, b])),
            destination: (destination, u16::from_be_bytes([c, d])),
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
    /// When its last frame came, by the program's clock.
    pub seen: u32,
}

/// The two kinds of flows, each with a table.
///
/// A table is an array of buckets, each of a few places for flows. A flow lies in one of two buckets, by its hash. Its
/// place has the client's and the virtual address, both ports, when it was seen, and a *mark*: a word
/// that says of which flow the place is and changes with it. Who takes a place swaps the mark for a busy one,
/// writes the rest, and lets go with the new mark; who reads one reads the mark before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Words of 64 bits in both addresses.
    pub(super) const fn address_words(self) -> usize {
        match self {
            Self::V4 => 1,
            Self::V6 => 4,
        }
    }

    /// Words in a place.
    pub(super) const fn place_words(self) -> usize {
        self.address_words() + 2
    }

    /// Words of what the hash is made of: the addresses, the ports, the protocol.
    pub(super) const fn key_words(self) -> usize {
        self.address_words() + 1
    }

    /// Places of a bucket.
    pub(super) const fn places(self) -> usize {
        match self {
            Self::V4 => 5,
            Self::V6 => 8,
        }
    }

    /// Words of a bucket: two cache lines, or six.
    pub(super) const fn bucket_words(self) -> usize {
        match self {
            Self::V4 => 16,
            Self::V6 => 48,
        }
    }

    /// Flows for which there is a bucket: 64 bytes a flow, and places to spare for where the hash puts more.
    pub(super) const fn share(self) -> u32 {
        match self {
            Self::V4 => 2,
            Self::V6 => 6,
        }
    }

    /// Where in a place the ports are.
    pub(super) const fn ports(self) -> i16 {
        match self {
            Self::V4 => 8,
            Self::V6 => 32,
        }
    }

    /// Where in a place it is written when the flow was seen.
    pub(super) const fn seen(self) -> i16 {
        self.ports() + 4
    }

    /// Where in a place the mark is.
    pub(super) const fn mark(self) -> i16 {
        self.ports() + 8
    }

    /// In which order the places of a flow's two buckets (0 and 1) are taken: the first one's last place only when the
    /// second has none but its last, so that hardly a flow finds neither.
    pub(super) fn order(self) -> impl Iterator<Item = (usize, usize)> {
        let last = self.places() - 1;
        let most = [0, 1].into_iter().flat_map(move |bucket| (0..last).map(move |at| (bucket, at)));
        most.chain([(0, last), (1, last)])
    }
}

/// Of the flows' tables, which a successor goes on with: another number for another layout.
pub const FLOW_LAYOUT: u32 = 3;

// A mark, by bytes.
pub(super) const MARK_SLOT: i16 = 0;
pub(super) const MARK_GENERATION: i16 = 2;
/// Counts the flows that the place has had.
pub(super) const MARK_VERSION: i16 = 4;
/// State, class, and whether it is anybody's; 0 when it is free.
pub(super) const MARK_KIND: i16 = 6;
/// When a frame last went up, in units of [`SHOWN_SHIFT`], modulo 256.
pub(super) const MARK_SHOWN: i16 = 7;

pub(super) const KIND_STATE: u8 = 0x03;
pub(super) const KIND_CLASS_SHIFT: u8 = 2;
/// State and class together.
pub(super) const KIND_REST: u8 = 0x0f;
/// Somebody is writing it.
pub(super) const KIND_BUSY: u8 = 0x40;
/// It has a flow.
pub(super) const KIND_LIVE: u8 = 0x80;
/// Of [`MARK_SHOWN`] to the program's clock: about a second.
pub(super) const SHOWN_SHIFT: i32 = 10;

/// A mark's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) slot: u16,
    pub(super) generation: u16,
    pub(super) version: u16,
    pub(super) kind: u8,
    pub(super) shown: u8,
}

impl Mark {
    pub(super) fn encode(self) -> u64 {
        let [[a, b], [c, d], [e, f]] =
            [self.slot, self.generation, self.version].map(u16::to_ne_bytes);
        u64::from_ne_bytes([a, b, c, d, e, f, self.kind, self.shown])
    }

    pub(super) fn decode(word: u64) -> Self {
        let [a, b, c, d, e, f, kind, shown] = word.to_ne_bytes();
        let [slot, generation, version] = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
        Self { slot, generation, version, kind, shown }
    }

    pub(super) fn state(self) -> State {
        State::from_number(u32::from(self.kind & KIND_STATE)).unwrap_or(State::Closed)
    }
}

/// A protocol's class, as a mark has it; `None` for protocols without flows.
pub(super) const fn class(protocol: u8) -> Option<u8> {
    match protocol {
        6 => Some(0),
        17 => Some(1),
        132 => Some(2),
        _ => None,
    }
}

/// The protocol of a class.
pub(super) const fn protocol(class: u8) -> Option<u8> {
    match class {
        0 => Some(6),
        1 => Some(17),
        2 => Some(132),
        _ => None,
    }
}

/// What the words of a key are multiplied by. Anybody can work out flows of one bucket; all that they push out is
/// flows that are not in use.
pub(super) const HASH: [u64; 5] = [
    0x9e37_79b9_7f4a_7c15,
    0xc2b2_ae3d_27d4_eb4f,
    0x1656_67b1_9e37_79f9,
    0x85eb_ca77_c2b2_ae63,
    0x27d4_eb2f_1656_67c5,
];

// How soon a flow that rests makes room, by state and class: two words each.
/// What its rest is multiplied by: with its timeout it comes to [`OVER`].
pub(super) const REST_WEIGHT: i16 = 0;
/// What is added.
pub(super) const REST_BIAS: i16 = 8;
pub(super) const REST_SHIFT: i32 = 4;
pub(super) const RESTS_VALUE: usize = 16 << REST_SHIFT;
/// The bits by which the rest of a flow that is over is more.
pub(super) const OVER_BITS: i32 = 32;
/// Who has less stays: an eighth of the timeout.
pub(super) const STAYS: i32 = 1 << 29;

/// Weight and bias of a state with this timeout.
pub(super) fn rest(state: State, timeout: u32) -> [u64; 2] {
    let over = 1_u64 << OVER_BITS;
    let bias = match state {
        // No connection yet, or no more.
        State::Opening | State::Closed => over / 2,
        // From a sixteenth of its timeout on.
        State::Closing => over / 16,
        State::Established => 0,
    };
    [over.div_ceil(u64::from(timeout.max(1))), bias]
}

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
    /// The same, as there was no room for it: all flows that are in its places are in use.
    Full,
    /// Dropped: too many connections from one source.
    SynLimit,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 17] = [
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
        Self::Full,
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
            Self::Full => "full",
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
    fn flows_survive_their_place() {
        for (source, destination) in [("192.0.2.1", "198.51.100.2"), ("2001:db8::1", "2001:db8::2")]
        {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let key =
                FlowKey { source: (source, 4711), destination: (destination, 80), protocol: 6 };
            let (family, words) = (key.family(), key.words());
            let (addresses, rest) = words.split_at(family.address_words());
            let [a, b, c, d, ..] = rest[0].to_ne_bytes();
            assert_eq!(FlowKey::of_place(addresses, [a, b, c, d], 6), Some(key));
            assert!(words[family.key_words()..].iter().all(|word| *word == 0));
        }
        let mark = Mark { slot: 7, generation: 9, version: u16::MAX, kind: 0x8a, shown: 3 };
        assert_eq!(Mark::decode(mark.encode()), mark);
        assert_eq!(mark.state(), State::Closing);
    }

    #[test]
    fn a_flow_takes_64_bytes() {
        for family in Family::ALL {
            assert_eq!(family.bucket_words() * 8 / family.share() as usize, 64);
            assert!(family.place_words() * family.places() <= family.bucket_words());
            let mut order: Vec<_> = family.order().collect();
            assert_eq!(order.first(), Some(&(0, 0)));
            order.sort_unstable();
            let all = [0, 1].into_iter().flat_map(|b| (0..family.places()).map(move |at| (b, at)));
            assert_eq!(order, all.collect::<Vec<_>>());
        }
    }

    #[test]
    fn who_rests_longest_for_its_state_makes_room() {
        let score = |state, timeout: u32, age: u32| {
            let [weight, bias] = rest(state, timeout);
            let score = u64::from(age) * weight;
            (score >> OVER_BITS != 0, score + bias)
        };
        let stays = STAYS as u64;
        for timeout in [1, 1000, 858_306, i32::MAX.cast_unsigned()] {
            assert!(score(State::Established, timeout, timeout).0);
            assert!(!score(State::Established, timeout, timeout / 2).0 || timeout == 1);
            assert!(score(State::Opening, timeout, 0).1 > stays);
        }
        assert!(score(State::Established, 8000, 990).1 < stays);
        assert!(score(State::Established, 8000, 1000).1 >= stays);
        assert!(score(State::Closing, 8000, 490).1 < stays);
        assert!(score(State::Closing, 8000, 500).1 >= stays);
        assert!(score(State::Closed, 8000, 0).1 > score(State::Established, 8000, 3999).1);
    }

    #[test]
    fn reasons_are_numbered_as_listed() {
        for (number, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
    }
}
