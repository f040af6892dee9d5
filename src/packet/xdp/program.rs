//! The program: what happens to a frame in the kernel.
//!
//! It is put together anew for each set of tables and interface, with what does not change meanwhile (MAC
//! addresses, descriptors of maps, limits, the hash key) as constants. Registers hold, from top to bottom:
//! R6 the frame, R7 its end and later the server, R8 the IP header and later the time, R9 what was
//! looked up last.
//!
//! Everything that it cannot decide is passed up, where the packet socket sees it before the kernel's
//! stack does.

use std::os::fd::RawFd;

use super::assembler::Condition::{
    AnyBit, Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual,
};
use super::assembler::Operation::{Add, And, Multiply, Or, ShiftLeft, ShiftRight, Subtract};
use super::assembler::Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use super::assembler::Size::{Byte, Double, Half, Word};
use super::assembler::{AssembleError, Assembler, Helper, Label};
use super::layout::{
    CLOCK_SHIFT, COUNTER_BYTES, COUNTER_FLOWS, COUNTER_PACKETS, DEVICES, FLOW_GENERATION,
    FLOW_SEEN, FLOW_SHOWN, FLOW_SLOT, FLOW_STATE, Reason, SERVER_DEVICE, SERVER_DOWN,
    SERVER_GENERATION, SERVER_INTERFACE, SERVER_MACS, SERVER_SHOWN, SERVER_TIMEOUTS, SERVER_VLAN,
    SERVICE_AT, SERVICE_BY_SOURCE, SERVICE_KEY_FAMILY, SERVICE_KEY_PORT, SERVICE_KEY_PROTOCOL,
    SERVICE_PLACES, State,
};
use super::siphash;
use crate::balance::siphash::Key;
use crate::protocol::ethernet::{self, Mac};
use crate::sys::bpf::Instruction;

// enum xdp_action
/// The frame goes up.
pub const PASS: u32 = 2;
/// The frame is dropped.
pub const DROP: u32 = 1;
/// The frame goes back out of the interface it came in by.
pub const TRANSMIT: u32 = 3;
/// The frame goes out of another interface.
pub const REDIRECT: u32 = 4;

/// What the program is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Index of the interface.
    pub interface: u32,
    /// By which a frame is for us.
    pub macs: Vec<Mac>,
    /// Whose frames were scheduled already.
    pub peers: Vec<Mac>,
    /// Bytes of the largest frame that is forwarded, the Ethernet header and a VLAN tag included.
    pub frame_max: u32,
    /// The key of the hash that chooses places.
    pub key: Key,
    /// New flows a second and CPU that are remembered; beyond, they go by Maglev alone. 0 for no limit.
    pub new_flows: u32,
    /// Connections a second from one source; beyond, they are dropped. 0 for no limit.
    pub syn_limit: u32,
    /// Whether there are services for all ports (with 0 as their port).
    pub any_port: bool,
}

/// Descriptors of the maps.
#[derive(Debug, Clone, Copy)]
pub struct Maps {
    /// Services by key.
    pub services: RawFd,
    /// Servers by slot.
    pub servers: RawFd,
    /// Slots by place, four together.
    pub places: RawFd,
    /// Flows of IPv4 and of IPv6.
    pub flows: [RawFd; 2],
    /// Counters by slot.
    pub counters: RawFd,
    /// Counters by reason.
    pub reasons: RawFd,
    /// One entry a CPU: the second that is counted, and new flows in it.
    pub rate: RawFd,
    /// The same for each source.
    pub sources: RawFd,
    /// Interfaces by number.
    pub devices: RawFd,
}

/// Units of the program's clock in a second.
const SECOND: i32 = 954;
/// How long a flow goes on without a frame of it being shown to the packet socket.
const REFRESH: i32 = 5 * SECOND;

