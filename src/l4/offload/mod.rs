//! The XDP program as the director's fast path: what it is given, what it is told of flows, what it counted.
//!
//! The program decides by [`Tables`] like [`crate::l4::Director`]. Schedulers that only need a hash
//! (`mh`, `sh`) it serves whole. For the others the packet socket schedules, and the program
//! forwards the rest of each flow. A frame that it leaves alone reaches the packet socket as if there were no
//! program, so that an interface without one loses nothing.

mod account;
mod learn;
pub mod needs;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::account::Account;
pub use self::learn::Learner;
use self::needs::{Choice, Facts};
pub use self::tables::translate;
use super::config::{Datapath, L4, Settings};
use super::tables::Tables;
use crate::packet::xdp::layout::Reason;
use crate::packet::xdp::program::Setup;
use crate::packet::xdp::{Error, FastPath, FlowTable, Limits, clock};
use crate::protocol::ethernet::Mac;
use crate::sys::bpf::Mode;

/// An Ethernet header and a VLAN tag.
const HEADERS: u32 = 18;

/// An interface with rings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub mac: Mac,
    /// The largest packet it takes.
    pub mtu: u32,
}

/// How an interface's frames are forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The interface's name.
    pub interface: String,
    /// How the program runs there; `None`: packet sockets alone.
    pub mode: Option<Mode>,
    /// Why so.
    pub why: String,
}

impl Path {
    /// The datapath in a word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self.mode {
            Some(Mode::Native) => "xdp-native",
            Some(Mode::Generic) => "xdp-generic",
            None => "packet",
        }
    }
}

/// What the program did with frames.
#[derive(Debug, Clone, Default)]
pub struct Frames {
    /// Forwarded.
    pub forwarded: u64,
    /// Not simply forwarded, by reason.
    pub reasons: Vec<(Reason, u64)>,
}

/// The program on the director's interfaces.
#[derive(Debug)]
pub struct Offload {
    wanted: Datapath,
    limits: Limits,
    fast: Result<FastPath, String>,
    interfaces: BTreeMap<u32, (Interface, Path)>,
    /// Of these, those that have a program of somebody else.
    busy: BTreeSet<u32>,
    account: Account,
    troubles: Vec<String>,
    /// Flows of another process's program that are not this one's.
    former: Option<Arc<FlowTable>>,
}

impl Offload {
    /// Makes the program's maps, unless only packet sockets are wanted or the kernel allows nothing else. `writer` is
    /// the index by which its figures are kept.
    #[must_use]
    pub fn open(config: &L4, writer: usize) -> Self {
        Self::with_flows(config, writer, None)
    }

    /// The same with the flows of another process's program, of IPv4 and of IPv6.
    #[must_use]
    pub fn with_flows(config: &L4, writer: usize, flows: Option<[OwnedFd; 2]>) -> Self {
        let wanted = config.director.datapath;
        let limits = limits(config);
        let mut known = flows.and_then(|flows| FlowTable::adopt(flows).ok());
        let fast = if wanted == Datapath::Packet {
            Err(String::from("as configured"))
        } else {
            let fits = known.take_if(|known| known.fits(limits));
            let fast = match fits {
                Some(fits) => FastPath::with_flows(fits, limits),
                None => FastPath::new(limits),
            };
            fast.map_err(|error| needs::hint(&error))
        };
        let former = known.map(Arc::new);
        let account = Account::new(writer);
        let (interfaces, troubles) = (BTreeMap::new(), Vec::new());
        let busy = BTreeSet::new();
        Self { wanted, limits, fast, interfaces, busy, account, troubles, former }
    }

    /// The flows that the program knows, if there is one.
    #[must_use]
    pub fn flows(&self) -> Option<Arc<FlowTable>> {
        self.fast.as_ref().ok().map(|fast| Arc::clone(fast.flows()))
    }

    /// What keeps a director and the program in agreement, if there is or was one.
    #[must_use]
    pub fn learner(&self) -> Option<Learner> {
        let former =
            || self.former.as_ref().map(|former| Learner::new(Arc::clone(former)).retire());
        self.flows().map(Learner::new).or_else(former)
    }

