//! This host's interfaces and addresses, kept current by netlink's events.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use crate::packet::netlink::address::{Assigned, Wanted};
use crate::packet::netlink::link::Link;
use crate::packet::netlink::{Event, Events, Requests};
use crate::protocol::vrrp::Family;

/// Event datagrams read in one go at most; the rest comes in the next round.
const DATAGRAMS_MAX: usize = 64;

/// What there is.
#[derive(Debug)]
pub(super) struct Network {
    events: Events,
    /// For changes.
    pub(super) requests: Requests,
    links: Vec<Link>,
    addresses: Vec<Assigned>,
}

/// What changed since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// A link came, went, or changed.
    pub(super) links: bool,
    /// An address came or went.
    pub(super) addresses: bool,
}

impl AsRawFd for Network {
    fn as_raw_fd(&self) -> RawFd {
        self.events.as_raw_fd()
    }
}

impl Network {
    /// Begins listening, then looks at what is there.
    ///
    /// # Errors
    /// What netlink says.
    pub(super) fn open() -> io::Result<Self> {
        let events = Events::open()?;
        let mut requests = Requests::open()?;
        let links = requests.links()?;
        let addresses = requests.addresses()?;
        Ok(Self { events, requests, links, addresses })
    }

    /// Takes in what happened.
    ///
    /// # Errors
    /// What netlink says.
    pub(super) fn update(&mut self) -> io::Result<Changes> {
        let (mut changes, mut lost) = (Changes::default(), false);
        for _ in 0..DATAGRAMS_MAX {
            let (links, addresses) = (&mut self.links, &mut self.addresses);
            let more = self.events.read(|event| match event {
                Event::Link(link) => {
                    changes.links = true;
                    links.retain(|known| known.index != link.index);
                    links.push(link);
                }
                Event::LinkGone(index) => {
                    changes.links = true;
                    links.retain(|known| known.index != index);
                    addresses.retain(|known| known.interface != index);
                }
                Event::Address(address) => {
                    changes.addresses |= !addresses.iter().any(|known| is_same(known, &address));
                    addresses.retain(|known| !is_same(known, &address));
                    addresses.push(address);
                }
                Event::AddressGone(address) => {
                    changes.addresses = true;
                    addresses.retain(|known| !is_same(known, &address));
                }
                Event::Lost => lost = true,
            })?;
            if !more {
                break;
            }
        }
        if lost {
            self.links = self.requests.links()?;
            self.addresses = self.requests.addresses()?;
            changes = Changes { links: true, addresses: true };
        }
        Ok(changes)
    }

    /// Gives an address a lifetime, adding it if need be, and knows it at once.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn lease(&mut self, wanted: &Wanted, lifetime: Option<Duration>) -> io::Result<()> {
        self.requests.lease(wanted, lifetime)?;
        let assigned = Assigned {
            interface: wanted.interface,
            address: wanted.address,
            prefix: wanted.prefix,
            owner: wanted.owner,
            valid: lifetime,
            flags: 0,
        };
        self.addresses.retain(|known| !is_same(known, &assigned));
        self.addresses.push(assigned);
        Ok(())
    }

    /// Removes an address, and knows it at once.
    ///
    /// # Errors
    /// What the kernel says; the address is forgotten all the same, and comes back with its event if it is
    /// still there.
    pub(super) fn remove(&mut self, wanted: &Wanted) -> io::Result<()> {
        self.addresses
            .retain(|known| (known.interface, known.address) != (wanted.interface, wanted.address));
        self.requests.remove(wanted)
    }

    /// The interface of this name.
    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The interface of this name is there, up, and has a carrier.
    pub(super) fn is_running(&self, name: &str) -> bool {
        self.link(name).is_some_and(Link::is_running)
    }

    /// The addresses of an interface.
    pub(super) fn addresses(&self, interface: u32) -> impl Iterator<Item = &Assigned> {
        self.addresses.iter().filter(move |address| address.interface == interface)
    }

    /// Every address of this host.
    pub(super) fn own(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().map(|address| address.address)
    }

    /// The address on this interface, if it is there.
    pub(super) fn assigned(&self, interface: u32, address: IpAddr) -> Option<&Assigned> {
        self.addresses(interface).find(|assigned| assigned.address == address)
    }

    /// What advertisements on an interface come from: for IPv6 the link-local address, for IPv4 the first
    /// that is not one of `except`.
    pub(super) fn source(
        &self,
        interface: u32,
        family: Family,
        except: &[IpAddr],
    ) -> Option<IpAddr> {
        let usable = |address: &&Assigned| {
            !except.contains(&address.address) && Family::of(address.address) == family
        };
        let mut all = self.addresses(interface).filter(usable).map(|address| address.address);
        match family {
            // Addresses come in the order of the kernel's list, the primary one first.
            Family::V4 => all.next(),
            Family::V6 => all.find(
                |address| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()),
            ),
        }
    }
}

/// The same address in the kernel's eyes, whatever its lifetime.
fn is_same(one: &Assigned, other: &Assigned) -> bool {
    (one.interface, one.address, one.prefix) == (other.interface, other.address, other.prefix)
}
