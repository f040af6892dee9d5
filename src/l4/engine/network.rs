//! This host's links and addresses, and the ways to others, as the kernel has them.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use super::neighbours::Target;
use crate::l4::config::L4;
use crate::packet::netlink::address::Assigned;
use crate::packet::netlink::link::Link;
use crate::packet::netlink::route::Route;
use crate::packet::netlink::{Event, Events, Requests};
use crate::protocol::ethernet::Mac;

/// Event datagrams read in one go at most.
const DATAGRAMS_MAX: usize = 64;
const LOOPBACK: u32 = 1;

/// The names of the interfaces that a director of this configuration would take frames from, as the network is now.
///
/// # Errors
/// What netlink says.
pub fn interfaces(config: &L4) -> io::Result<Vec<String>> {
    if !config.director.interfaces.is_empty() {
        return Ok(config.director.interfaces.clone());
    }
    let mut network = Network::open()?;
    let mut ways = BTreeSet::new();
    let servers = config.services.iter().flat_map(|service| {
        service.servers.iter().map(|server| server.address).chain(service.sorry_server)
    });
    for address in servers.chain(config.director.peers.iter().copied()) {
        // Without a route there is no way.
        let route = network.route(address).ok().filter(|route| !route.local);
        ways.extend(route.map(|route| route.interface));
    }
    let found = network.frames_come_by(config, ways);
    let name = |index: &u32| network.link(*index).map(|link| link.name.clone());
    Ok(found.iter().filter_map(name).collect())
}

/// What there is.
#[derive(Debug)]
pub(super) struct Network {
    events: Events,
    pub(super) requests: Requests,
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Assigned>,
}

impl AsRawFd for Network {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Links or addresses changed.
    pub(super) changed: bool,
    /// What the kernel has confirmed about neighbours.
    pub(super) neighbours: Vec<(Target, Mac)>,
}

impl Network {
    pub(super) fn open() -> io::Result<Self> {
        let events = Events::with_neighbours()?;
        let mut network =
            Self { events, requests: Requests::open()?, links: Vec::new(), addresses: Vec::new() };
        network.look()?;
        Ok(network)
    }

    /// Looks at links and addresses anew.
    pub(super) fn look(&mut self) -> io::Result<()> {
        self.links = self.requests.links()?;
        self.addresses = self.requests.addresses()?;
        Ok(())
    }

    /// What the kernel knows of neighbours already.
    pub(super) fn known(&mut self) -> Vec<(Target, Mac)> {
        let all = self.requests.neighbours().unwrap_or_default();
        let confirmed = all.into_iter().filter(|one| one.confirmed);
        let pair = |one: crate::packet::netlink::neighbour::Neighbour| {
            (Target { interface: one.interface, address: one.address }, Mac(one.mac))
        };
        confirmed.map(pair).collect()
    }

    /// Takes in what happened.
    pub(super) fn update(&mut self) -> News {
        let mut news = News::default();
        for _ in 0..DATAGRAMS_MAX {
            let read = self.events.read(|event| match event {
                Event::Neighbour(one) if one.confirmed => {
                    let target = Target { interface: one.interface, address: one.address };
                    news.neighbours.push((target, Mac(one.mac)));
                }
                Event::Neighbour(_) => {}
                _ => news.changed = true,
            });
            if !matches!(read, Ok(true)) {
                break;
            }
        }
        // When it fails, what was known stays; the next event or tick looks again.
        if news.changed && self.look().is_err() {
            news.changed = false;
        }
        news
    }

    pub(super) fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    pub(super) fn mac(&self, index: u32) -> Option<Mac> {
        self.link(index)?.mac.map(Mac)
    }

    /// The way to an address.
    pub(super) fn route(&mut self, address: IpAddr) -> io::Result<Route> {
        self.requests.route(address)
    }

    /// The interfaces that frames come in by, unless the configuration names them: those that have a virtual address, those
    /// that it would be reached by, and those on the `ways` to servers and peers.
    pub(super) fn frames_come_by(&mut self, config: &L4, ways: BTreeSet<u32>) -> BTreeSet<u32> {
        let vips: BTreeSet<IpAddr> =
            config.services.iter().map(|service| service.key.address).collect();
        let mut wanted = ways;
        for vip in vips {
            wanted.extend(self.holders(vip));
            if let Ok(route) = self.route(vip)
                && !route.local
            {
                wanted.insert(route.interface);
            }
        }
        wanted.remove(&LOOPBACK);
        wanted
    }

    /// Interfaces, other than loopback, that have this address.
    pub(super) fn holders(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        let has = move |one: &&Assigned| one.address == address && one.interface != LOOPBACK;
        self.addresses.iter().filter(has).map(|one| one.interface)
    }

    /// The address to ask from: on IPv6 the link-local one, else what the route says.
    pub(super) fn source(&mut self, target: Target) -> Option<IpAddr> {
        let own = |one: &&Assigned| match (one.address, target.address) {
            (IpAddr::V6(own), IpAddr::V6(_)) => {
                one.interface == target.interface && own.is_unicast_link_local()
            }
            _ => false,
        };
        let link_local = self.addresses.iter().find(own).map(|one| one.address);
        link_local.or_else(|| self.route(target.address).ok()?.source)
    }
}
