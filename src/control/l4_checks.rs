//! Health checks of real servers: what is probed for the layer-4 director, and how it is told.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::control::config::Config;
use crate::control::config::checks::UpstreamCheck;
use crate::control::probing::{Probing, check_health, resumed};
use crate::control::upgrade::standing::{CheckHealth, RealServerHealth};
use crate::health::{Layer, Row, Sink, Target};
use crate::l4::config::{ServiceKey, VirtualServer};
use crate::l4::engine::{Fact, Teller};
use crate::l4::registry::ServerState;

/// The way to the director, which is there later than the first verdicts.
#[derive(Debug, Default)]
struct Way {
    teller: Mutex<Option<Teller>>,
    /// Some verdict found no room: [`Checks::flush`] offers it again.
    late: AtomicBool,
}

impl Way {
    fn tell(&self, fact: Fact) -> bool {
        let teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        let told = teller.as_ref().is_some_and(|teller| teller.tell(fact));
        if !told {
            self.late.store(true, Ordering::Release);
        }
        told
    }
}

/// Where verdicts on a real server go. The prober's thread never waits for room in the director's inbox: what
/// counts is the latest verdict, which stays here until it is told.
#[derive(Debug)]
struct ServerSink {
    way: Arc<Way>,
    service: ServiceKey,
    server: IpAddr,
    verdict: Mutex<Latest>,
}

#[derive(Debug, Default)]
struct Latest {
    is: Option<bool>,
    told: Option<bool>,
    /// Nobody probes it any more: it counts as up, whatever a probe that is just ending finds.
    released: bool,
}

impl ServerSink {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the latest verdict, if the director does not know it; false when there is no room for it.
    fn tell(&self, latest: &mut Latest) -> bool {
        let Some(up) = latest.is.filter(|_| latest.is != latest.told) else { return true };
        let state = ServerState { up, weight: None };
        let told = self.way.tell(Fact::State(self.service, self.server, state));
        if told {
            latest.told = Some(up);
        }
        told
    }

    fn flush(&self) -> bool {
        self.tell(&mut self.latest())
    }

    /// True when the director knows that it counts as up.
    fn release(&self) -> bool {
        let mut latest = self.latest();
        latest.released = true;
        if latest.is.is_some() {
            latest.is = Some(true);
        }
        self.tell(&mut latest)
    }
}

impl Sink for ServerSink {
    fn set(&self, up: bool, _: bool) {
        let mut latest = self.latest();
        if !latest.released {
            latest.is = Some(up);
            self.tell(&mut latest);
        }
    }
}

type Sinks = HashMap<(ServiceKey, IpAddr), Arc<ServerSink>>;

/// The checks of real servers.
#[derive(Debug)]
pub struct Checks {
    probing: Rc<Probing>,
    way: Arc<Way>,
    /// Of every real server that is probed; each remembers what it has told.
    sinks: RefCell<Sinks>,
    /// Of those that are not any more, and the director has still to hear of it.
    leaving: RefCell<Sinks>,
    /// Verdicts of the process before this one, at the start.
    handed: RefCell<HashMap<(String, String), CheckHealth>>,
}

impl Checks {
    /// Gives the prober what is to be probed.
    ///
    /// # Errors
    /// When its thread cannot be made.
    pub fn start(
        config: &Config,
        handed: &[RealServerHealth],
        probing: Rc<Probing>,
    ) -> io::Result<Self> {
        let verdict = |one: &RealServerHealth| {
            ((one.virtual_server.clone(), one.server.clone()), one.check.clone())
        };
        let handed = RefCell::new(handed.iter().map(verdict).collect());
        let (sinks, leaving) = (RefCell::default(), RefCell::default());
        let checks = Self { probing, way: Arc::default(), sinks, leaving, handed };
        checks.watch(config)?;
        checks.handed.take();
        Ok(checks)
    }

    /// The director is there: it hears of every verdict, those that were reached before first.
    pub fn attach(&self, teller: Teller) {
        *self.way.teller.lock().unwrap_or_else(PoisonError::into_inner) = Some(teller);
        self.flush();
    }

    /// Offers verdicts again for which there was no room.
    pub fn flush(&self) {
        if !self.way.late.swap(false, Ordering::AcqRel) {
            return;
        }
        self.leaving.borrow_mut().retain(|_, sink| !sink.flush());
        for sink in self.sinks.borrow().values() {
            if !sink.flush() {
                return; // as little room for the next
            }
        }
    }

    /// Every verdict, for a process that goes on with them.
    #[must_use]
    pub fn standing(&self) -> Vec<RealServerHealth> {
        let rows = self.probing.rows(Layer::Director);
        let health = |row: &Row| {
            Some(RealServerHealth {
                virtual_server: row.group.clone(),
                server: row.server.clone(),
                check: check_health(row)?,
            })
        };
        rows.iter().filter_map(health).collect()
    }

    /// Probes what a configuration has from now on; what was probed before keeps its state, and what is not probed
    /// any more is up.
    ///
    /// # Errors
    /// When the prober was needed for the first time and cannot be started.
    pub fn watch(&self, config: &Config) -> io::Result<()> {
        let mut targets = Vec::new();
        let mut before = self.leaving.take();
        before.extend(self.sinks.take());
        for (service, check) in config.l4.services.iter().zip(&config.l4_checks) {
            let Some(check) = check else { continue };
            for place in 0..service.servers.len() {
                targets.extend(self.target(service, check, place, &mut before));
            }
        }
        if !targets.is_empty() {
            self.probing.start()?;
        }
        self.probing.watch(Layer::Director, targets);
        before.retain(|_, sink| !sink.release());
        self.leaving.replace(before);
        Ok(())
    }

