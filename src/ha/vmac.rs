//! The virtual router's own MAC address (RFC 9568 section 7.3): a macvlan interface that has it and carries the
//! addresses, so that hosts need not learn another one when the router moves.

use std::fs;
use std::io;
use std::net::IpAddr;

use super::config::Instance;
use super::network::Network;
use crate::packet::netlink::link::Link;

/// The parent's settings that are changed while they are "0", and to what: it neither answers for the addresses nor asks
/// in their name, which would teach hosts its own MAC address.
const PARENT: [(&str, &str); 2] = [("arp_ignore", "1"), ("arp_announce", "2")];
/// How our notes on interfaces begin.
const NOTE: &str = "ringgate vmac";

/// An interface with a virtual MAC address.
#[derive(Debug)]
pub(super) struct Vmac {
    name: String,
    parent: String,
    mac: [u8; 6],
    note: Note,
    ready: bool,
}

/// What is written on the interface, for whoever finds it after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Note {
    /// Whose it is: its number, and when it was started, since numbers come round again.
    pid: u32,
    started: u64,
    /// Settings of the parent that were "0" before and are to be again.
    zeroed: Vec<&'static str>,
}

impl Note {
    fn text(&self) -> String {
        let whose = format!("{NOTE} pid={} started={}", self.pid, self.started);
        let words = std::iter::once(whose);
        let words = words.chain(self.zeroed.iter().map(|key| format!("{key}=0")));
        words.collect::<Vec<_>>().join(" ")
    }

    /// `None` when it is not ours.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix(NOTE)?.split_ascii_whitespace();
        let pid = words.next()?.strip_prefix("pid=")?.parse().ok()?;
        // Notes of earlier versions do not have it: their process has ended since.
        let started = words.clone().find_map(|word| word.strip_prefix("started=")?.parse().ok());
        let known = |word: &str| {
            let key = word.strip_suffix("=0")?;
            PARENT.iter().map(|(known, _)| *known).find(|known| *known == key)
        };
        let zeroed = words.filter_map(known).collect();
        Some(Self { pid, started: started.unwrap_or_default(), zeroed })
    }

    /// Whoever made it is not there any more. A process of our own number was our predecessor in a container.
    fn is_orphaned(&self) -> bool {
        self.pid == std::process::id() || started(self.pid) != Some(self.started)
    }

    /// Puts the parent's settings back, unless another virtual MAC above it needs them.
    fn restore(&self, parent: &Link, network: &Network) {
        let needed =
            |link: &Link| link.parent == Some(parent.index) && Self::parse(&link.alias).is_some();
        if network.links().any(needed) {
            return;
        }
        for key in &self.zeroed {
            let _ = fs::write(setting(&parent.name, key), "0");
        }
    }
}

/// Removes what a process that was killed left: interfaces with our note that nobody uses any more, and their parents'
/// settings. `used` are the names that this process uses itself.
pub(super) fn clean(network: &mut Network, used: &[&str]) -> io::Result<()> {
    let left = network.links().filter_map(|link| {
        let note = Note::parse(&link.alias)?;
        (note.is_orphaned() && !used.contains(&link.name.as_str())).then(|| (link.clone(), note))
    });
    for (link, note) in left.collect::<Vec<_>>() {
        network.requests.remove_link(link.index)?;
        network.absorb()?;
        let parent = network.links().find(|one| Some(one.index) == link.parent).cloned();
        if let Some(parent) = parent {
            note.restore(&parent, network);
        }
    }
    Ok(())
}

