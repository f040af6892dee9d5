//! The layer-4 engine as the control thread sees it: its start, its log lines, and whether this host is the active
//! director of a virtual address, which VRRP decides.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::config::Config;
use crate::control::logger::Logger;
use crate::control::state::State;
use crate::control::upgrade::Inherited;
use crate::ha::health::Heartbeat;
use crate::l4::config::{L4, ServiceKey};
use crate::l4::engine::{
    Board, Counts, Engine, Event, Fact, NeighbourView, OUTCOMES, Plan, Pulse, Reporter, Succession,
    directors,
};
use crate::protocol::vrrp::State as Role;
use crate::ring::{Ring, Timer};
use crate::sys::notify::EventFd;

/// How often VRRP's states are looked at, besides when one changes.
const LOOK_EVERY_MS: u64 = 100;
/// While a successor waits for VRRP to go on, more often; and for how long.
const LOOK_OFTEN_MS: u64 = 5;
const SETTLE_PATIENCE: Duration = Duration::from_secs(1);

/// A director's heartbeat and what makes it beat, as VRRP watches them.
pub type Watched = (Arc<Heartbeat>, Arc<EventFd>);

/// Starts the engine, if there are virtual servers or the role of a real server.
///
/// # Errors
/// Text for the operator.
pub fn start(
    config: &Config,
    inherited: Option<&Inherited>,
    tell: impl Fn(Event) -> bool + Send + 'static,
) -> Result<(Option<Engine>, Vec<Watched>), String> {
    if !is_wanted(config) {
        return Ok((None, Vec::new()));
    }
    let beats: Vec<Arc<Heartbeat>> =
        (0..directors(&config.l4)).map(|_| Arc::<Heartbeat>::default()).collect();
    let pulse = |beat: &Arc<Heartbeat>| {
        let beat = Arc::clone(beat);
        Pulse(Box::new(move || beat.answer()))
    };
    let engine = Engine::start(Plan {
        config: config.l4.clone(),
        // VRRP will say which of them are here.
        inactive: governed(config).into_keys().collect(),
        real_server: config.real_server.clone(),
        outlive: outlive(config),
        pulses: beats.iter().map(pulse).collect(),
        reporter: Reporter(Box::new(tell)),
        succession: inherited.map(|inherited| Succession {
            passed: inherited.take_director(),
            checked: checked(config),
        }),
    })?;
    let watched = beats.into_iter().zip(engine.wakers.iter().map(Arc::clone)).collect();
    Ok((Some(engine), watched))
}

/// True when there are virtual servers, or the role of a real server.
#[must_use]
pub fn is_wanted(config: &Config) -> bool {
    !config.l4.services.is_empty() || config.real_server.is_some()
}

/// Virtual servers with checks.
fn checked(config: &Config) -> HashSet<ServiceKey> {
    let services = config.l4.services.iter().zip(&config.l4_checks);
    services.filter(|(_, check)| check.is_some()).map(|(service, _)| service.key).collect()
}

/// Has the directors take other virtual servers over.
///
/// # Errors
/// When checks were needed for the first time and cannot be started.
pub fn configure(state: &State, old: &Config, new: &Config) -> io::Result<()> {
    if let Some(engine) = &state.l4
        && old.l4 != new.l4
    {
        // A new address of VRRP's is told of again, since it begins as active.
        state.roles.borrow_mut().clear();
        engine.configure(new.l4.clone());
    }
    state.l4_checks.as_ref().map_or(Ok(()), |checks| checks.watch(new))
}

/// Virtual servers' addresses that a VRRP instance holds, and its place in the configuration.
fn governed(config: &Config) -> HashMap<IpAddr, String> {
    let mut all = HashMap::new();
    for instance in &config.ha.instances {
        for vip in instance.addresses.iter().chain(&instance.excluded) {
            if is_virtual(&config.l4, vip.address) {
                all.insert(vip.address, instance.name.clone());
            }
        }
    }
    all
}

/// How long the kernel keeps virtual addresses that nobody renews.
fn outlive(config: &Config) -> Duration {
    let governed = governed(config);
    let holders =
        config.ha.instances.iter().filter(|one| governed.values().any(|n| *n == one.name));
    let longest = holders.filter_map(|one| one.lease).max();
    longest.map_or(Duration::ZERO, |lease| lease + Duration::from_secs(1))
}

fn is_virtual(config: &L4, address: IpAddr) -> bool {
    config.services.iter().any(|service| service.key.address == address)
}

