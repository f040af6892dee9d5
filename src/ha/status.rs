//! What the HA thread shows of itself: a snapshot that it publishes and others read.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::protocol::vrrp::{Error, HandOver, State};

/// Reasons for which a datagram is dropped.
pub const REASONS: usize = Error::ALL.len();

/// Everything that is shown.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// In the order of the configuration.
    pub instances: Vec<InstanceStatus>,
    /// Check scripts, in the order of the configuration.
    pub scripts: Vec<ScriptStatus>,
    /// Datagrams with a VRID that no instance on their interface has.
    pub foreign: u64,
    /// Datagrams dropped before they could be told to belong to an instance; by [`Error::index`].
    pub dropped: [u64; REASONS],
    /// The HA thread has real-time priority.
    pub realtime: bool,
    /// The process is kept in memory.
    pub locked: bool,
    /// Notifications carried out, failed, and dropped.
    pub notifications: [u64; 3],
}

/// A check script.
#[derive(Debug, Clone)]
pub struct ScriptStatus {
    /// Its name.
    pub name: String,
    /// What it says; `None` before its first run has ended.
    pub good: Option<bool>,
    /// Runs that succeeded.
    pub successes: u64,
    /// Runs that failed.
    pub failures: u64,
    /// Runs that were killed after their timeout.
    pub timeouts: u64,
}

/// One virtual router.
#[derive(Debug, Clone)]
pub struct InstanceStatus {
    /// Its name.
    pub name: String,
    /// Where it speaks.
    pub interface: String,
    /// Virtual router ID.
    pub vrid: u8,
    /// 2 or 3.
    pub version: u8,
    /// Initialize, Backup or Active.
    pub state: State,
    /// Holds the addresses and waits for another to take them over.
    pub handing_over: bool,
    /// As configured.
    pub configured_priority: u8,
    /// Effective.
    pub priority: u8,
    /// What makes the effective priority differ from the configured one, and what keeps it from serving.
    pub why: Vec<String>,
    /// Nothing keeps it from serving.
    pub healthy: bool,
    /// The operator released it.
    pub released: bool,
    /// The operator prefers it.
    pub preferred: bool,
    /// Its addresses with prefix, and whether they are on their interface through us.
    pub addresses: Vec<(String, bool)>,
    /// The router it takes for active.
    pub active: Option<(IpAddr, u8)>,
    /// Routers heard.
    pub peers: Vec<PeerStatus>,
    /// Misconfigurations and faults seen.
    pub findings: Vec<String>,
    /// Trouble with addresses, sockets and interfaces, as of now.
    pub problems: Vec<String>,
    /// A request to hand over that is under way.
    pub hand_over: Option<String>,
    /// The last change of state.
    pub last: Option<LastTransition>,
    /// Its figures.
    pub counts: Counts,
}

/// A change of state as shown.
#[derive(Debug, Clone, Copy)]
pub struct LastTransition {
    /// From.
    pub from: State,
    /// To.
    pub to: State,
    /// Why.
    pub reason: crate::protocol::vrrp::Reason,
    /// When, since 1970.
    pub unix: Duration,
}

/// A router that was heard.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its address.
    pub address: IpAddr,
    /// Where it was heard last.
    pub interface: String,
    /// How long ago.
    pub ago: Duration,
    /// What it last said; `None` when it was never accepted.
    pub priority: Option<u8>,
    /// Its interval.
    pub interval: Option<Duration>,
    /// Advertisements accepted.
    pub accepted: u64,
    /// Datagrams dropped.
    pub dropped: u64,
    /// An HMAC vouched for the last one.
    pub authenticated: bool,
}

/// Figures of an instance.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Advertisements sent, each once however many copies.
    pub sent: u64,
    /// Copies that could not be sent.
    pub send_errors: u64,
    /// Advertisements accepted.
    pub received: u64,
    /// Datagrams dropped, by [`Error::index`].
    pub dropped: [u64; REASONS],
    /// Changes to Initialize, Backup, Active.
    pub transitions: [u64; 3],
    /// Gratuitous ARPs and neighbour advertisements sent.
    pub announcements: u64,
    /// Leases given or renewed.
    pub leases: u64,
    /// Leases that failed.
    pub lease_errors: u64,
    /// Times that somebody else was seen to claim an address while this router was active.
    pub claims: u64,
    /// Requests to hand over, by what became of them ([`HandOver::index`]).
    pub hand_overs: [u64; HandOver::ALL.len()],
    /// Claims put off because this process had not run.
    pub late: u64,
}

/// Where the snapshot is kept.
#[derive(Debug, Default)]
pub struct Board(Mutex<Arc<Snapshot>>);

impl Board {
    /// The newest.
    #[must_use]
    pub fn read(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Only swaps a pointer while it holds the lock.
    pub(super) fn publish(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let old = std::mem::replace(
            &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner),
            snapshot,
        );
        drop(old);
    }
}
