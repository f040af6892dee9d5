//! Other hosts that claim virtual addresses by ARP or neighbour advertisements: a split brain that VRRP does not see, a
//! stranger with the same address, a peer that hangs while its kernel goes on.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, RawFd};

use crate::packet::claims::ClaimSocket;
use crate::protocol::ethernet::Mac;
use crate::protocol::vrrp::Family;

/// Addresses to watch on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) interface: u32,
    pub(super) addresses: Vec<IpAddr>,
}

/// Somebody's claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) interface: u32,
    pub(super) mac: Mac,
    pub(super) address: IpAddr,
}

/// The open sockets, one for each interface and family.
#[derive(Debug, Default)]
pub(super) struct Claims(Vec<(Watched, ClaimSocket)>);

impl Claims {
    /// Watches this and nothing else; what could not be opened comes back as text.
    pub(super) fn reconcile(&mut self, wanted: &[Watched]) -> Vec<String> {
        let wanted = by_family(wanted);
        self.0.retain(|(watched, _)| wanted.contains(watched));
        let mut problems = Vec::new();
        for watched in wanted {
            if self.0.iter().any(|(open, _)| *open == watched) {
                continue;
            }
            match ClaimSocket::open(watched.interface, &watched.addresses) {
                Ok(socket) => self.0.push((watched, socket)),
                Err(error) => problems.push(format!("cannot watch for others' claims: {error}")),
            }
        }
        problems
    }

    /// Descriptors to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|(_, socket)| socket.as_raw_fd())
    }

    /// Appends what was claimed.
    pub(super) fn drain(&self, claims: &mut Vec<Claim>) {
        for (Watched { interface, .. }, socket) in &self.0 {
            let interface = *interface;
            socket.receive(|mac, address| claims.push(Claim { interface, mac, address }));
        }
    }
}

/// One entry for each interface and family.
fn by_family(wanted: &[Watched]) -> Vec<Watched> {
    let mut merged: Vec<Watched> = Vec::new();
    for Watched { interface, addresses } in wanted {
        for address in addresses {
            let fits = |known: &&mut Watched| {
                known.interface == *interface
                    && known.addresses.iter().all(|one| Family::of(*one) == Family::of(*address))
            };
            match merged.iter_mut().find(fits) {
                Some(known) => known.addresses.push(*address),
                None => {
                    merged.push(Watched { interface: *interface, addresses: vec![*address] });
                }
            }
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_of_an_interface_has_one_socket() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let watched = |interface, addresses: &[&str]| Watched {
            interface,
            addresses: addresses.iter().map(|text| address(text)).collect(),
        };
        let all = [
            watched(1, &["192.0.2.1", "2001:db8::1"]),
            watched(2, &["192.0.2.1"]),
            watched(1, &["192.0.2.2"]),
        ];
        let expected = [
            watched(1, &["192.0.2.1", "192.0.2.2"]),
            watched(1, &["2001:db8::1"]),
            watched(2, &["192.0.2.1"]),
        ];
        assert_eq!(by_family(&all), expected);
    }
}
