//! Health checks of real servers: what is probed for the layer-4 director, and how it is told.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::control::config::Config;
use crate::control::config::checks::UpstreamCheck;
use crate::control::health::{check_health, resumed};
use crate::control::logger::Logger;
use crate::control::upgrade::standing::{CheckHealth, RealServerHealth};
use crate::health::{Event, Prober, Row, Sink, Target, Tell};
use crate::l4::config::{ServiceKey, VirtualServer};
use crate::l4::engine::{Engine, Fact, Teller};
use crate::l4::registry::ServerState;

/// Probes at a time; each is a descriptor.
const CONCURRENT: usize = 1024;
/// A verdict that finds the director's inbox full is offered again so often, a millisecond apart.
const OFFERS: u32 = 100;

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// Where verdicts on a real server go.
#[derive(Debug)]
struct ServerSink {
    teller: Teller,
    service: ServiceKey,
    server: IpAddr,
    told: AtomicU8,
}

impl Sink for ServerSink {
    fn set(&self, up: bool, _: bool) {
        let verdict = if up { UP } else { DOWN };
        if self.told.load(Ordering::Relaxed) == verdict {
            return;
        }
        let fact = Fact::State(self.service, self.server, ServerState { up, weight: None });
        for _ in 0..OFFERS {
            if self.teller.tell(fact.clone()) {
                self.told.store(verdict, Ordering::Relaxed);
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The prober of real servers.
#[derive(Debug)]
pub struct Checks {
    prober: Prober,
    teller: Teller,
    /// Of every real server that is probed; each remembers what it has told.
    sinks: RefCell<HashMap<(ServiceKey, IpAddr), Arc<ServerSink>>>,
    /// Verdicts of the process before this one, at the start.
    handed: RefCell<HashMap<(String, String), CheckHealth>>,
}

impl Checks {
    /// Starts it.
    ///
    /// # Errors
    /// When its thread cannot be made.
    fn start(
        config: &Config,
        teller: Teller,
        handed: &[RealServerHealth],
        tell: Tell,
    ) -> io::Result<Self> {
        let sinks = RefCell::default();
        let verdict = |one: &RealServerHealth| {
            ((one.virtual_server.clone(), one.server.clone()), one.check.clone())
        };
        let handed = RefCell::new(handed.iter().map(verdict).collect());
        let checks = Self { prober: Prober::start(CONCURRENT, tell)?, teller, sinks, handed };
        checks.watch(config);
        checks.handed.take();
        Ok(checks)
    }

    /// Probes nothing any more, and says nothing.
    pub fn stop(&self) {
        self.prober.set_targets(Vec::new());
    }

    /// Every verdict, for a process that goes on with them.
    #[must_use]
    pub fn standing(&self) -> Vec<RealServerHealth> {
        let rows = self.prober.rows();
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
    pub fn watch(&self, config: &Config) {
        let mut targets = Vec::new();
        let mut before = self.sinks.take();
        for (service, check) in config.l4.services.iter().zip(&config.l4_checks) {
            let Some(check) = check else { continue };
            for place in 0..service.servers.len() {
                targets.extend(self.target(service, check, place, &mut before));
            }
        }
        self.prober.set_targets(targets);
        for sink in before.into_values() {
            sink.set(true, true);
        }
    }

    fn target(
        &self,
        service: &VirtualServer,
        check: &UpstreamCheck,
        place: usize,
        before: &mut HashMap<(ServiceKey, IpAddr), Arc<ServerSink>>,
    ) -> Option<Target> {
        let server = service.servers.get(place)?.address;
        let key = (service.key, server);
        let names = (service.key.to_string(), server.to_string());
        let handed = self.handed.borrow().get(&names).cloned();
        let sink = before.remove(&key).unwrap_or_else(|| {
            let sink = ServerSink {
                teller: self.teller.clone(),
                service: service.key,
                server,
                told: AtomicU8::new(UNKNOWN),
            };
            // keepalived's alpha: down until a probe says otherwise.
            if check.base.check.start_down && handed.is_none() {
                sink.set(false, false);
            }
            Arc::new(sink)
        });
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
        self.prober.rows().iter().map(row).collect()
    }
}

/// Starts the prober, if there is a director: a reload may bring checks.
///
/// # Errors
/// Text for the operator.
pub fn start(
    config: &Config,
    engine: Option<&Engine>,
    handed: &[RealServerHealth],
    logger: Logger,
) -> Result<Option<Checks>, String> {
    let Some(engine) = engine else { return Ok(None) };
    let tell = Box::new(move |event: Event| {
        log(logger, &event);
        true
    });
    let started = Checks::start(config, engine.teller(), handed, tell);
    started.map(Some).map_err(|error| format!("cannot start checks of real servers: {error}"))
}

fn log(logger: Logger, event: &Event) {
    match event {
        Event::Verdict { group, server, up, why } => {
            let fields = [("virtual_server", group.as_str()), ("server", server), ("why", why)];
            match up {
                true => logger.info("real server is up", &fields),
                false => logger.warn("real server is down", &fields),
            }
        }
        Event::Starved(why) => {
            logger.warn("real servers cannot be probed, verdicts stay", &[("why", why)]);
        }
        Event::Fed => logger.info("real servers are probed again", &[]),
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
