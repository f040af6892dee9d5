//! This host's interfaces and addresses, kept current by netlink's events.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use super::keeper::{Keeper, Renewed};
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
    keeper: Keeper,
    known: Known,
}

/// What changed since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// A link came, went, or changed.
    pub(super) links: bool,
    /// An address came or went.
    pub(super) addresses: bool,
}

/// What is known, and what of it is news. Pure.
#[derive(Debug, Default)]
struct Known {
    links: Vec<Link>,
    /// In the order of the kernel's list: the first of an interface is the source of advertisements.
    addresses: Vec<Assigned>,
    /// Events were lost, and not everything could be looked at anew yet.
    stale: bool,
    /// What nobody has been told yet.
    changes: Changes,
}

impl Known {
    fn note(&mut self, event: Event) {
        match event {
            Event::Link(link) => {
                self.changes.links = true;
                match self.links.iter_mut().find(|known| known.index == link.index) {
                    Some(known) => *known = link,
                    None => self.links.push(link),
                }
            }
            Event::LinkGone(index) => {
                self.changes.links = true;
                self.links.retain(|known| known.index != index);
                self.addresses.retain(|known| known.interface != index);
            }
            Event::Address(address) => self.changes.addresses |= self.put(address),
            Event::AddressGone(address) => {
                self.changes.addresses = true;
                self.addresses.retain(|known| !is_same(known, &address));
            }
            Event::Neighbour(_) => {}
            Event::Lost => self.stale = true,
        }
    }

    /// Knows an address, in its old place if it has one; true when it is new.
    fn put(&mut self, address: Assigned) -> bool {
        match self.addresses.iter_mut().find(|known| is_same(known, &address)) {
            Some(known) => {
                *known = address;
                false
            }
            None => {
                self.addresses.push(address);
                true
            }
        }
    }

    /// Everything as looked at anew; without both parts it stays stale.
    fn replace(
        &mut self,
        links: io::Result<Vec<Link>>,
        addresses: io::Result<Vec<Assigned>>,
    ) -> io::Result<()> {
        (self.links, self.addresses) = (links?, addresses?);
        self.stale = false;
        self.changes = Changes { links: true, addresses: true };
        Ok(())
    }

    fn source(
        &self,
        interface: u32,
        family: Family,
        except: &[IpAddr],
        current: Option<IpAddr>,
    ) -> Option<IpAddr> {
        let usable = |known: &&Assigned| {
            let fits = match known.address {
                IpAddr::V4(_) => true,
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            known.interface == interface
                && Family::of(known.address) == family
                && fits
                && !except.contains(&known.address)
        };
        let all = || self.addresses.iter().filter(usable).map(|known| known.address);
        // Another dump may come in another order; to peers another source is another router.
        all().find(|address| Some(*address) == current).or_else(|| all().next())
    }
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
        let mut known = Known::default();
        known.replace(requests.links(), requests.addresses())?;
        known.changes = Changes::default();
        Ok(Self { events, requests, keeper: Keeper::default(), known })
    }

    /// Takes in what happened, and tells it: all since this was last called.
    ///
    /// # Errors
    /// What netlink says; what changed is told the next time.
    pub(super) fn update(&mut self) -> io::Result<Changes> {
        self.absorb()?;
        Ok(std::mem::take(&mut self.known.changes))
    }

    /// Takes in what happened; it is still news to [`Network::update`].
    ///
    /// # Errors
    /// What netlink says.
    pub(super) fn absorb(&mut self) -> io::Result<()> {
        let mut more = true;
        for _ in 0..DATAGRAMS_MAX {
            let known = &mut self.known;
            more = self.events.read(|event| known.note(event))?;
            if !more {
                break;
            }
        }
        // Older events still in the queue must not be applied to a newer dump.
        if self.known.stale && !more {
            self.known.replace(self.requests.links(), self.requests.addresses())?;
        }
        Ok(())
    }

    /// Something changed that [`Network::update`] has not told yet.
    pub(super) fn has_news(&self) -> bool {
        self.known.changes != Changes::default()
    }