    /// Takes over the flows of the program before this one; as many as there is room for.
    pub fn inherit(&self, known: &FlowTable) {
        let Ok(fast) = &self.fast else { return };
        let now = clock();
        // One for which there is no room is found by its hash.
        known.for_each_flow(|key, flow| {
            fast.flows().remember(&key, flow, now);
        });
    }

    /// Takes over the programs of another process, by interface.
    pub fn take_links(&mut self, links: Vec<(u32, Mode, OwnedFd)>) {
        if let Some(former) = &self.former {
            self.inherit(former);
        }
        if let Ok(fast) = &mut self.fast {
            fast.inherit(links);
        }
    }

    /// Lets go of those that have no interface here.
    pub fn let_go(&mut self) {
        if let Ok(fast) = &mut self.fast {
            fast.let_go();
        }
    }

    /// Puts the program back where another process may have put its own.
    pub fn renew(&self) {
        if let Ok(fast) = &self.fast {
            fast.renew();
        }
    }

    /// Descriptors of the programs, for another process.
    ///
    /// # Errors
    /// EMFILE.
    pub fn links(&self) -> io::Result<Vec<(u32, Mode, OwnedFd)>> {
        self.fast.as_ref().map_or_else(|_| Ok(Vec::new()), FastPath::links)
    }

    /// Lets these interfaces, and no others, have the program, as far as they can.
    pub fn set_interfaces(&mut self, interfaces: &[Interface], tables: &Tables, config: &Settings) {
        let gone = |index: &u32| !interfaces.iter().any(|one| one.index == *index);
        let gone: Vec<u32> = self.interfaces.keys().copied().filter(gone).collect();
        for index in gone {
            self.interfaces.remove(&index);
            self.busy.remove(&index);
            if let Ok(fast) = &mut self.fast {
                fast.detach(index);
            }
        }
        for one in interfaces {
            if self.interfaces.get(&one.index).is_none_or(|(known, _)| known != one) {
                let path = self.attach(one, tables, config);
                self.interfaces.insert(one.index, (one.clone(), path));
            }
        }
    }

    /// Tries again where another program was in the way: that of the process before this one, which goes when its
    /// last connections have. True when something changed.
    pub fn retry(&mut self, tables: &Tables, config: &Settings) -> bool {
        let mut changed = false;
        for index in std::mem::take(&mut self.busy) {
            let Some((interface, _)) = self.interfaces.get(&index).cloned() else { continue };
            let path = self.attach(&interface, tables, config);
            changed |= path.mode.is_some();
            self.interfaces.insert(index, (interface, path));
        }
        changed
    }

