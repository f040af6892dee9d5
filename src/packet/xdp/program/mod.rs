//! The program: what happens to a frame in the kernel.
//!
//! It is put together anew for each set of tables and interface, with what does not change meanwhile (MAC
//! addresses, descriptors of maps, limits, the hash key) as constants. Registers hold, from top to bottom:
//! R6 the frame, R7 its end and later the server, R8 the IP header and later the time, R9 what was
//! looked up last.
//!
//! Everything that it cannot decide is passed up, where the packet socket sees it before the kernel's
//! stack does.

mod flow;
mod parse;
mod schedule;
mod table;

#[cfg(test)]
pub(super) use self::flow::clock;

use std::os::fd::RawFd;

use super::assembler::Condition::Equal;
use super::assembler::Operation::Add;
use super::assembler::Register::{R0, R1, R2, R10};
use super::assembler::Size::{Double, Word};
use super::assembler::{AssembleError, Assembler, Helper, Label};
use super::layout::{Family, Reason};
use crate::balance::siphash::Key;
use crate::protocol::ethernet::Mac;
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
    /// Flows of IPv4 and of IPv6, and buckets of each.
    pub flows: [RawFd; 2],
    /// See `flows`.
    pub buckets: [u32; 2],
    /// Who makes room.
    pub rests: RawFd,
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
/// A source's count, before it is put into its table.
const COUNT: i16 = -80;
const HASHED: i16 = -120;
const LENGTH: i16 = -128;
const EVENT: i16 = -132;
const VLAN: i16 = -136;
const SLOT: i16 = -140;
const REASON: i16 = -144;
const NEW: i16 = -148;
const CROWDED: i16 = -152;
const SOURCE: i16 = -168;
/// What a mark's kind has to be, but for the state.
const CLASS: i16 = -172;
const INDEX: i16 = -176;
/// The flow's place, 0 if it has none; both its buckets; the mark that the place has, and one that it is to have.
const FOUND: i16 = -184;
const FIRST: i16 = -192;
const OTHER: i16 = -200;
const MARK: i16 = -208;
const CHANGED: i16 = -216;
/// The bucket of the place that is to be taken.
const BEST: i16 = -224;
/// What nobody needs.
const SCRATCH: i16 = -232;

/// What a packet says of its flow's life. The last two change nothing about a flow in its middle.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// It begins: SYN, INIT.
    Open = 0,
    /// The client ends its half: FIN, SHUTDOWN.
    Finish = 1,
    /// It is over: RST, ABORT.
    End = 2,
    /// It goes on.
    Data = 3,
    /// A protocol without connections.
    Datagram = 4,
}

impl Family {
    /// Length of the IP header.
    const fn header(self) -> i16 {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Where the ports are in the flow's key.
    const fn key_ports(self) -> i16 {
        KEY + self.ports()
    }
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