    /// Gives an address a lifetime, adding it if need be, and knows it at once.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn lease(&mut self, wanted: &Wanted, lifetime: Option<Duration>) -> io::Result<()> {
        self.keeper.withdraw((wanted.interface, wanted.address));
        self.requests.lease(wanted, lifetime)?;
        self.known.put(Assigned {
            interface: wanted.interface,
            address: wanted.address,
            prefix: wanted.prefix,
            owner: wanted.owner,
            valid: lifetime,
            flags: 0,
        });
        Ok(())
    }

    /// Has an address that is there live longer without waiting for it; see [`Keeper::renew`].
    ///
    /// # Errors
    /// As there.
    pub(super) fn renew(
        &mut self,
        wanted: &Wanted,
        lifetime: Duration,
        patience: Duration,
    ) -> io::Result<()> {
        self.keeper.renew(wanted, lifetime, patience)
    }

    /// What was renewed since this was last called.
    pub(super) fn renewed(&self) -> Vec<Renewed> {
        self.keeper.done()
    }

    /// Removes an address, and knows it at once.
    ///
    /// # Errors
    /// What the kernel says; the address is still known then.
    pub(super) fn remove(&mut self, wanted: &Wanted) -> io::Result<()> {
        self.keeper.withdraw((wanted.interface, wanted.address));
        self.requests.remove(wanted)?;
        let gone = (wanted.interface, wanted.address, wanted.prefix);
        self.known.addresses.retain(|known| (known.interface, known.address, known.prefix) != gone);
        Ok(())
    }

    /// The interface of this name.
    pub(super) fn link(&self, name: &str) -> Option<&Link> {
        self.known.links.iter().find(|link| link.name == name)
    }

    /// All interfaces.
    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        self.known.links.iter()
    }

    /// The interface of this name is there, up, and has a carrier.
    pub(super) fn is_running(&self, name: &str) -> bool {
        self.link(name).is_some_and(Link::is_running)
    }

    /// The addresses of an interface.
    pub(super) fn addresses(&self, interface: u32) -> impl Iterator<Item = &Assigned> {
        self.known.addresses.iter().filter(move |address| address.interface == interface)
    }

    /// Every address of this host, with its interface.
    pub(super) fn own(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.known.addresses.iter().map(|address| (address.interface, address.address))
    }

    /// The address on this interface, if it is there.
    pub(super) fn assigned(&self, interface: u32, address: IpAddr) -> Option<&Assigned> {
        self.addresses(interface).find(|assigned| assigned.address == address)
    }

    /// What advertisements on an interface come from: for IPv6 the link-local address, for IPv4 the first
    /// that is not one of `except`; `current` for as long as it will do.
    pub(super) fn source(
        &self,
        interface: u32,
        family: Family,
        except: &[IpAddr],
        current: Option<IpAddr>,
    ) -> Option<IpAddr> {
        self.known.source(interface, family, except, current)
    }
}

/// The same address in the kernel's eyes, whatever its lifetime.
fn is_same(one: &Assigned, other: &Assigned) -> bool {
    (one.interface, one.address, one.prefix) == (other.interface, other.address, other.prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(text: &str) -> Assigned {
        let address = text.parse().expect("a literal");
        Assigned { interface: 2, address, prefix: 24, owner: 0, valid: None, flags: 0 }
    }

    fn known(addresses: &[&str]) -> Known {
        let addresses = addresses.iter().map(|text| assigned(text)).collect();
        Known { addresses, ..Known::default() }
    }

    fn source(known: &Known, except: &[&str], current: Option<&str>) -> Option<String> {
        let ip = |text: &&str| text.parse::<IpAddr>().expect("a literal");
        let except: Vec<IpAddr> = except.iter().map(ip).collect();
        let source = known.source(2, Family::V4, &except, current.as_ref().map(ip));
        source.map(|address| address.to_string())
    }

    #[test]
    fn news_of_a_known_address_do_not_change_the_source() {
        let mut known = known(&["192.0.2.1", "192.0.2.2"]);
        let longer = Assigned { valid: Some(Duration::from_secs(9)), ..assigned("192.0.2.1") };
        known.note(Event::Address(longer.clone()));
        assert_eq!(known.changes, Changes::default());
        assert_eq!(known.addresses.first(), Some(&longer));
        assert_eq!(source(&known, &[], None).as_deref(), Some("192.0.2.1"));
        known.note(Event::Address(assigned("192.0.2.3")));
        assert!(known.changes.addresses);
        assert_eq!(source(&known, &[], None).as_deref(), Some("192.0.2.1"));
        assert_eq!(source(&known, &["192.0.2.1", "192.0.2.2"], None).as_deref(), Some("192.0.2.3"));
    }

    #[test]
    fn the_source_stays_until_it_goes() {
        let mut known = known(&["192.0.2.1", "192.0.2.2"]);
        assert_eq!(source(&known, &[], Some("192.0.2.2")).as_deref(), Some("192.0.2.2"));
        assert_eq!(source(&known, &["192.0.2.2"], Some("192.0.2.2")).as_deref(), Some("192.0.2.1"));
        known.note(Event::AddressGone(assigned("192.0.2.2")));
        assert_eq!(source(&known, &[], Some("192.0.2.2")).as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn after_lost_events_it_is_stale_until_both_dumps_succeed() {
        let mut known = known(&["192.0.2.1"]);
        known.note(Event::Lost);
        let failed = || io::Error::from_raw_os_error(libc::ENOBUFS);
        assert!(known.replace(Ok(Vec::new()), Err(failed())).is_err());
        assert!(known.replace(Err(failed()), Ok(Vec::new())).is_err());
        assert!(known.stale && known.addresses.len() == 1);
        assert_eq!(known.changes, Changes::default());
        known.replace(Ok(Vec::new()), Ok(vec![assigned("192.0.2.9")])).expect("both");
        assert!(!known.stale && known.changes == Changes { links: true, addresses: true });
    }

    #[test]
    fn what_is_absorbed_is_still_told() {
        let mut network = Network::open().expect("netlink");
        network.known.note(Event::LinkGone(u32::MAX));
        network.absorb().expect("netlink");
        assert!(network.has_news());
        assert!(network.update().expect("netlink").links);
    }
}