// The stack, from the frame pointer down.
/// The flow's key: 16 or 40 bytes, which are the words of its hash too.
const KEY: i16 = -40;
const SERVICE_KEY: i16 = -64;
const FLOW: i16 = -80;
const HASHED: i16 = -120;
const LENGTH: i16 = -128;
const EVENT: i16 = -132;
const VLAN: i16 = -136;
const SLOT: i16 = -140;
const REASON: i16 = -144;
const NEW: i16 = -148;
const CROWDED: i16 = -152;
const SOURCE: i16 = -168;

/// What a packet says of its flow's life.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// It begins: SYN, INIT.
    Open = 0,
    /// It goes on.
    Data = 1,
    /// The client ends its half: FIN, SHUTDOWN.
    Finish = 2,
    /// It is over: RST, ABORT.
    End = 3,
    /// A protocol without connections.
    Datagram = 4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// Length of the IP header.
    const fn header(self) -> i16 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Length of the addresses in the flow's key.
    const fn ports(self) -> i16 {
        match self {
            Self::V4 => KEY + 8,
            Self::V6 => KEY + 32,
        }
    }

    /// Words of 64 bits in the key.
    const fn words(self) -> usize {
        match self {
            Self::V4 => 2,
            Self::V6 => 5,
        }
    }
}

const fn order(value: u16) -> i32 {
    // The network's order as the CPU reads it.
    u16::from_ne_bytes(value.to_be_bytes()) as i32
}

struct Writer<'a> {
    a: Assembler,
    setup: &'a Setup,
    maps: &'a Maps,
    /// Where each reason for passing up begins.
    up: [Label; Reason::ALL.len()],
    drop: Label,
}

/// Writes the program.
///
/// # Errors
/// When it cannot be put together, which is an error in here.
pub fn assemble(setup: &Setup, maps: &Maps) -> Result<Vec<Instruction>, AssembleError> {
    let mut a = Assembler::default();
    let up = std::array::from_fn(|_| a.label());
    let drop = a.label();
    let mut writer = Writer { a, setup, maps, up, drop };
    writer.program();
    writer.a.finish()
}

