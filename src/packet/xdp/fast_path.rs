//! The program with its maps, on interfaces.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;

use super::assembler::AssembleError;
use super::flow_table::{FlowTable, Timeouts};
use super::layout::{
    self, Action, COUNTERS_VALUE, DEVICES, Reason, SERVER_VALUE, SERVICE_KEY, SERVICE_VALUE, SLOTS,
    Server, ServiceKey, ServiceValue,
};
use super::program::{self, Maps, Setup};
use crate::sys::bpf::{Instruction, Kind, Link, LoadError, Map, Mode, Program, Spec, tick_clock};

/// Sources whose SYNs are counted at a time.
const SOURCES: u32 = 65_536;
/// Tables that are not used have the least size that the kernel's lists for each CPU bear.
const UNUSED: u32 = 1024;

/// How much is remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Flows of IPv4; the memory is taken at once, 64 bytes each. 0 for none.
    pub flows_v4: u32,
    /// Flows of IPv6, the same.
    pub flows_v6: u32,
    /// Whether SYNs of each source are limited.
    pub syn_limit: bool,
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Address, port (0: all) and protocol.
    pub key: ServiceKey,
    /// Slots of servers by the place of a flow's hash; empty when the packet socket schedules.
    pub places: Arc<[u16]>,
    /// Whether the client's port does not count.
    pub by_source: bool,
}

/// What the program decides by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Virtual servers; what is not among them goes up.
    pub services: Vec<Service>,
    /// Real servers by slot.
    pub servers: Vec<(u16, Server)>,
    /// How long flows may rest.
    pub timeouts: Timeouts,
}

/// What was counted of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames forwarded.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Flows that began here.
    pub flows: u64,
}

/// Why the program is not on an interface.
#[derive(Debug)]
pub enum Error {
    /// A map could not be made or filled; with its name.
    Map(&'static str, io::Error),
    /// The program was put together wrongly.
    Assemble(AssembleError),
    /// The kernel did not take it.
    Load(LoadError),
    /// The interface did not.
    Attach(Mode, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Map(name, error) => write!(f, "BPF map {name}: {error}"),
            Self::Assemble(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
            Self::Attach(mode, error) => write!(f, "{} XDP: {error}", mode.as_str()),
        }
    }
}

impl std::error::Error for Error {}

/// An interface with the program.
#[derive(Debug)]
struct Attached {
    interface: u32,
    mode: Mode,
    setup: Setup,
    link: Link,
    program: Program,
}

/// The maps of one set of tables.
#[derive(Debug)]
struct Generation {
    services: Map,
    servers: Map,
    places: Map,
}

/// The fast path: flows and counters, which stay, and tables, of which each set has maps and programs of its
/// own. Another set takes effect on an interface with one store of a pointer, so a frame meets the old
/// tables or the new ones, never a part of both.
#[derive(Debug)]
pub struct FastPath {
    flows: Arc<FlowTable>,
    counters: Map,
    reasons: Map,
    rate: Map,
    sources: Map,
    devices: Map,
    numbers: HashMap<u32, u32>,
    tables: Tables,
    generation: Generation,
    attached: Vec<Attached>,
    /// Of another process, by interface.
    inherited: Vec<(u32, Mode, Link)>,
}

impl FastPath {
    /// Makes the maps.
    ///
    /// # Errors
    /// EPERM without CAP_BPF and CAP_NET_ADMIN, ENOMEM.
    pub fn new(limits: Limits) -> Result<Self, Error> {
        Self::with_flows(FlowTable::new(limits)?, limits)
    }

    /// With the flows of another process, which are of the same size.
    ///
    /// # Errors
    /// As [`FastPath::new`].
    pub fn with_flows(flows: FlowTable, limits: Limits) -> Result<Self, Error> {
        let sources = if limits.syn_limit { SOURCES } else { UNUSED };
        let tables = Tables::default();
        let numbers = HashMap::new();
        Ok(Self {
            flows: Arc::new(flows),
            counters: map(Kind::PerCpuArray, 4, COUNTERS_VALUE, SLOTS, "counters")?,
            reasons: map(Kind::PerCpuArray, 4, 8, count(&Reason::ALL), "reasons")?,
            rate: map(Kind::PerCpuArray, 4, 8, 1, "rate")?,
            sources: map(Kind::LruHash, 16, 8, sources, "sources")?,
            devices: map(Kind::DeviceMap, 4, 4, DEVICES, "devices")?,
            generation: Generation::new(&tables, &numbers)?,
            tables,
            numbers,
            attached: Vec::new(),
            inherited: Vec::new(),
        })
    }

    /// Takes the programs of another process over: each is replaced when its interface is attached, without a frame
    /// that meets neither.
    pub fn inherit(&mut self, links: Vec<(u32, Mode, OwnedFd)>) {
        let adopt = |(interface, mode, fd)| (interface, mode, Link::adopt(fd));
        self.inherited = links.into_iter().map(adopt).collect();
    }

    /// Puts the programs back in their place, where another process may have put its own.
    pub fn renew(&self) {
        for one in &self.attached {
            // It fails only where the interface has gone.
            let _ = one.link.replace(&one.program);
        }
    }

