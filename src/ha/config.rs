//! What the HA part is configured with, validated.

use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use crate::protocol::vrrp::{Auth, ChecksumPolicy, Family, Interval, OWNER, Version};
use crate::sys::process::User;

/// Everything: the instances and what they share.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ha {
    /// `[vrrp.NAME]`
    pub instances: Vec<Instance>,
    /// `[vrrp_sync_group.NAME]`
    pub groups: Vec<SyncGroup>,
    /// `[vrrp_script.NAME]`
    pub scripts: Vec<Script>,
    /// Real-time priority of the HA thread, 1 to 99; `None`: ordinary scheduling.
    pub realtime: Option<u8>,
    /// Keep the process in memory.
    pub lock_memory: bool,
    /// A shard that has not answered for this long is dead.
    pub shard_timeout: Duration,
}

impl Ha {
    /// Whether the instance at `place` is a member of a sync group.
    #[must_use]
    pub fn grouped(&self, place: usize) -> bool {
        self.groups.iter().any(|group| group.members.contains(&place))
    }
}

/// `[vrrp.NAME]`: one virtual router.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Where it speaks.
    pub interface: String,
    /// Virtual router ID, 1 to 255.
    pub vrid: u8,
    /// VRRP version.
    pub version: Version,
    /// 1 to 255; 255 owns the addresses.
    pub priority: u8,
    /// Between advertisements.
    pub interval: Interval,
    /// Take over from an active router of lower priority.
    pub preempt: bool,
    /// Wait this long before doing so.
    pub preempt_delay: Duration,
    /// Listen for one interval only at the start (keepalived's `state MASTER`).
    pub start_active: bool,
    /// Addresses that advertisements carry, one at least, of one family.
    pub addresses: Vec<Vip>,
    /// More addresses, of any family, that move along unmentioned.
    pub excluded: Vec<Vip>,
    /// Source of advertisements; `None`: the interface's first address (IPv6: link-local).
    pub source: Option<IpAddr>,
    /// Peers, instead of multicast.
    pub unicast_peers: Vec<IpAddr>,
    /// Lowest TTL taken from unicast peers.
    pub min_ttl: u8,
    /// Authentication.
    pub auth: Auth,
    /// Checksums of version 3 over IPv4.
    pub checksum: ChecksumPolicy,
    /// Gratuitous ARP and unsolicited neighbour advertisements.
    pub announce: Announcements,
    /// What its priority depends on.
    pub tracks: Vec<Track>,
    /// Unhealthy, it still serves when nobody else does.
    pub nofail: bool,
    /// Lifetime of its addresses in the kernel, in whole seconds; `None`: without end.
    pub lease: Option<Duration>,
    /// Put the addresses on a macvlan interface with the virtual router's MAC address.
    pub virtual_mac: bool,
    /// Interfaces on which advertisements are sent and heard too.
    pub heartbeat_interfaces: Vec<String>,
    /// Command run on each transition: INSTANCE NAME STATE PRIORITY are appended.
    pub notify: Option<Vec<String>>,
    /// Where a JSON document is posted on each transition.
    pub webhook: Option<Webhook>,
}

impl Instance {
    /// Whether a running virtual router can take this configuration over as it is: only the priority,
    /// what it depends on and who is notified differ.
    #[must_use]
    pub fn continues(&self, before: &Self) -> bool {
        let owns = |one: &Self| one.priority == OWNER;
        let adapted = Self {
            priority: self.priority,
            tracks: self.tracks.clone(),
            notify: self.notify.clone(),
            webhook: self.webhook.clone(),
            ..before.clone()
        };
        adapted == *self && owns(self) == owns(before)
    }

    /// Of the addresses that advertisements carry.
    #[must_use]
    pub fn family(&self) -> Family {
        self.addresses.first().map_or(Family::V4, |vip| Family::of(vip.address))
    }
}

/// A virtual address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix.
    pub prefix: u8,
    /// The interface it goes to; `None`: the instance's.
    pub device: Option<String>,
    /// Its label, IPv4 only.
    pub label: Option<String>,
}

/// How addresses are announced (keepalived's `garp_master_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcements {
    /// Announcements at once, and again after `delay`.
    pub repeat: u8,
    /// When the second round comes; zero: no second round.
    pub delay: Duration,
    /// Between single announcements for as long as the router is active; zero: none.
    pub refresh: Duration,
}

/// Something that a priority depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track {
    /// What is watched.
    pub what: Tracked,
    /// Added when it is good (above zero) or bad (below zero), -253 to 253; `None`: bad means resigning.
    pub weight: Option<i16>,
}

/// What can be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tracked {
    /// An interface, which should be up with a carrier.
    Interface(String),
    /// The script with this index.
    Script(usize),
    /// A file with a whole number, which should be zero or above.
    File(PathBuf),
    /// So many servers of the upstream of this name should be usable.
    Upstream {
        /// Its name.
        name: String,
        /// Servers, at least 1.
        quorum: u32,
    },
}

/// `[vrrp_script.NAME]`: a command that judges this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Its name.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// From start to start.
    pub interval: Duration,
    /// After this it is killed and has failed.
    pub timeout: Duration,
    /// Successes that make it good.
    pub rise: u32,
    /// Failures that make it bad.
    pub fall: u32,
    /// Used where a track names none.
    pub weight: Option<i16>,
    /// Whom it runs as.
    pub user: Option<User>,
}

/// `[vrrp_sync_group.NAME]`: instances that are active together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncGroup {
    /// Its name.
    pub name: String,
    /// Indices of its instances.
    pub members: Vec<usize>,
}

/// Where to post to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Host and port as written, for the Host header.
    pub authority: String,
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Path and query.
    pub target: String,
    /// `https`.
    pub tls: Option<Trust>,
}

/// How a webhook's server is verified.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Certificates of the authorities to trust, in PEM; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// Where that, or the URL, stands in the configuration file.
    pub span: Range<usize>,
    /// Made from it once the files have been read.
    pub client: Option<Arc<ClientConfig>>,
    /// Digest of the file of authorities: another content is another server to trust.
    pub authorities: [u8; 32],
}

impl Eq for Trust {}

/// The same files with the same content, wherever they are named.
impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.ca == other.ca && self.authorities == other.authorities
    }
}