    fn target(
        &self,
        service: &VirtualServer,
        check: &UpstreamCheck,
        place: usize,
        before: &mut Sinks,
    ) -> Option<Target> {
        let server = service.servers.get(place)?.address;
        let key = (service.key, server);
        let names = (service.key.to_string(), server.to_string());
        let handed = self.handed.borrow().get(&names).cloned();
        let sink = before.remove(&key).unwrap_or_else(|| {
            let (way, verdict) = (Arc::clone(&self.way), Mutex::default());
            Arc::new(ServerSink { way, service: service.key, server, verdict })
        });
        sink.latest().released = false;
        self.sinks.borrow_mut().insert(key, Arc::clone(&sink));
        let own = check.servers.get(place).cloned();
        let mut target = Target {
            group: names.0,
            server: names.1,
            address: SocketAddr::new(server, service.key.port),
            name: None,
            check: own.unwrap_or_else(|| Arc::new(check.base.check.clone())),
            tls: check.base.client.clone(),
            sink,
            before: None,
        };
        target.before = handed.and_then(|handed| resumed(&target, handed));
        Some(target)
    }

    /// How each probed server stands.
    #[must_use]
    pub fn status(&self) -> Value {
        self.probing.rows(Layer::Director).iter().map(row).collect()
    }
}

fn row(row: &Row) -> Value {
    json!({
        "virtual_server": row.group,
        "server": row.server,
        "check": row.kind,
        "probed": row.probed,
        "up": row.up,
        "why": row.why,
        "since_seconds": row.since.as_secs(),
        "last": row.last,
        "successes": row.successes,
        "failures": row.failures,
        "changes": row.changes,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::l4::config::Protocol;

    fn checks() -> Checks {
        Checks {
            probing: Probing::new(1024, Arc::new(|_| true)),
            way: Arc::default(),
            sinks: RefCell::default(),
            leaving: RefCell::default(),
            handed: RefCell::default(),
        }
    }

    impl Checks {
        fn sink(&self, last: u8) -> Arc<ServerSink> {
            let service =
                ServiceKey { protocol: Protocol::Tcp, address: [10, 0, 0, 1].into(), port: 80 };
            let server = [10, 0, 1, last].into();
            let (way, verdict) = (Arc::clone(&self.way), Mutex::default());
            let sink = Arc::new(ServerSink { way, service, server, verdict });
            self.sinks.borrow_mut().insert((service, server), Arc::clone(&sink));
            sink
        }
    }

    /// What the director has heard of: the last number of addresses, and what they are.
    fn heard(inbox: &Receiver<Fact>) -> Vec<(u8, bool)> {
        let one = |fact| match fact {
            Fact::State(_, IpAddr::V4(server), state) => (server.octets()[3], state.up),
            other => panic!("{other:?}"),
        };
        inbox.try_iter().map(one).collect()
    }

    #[test]
    fn a_full_inbox_holds_nobody_up_and_loses_no_verdict() {
        let checks = checks();
        let sinks: Vec<_> = (0..5).map(|last| checks.sink(last)).collect();
        // Before the director is there.
        sinks[0].set(false, false);
        let (teller, inbox) = Teller::to_inbox(2);
        checks.attach(teller);
        assert_eq!(heard(&inbox), [(0, false)]);
        // Two have room. Each call returns: nobody reads meanwhile, so one that waited would wait for ever.
        sinks.iter().for_each(|sink| sink.set(false, true));
        sinks[4].set(true, true);
        sinks[4].set(false, true);
        sinks[3].set(true, true);
        let mut all = heard(&inbox);
        assert_eq!(all, [(1, false), (2, false)]);
        checks.flush();
        all = heard(&inbox);
        all.sort_unstable();
        assert_eq!(all, [(3, true), (4, false)], "the latest of each");
        checks.flush();
        sinks[4].set(false, false);
        assert_eq!(heard(&inbox), [], "nothing is told twice");
    }

    #[test]
    fn one_that_is_let_go_of_counts_as_up_in_the_end() {
        let checks = checks();
        let (teller, inbox) = Teller::to_inbox(1);
        checks.attach(teller);
        let (full, gone) = (checks.sink(1), checks.sink(2));
        gone.set(false, true);
        assert_eq!(heard(&inbox), [(2, false)]);
        full.set(false, true);
        let text = "[[listener]]\nbind = \"127.0.0.1:80\"\n[[route]]\nrespond = {}";
        let config = crate::control::config::parse("t", text).expect("a configuration");
        checks.watch(&config).expect("nothing is started");
        // Both are on their way out, and the inbox is full of one of them.
        gone.set(false, true);
        for _ in 0..3 {
            for (last, up) in heard(&inbox) {
                assert!(last == 1 || up);
            }
            checks.flush();
        }
        assert!(checks.leaving.borrow().is_empty() && checks.sinks.borrow().is_empty());
        let state = |sink: &ServerSink| sink.latest().told;
        assert_eq!((state(&full), state(&gone)), (Some(true), Some(true)));
    }
}