    /// How the program of another process runs on an interface.
    #[must_use]
    pub fn inherited(&self, interface: u32) -> Option<Mode> {
        self.inherited.iter().find(|one| one.0 == interface).map(|one| one.1)
    }

    /// Lets go of programs that were taken over and not replaced.
    pub fn let_go(&mut self) {
        self.inherited.clear();
    }

    /// Descriptors of the links, for another process.
    ///
    /// # Errors
    /// EMFILE.
    pub fn links(&self) -> io::Result<Vec<(u32, Mode, OwnedFd)>> {
        self.attached.iter().map(|one| Ok((one.interface, one.mode, one.link.share()?))).collect()
    }

    /// Puts the program on an interface, or renews it there.
    ///
    /// # Errors
    /// When kernel or interface refuse; what was there before stays.
    pub fn attach(&mut self, interface: u32, mode: Mode, setup: Setup) -> Result<(), Error> {
        let program = load(&setup, &self.maps(&self.generation))?;
        let refused = |error| Error::Attach(mode, error);
        let at = self.attached.iter().position(|one| one.interface == interface);
        match at.and_then(|at| self.attached.get_mut(at)).filter(|one| one.mode == mode) {
            Some(one) => {
                one.link.replace(&program).map_err(refused)?;
                (one.program, one.setup) = (program, setup);
            }
            None => {
                self.detach(interface);
                let is = |one: &mut (u32, Mode, Link)| (one.0, one.1) == (interface, mode);
                let link = match self.inherited.extract_if(.., is).next() {
                    Some((_, _, link)) => link.replace(&program).map(|()| link),
                    None => Link::attach_xdp(&program, interface, mode),
                };
                let link = link.map_err(refused)?;
                self.attached.push(Attached { interface, mode, setup, link, program });
            }
        }
        Ok(())
    }

    /// Takes the program off an interface.
    pub fn detach(&mut self, interface: u32) {
        self.attached.retain(|one| one.interface != interface);
    }

    /// How the program runs on an interface.
    #[must_use]
    pub fn mode(&self, interface: u32) -> Option<Mode> {
        self.attached.iter().find(|one| one.interface == interface).map(|one| one.mode)
    }

    /// Lets every interface go by other tables, and by what `setup` says for it. Nothing happens when nothing
    /// is new.
    ///
    /// # Errors
    /// When the kernel refuses a map or a program. Interfaces that have the new tables keep them.
    pub fn set_tables(
        &mut self,
        tables: Tables,
        setup: impl Fn(u32) -> Setup,
    ) -> Result<(), Error> {
        let as_before = |one: &Attached| one.setup == setup(one.interface);
        if self.tables == tables && self.attached.iter().all(as_before) {
            return Ok(());
        }
        self.number_devices(&tables);
        let generation = Generation::new(&tables, &self.reachable())?;
        self.flows.set_timeouts(&tables.timeouts);
        let maps = self.maps(&generation);
        for one in &mut self.attached {
            let setup = setup(one.interface);
            let program = load(&setup, &maps)?;
            one.link.replace(&program).map_err(|error| Error::Attach(one.mode, error))?;
            (one.program, one.setup) = (program, setup);
        }
        (self.generation, self.tables) = (generation, tables);
        Ok(())
    }

    /// The flows that are known to the program; other threads may hold them too.
    #[must_use]
    pub fn flows(&self) -> &Arc<FlowTable> {
        &self.flows
    }

    /// What was counted of the server in a slot, since the start and whoever was in it.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn totals(&self, slot: u16) -> io::Result<Totals> {
        let mut value = vec![0; self.counters.value_size()];
        self.counters.lookup(&u32::from(slot).to_ne_bytes(), &mut value)?;
        let words: Vec<u64> =
            value.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        Ok(words.as_chunks::<3>().0.iter().fold(
            Totals::default(),
            |sum, [packets, bytes, flows]| Totals {
                packets: sum.packets.wrapping_add(*packets),
                bytes: sum.bytes.wrapping_add(*bytes),
                flows: sum.flows.wrapping_add(*flows),
            },
        ))
    }

    /// Frames by what became of them.
    ///
    /// # Errors
    /// What bpf(2) says.
    pub fn reasons(&self) -> io::Result<Vec<(Reason, u64)>> {
        let mut value = vec![0; self.reasons.value_size()];
        let mut counts = Vec::with_capacity(Reason::ALL.len());
        for reason in Reason::ALL {
            self.reasons.lookup(&u32::from(reason as u8).to_ne_bytes(), &mut value)?;
            let words = value.as_chunks::<8>().0.iter();
            counts.push((reason, words.fold(0, |sum, word| sum + u64::from_ne_bytes(*word))));
        }
        Ok(counts)
    }