impl Writer<'_> {
    fn program(&mut self) {
        let (v4, v6) = (self.a.label(), self.a.label());
        self.ethernet(v4, v6);
        for (label, family) in [(v4, Family::V4), (v6, Family::V6)] {
            self.a.place(label);
            self.network(family);
            self.flow(family);
        }
        self.ends();
    }

    fn up(&self, reason: Reason) -> Label {
        self.up[reason as usize]
    }

    /// Is it for us, of a bearable size, and IP?
    fn ethernet(&mut self, v4: Label, v6: Label) {
        let other_mac = self.up(Reason::OtherMac);
        let not_ip = self.up(Reason::NotIp);
        let a = &mut self.a;
        a.load(Word, R6, R1, 0);
        a.load(Word, R7, R1, 4);
        a.set(R2, R6);
        a.alu(Add, R2, 14 + 4 + 20);
        a.jump_if(Greater, R2, R7, not_ip);
        let ours = a.label();
        a.load(Word, R2, R6, 0);
        a.load(Half, R3, R6, 4);
        is_one_of(a, &self.setup.macs, ours);
        a.jump(other_mac);
        a.place(ours);
        if !self.setup.peers.is_empty() {
            let peer = self.up[Reason::Peer as usize];
            a.load(Word, R2, R6, 6);
            a.load(Half, R3, R6, 10);
            is_one_of(a, &self.setup.peers, peer);
        }
        a.set(R2, R7);
        a.alu(Subtract, R2, R6);
        let frame_max = i32::try_from(self.setup.frame_max).unwrap_or(i32::MAX);
        a.jump_if(Greater, R2, frame_max, self.up[Reason::Large as usize]);
        a.set(R9, 0);
        a.set(R8, R6);
        a.alu(Add, R8, i32::from(ETHERNET));
        a.load(Half, R3, R6, 12);
        let untagged = a.label();
        a.jump_if(NotEqual, R3, order(0x8100), untagged);
        a.load(Half, R9, R6, ETHERNET);
        a.to_network(R9, 16);
        a.alu(And, R9, 0xfff);
        // A tag with a priority and no VLAN.
        a.jump_if(Equal, R9, 0, not_ip);
        a.load(Half, R3, R6, ETHERNET + 2);
        a.alu(Add, R8, 4);
        a.place(untagged);
        a.store(Word, R10, VLAN, R9);
        a.jump_if(Equal, R3, order(ethernet::IPV4), v4);
        a.jump_if(Equal, R3, order(ethernet::IPV6), v6);
        a.jump(not_ip);
    }

    /// The IP header: the flow's key onto the stack, what it is about into `EVENT`.
    fn network(&mut self, family: Family) {
        let header = family.header();
        let [malformed, options, fragment, protocol] =
            [Reason::Malformed, Reason::Options, Reason::Fragment, Reason::Protocol]
                .map(|reason| self.up(reason));
        let a = &mut self.a;
        // Together with the shortest transport header; R5 is what there is.
        need(a, header + 8, malformed);
        a.set(R5, R7);
        a.alu(Subtract, R5, R8);
        match family {
            Family::V4 => {
                a.load(Byte, R2, R8, 0);
                a.jump_if(NotEqual, R2, 0x45, options);
                a.load(Half, R2, R8, 6);
                a.jump_if(AnyBit, R2, order(0x3fff), fragment);
                a.load(Half, R4, R8, 2);
                a.to_network(R4, 16);
                a.load(Double, R2, R8, 12);
                a.store(Double, R10, KEY, R2);
                a.load(Byte, R3, R8, 9);
            }
            Family::V6 => {
                a.load(Byte, R2, R8, 0);
                a.alu(ShiftRight, R2, 4);
                a.jump_if(NotEqual, R2, 6, malformed);
                a.load(Half, R4, R8, 4);
                a.to_network(R4, 16);
                a.alu(Add, R4, 40);
                for word in 0..4 {
                    a.load(Double, R2, R8, 8 + 8 * word);
                    a.store(Double, R10, KEY + 8 * word, R2);
                }
                a.load(Byte, R3, R8, 6);
                for extension in [0, 43, 44, 51, 60] {
                    let why = if extension == 44 { fragment } else { options };
                    a.jump_if(Equal, R3, extension, why);
                }
            }
        }
        a.jump_if(Greater, R4, R5, malformed);
        a.store(Double, R10, LENGTH, R4);
        a.load(Word, R2, R8, header);
        a.store(Word, R10, family.ports(), R2);
        a.store(Word, R10, family.ports() + 4, R3);
        let (tcp, udp, sctp, done) = (a.label(), a.label(), a.label(), a.label());
        a.jump_if(Equal, R3, 6, tcp);
        a.jump_if(Equal, R3, 17, udp);
        a.jump_if(Equal, R3, 132, sctp);
        a.jump(protocol);
        a.place(udp);
        a.jump_if(Less, R4, i32::from(header + 8), malformed);
        a.store(Word, R10, EVENT, Event::Datagram as i32);
        a.jump(done);
        a.place(tcp);
        need(a, header + 20, malformed);
        a.jump_if(Less, R4, i32::from(header + 20), malformed);
        tcp_event(a, header);
        a.jump(done);
        a.place(sctp);
        need(a, header + 16, malformed);
        a.jump_if(Less, R4, i32::from(header + 16), malformed);
        sctp_event(a, header);
        a.place(done);
    }

    /// A flow that is known goes to its server, another one is scheduled.
    fn flow(&mut self, family: Family) {
        let miss = self.a.label();
        let a = &mut self.a;
        a.store(Word, R10, NEW, 0);
        a.call(Helper::CoarseTime);
        a.alu(ShiftRight, R0, CLOCK_SHIFT);
        a.alu32(super::assembler::Operation::Move, R8, R0);
        a.map(R1, self.maps.flows[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(KEY));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, miss);
        a.set(R9, R0);
        a.load(Half, R2, R9, FLOW_SLOT);
        a.store(Word, R10, SLOT, R2);
        self.server(miss);
        self.known(family, miss);
        self.forward();
        self.a.place(miss);
        self.service(family);
        self.admit(family);
        self.choose(family);
        self.remember(family);
        self.forward();
    }

    /// The server of `SLOT` into R7.
    fn server(&mut self, missing: Label) {
        let a = &mut self.a;
        a.map(R1, self.maps.servers);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SLOT));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, missing);
        a.set(R7, R0);
    }

    /// What this frame does to a flow that is known; R9 is the flow, R7 its server.
    fn known(&mut self, family: Family, miss: Label) {
        let (control, server) = (self.up(Reason::Control), self.up(Reason::Server));
        let refresh = self.up(Reason::Refresh);
        let a = &mut self.a;
        a.load(Half, R2, R9, FLOW_GENERATION);
        a.load(Word, R3, R7, SERVER_GENERATION);
        a.jump_if(NotEqual, R2, R3, miss);
        // How long it rested; less than nothing if another CPU has just touched it.
        let (alive, owned) = (a.label(), a.label());
        a.load(Word, R4, R9, FLOW_STATE);
        a.alu(And, R4, 3);
        a.load(Word, R2, R9, FLOW_SEEN);
        a.set(R3, R8);
        a.alu32(Subtract, R3, R2);
        a.jump_if(Greater, R3, i32::MAX, alive);
        a.set(R5, R4);
        a.alu(ShiftLeft, R5, 2);
        a.alu(Add, R5, R7);
        a.load(Word, R5, R5, SERVER_TIMEOUTS);
        a.jump_if(GreaterOrEqual, R3, R5, miss);
        a.place(alive);
        // A server that is down and does not keep its flows: the packet socket gives this one to another, and it
        // must not return when the server does.
        let kept = a.label();
        a.load(Word, R2, R7, SERVER_INTERFACE);
        a.jump_if(NotEqual, R2, 0, kept);
        a.load(Word, R2, R7, SERVER_DOWN);
        a.jump_if(Equal, R2, 0, server);
        self.forget(family);
        let a = &mut self.a;
        a.jump(server);
        a.place(kept);
        a.load(Word, R1, R10, EVENT);
        a.load(Word, R2, R7, SERVER_SHOWN);
        a.jump_if(Equal, R2, 0, owned);
        // The packet socket keeps account of this flow.
        for event in [Event::Finish, Event::End] {
            a.jump_if(Equal, R1, event as i32, control);
        }
        // Another connection, perhaps with another server: what is known of the last one is void.
        let goes_on = a.label();
        a.jump_if(NotEqual, R1, Event::Open as i32, goes_on);
        self.forget(family);
        let a = &mut self.a;
        a.jump(control);
        a.place(goes_on);
        let rested = a.label();
        a.load(Word, R2, R9, FLOW_SHOWN);
        a.set(R3, R8);
        a.alu32(Subtract, R3, R2);
        a.jump_if(Less, R3, REFRESH, rested);
        a.store(Word, R9, FLOW_SHOWN, R8);
        a.jump(refresh);
        a.place(owned);
        let stays = a.label();
        a.jump_if(NotEqual, R1, Event::Open as i32, stays);
        a.load(Word, R2, R7, SERVER_DOWN);
        a.jump_if(NotEqual, R2, 0, miss);
        a.place(stays);
        next_state(a, miss);
        a.store(Word, R9, FLOW_STATE, R4);
        a.place(rested);
        // Written only when it changes: many CPUs may share the cache line.
        let same = a.label();
        a.load(Word, R2, R9, FLOW_SEEN);
        a.jump_if(Equal, R2, R8, same);
        a.store(Word, R9, FLOW_SEEN, R8);
        a.place(same);
    }

    /// Removes the flow.
    fn forget(&mut self, family: Family) {
        let a = &mut self.a;
        a.map(R1, self.maps.flows[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(KEY));
        a.call(Helper::MapDelete);
    }

    /// The service of a flow that is not known, into R9.
    fn service(&mut self, family: Family) {
        let no_service = self.up(Reason::NoService);
        let a = &mut self.a;
        for word in 0..2 {
            match family {
                Family::V4 => a.store(Double, R10, SERVICE_KEY + 8 * word, 0),
                Family::V6 => {
                    a.load(Double, R2, R10, KEY + 16 + 8 * word);
                    a.store(Double, R10, SERVICE_KEY + 8 * word, R2);
                }
            }
        }
        if family == Family::V4 {
            a.load(Word, R2, R10, KEY + 4);
            a.store(Word, R10, SERVICE_KEY, R2);
        }
        a.load(Half, R2, R10, family.ports() + 2);
        a.store(Half, R10, SERVICE_KEY + SERVICE_KEY_PORT, R2);
        a.load(Byte, R2, R10, family.ports() + 4);
        a.store(Byte, R10, SERVICE_KEY + SERVICE_KEY_PROTOCOL, R2);
        let version = if family == Family::V4 { 4 } else { 6 };
        a.store(Byte, R10, SERVICE_KEY + SERVICE_KEY_FAMILY, version);
        let found = a.label();
        self.find_service();
        let a = &mut self.a;
        if self.setup.any_port {
            a.jump_if(NotEqual, R0, 0, found);
            a.store(Half, R10, SERVICE_KEY + SERVICE_KEY_PORT, 0);
            self.find_service();
        }
        let a = &mut self.a;
        a.jump_if(Equal, R0, 0, no_service);
        a.place(found);
        a.set(R9, R0);
    }

    fn find_service(&mut self) {
        let a = &mut self.a;
        a.map(R1, self.maps.services);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SERVICE_KEY));
        a.call(Helper::MapLookup);
    }

    /// Whether the flow is scheduled here; `CROWDED` says whether it is remembered.
    fn admit(&mut self, family: Family) {
        let schedule = self.up(Reason::Schedule);
        let unknown = self.up(Reason::UnknownFlow);
        let a = &mut self.a;
        a.load(Word, R2, R9, SERVICE_PLACES);
        a.jump_if(Equal, R2, 0, schedule);
        a.store(Word, R10, CROWDED, 0);
        let (counted, admitted) = (a.label(), a.label());
        if self.setup.new_flows != 0 {
            a.store(Word, R10, SLOT, 0);
            a.map(R1, self.maps.rate);
            a.set(R2, R10);
            a.alu(Add, R2, i32::from(SLOT));
            a.call(Helper::MapLookup);
            a.jump_if(Equal, R0, 0, counted);
            a.set(R5, R0);
            count_second(a);
            let limit = i32::try_from(self.setup.new_flows).unwrap_or(i32::MAX);
            a.jump_if(LessOrEqual, R3, limit, counted);
            a.store(Word, R10, CROWDED, 1);
        }
        a.place(counted);
        a.load(Word, R1, R10, EVENT);
        a.jump_if(Equal, R1, Event::Datagram as i32, admitted);
        if self.setup.syn_limit == 0 {
            a.jump_if(Equal, R1, Event::Open as i32, admitted);
        } else {
            let other = a.label();
            a.jump_if(NotEqual, R1, Event::Open as i32, other);
            self.limit_source(family, admitted);
            self.a.place(other);
        }
        // In the middle of a connection: the packet socket may know it. A flood of those must not drown it.
        let a = &mut self.a;
        a.load(Word, R2, R10, CROWDED);
        a.jump_if(Equal, R2, 0, unknown);
        a.place(admitted);
    }

    /// Counts a SYN against its source; too many are dropped.
    fn limit_source(&mut self, family: Family, admitted: Label) {
        let (new, drop) = (self.a.label(), self.drop);
        let a = &mut self.a;
        let (first, second) = match family {
            Family::V4 => (None, None),
            Family::V6 => (Some(KEY), Some(KEY + 8)),
        };
        for (from, at) in [(first, SOURCE), (second, SOURCE + 8)] {
            match from {
                None => a.store(Double, R10, at, 0),
                Some(from) => {
                    a.load(Double, R2, R10, from);
                    a.store(Double, R10, at, R2);
                }
            }
        }
        if family == Family::V4 {
            a.load(Word, R2, R10, KEY);
            a.store(Word, R10, SOURCE, R2);
        }
        let source = |a: &mut Assembler, maps: &Maps| {
            a.map(R1, maps.sources);
            a.set(R2, R10);
            a.alu(Add, R2, i32::from(SOURCE));
        };
        source(a, self.maps);
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, new);
        a.set(R5, R0);
        count_second(a);
        let limit = i32::try_from(self.setup.syn_limit).unwrap_or(i32::MAX);
        a.jump_if(Greater, R3, limit, drop);
        a.jump(admitted);
        a.place(new);
        a.store(Word, R10, FLOW, R8);
        a.store(Word, R10, FLOW + 4, 1);
        source(a, self.maps);
        a.set(R3, R10);
        a.alu(Add, R3, i32::from(FLOW));
        a.set(R4, 0);
        a.call(Helper::MapUpdate);
        a.jump(admitted);
    }

    /// The place of the flow's hash, the slot in it into `SLOT`, its server into R7.
    fn choose(&mut self, family: Family) {
        let server = self.up(Reason::Server);
        let a = &mut self.a;
        for word in 0..i16::try_from(family.words()).unwrap_or_default() {
            a.load(Double, R2, R10, KEY + 8 * word);
            a.store(Double, R10, HASHED + 8 * word, R2);
        }
        let all = a.label();
        a.load(Word, R2, R9, SERVICE_BY_SOURCE);
        a.jump_if(Equal, R2, 0, all);
        a.store(Half, R10, HASHED + family.ports() - KEY, 0);
        a.place(all);
        siphash::emit(a, self.setup.key, HASHED, family.words());
        // Its high half times the number of places, the high half of that.
        a.alu(ShiftRight, R0, 32);
        a.load(Word, R1, R9, SERVICE_PLACES);
        a.alu(Multiply, R0, R1);
        a.alu(ShiftRight, R0, 32);
        a.load(Word, R2, R9, SERVICE_AT);
        a.set(R9, R0);
        a.alu(ShiftRight, R0, 2);
        a.alu(Add, R2, R0);
        a.store(Word, R10, SLOT, R2);
        a.map(R1, self.maps.places);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SLOT));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, server);
        a.alu(And, R9, 3);
        a.alu(ShiftLeft, R9, 1);
        a.alu(Add, R0, R9);
        a.load(Half, R2, R0, 0);
        a.store(Word, R10, SLOT, R2);
        self.server(server);
        let a = &mut self.a;
        a.load(Word, R2, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R2, 0, server);
    }

    /// Puts the new flow into the table, unless there are too many.
    fn remember(&mut self, family: Family) {
        let (stateless, done) = (self.a.label(), self.a.label());
        let a = &mut self.a;
        a.load(Word, R2, R10, CROWDED);
        a.jump_if(NotEqual, R2, 0, stateless);
        a.load(Word, R2, R10, SLOT);
        a.load(Word, R3, R7, SERVER_GENERATION);
        a.alu(ShiftLeft, R3, 16);
        a.alu(Or, R2, R3);
        a.store(Word, R10, FLOW + FLOW_SLOT, R2);
        let (opening, ready) = (a.label(), a.label());
        a.load(Word, R2, R10, EVENT);
        a.jump_if(Equal, R2, Event::Open as i32, opening);
        a.store(Word, R10, FLOW + FLOW_STATE, State::Established as i32);
        a.jump(ready);
        a.place(opening);
        a.store(Word, R10, FLOW + FLOW_STATE, State::Opening as i32);
        a.place(ready);
        a.store(Word, R10, FLOW + FLOW_SEEN, R8);
        a.store(Word, R10, FLOW + FLOW_SHOWN, R8);
        a.map(R1, self.maps.flows[family as usize]);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(KEY));
        a.set(R3, R10);
        a.alu(Add, R3, i32::from(FLOW));
        a.set(R4, 0);
        a.call(Helper::MapUpdate);
        a.store(Word, R10, NEW, 1);
        a.jump(done);
        a.place(stateless);
        a.store(Word, R10, REASON, Reason::Stateless as i32);
        count_reason(a, self.maps);
        a.place(done);
    }

    /// Writes the MAC addresses and sends; R7 is the server.
    fn forward(&mut self) {
        let server = self.up(Reason::Server);
        let a = &mut self.a;
        let (sendable, here) = (a.label(), a.label());
        a.load(Word, R9, R7, SERVER_INTERFACE);
        a.jump_if(Equal, R9, 0, server);
        let interface = self.setup.interface.cast_signed();
        a.jump_if32(Equal, R9, interface, sendable);
        a.load(Word, R2, R7, SERVER_DEVICE);
        a.jump_if(GreaterOrEqual, R2, DEVICES.cast_signed(), server);
        a.place(sendable);
        a.load(Word, R2, R10, VLAN);
        a.load(Word, R3, R7, SERVER_VLAN);
        let tagged = a.label();
        a.jump_if(Equal, R2, R3, tagged);
        // A server without a tag, on the interface that the frame came in by: the tag stays.
        a.jump_if(NotEqual, R3, 0, server);
        a.jump_if32(NotEqual, R9, interface, server);
        a.place(tagged);
        a.map(R1, self.maps.counters);
        a.set(R2, R10);
        a.alu(Add, R2, i32::from(SLOT));
        a.call(Helper::MapLookup);
        a.jump_if(Equal, R0, 0, server);
        a.load(Word, R3, R10, NEW);
        a.load(Double, R2, R10, LENGTH);
        a.set(R1, 1);
        for (at, amount) in [(COUNTER_PACKETS, R1), (COUNTER_BYTES, R2), (COUNTER_FLOWS, R3)] {
            a.load(Double, R4, R0, at);
            a.alu(Add, R4, amount);
            a.store(Double, R0, at, R4);
        }
        a.load(Double, R2, R7, SERVER_MACS);
        a.store(Double, R6, 0, R2);
        a.load(Word, R2, R7, SERVER_MACS + 8);
        a.store(Word, R6, 8, R2);
        a.jump_if32(Equal, R9, interface, here);
        a.map(R1, self.maps.devices);
        a.load(Word, R2, R7, SERVER_DEVICE);
        a.set(R3, 0);
        a.call(Helper::RedirectMap);
        a.exit();
        a.place(here);
        a.set(R0, TRANSMIT.cast_signed());
        a.exit();
    }

    /// Where frames are passed up or dropped.
    fn ends(&mut self) {
        let count = self.a.label();
        for reason in Reason::ALL {
            if !self.a.is_used(self.up(reason)) {
                continue;
            }
            self.a.place(self.up[reason as usize]);
            self.a.store(Word, R10, REASON, reason as i32);
            self.a.jump(count);
        }
        self.a.place(count);
        count_reason(&mut self.a, self.maps);
        self.a.set(R0, PASS.cast_signed());
        self.a.exit();
        if !self.a.is_used(self.drop) {
            return;
        }
        self.a.place(self.drop);
        self.a.store(Word, R10, REASON, Reason::SynLimit as i32);
        count_reason(&mut self.a, self.maps);
        self.a.set(R0, DROP.cast_signed());
        self.a.exit();
    }
}

