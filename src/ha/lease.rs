//! Virtual addresses on lease: added with a lifetime and refreshed for as long as this process lives and is
//! active. Killed or hanging, it refreshes nothing, and the kernel removes them by itself.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::config::{Instance, Vip};
use super::keeper::Renewed;
use super::network::Network;
use super::vmac::host_prefix;
use crate::packet::netlink::address::{Assigned, Wanted};
use crate::protocol::vrrp::Moment;

/// Our mark on an address (`IFA_PROTO`): VRRP's IP protocol number.
const OWNER: u8 = 112;
/// A lease is refreshed so many times in its life.
const REFRESHES: u32 = 4;

/// Least time between attempts to put back or remove an address.
const RETRY: Duration = Duration::from_millis(100);

/// Without a lifetime, addresses are looked at again after this when there was a problem with one.
const TROUBLED_AGAIN: Duration = Duration::from_secs(1);

/// Something that went wrong with an address.
#[derive(Debug)]
pub(super) enum Problem {
    /// It could not be added, refreshed or removed.
    Failed(&'static str, IpAddr, io::Error),
    /// It is on the interface already, and not through us.
    Foreign(IpAddr),
    /// Its interface does not exist.
    NoDevice(IpAddr, String),
    /// It had gone although it was ours: lapsed while we were late, or removed by somebody.
    Lost(IpAddr),
}

/// The addresses of one instance.
#[derive(Debug)]
pub(super) struct Lease {
    vips: Vec<Vip>,
    interface: String,
    lifetime: Option<Duration>,
    /// On the interface through us; by index of `vips`.
    held: Vec<Option<Wanted>>,
    /// Whether we want them.
    wanted: bool,
    refresh_at: Moment,
    retry_at: Moment,
    /// The last attempt had a problem.
    troubled: bool,
    /// Renewals whose outcome is not known yet, and what was wrong with those before them.
    under_way: usize,
    failed: Vec<Problem>,
}

impl Lease {
    /// Nothing held yet. `interface` is where addresses without a device of their own go.
    pub(super) fn new(config: &Instance, interface: &str) -> Self {
        let mut vips: Vec<Vip> = config.addresses.iter().chain(&config.excluded).cloned().collect();
        if interface != config.interface {
            let own = vips.iter_mut().filter(|vip| vip.device.is_none());
            own.for_each(|vip| vip.prefix = host_prefix(vip.address));
        }
        Self {
            held: vec![None; vips.len()],
            vips,
            interface: interface.to_owned(),
            lifetime: config.lease,
            wanted: false,
            refresh_at: Moment::default(),
            retry_at: Moment::default(),
            troubled: false,
            under_way: 0,
            failed: Vec::new(),
        }
    }

    /// The addresses, and the interface of each.
    pub(super) fn vips(&self) -> impl Iterator<Item = (&Vip, &str)> {
        self.vips.iter().map(|vip| (vip, self.device(vip)))
    }

    /// How many are on their interface through us.
    pub(super) fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.held.iter().flatten().map(|wanted| wanted.address)
    }

    /// When to call [`Lease::refresh`] next.
    pub(super) fn due(&self) -> Option<Moment> {
        let again = self.lifetime.is_some() || self.troubled;
        (self.wanted && again).then_some(self.refresh_at)
    }

    /// When to call [`Lease::release`] again, since an address could not be removed.
    pub(super) fn retry_due(&self) -> Option<Moment> {
        (!self.wanted && self.held().next().is_some()).then_some(self.retry_at)
    }

    /// An address that is wanted is not on its interface, and it is time to put it back.
    pub(super) fn is_missing(&self, network: &Network, now: Moment) -> bool {
        self.wanted
            && now >= self.retry_at
            && (0..self.vips.len())
                .filter_map(|index| self.wanted(index, network))
                .any(|wanted| network.assigned(wanted.interface, wanted.address).is_none())
    }

    fn device<'a>(&'a self, vip: &'a Vip) -> &'a str {
        vip.device.as_deref().unwrap_or(&self.interface)
    }

    /// Takes over what an earlier life of this process left: addresses with our mark.
    pub(super) fn adopt(&mut self, network: &Network) {
        for index in 0..self.vips.len() {
            let Some(wanted) = self.wanted(index, network) else { continue };
            let found = network.assigned(wanted.interface, wanted.address);
            if let Some(found) = found.filter(|found| self.is_ours(found)) {
                // The configuration may have had another prefix then; the kernel removes by prefix.
                self.held[index] = Some(Wanted { prefix: found.prefix, ..wanted });
            }
        }
    }

    /// Ours by its mark; on kernels without marks, by a lifetime no longer than we give.
    fn is_ours(&self, found: &Assigned) -> bool {
        let short = found.valid.zip(self.lifetime).is_some_and(|(valid, ours)| valid <= ours);
        found.owner == OWNER || found.owner == 0 && short
    }

    /// Puts all addresses on their interfaces.
    pub(super) fn take(&mut self, network: &mut Network, now: Moment) -> Vec<Problem> {
        self.wanted = true;
        self.put(network, now, false)
    }