/// When a process was started, in clock ticks since the system was (proc_pid_stat(5)). `None` when it is not there. Its
/// name, which is in the file too, may be any.
fn started(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = text.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn setting(device: &str, key: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{device}/{key}")
}

impl Vmac {
    /// Of an instance that wants one. Nothing is created yet.
    pub(super) fn of(config: &Instance) -> Option<Self> {
        let family = if config.addresses.first()?.address.is_ipv4() { 4 } else { 6 };
        config.virtual_mac.then(|| Self {
            name: format!("vrrp{family}.{}", config.vrid),
            parent: config.interface.clone(),
            mac: config.family().virtual_mac(config.vrid).0,
            note: Note::default(),
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
        let found = network.link(&self.name).cloned();
        match &found {
            Some(link) => self.check(link, parent)?,
            None => self.ready = false,
        }
        if self.ready {
            return Ok(());
        }
        self.note = self.noted(found.as_ref(), parent, network)?;
        if found.is_none() {
            network.requests.add_macvlan(&self.name, parent, self.mac)?;
            network.absorb()?;
        }
        // Noted before anything is changed. The kernel takes no note with the creation.
        if let Some(link) = network.link(&self.name).map(|link| link.index) {
            network.requests.set_alias(link, &self.note.text())?;
        }
        network.absorb()?;
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

    /// What is to be noted: settings that are "0" now, and those of which another note says that they were.
    fn noted(&self, found: Option<&Link>, parent: u32, network: &Network) -> io::Result<Note> {
        let beside = network.links().filter(|link| link.parent == Some(parent));
        let notes: Vec<Note> =
            beside.chain(found).filter_map(|link| Note::parse(&link.alias)).collect();
        let mut zeroed = Vec::new();
        for (key, _) in PARENT {
            let now = fs::read_to_string(setting(&self.parent, key))?;
            if now.trim() == "0" || notes.iter().any(|note| note.zeroed.contains(&key)) {
                zeroed.push(key);
            }
        }
        let pid = std::process::id();
        Ok(Note { pid, started: started(pid).unwrap_or_default(), zeroed })
    }

    /// Only the interface that has an address answers for it; replies may leave by the parent.
    fn settings(&self) -> io::Result<()> {
        fs::write(setting(&self.name, "arp_ignore"), "1")?;
        fs::write(setting(&self.name, "rp_filter"), "2")?;
        for (key, value) in PARENT {
            if self.note.zeroed.contains(&key) {
                fs::write(setting(&self.parent, key), value)?;
            }
        }
        // No link-local address of its own; without IPv6 there is nothing to set.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", self.name), "1");
        Ok(())
    }

    /// Removes it and puts back what it changed.
    pub(super) fn remove(&mut self, network: &mut Network) {
        self.ready = false;
        let Some(parent) = network.link(&self.parent).cloned() else { return };
        let ours = |link: &&Link| self.check(link, parent.index).is_ok();
        if let Some(index) = network.link(&self.name).filter(ours).map(|link| link.index) {
            // Should it have gone, all the better.
            let _ = network.requests.remove_link(index);
            let _ = network.absorb();
        }
        std::mem::take(&mut self.note).restore(&parent, network);
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
            note: Note::default(),
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
            alias: String::new(),
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

    #[test]
    fn notes_say_what_to_put_back_and_whose_they_are() {
        for zeroed in [vec![], vec!["arp_announce"], vec!["arp_ignore", "arp_announce"]] {
            let note = Note { pid: 7, started: 123_456, zeroed };
            assert_eq!(Note::parse(&note.text()), Some(note));
        }
        let text = "ringgate vmac pid=7 arp_ignore=0 rp_filter=0 forwarding=1";
        let read = Note::parse(text).expect("ours");
        let expected = Note { pid: 7, started: 0, zeroed: vec!["arp_ignore"] };
        assert_eq!(read, expected, "nothing that we never set");
        for other in ["", "uplink", "ringgate vmac", "ringgate vmac pid=x", "ringgate vmac eth0"] {
            assert_eq!(Note::parse(other), None, "{other}");
        }
        assert!(Note { pid: std::process::id(), ..Note::default() }.is_orphaned());
        assert!(Note { pid: u32::MAX, ..Note::default() }.is_orphaned());
    }

    #[test]
    fn a_note_is_that_of_a_process_whatever_that_is_called_and_not_of_a_later_one_of_its_number() {
        // This test's parent is not called "ringgate".
        let pid = std::os::unix::process::parent_id();
        let began = started(pid).expect("it runs");
        assert!(!Note { pid, started: began, zeroed: Vec::new() }.is_orphaned());
        assert!(Note { pid, started: began + 1, zeroed: Vec::new() }.is_orphaned());
        assert_eq!(started(u32::MAX), None);
    }
}