const ETHERNET: i16 = 14;

/// Jumps if R2 and R3, an address's first four and last two bytes, are one of `macs`.
fn is_one_of(a: &mut Assembler, macs: &[Mac], then: Label) {
    for Mac([b0, b1, b2, b3, b4, b5]) in macs {
        let next = a.label();
        a.jump_if32(NotEqual, R2, i32::from_ne_bytes([*b0, *b1, *b2, *b3]), next);
        a.jump_if32(Equal, R3, i32::from(u16::from_ne_bytes([*b4, *b5])), then);
        a.place(next);
    }
}

/// Jumps unless there are `bytes` from the IP header on.
fn need(a: &mut Assembler, bytes: i16, otherwise: Label) {
    a.set(R2, R8);
    a.alu(Add, R2, i32::from(bytes));
    a.jump_if(Greater, R2, R7, otherwise);
}

/// What the flags say, into `EVENT`.
fn tcp_event(a: &mut Assembler, header: i16) {
    const FIN: i32 = 1;
    const SYN: i32 = 2;
    const RST: i32 = 4;
    const ACK: i32 = 16;
    a.load(Byte, R2, R8, header + 13);
    let (plain, done) = (a.label(), a.label());
    a.set(R1, Event::Open as i32);
    a.jump_if(AnyBit, R2, ACK | FIN | RST, plain);
    a.jump_if(AnyBit, R2, SYN, done);
    a.place(plain);
    a.set(R1, Event::End as i32);
    a.jump_if(AnyBit, R2, RST, done);
    a.set(R1, Event::Finish as i32);
    a.jump_if(AnyBit, R2, FIN, done);
    a.set(R1, Event::Data as i32);
    a.place(done);
    a.store(Word, R10, EVENT, R1);
}

