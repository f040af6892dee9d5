//! The virtual router's own MAC address (RFC 9568 section 7.3): a macvlan interface that has it and carries the
//! addresses, so that hosts need not learn another one when the router moves.

use std::fs;
use std::io;
use std::net::IpAddr;

use super::config::Instance;
use super::network::Network;

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
    /// What netlink and sysctl say; it may be tried again.
    pub(super) fn ensure(&mut self, network: &mut Network) -> io::Result<()> {
        let gone = network.link(&self.name).is_none();
        if self.ready && !gone {
            return Ok(());
        }
        let Some(parent) = network.link(&self.parent).map(|link| link.index) else { return Ok(()) };
        if gone {
            network.requests.add_macvlan(&self.name, parent, self.mac)?;
            network.absorb()?;
        }
        self.settings()?;
        if let Some(link) = network.link(&self.name).cloned() {
            network.requests.switch_on(link.index)?;
        }
        network.absorb()?;
        self.ready = true;
        Ok(())
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
        if let Some(link) = network.link(&self.name).cloned() {
            // Should it have gone, all the better.
            let _ = network.requests.remove_link(link.index);
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
