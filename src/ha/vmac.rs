//! The virtual router's own MAC address (RFC 9568 section 7.3): a macvlan interface that has it and carries the
//! addresses, so that hosts need not learn another one when the router moves.

use std::fs;
use std::io;
use std::net::IpAddr;

use super::config::Instance;
use super::network::Network;
use crate::packet::netlink::link::Link;

/// An interface with a virtual MAC address.
#[derive(Debug)]
pub(super) struct Vmac {
    name: String,
    parent: String,
    mac: [u8; 6],
    /// Settings of the parent that were changed, with what they were.
    changed: Vec<(String, String)>,
    ready: bool,
}

impl Vmac {
    /// Of an instance that wants one. Nothing is created yet.
    pub(super) fn of(config: &Instance) -> Option<Self> {
        let family = if config.addresses.first()?.address.is_ipv4() { 4 } else { 6 };
        config.virtual_mac.then(|| Self {
            name: format!("vrrp{family}.{}", config.vrid),
            parent: config.interface.clone(),
            mac: config.family().virtual_mac(config.vrid).0,
            changed: Vec::new(),
            ready: false,
        })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Creates it above its parent, or takes over the one that an earlier process left.
    ///
    /// # Errors
    /// What netlink and sysctl say; EEXIST when there is another interface of its name. It may be tried again.
    pub(super) fn ensure(&mut self, network: &mut Network) -> io::Result<()> {
        let Some(parent) = network.link(&self.parent).map(|link| link.index) else { return Ok(()) };
        match network.link(&self.name) {
            Some(link) => self.check(link, parent)?,
            None => {
                self.ready = false;
                network.requests.add_macvlan(&self.name, parent, self.mac)?;
                network.absorb()?;
            }
        }
        if self.ready {
            return Ok(());
        }
        self.settings()?;
        if let Some(link) = network.link(&self.name).cloned() {
            network.requests.switch_on(link.index)?;
        }
        network.absorb()?;
        self.ready = true;
        Ok(())
    }

    /// An interface of our name is ours if it stands above our parent and has our MAC address.
    fn check(&self, link: &Link, parent: u32) -> io::Result<()> {
        let problem = if link.parent != Some(parent) {
            format!("does not stand above {}", self.parent)
        } else if link.mac != Some(self.mac) {
            "has another MAC address than the virtual router's".to_owned()
        } else {
            return Ok(());
        };
        let message = format!("interface {} exists and {problem}: remove or rename it", self.name);
        Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
    }

    /// Only the interface that has an address answers for it; replies may leave by the parent.
    fn settings(&mut self) -> io::Result<()> {
        let ipv4 = |device: &str, key: &str| format!("/proc/sys/net/ipv4/conf/{device}/{key}");
        fs::write(ipv4(&self.name, "arp_ignore"), "1")?;
        fs::write(ipv4(&self.name, "rp_filter"), "2")?;
        // The parent neither answers for the addresses nor asks in their name, which would teach hosts its own
        // MAC address.
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            let path = ipv4(&self.parent, key);
            let before = fs::read_to_string(&path)?.trim().to_owned();
            if before == "0" {
                fs::write(&path, value)?;
                self.changed.push((path, before));
            }
        }
        // No link-local address of its own; without IPv6 there is nothing to set.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", self.name), "1");
        Ok(())
    }

    /// Removes it and puts back what it changed.
    pub(super) fn remove(&mut self, network: &mut Network) {
        let parent = network.link(&self.parent).map(|link| link.index);
        let ours = |link: &&Link| parent.is_some_and(|parent| self.check(link, parent).is_ok());
        if let Some(index) = network.link(&self.name).filter(ours).map(|link| link.index) {
            // Should it have gone, all the better.
            let _ = network.requests.remove_link(index);
        }
        for (path, before) in self.changed.drain(..) {
            let _ = fs::write(path, before);
        }
        self.ready = false;
    }
}

/// On an interface of their own addresses are host addresses: the network's route stays the parent's.
pub(super) fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_interface_with_our_parent_and_mac_is_ours() {
        let mac = [0, 0, 0x5e, 0, 1, 7];
        let vmac = Vmac {
            name: "vrrp4.7".into(),
            parent: "eth0".into(),
            mac,
            changed: Vec::new(),
            ready: false,
        };
        let link = |parent: Option<u32>, mac: Option<[u8; 6]>| Link {
            index: 9,
            name: "vrrp4.7".into(),
            mac,
            parent,
            vlan: false,
            flags: 0,
            mtu: 1500,
        };
        assert!(vmac.check(&link(Some(2), Some(mac)), 2).is_ok());
        for (link, says) in [
            (link(Some(3), Some(mac)), "does not stand above eth0"),
            (link(None, Some(mac)), "does not stand above eth0"),
            (link(Some(2), Some([2; 6])), "another MAC address"),
            (link(Some(2), None), "another MAC address"),
        ] {
            let error = vmac.check(&link, 2).expect_err(says);
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