    fn attach(&mut self, interface: &Interface, tables: &Tables, config: &Settings) -> Path {
        let path = |mode, why| Path { interface: interface.name.clone(), mode, why };
        let fast = match &mut self.fast {
            Ok(fast) => fast,
            Err(why) => return path(None, why.clone()),
        };
        let setup = setup(interface, interface.mtu, tables, config);
        let facts = Facts::read(&interface.name, config);
        let Choice { mut modes, mut why } = needs::choose(self.wanted, &facts);
        // The one that runs there already.
        let running = fast.inherited(interface.index);
        modes.sort_by_key(|mode| Some(*mode) != running);
        for mode in modes {
            match fast.attach(interface.index, mode, setup.clone()) {
                Ok(()) => return path(Some(mode), why),
                Err(Error::Load(error)) => {
                    // The same program in another mode would be refused too.
                    self.troubles.push(error.to_string());
                    why = String::from("the kernel refused the program");
                    break;
                }
                Err(Error::Attach(_, error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                    self.busy.insert(interface.index);
                    why = String::from("there is another XDP program");
                    break;
                }
                Err(error) => {
                    let lacks = needs::lacks(&facts).filter(|_| mode == Mode::Native);
                    why = lacks
                        .map_or_else(|| error.to_string(), |lacks| format!("{error}; {lacks}"));
                }
            }
        }
        fast.detach(interface.index);
        path(None, why)
    }

    /// Lets the program go by other tables.
    pub fn publish(&mut self, tables: &Tables, config: &Settings) {
        self.troubles.clear();
        if self.wanted != Datapath::Auto && self.wanted != Datapath::Packet {
            let missing = self.interfaces.values().filter(|(_, path)| path.mode.is_none());
            let trouble = |(_, path): &(Interface, Path)| {
                format!("no XDP on {}: {}; packet sockets forward", path.interface, path.why)
            };
            self.troubles.extend(missing.map(trouble));
        }
        let Ok(fast) = &mut self.fast else { return };
        let least = self.interfaces.values().map(|(one, _)| one.mtu).min().unwrap_or_default();
        let interfaces = &self.interfaces;
        let of = |index: u32| {
            let (interface, _) = &interfaces[&index];
            setup(interface, least, tables, config)
        };
        if let Err(error) = fast.set_tables(translate(tables), of) {
            // It would go by old tables: packet sockets do it right.
            interfaces.keys().for_each(|index| fast.detach(*index));
            let why = format!("XDP: {error}");
            self.troubles.push(format!("{why}; packet sockets forward"));
            for (_, path) in self.interfaces.values_mut() {
                (path.mode, path.why) = (None, why.clone());
            }
        }
    }

    /// Adds what the program counted to the figures of virtual and real servers.
    pub fn settle(&mut self, tables: &Tables) {
        if let Ok(fast) = &self.fast {
            self.account.settle(fast, tables);
        }
    }

    /// Counts the flows that only the program knows.
    pub fn count_flows(&self, tables: &Tables) {
        if let Ok(fast) = &self.fast {
            Account::count_flows(fast, tables, false);
        }
    }

    /// The same; flows that are over make room, and those whose server is not in the tables, by which the program goes.
    pub fn tidy_flows(&self, tables: &Tables) {
        if let Ok(fast) = &self.fast {
            Account::count_flows(fast, tables, true);
        }
    }

    /// Takes the program off every interface. Flows that only it knew find their servers by their hash.
    pub fn end(&mut self, tables: &Tables) {
        self.interfaces.clear();
        self.fast = Err(String::from("ended"));
        for server in tables.servers.iter().flatten() {
            server.figures.load.set_offloaded(0, 0);
        }
    }

    /// Whether another configuration needs another one of these.
    #[must_use]
    pub fn is_for(&self, config: &L4) -> bool {
        self.wanted == config.director.datapath && self.limits == limits(config)
    }

    /// How each interface's frames are forwarded.
    #[must_use]
    pub fn paths(&self) -> Vec<Path> {
        self.interfaces.values().map(|(_, path)| path.clone()).collect()
    }

    /// What the program did with frames.
    #[must_use]
    pub fn frames(&self) -> Frames {
        let Ok(fast) = &self.fast else { return Frames::default() };
        let reasons = fast.reasons().unwrap_or_default();
        Frames { forwarded: self.account.forwarded(), reasons }
    }

    /// What is wrong now.
    #[must_use]
    pub fn troubles(&self) -> &[String] {
        &self.troubles
    }
}

fn limits(config: &L4) -> Limits {
    let any = |v4: bool| config.services.iter().any(|one| one.key.address.is_ipv4() == v4);
    let flows = |v4| if any(v4) { config.director.flows_max } else { 0 };
    Limits {
        flows_v4: flows(true),
        flows_v6: flows(false),
        syn_limit: config.director.syns_per_source != 0,
    }
}

fn setup(interface: &Interface, mtu: u32, tables: &Tables, config: &Settings) -> Setup {
    let mut macs = tables.macs.get(&interface.index).cloned().unwrap_or_default();
    if !macs.contains(&interface.mac) {
        macs.push(interface.mac);
    }
    let mut peers: Vec<Mac> = tables.peers.iter().copied().collect();
    peers.sort_unstable();
    Setup {
        interface: interface.index,
        macs,
        peers,
        frame_max: mtu.saturating_add(HEADERS),
        key: tables.seed,
        new_flows: tables.new_flows_per_second,
        syn_limit: config.syns_per_source,
        any_port: tables.index.keys().any(|key| key.port == 0),
    }
}

#[cfg(test)]
mod tests;