/// Tells the engine which virtual addresses this host is the active director of, as long as the process runs.
/// Verdicts that it had no room for go the same way.
/// `held` were held by the process before this one: VRRP needs a moment to say so.
pub async fn watch_roles(ring: Rc<Ring>, state: Rc<State>, held: Vec<IpAddr>) {
    let timer = Timer::new(&ring);
    let began = Instant::now();
    while began.elapsed() < SETTLE_PATIENCE && !are_held(&state, &held) {
        flush_checks(&state);
        timer.set(LOOK_OFTEN_MS);
        timer.fired().await;
    }
    loop {
        flush_checks(&state);
        look_at_roles(&state);
        timer.set(LOOK_EVERY_MS);
        timer.fired().await;
    }
}

/// What found the engine's inbox full is told again.
fn flush_checks(state: &State) {
    if let Some(checks) = &state.l4_checks {
        checks.flush();
    }
}

fn are_held(state: &State, held: &[IpAddr]) -> bool {
    let Some(ha) = state.ha.get() else { return true };
    let board = ha.board.read();
    let active = board.instances.iter().filter(|one| one.state == Role::Active);
    let active: Vec<_> = active
        .flat_map(|one| &one.addresses)
        .filter_map(|(address, _)| address_of(address))
        .collect();
    held.iter().all(|address| active.contains(address))
}

/// Of an address with its prefix.
fn address_of(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// What VRRP's page says now.
fn look_at_roles(state: &State) {
    let Some(ha) = state.ha.get() else { return };
    for instance in &ha.board.read().instances {
        let addresses = instance.addresses.iter();
        for (address, _) in addresses {
            tell_role(state, address_of(address), instance.state == Role::Active);
        }
    }
}

/// An instance has changed its state: the engine hears it at once.
pub fn transition(state: &State, event: &crate::ha::Event) {
    let (Some(ha), crate::ha::Event::Transition { instance, to, .. }) = (state.ha.get(), event)
    else {
        return;
    };
    let board = ha.board.read();
    let changed = board.instances.iter().filter(|one| one.name == *instance);
    for (address, _) in changed.flat_map(|one| &one.addresses) {
        tell_role(state, address_of(address), *to == Role::Active);
    }
}

fn tell_role(state: &State, address: Option<IpAddr>, active: bool) {
    let (Some(engine), Some(address)) = (&state.l4, address) else { return };
    let mut roles = state.roles.borrow_mut();
    // What was not told is told the next time.
    if roles.get(&address) != Some(&active) && engine.tell(Fact::Active(address, active)) {
        roles.insert(address, active);
    }
}

/// The page: what forwards, to whom, and what is wrong.
#[must_use]
pub fn status(board: &Board) -> Value {
    let network = board.network();
    let neighbour = |one: &NeighbourView| {
        json!({
            "address": one.address.to_string(),
            "interface": one.interface_name,
            "mac": one.mac.map(|mac| mac.to_string()),
            "state": one.standing.name(),
        })
    };
    let director = |(index, counts): (usize, &Arc<Counts>)| {
        let verdicts = OUTCOMES.iter().zip(&counts.outcomes);
        let verdicts = verdicts.map(|(name, count)| ((*name).to_owned(), json!(count.value())));
        json!({
            "director": index,
            "frames": counts.received.value(),
            "sent": counts.sent.value(),
            "ring_drops": counts.ring_drops.value(),
            "verdicts": verdicts.collect::<serde_json::Map<_, _>>(),
        })
    };
    let path = |one: &crate::l4::offload::Path| json!({ "interface": one.interface, "datapath": one.as_str(), "why": one.why });
    json!({
        "datapaths": network.datapaths.iter().map(path).collect::<Vec<_>>(),
        "directors": board.directors.iter().enumerate().map(director).collect::<Vec<_>>(),
        "interfaces": network.interfaces,
        "neighbours": network.neighbours.iter().map(neighbour).collect::<Vec<_>>(),
        "problems": network.troubles,
        "real_server": network.real_server.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Writes what the engine tells to the log.
pub fn log(logger: Logger, event: &Event) {
    match event {
        Event::Found(address, mac) => {
            logger.info("neighbour found", &[("address", &address.to_string()), ("mac", mac)]);
        }
        Event::Lost(address) => {
            let address = address.to_string();
            logger.warn("neighbour does not answer ARP or ND", &[("address", &address)]);
        }
        Event::Datapath(path) => {
            let fields = [
                ("interface", path.interface.as_str()),
                ("datapath", path.as_str()),
                ("why", path.why.as_str()),
            ];
            logger.info("datapath chosen", &fields);
        }
        Event::Refused(what) => {
            logger.warn("what another process passed is not used", &[("what", what)]);
        }
        Event::TookOver(flows) => {
            logger.info("flows taken over", &[("flows", &flows.to_string())]);
        }
        Event::Trouble(what) => logger.warn("layer 4 trouble", &[("what", what)]),
    }
}