    /// Gives them a new lifetime, and puts back what has gone. To be called only while it is certain that
    /// this router is the active one. `None`: [`Lease::renewed`] will tell how it went.
    pub(super) fn refresh(&mut self, network: &mut Network, now: Moment) -> Option<Vec<Problem>> {
        if !self.wanted {
            return Some(Vec::new());
        }
        if let Some(lifetime) = self.lifetime
            && self.is_in_order(network)
        {
            let pause = lifetime / REFRESHES;
            let held: Vec<Wanted> = self.held.iter().flatten().cloned().collect();
            if held.iter().all(|wanted| network.renew(wanted, lifetime, pause).is_ok()) {
                (self.under_way, self.failed) = (held.len(), Vec::new());
                self.refresh_at = now.after(pause);
                return None;
            }
        }
        Some(self.put(network, now, true))
    }

    /// How renewals went, of which it takes its own: the problems, once all are through.
    pub(super) fn renewed(&mut self, all: &mut Vec<Renewed>, now: Moment) -> Option<Vec<Problem>> {
        let before = self.under_way;
        for wanted in self.held.iter().flatten() {
            let key = (wanted.interface, wanted.address);
            let Some(place) = all.iter().position(|one| one.key == key) else { continue };
            self.under_way = self.under_way.saturating_sub(1);
            if let Err(error) = all.swap_remove(place).result {
                self.failed.push(Problem::Failed("renew", wanted.address, error));
            }
        }
        if before == 0 || self.under_way > 0 {
            return None;
        }
        let failed = std::mem::take(&mut self.failed);
        self.troubled = !failed.is_empty();
        if self.troubled {
            self.refresh_at = now.after(RETRY);
        }
        Some(failed)
    }

    /// Every address is on its interface through us, as it is wanted: only its lifetime is to change.
    fn is_in_order(&self, network: &Network) -> bool {
        (0..self.vips.len()).all(|index| {
            self.wanted(index, network).is_some_and(|wanted| {
                self.held[index].as_ref() == Some(&wanted)
                    && network
                        .assigned(wanted.interface, wanted.address)
                        .is_some_and(|found| self.is_ours(found))
                    && self.with_other_prefix(&wanted, network).is_empty()
            })
        })
    }

    fn put(&mut self, network: &mut Network, now: Moment, again: bool) -> Vec<Problem> {
        self.under_way = 0;
        let mut problems = Vec::new();
        for index in 0..self.vips.len() {
            let Some(wanted) = self.wanted(index, network) else {
                let vip = &self.vips[index];
                problems.push(Problem::NoDevice(vip.address, self.device(vip).to_owned()));
                self.held[index] = None;
                continue;
            };
            let found = network.assigned(wanted.interface, wanted.address);
            if self.held[index].is_none() && found.is_some_and(|found| !self.is_ours(found)) {
                problems.push(Problem::Foreign(wanted.address));
                continue;
            }
            if again && self.held[index].is_some() && found.is_none() {
                problems.push(Problem::Lost(wanted.address));
            }
            for old in self.with_other_prefix(&wanted, network) {
                if let Err(error) = network.remove(&old)
                    && !is_gone(&error)
                {
                    problems.push(Problem::Failed("remove", old.address, error));
                }
            }
            match network.lease(&wanted, self.lifetime) {
                Ok(()) => self.held[index] = Some(wanted),
                Err(error) => {
                    problems.push(Problem::Failed("add", wanted.address, error));
                    // What is still there is to be removed one day.
                    if network.assigned(wanted.interface, wanted.address).is_none() {
                        self.held[index] = None;
                    }
                }
            }
        }
        self.retry_at = now.after(RETRY);
        self.troubled = !problems.is_empty();
        let pause = self.lifetime.map_or(TROUBLED_AGAIN, |lifetime| lifetime / REFRESHES);
        self.refresh_at = now.after(pause);
        problems
    }

    /// The same address through us, from before the configuration changed its prefix.
    fn with_other_prefix(&self, wanted: &Wanted, network: &Network) -> Vec<Wanted> {
        let other = |found: &&Assigned| {
            found.address == wanted.address && found.prefix != wanted.prefix && self.is_ours(found)
        };
        let old = network.addresses(wanted.interface).filter(other);
        old.map(|found| Wanted { prefix: found.prefix, ..wanted.clone() }).collect()
    }

    /// Removes what is held; what is not ours stays. What cannot be removed is still held, and tried again
    /// at [`Lease::retry_due`].
    pub(super) fn release(&mut self, network: &mut Network, now: Moment) -> Vec<Problem> {
        (self.wanted, self.under_way) = (false, 0);
        self.retry_at = now.after(RETRY);
        let mut problems = Vec::new();
        for held in &mut self.held {
            let Some(wanted) = held.take() else { continue };
            match network.remove(&wanted) {
                Ok(()) => {}
                // Lapsed, or its interface went away.
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    problems.push(Problem::Failed("remove", wanted.address, error));
                    *held = Some(wanted);
                }
            }
        }
        problems
    }

    /// What to ask of the kernel; `None` while the interface does not exist.
    fn wanted(&self, index: usize, network: &Network) -> Option<Wanted> {
        let vip = self.vips.get(index)?;
        let link = network.link(self.device(vip))?;
        Some(Wanted {
            interface: link.index,
            address: vip.address,
            prefix: vip.prefix,
            label: vip.label.clone(),
            owner: OWNER,
            // A host address is for clients to find us; our own connections keep another source.
            deprecated: vip.prefix == 128,
        })
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV))
}
