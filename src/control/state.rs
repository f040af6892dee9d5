//! What the control thread knows: the parts it answers for on the admin endpoint.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use crate::control::certificates::Board;
use crate::control::health::Checks;
use crate::control::logger::Logger;
use crate::control::resolve::Name;
use crate::control::servers::Servers;
use crate::control::tuning::Standing;
use crate::control::upgrade::Office;
use crate::ha::Ha;
use crate::ha::health::Health;
use crate::l4::engine::Engine;
use crate::l7::upstream::{MemberSet, SharedUpstream};
use crate::shard::Shard;

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Accepting.
    Serving,
    /// Finishing what is in flight.
    Draining,
}

/// Looks a name up again and again, from now until the flag is true.
pub struct Lookups(pub Box<dyn Fn(Name, Arc<AtomicBool>) -> io::Result<()>>);

impl fmt::Debug for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lookups")
    }
}

/// The state of the process.
#[derive(Debug)]
pub struct State {
    /// Writes log lines, and keeps the last of them.
    pub logger: Logger,
    /// The configuration file; `None` for the demo.
    pub file: Option<PathBuf>,
    /// Looks up the names of servers that are added.
    pub lookups: Lookups,
    /// When it was started.
    pub started: Instant,
    /// The clock that all rings share began then.
    pub epoch: Instant,
    /// Where it is in its life.
    pub phase: Cell<Phase>,
    /// The shards, by number.
    pub shards: Vec<Shard>,
    /// Listener names and addresses, in the order of the configuration.
    pub listeners: Vec<(String, SocketAddr)>,
    /// Upstreams, in the order of the configuration.
    pub upstreams: Vec<UpstreamState>,
    /// Health checks and outliers.
    pub checks: Checks,
    /// Certificates.
    pub tls: Arc<Board>,
    /// VRRP, if it is configured.
    pub ha: Option<Ha>,
    /// The layer-4 director and real server, if either is configured.
    pub l4: Option<Engine>,
    /// Virtual addresses that the director was told about, and whether it is the active one.
    pub roles: RefCell<HashMap<IpAddr, bool>>,
    /// What VRRP is told about the rest of the process.
    pub health: Arc<Health>,
    /// The machine's settings; `None`: none are tuned.
    pub tuning: Option<TuningState>,
    /// What succeeding this process takes.
    pub upgrade: Office,
}

/// The machine's settings.
#[derive(Debug)]
pub struct TuningState {
    /// VRRP resigns while a setting is not in force (`tuning.require`).
    pub required: bool,
    /// The profiles.
    pub profiles: Vec<String>,
    /// Settings changed at the start.
    pub changed: usize,
    /// Where they stood when last looked at.
    pub standing: RefCell<Standing>,
    /// What is tuned, to look again.
    pub config: crate::tune::Config,
}

/// An upstream and its members now.
#[derive(Debug)]
pub struct UpstreamState {
    /// What the shards share.
    pub shared: Arc<SharedUpstream>,
    /// Its servers as they stand now.
    pub servers: RefCell<Servers>,
    /// Its members.
    pub set: RefCell<Arc<MemberSet>>,
    /// Addresses of each server as last resolved.
    pub resolved: RefCell<Vec<Vec<SocketAddr>>>,
}

impl State {
    /// Milliseconds on the clock the shards use.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes over the addresses a server's name resolved to; true when that changed the members.
    pub fn resolved(
        &self,
        upstream: usize,
        server: usize,
        host: &str,
        addresses: Vec<SocketAddr>,
    ) -> bool {
        let Some(upstream) = self.upstreams.get(upstream) else { return false };
        {
            if !upstream.servers.borrow().has_name(server, host) {
                // It was removed meanwhile.
                return false;
            }
            let mut resolved = upstream.resolved.borrow_mut();
            match resolved.get_mut(server) {
                Some(known) if *known != addresses => *known = addresses,
                _ => return false,
            }
        }
        upstream.rebuild();
        self.checks.refresh(&self.upstreams);
        true
    }
}

impl UpstreamState {
    /// Puts the members together from the servers and their addresses as they are now; members that
    /// were there before keep their state. The shards have still to be told.
    pub fn rebuild(&self) {
        let set = self.shared.members_of(
            self.servers.borrow().now(),
            &self.resolved.borrow(),
            Some(&self.set.borrow()),
        );
        self.set.replace(Arc::new(set));
    }
}