    /// A program as it would be on an interface, for test runs.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn program(&self, setup: &Setup) -> Result<Program, Error> {
        load(setup, &self.maps(&self.generation))
    }

    /// The same after other instructions, which leave R1 as it was and jump nowhere but to their end.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn program_after(&self, first: &[Instruction], setup: &Setup) -> Result<Program, Error> {
        let own = program::assemble(setup, &self.maps(&self.generation));
        let own = own.map_err(Error::Assemble)?;
        Program::load_xdp(&[first, &own].concat(), "ringgate").map_err(Error::Load)
    }

    fn maps(&self, generation: &Generation) -> Maps {
        let (flows, rests) = self.flows.descriptors();
        Maps {
            services: raw(&generation.services),
            servers: raw(&generation.servers),
            places: raw(&generation.places),
            flows,
            buckets: self.flows.buckets(),
            rests,
            counters: raw(&self.counters),
            reasons: raw(&self.reasons),
            rate: raw(&self.rate),
            sources: raw(&self.sources),
            devices: raw(&self.devices),
        }
    }

    /// Gives each interface that servers are behind a number in the device map. An interface that is gone, or
    /// one too many, has none. The kernel forgets interfaces that go, so all are set each time.
    fn number_devices(&mut self, tables: &Tables) {
        for (_, server) in &tables.servers {
            let Action::Send(interface) = server.action else { continue };
            let free = (0..DEVICES).find(|number| !self.numbers.values().any(|one| one == number));
            let Some(number) = self.numbers.get(&interface).copied().or(free) else { continue };
            if self.devices.update(&number.to_ne_bytes(), &interface.to_ne_bytes()).is_ok() {
                self.numbers.insert(interface, number);
            } else {
                self.numbers.remove(&interface);
            }
        }
    }

    /// Numbers of the interfaces that frames can be redirected to. In the drivers, that works only between
    /// interfaces that run the program.
    fn reachable(&self) -> HashMap<u32, u32> {
        let native = self.attached.iter().any(|one| one.mode == Mode::Native);
        let lost = |interface| native && self.mode(interface) != Some(Mode::Native);
        self.numbers.clone().into_iter().filter(|(interface, _)| !lost(*interface)).collect()
    }
}

impl Generation {
    fn new(tables: &Tables, numbers: &HashMap<u32, u32>) -> Result<Self, Error> {
        let groups: usize = tables.services.iter().map(|one| one.places.len().div_ceil(4)).sum();
        let entries = count_of(tables.services.len()).max(1);
        let services = map(Kind::Hash, SERVICE_KEY, SERVICE_VALUE, entries, "services")?;
        let servers = map(Kind::Array, 4, SERVER_VALUE, slots(tables), "servers")?;
        let places = map(Kind::Array, 4, 8, count_of(groups).max(1), "places")?;
        fill_services(&services, &places, tables)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (slot, server) in tables.servers.iter().filter(|(slot, _)| u32::from(*slot) < SLOTS) {
            let device = match server.action {
                Action::Send(interface) => numbers.get(&interface).copied(),
                Action::Up => None,
            };
            keys.extend_from_slice(&u32::from(*slot).to_ne_bytes());
            values.extend_from_slice(&server.encode(device.unwrap_or(DEVICES)));
        }
        servers.update_batch(&keys, &values).map_err(|error| Error::Map("servers", error))?;
        Ok(Self { services, servers, places })
    }
}

/// Slots of the servers' table: those that are taken, since what is missing goes up.
fn slots(tables: &Tables) -> u32 {
    let last = tables.servers.iter().map(|(slot, _)| u32::from(*slot) + 1).max();
    last.unwrap_or(1).min(SLOTS)
}

fn fill_services(services: &Map, places: &Map, tables: &Tables) -> Result<(), Error> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut at = 0;
    for service in &tables.services {
        let value = ServiceValue {
            at,
            places: count_of(service.places.len()),
            by_source: service.by_source,
        };
        let set = services.update(&service.key.encode(), &value.encode());
        set.map_err(|error| Error::Map("services", error))?;
        for group in service.places.chunks(4) {
            let mut slots = [0; 8];
            let bytes = group.iter().flat_map(|slot| slot.to_ne_bytes());
            slots.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            keys.extend_from_slice(&at.to_ne_bytes());
            values.extend_from_slice(&slots);
            at += 1;
        }
    }
    places.update_batch(&keys, &values).map_err(|error| Error::Map("places", error))
}

fn load(setup: &Setup, maps: &Maps) -> Result<Program, Error> {
    let instructions = program::assemble(setup, maps).map_err(Error::Assemble)?;
    Program::load_xdp(&instructions, "ringgate").map_err(Error::Load)
}

fn map(
    kind: Kind,
    key: usize,
    value: usize,
    entries: u32,
    name: &'static str,
) -> Result<Map, Error> {
    let spec = Spec { kind, key_size: count_of(key), value_size: count_of(value), entries, name };
    Map::create(&spec).map_err(|error| Error::Map(name, error))
}

fn raw(map: &Map) -> RawFd {
    map.as_fd().as_raw_fd()
}

fn count<T>(of: &[T]) -> u32 {
    count_of(of.len())
}

fn count_of(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The program's clock, or up to 10 ms less.
#[must_use]
pub fn clock() -> u32 {
    let units = tick_clock().as_nanos() >> layout::CLOCK_SHIFT;
    u32::try_from(units & u128::from(u32::MAX)).unwrap_or_default()
}
