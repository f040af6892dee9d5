//! The role of a real server: the virtual addresses on the loopback interface, for as long as the kernel does not
//! answer ARP for them there.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use super::network::Network;
use crate::packet::netlink::address::Wanted;
use crate::packet::netlink::link::Link;

/// Our mark on an address (`IFA_PROTO`); VRRP's is 112.
const OWNER: u8 = 113;
const LOOPBACK: u32 = 1;
/// A lease is renewed so many times in its life.
const RENEWALS: u64 = 4;

/// `[real_server]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealServer {
    /// The virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// After this, the kernel removes them by itself when this process no longer renews them.
    pub lease: Duration,
}

impl RealServer {
    /// Why this host must not have the addresses.
    pub(super) fn loud(&self, network: &Network) -> Option<String> {
        let four = self.addresses.iter().any(IpAddr::is_ipv4);
        let loud = if four { answering(&network.links) } else { Vec::new() };
        (!loud.is_empty()).then(|| {
            format!(
                "this host would answer ARP for the real server's addresses on {}: \
                 net.ipv4.conf.*.arp_ignore is 0 there: add \"real-server\" to tuning.profile, or \
                 set net.ipv4.conf.all.arp_ignore=1 and arp_announce=2",
                loud.join(", ")
            )
        })
    }
}

/// The role while it is played.
#[derive(Debug)]
pub(super) struct Role {
    config: RealServer,
    held: Vec<Wanted>,
    renew_at: u64,
}

impl Role {
    /// Takes up the role.
    ///
    /// # Errors
    /// Text for the operator: this host would answer ARP, or an address cannot be added.
    pub(super) fn begin(
        config: RealServer,
        network: &mut Network,
        now: u64,
    ) -> Result<Self, String> {
        let mut role = Self { config, held: Vec::new(), renew_at: 0 };
        match role.renew(network, now).pop() {
            None => Ok(role),
            Some(trouble) => {
                role.end(network);
                Err(trouble)
            }
        }
    }

    /// Goes on with the role of another process. Returns what is wrong as well.
    pub(super) fn go_on(
        config: RealServer,
        network: &mut Network,
        now: u64,
    ) -> (Self, Vec<String>) {
        let mut role = Self { config, held: Vec::new(), renew_at: 0 };
        let troubles = role.renew(network, now);
        (role, troubles)
    }

    /// Ends it in favour of a process that has these addresses.
    pub(super) fn leave(mut self, network: &mut Network, kept: &[IpAddr]) {
        self.held.retain(|wanted| !kept.contains(&wanted.address));
        self.end(network);
    }

    /// When [`Role::renew`] is to be called next.
    pub(super) fn next(&self) -> u64 {
        self.renew_at
    }

    /// Addresses that are on loopback through us.
    pub(super) fn held(&self) -> Vec<IpAddr> {
        self.held.iter().map(|wanted| wanted.address).collect()
    }

    /// Renews the leases; withdraws all addresses while this host would answer ARP for them, since it would take the
    /// director's traffic away. Returns what is wrong.
    pub(super) fn renew(&mut self, network: &mut Network, now: u64) -> Vec<String> {
        let lease = u64::try_from(self.config.lease.as_millis()).unwrap_or(u64::MAX);
        self.renew_at = now.saturating_add((lease / RENEWALS).max(250));
        if let Some(loud) = self.config.loud(network) {
            self.end(network);
            return vec![loud];
        }
        let mut troubles = Vec::new();
        for address in self.config.addresses.clone() {
            let wanted = wanted(address);
            let there = network
                .addresses
                .iter()
                .find(|one| one.interface == LOOPBACK && one.address == address)
                .map(|one| one.owner);
            if there.is_some_and(|owner| owner != OWNER) && !self.held.contains(&wanted) {
                troubles.push(format!(
                    "{address} is on lo already, and not through us: it is left as it is"
                ));
                continue;
            }
            match network.requests.lease(&wanted, Some(self.config.lease)) {
                Ok(()) if !self.held.contains(&wanted) => self.held.push(wanted),
                Ok(()) => {}
                Err(error) => troubles.push(format!("cannot put {address} on lo: {error}")),
            }
        }
        troubles
    }

    /// Removes what is held.
    pub(super) fn end(&mut self, network: &mut Network) {
        for wanted in self.held.drain(..) {
            // One that has gone already is as well.
            let _ = network.requests.remove(&wanted);
        }
    }
}

fn wanted(address: IpAddr) -> Wanted {
    Wanted {
        interface: LOOPBACK,
        address,
        prefix: if address.is_ipv4() { 32 } else { 128 },
        label: None,
        owner: OWNER,
        deprecated: true,
    }
}

/// Interfaces that would answer ARP for an address on another one: where both `arp_ignore` of `all` and its own are
/// 0 (`Documentation/networking/ip-sysctl.rst`).
fn answering(links: &[Link]) -> Vec<String> {
    let all = arp_ignore("all");
    let arp = |link: &&Link| {
        let flags = (libc::IFF_LOOPBACK | libc::IFF_NOARP).cast_unsigned();
        link.flags & flags == 0 && link.mac.is_some()
    };
    let loud = links.iter().filter(arp).filter(|link| all.max(arp_ignore(&link.name)) == 0);
    loud.map(|link| link.name.clone()).collect()
}

/// 0 where it cannot be read: then nothing is known to hold the answer back.
fn arp_ignore(interface: &str) -> u32 {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/arp_ignore");
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
