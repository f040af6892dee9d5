//! What the control thread knows: the parts it answers for on the admin endpoint.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::certificates::Board;
use crate::control::config::Log;
use crate::control::health::Checks;
use crate::control::history::History;
use crate::control::l4_checks;
use crate::control::logger::Logger;
use crate::control::pulse::Pulses;
use crate::control::reload;
use crate::control::resolve::{self, Name, Resolver};
use crate::control::servers::Servers;
use crate::control::tuning::Standing;
use crate::control::upgrade::Office;
use crate::control::vrrp::HandOvers;
use crate::ha::Ha;
use crate::ha::health::Health;
use crate::l4::engine::Engine;
use crate::l7::config::{Server, ServerAddress};
use crate::l7::metrics::{ByShard, ListenerMetrics};
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

/// The state of the process.
#[derive(Debug)]
pub struct State {
    /// Writes log lines, and keeps the last of them.
    pub logger: Logger,
    /// The configuration file; `None` for the demo.
    pub file: Option<PathBuf>,
    /// Looks up the names of servers.
    pub resolver: Resolver,
    /// When it was started.
    pub started: Instant,
    /// The clock that all rings share began then.
    pub epoch: Instant,
    /// Whether the shards answer.
    pub pulses: Pulses,
    /// Where it is in its life.
    pub phase: Cell<Phase>,
    /// The shards, by number.
    pub shards: Vec<Shard>,
    /// See [`State::listeners`].
    pub(super) listeners: RefCell<Rc<[ListenerState]>>,
    /// See [`State::upstreams`].
    pub(super) upstreams: RefCell<Rc<[Rc<UpstreamState>]>>,
    /// Rates of the last minutes.
    pub history: RefCell<History>,
    /// Health checks and outliers.
    pub checks: Checks,
    /// Certificates.
    pub tls: Arc<Board>,
    /// VRRP, if it is or was configured.
    pub ha: OnceCell<Ha>,
    /// Hand-overs of its instances.
    pub hand_overs: HandOvers,
    /// The layer-4 director and real server, if either is configured.
    pub l4: Option<Engine>,
    /// Health checks of its real servers, if there are any.
    pub l4_checks: Option<l4_checks::Checks>,
    /// Virtual addresses that the director was told about, and whether it is the active one.
    pub roles: RefCell<HashMap<IpAddr, bool>>,
    /// What VRRP is told about the rest of the process.
    pub health: Arc<Health>,
    /// The configuration in force.
    pub reload: reload::Standing,
    /// How long requests in flight get at shutdown.
    pub drain_timeout: Cell<Duration>,
    /// Where logs go.
    pub log: RefCell<Log>,
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

/// A listener.
#[derive(Debug, Clone)]
pub struct ListenerState {
    /// Its name.
    pub name: String,
    /// Its address.
    pub bind: SocketAddr,
    /// Its figures, which stay with the address whatever it is called.
    pub figures: ByShard<ListenerMetrics>,
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
    /// Listeners, in the order of the configuration in force.
    #[must_use]
    pub fn listeners(&self) -> Rc<[ListenerState]> {
        Rc::clone(&self.listeners.borrow())
    }

    /// Upstreams, in the order of the configuration in force. One that a reload does not change stays the
    /// same object.
    #[must_use]
    pub fn upstreams(&self) -> Rc<[Rc<UpstreamState>]> {
        Rc::clone(&self.upstreams.borrow())
    }

    /// The names of all servers, those that were added at run time among them.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        let upstreams = self.upstreams();
        let servers: Vec<Server> = upstreams
            .iter()
            .flat_map(|upstream| {
                let servers = upstream.servers.borrow();
                servers.now().iter().map(|standing| standing.server.clone()).collect::<Vec<_>>()
            })
            .collect();
        resolve::names_of(&servers)
    }

    /// Milliseconds on the clock the shards use.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes over the addresses a name and port resolved to; the upstreams whose members that changed.
    pub fn resolved(
        &self,
        host: &str,
        port: u16,
        addresses: &[SocketAddr],
    ) -> Vec<Rc<UpstreamState>> {
        let takes = |upstream: &&Rc<UpstreamState>| upstream.take_resolved(host, port, addresses);
        let changed: Vec<_> = self.upstreams().iter().filter(takes).cloned().collect();
        if !changed.is_empty() {
            self.checks.refresh(&self.upstreams());
        }
        changed
    }
}

impl UpstreamState {
    /// As the file has it, with these addresses of each server; members that `previous` has keep their
    /// state.
    #[must_use]
    pub fn new(
        shared: Arc<SharedUpstream>,
        resolved: Vec<Vec<SocketAddr>>,
        previous: Option<&MemberSet>,
    ) -> Self {
        let set = Arc::new(shared.members(&resolved, previous));
        Self {
            servers: RefCell::new(Servers::new(&shared.config.servers)),
            shared,
            set: RefCell::new(set),
            resolved: RefCell::new(resolved),
        }
    }

    /// With these servers, which may differ from the file's, and their addresses by [`Standing::id`].
    ///
    /// [`Standing::id`]: crate::l7::upstream::Standing::id
    #[must_use]
    pub fn with_servers(
        shared: Arc<SharedUpstream>,
        servers: Servers,
        resolved: Vec<Vec<SocketAddr>>,
    ) -> Self {
        let set = Arc::new(shared.members_of(servers.now(), &resolved, None));
        Self {
            servers: RefCell::new(servers),
            shared,
            set: RefCell::new(set),
            resolved: RefCell::new(resolved),
        }
    }

    /// True when that changed the members.
    fn take_resolved(&self, host: &str, port: u16, addresses: &[SocketAddr]) -> bool {
        let mut changed = false;
        {
            let (servers, mut resolved) = (self.servers.borrow(), self.resolved.borrow_mut());
            for standing in servers.now() {
                let is_it = matches!(&standing.server.address, ServerAddress::Name(name, number)
                    if name == host && *number == port);
                let known = resolved.get_mut(standing.id).filter(|_| is_it);
                if let Some(known) = known.filter(|known| *known != addresses) {
                    addresses.clone_into(known);
                    changed = true;
                }
            }
        }
        if changed {
            self.rebuild();
        }
        changed
    }

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