/// What the first chunk says, into `EVENT`.
fn sctp_event(a: &mut Assembler, header: i16) {
    const INIT: i32 = 1;
    const ABORT: i32 = 6;
    const SHUTDOWN: i32 = 7;
    const SHUTDOWN_ACK: i32 = 8;
    const SHUTDOWN_COMPLETE: i32 = 14;
    a.load(Byte, R2, R8, header + 12);
    let done = a.label();
    let chunks = [
        (Event::Open, [INIT, INIT]),
        (Event::End, [ABORT, SHUTDOWN_COMPLETE]),
        (Event::Finish, [SHUTDOWN, SHUTDOWN_ACK]),
    ];
    for (event, types) in chunks {
        a.set(R1, event as i32);
        for chunk in types {
            a.jump_if(Equal, R2, chunk, done);
        }
    }
    a.set(R1, Event::Data as i32);
    a.place(done);
    a.store(Word, R10, EVENT, R1);
}

/// The flow's next state in R4, from that and the event in R1. What begins anew is no longer known.
fn next_state(a: &mut Assembler, miss: Label) {
    let (data, finish, end, done) = (a.label(), a.label(), a.label(), a.label());
    a.jump_if(Equal, R1, Event::Datagram as i32, done);
    a.jump_if(Equal, R1, Event::Data as i32, data);
    a.jump_if(Equal, R1, Event::Finish as i32, finish);
    a.jump_if(Equal, R1, Event::End as i32, end);
    a.jump_if(GreaterOrEqual, R4, State::Closing as i32, miss);
    a.jump(done);
    a.place(data);
    a.jump_if(NotEqual, R4, State::Opening as i32, done);
    a.set(R4, State::Established as i32);
    a.jump(done);
    a.place(finish);
    a.jump_if(GreaterOrEqual, R4, State::Closing as i32, done);
    a.set(R4, State::Closing as i32);
    a.jump(done);
    a.place(end);
    a.set(R4, State::Closed as i32);
    a.place(done);
}

/// One more in this second: R5 points to its beginning and the count, which R3 holds afterwards.
fn count_second(a: &mut Assembler) {
    let (same, set) = (a.label(), a.label());
    a.load(Word, R2, R5, 0);
    a.set(R3, R8);
    a.alu32(Subtract, R3, R2);
    a.jump_if(Less, R3, SECOND, same);
    a.store(Word, R5, 0, R8);
    a.set(R3, 0);
    a.jump(set);
    a.place(same);
    a.load(Word, R3, R5, 4);
    a.place(set);
    a.alu(Add, R3, 1);
    a.store(Word, R5, 4, R3);
}

/// One more for the reason in `REASON`.
fn count_reason(a: &mut Assembler, maps: &Maps) {
    let none = a.label();
    a.map(R1, maps.reasons);
    a.set(R2, R10);
    a.alu(Add, R2, i32::from(REASON));
    a.call(Helper::MapLookup);
    a.jump_if(Equal, R0, 0, none);
    a.load(Double, R1, R0, 0);
    a.alu(Add, R1, 1);
    a.store(Double, R0, 0, R1);
    a.place(none);
}
