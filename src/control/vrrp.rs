//! VRRP as the control thread sees it: its log lines, its page, the orders of the operator, and the unix socket
//! through which those come.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::logger::Logger;
use crate::control::metrics::connections;
use crate::control::state::State;
use crate::ha::status::{InstanceStatus, PeerStatus, Snapshot};
use crate::ha::{Event, Ha, Order};
use crate::l7::time::rfc3339_ms;
use crate::l7::worker::Yielding;
use crate::protocol::vrrp::{Error, State as Role};
use crate::ring::{Ring, Timer};
use crate::shard::Message;

/// How often usable servers are counted.
const COUNT_EVERY_MS: u64 = 100;
/// How often an order's outcome is looked for.
const LOOK_EVERY_MS: u64 = 5;
/// The HA thread answers an order within this.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);
/// A hand-over that nobody has taken up after this will not be.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// Idle connections are closed within this, before new ones are refused.
const CLOSING_PATIENCE: Duration = Duration::from_millis(1_200);
/// Requests under way get this long then.
const REFUSING_PATIENCE: Duration = Duration::from_secs(5);
/// Handshakes under way complete within this.
const HANDSHAKES: Duration = Duration::from_millis(30);
/// At the end nobody waits longer for a peer.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Writes what the HA thread tells to the log.
pub fn log(logger: Logger, event: &Event) {
    match event {
        Event::Transition { instance, from, to, reason, priority } => logger.warn(
            "vrrp transition",
            &[
                ("instance", instance),
                ("from", from.name()),
                ("to", to.name()),
                ("reason", reason),
                ("priority", &priority.to_string()),
            ],
        ),
        Event::Trouble(text) => logger.warn("vrrp trouble", &[("what", text)]),
    }
}

/// Counts usable servers for the HA thread, as long as the process runs.
pub async fn watch_upstreams(ring: Rc<Ring>, state: Rc<State>) {
    let timer = Timer::new(&ring);
    loop {
        for (upstream, usable) in state.upstreams.iter().zip(&state.health.usable) {
            let set = upstream.set.borrow();
            let up = set.members.iter().filter(|member| member.is_usable()).count();
            usable.store(u32::try_from(up).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        timer.set(COUNT_EVERY_MS);
        timer.fired().await;
    }
}

/// The order of this name.
#[must_use]
pub fn order(name: &str) -> Option<Order> {
    match name {
        "release" => Some(Order::Release),
        "prefer" => Some(Order::Prefer),
        "resume" => Some(Order::Resume),
        _ => None,
    }
}

/// Gives an order and waits for what comes of it.
///
/// # Errors
/// Why it was not carried out.
pub async fn carry_out(
    ring: &Rc<Ring>,
    state: &State,
    order: Order,
    instance: Option<String>,
) -> Result<String, String> {
    let Some(ha) = &state.ha else {
        return Err("there is no [vrrp.NAME] in the configuration".into());
    };
    let timer = Timer::new(ring);
    let concerned = |one: &&InstanceStatus| instance.as_ref().is_none_or(|name| *name == one.name);
    let active = |role: Role| {
        let board = ha.board.read();
        board.instances.iter().filter(concerned).filter(|one| one.state == role).count()
    };
    let before = active(Role::Active);
    let hand_over = order == Order::Release && before > 0;
    if hand_over {
        finish_requests(&timer, state).await;
    }
    let result = obeyed(&timer, ha, order, instance.clone(), hand_over).await;
    if hand_over {
        tell_shards(state, None);
    }
    result?;
    Ok(format!("{} active here", active(Role::Active)))
}

/// Has the shards finish their connections, and then take no new ones, for as long as that may take.
async fn finish_requests(timer: &Timer, state: &State) {
    let open = || state.shards.iter().map(|shard| connections(&shard.metrics)).sum::<u64>();
    for (how, least, most) in [
        (Yielding::Closing, Duration::ZERO, CLOSING_PATIENCE),
        (Yielding::Refusing, HANDSHAKES, REFUSING_PATIENCE),
    ] {
        tell_shards(state, Some(how));
        let began = Instant::now();
        while began.elapsed() < least || open() > 0 && began.elapsed() < most {
            timer.set(LOOK_EVERY_MS);
            timer.fired().await;
        }
    }
}

fn tell_shards(state: &State, how: Option<Yielding>) {
    for shard in &state.shards {
        // A shard that is too busy to be told loses what is under way, no more.
        let _ = shard.send(Message::Yield(how));
    }
}

async fn obeyed(
    timer: &Timer,
    ha: &Ha,
    order: Order,
    instance: Option<String>,
    hand_over: bool,
) -> Result<(), String> {
    let answer = ha.order(order, instance.clone());
    let began = Instant::now();
    loop {
        match answer.try_recv() {
            Ok(result) => break result?,
            Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                return Err("VRRP is busy: try again".into());
            }
            Err(_) if began.elapsed() > ORDER_PATIENCE => return Err("VRRP does not answer".into()),
            Err(_) => {
                timer.set(LOOK_EVERY_MS);
                timer.fired().await;
            }
        }
    }
    if !hand_over {
        // The page is as new as the order.
        timer.set(LOOK_EVERY_MS);
        timer.fired().await;
        return Ok(());
    }
    while began.elapsed() < HAND_OVER_PATIENCE {
        timer.set(LOOK_EVERY_MS);
        timer.fired().await;
        let board = ha.board.read();
        let concerned =
            |one: &&InstanceStatus| instance.as_ref().is_none_or(|name| *name == one.name);
        let mut ours = board.instances.iter().filter(concerned);
        if !ours.clone().any(|one| one.state == Role::Active) {
            return Ok(());
        }
        if ours.all(|one| !one.handing_over && one.state != Role::Initialize) {
            break;
        }
    }
    Err("nobody took over: this node serves on with the lowest priority until `resume`".into())
}

/// Hands over and ends the HA thread.
pub async fn stop(ring: &Rc<Ring>, state: &State) {
    let Some(ha) = &state.ha else { return };
    drop(ha.order(Order::Stop, None));
    let (timer, began) = (Timer::new(ring), Instant::now());
    while !ha.is_over() && began.elapsed() < STOP_PATIENCE {
        timer.set(LOOK_EVERY_MS);
        timer.fired().await;
    }
    if !ha.is_over() {
        drop(ha.order(Order::StopNow, None));
    }
}

/// The page.
#[must_use]
pub fn status(snapshot: &Snapshot) -> Value {
    let script = |script: &crate::ha::status::ScriptStatus| {
        json!({
            "name": script.name,
            "state": script.good.map_or("unknown", |good| if good { "up" } else { "down" }),
            "successes": script.successes,
            "failures": script.failures,
            "timeouts": script.timeouts,
        })
    };
    json!({
        "instances": snapshot.instances.iter().map(instance).collect::<Vec<_>>(),
        "scripts": snapshot.scripts.iter().map(script).collect::<Vec<_>>(),
        "foreign_packets": snapshot.foreign,
        "real_time": snapshot.realtime,
        "memory_locked": snapshot.locked,
    })
}

fn instance(one: &InstanceStatus) -> Value {
    let address = |(address, held): &(String, bool)| json!({ "address": address, "held": held });
    let last = one.last.map(|last| {
        let ms = u64::try_from(last.unix.as_millis()).unwrap_or(u64::MAX);
        json!({
            "at": String::from_utf8_lossy(&rfc3339_ms(ms)),
            "from": last.from.name(),
            "to": last.to.name(),
            "reason": last.reason.to_string(),
        })
    });
    let dropped = Error::ALL.iter().zip(one.counts.dropped).filter(|(_, count)| *count > 0);
    let dropped = dropped.map(|(error, count)| (error.name().to_owned(), json!(count)));
    json!({
        "name": one.name,
        "interface": one.interface,
        "virtual_router_id": one.vrid,
        "version": one.version,
        "role": one.state.name(),
        "handing_over": one.handing_over,
        "priority": one.priority,
        "configured_priority": one.configured_priority,
        "healthy": one.healthy,
        "why": one.why,
        "addresses": one.addresses.iter().map(address).collect::<Vec<_>>(),
        "active": one.active.map(|(address, priority)| json!({
            "address": address.to_string(),
            "priority": priority,
        })),
        "peers": one.peers.iter().map(peer).collect::<Vec<_>>(),
        "misconfigurations": one.findings,
        "problems": one.problems,
        "last_transition": last,
        "adverts_sent": one.counts.sent,
        "adverts_received": one.counts.received,
        "packets_dropped": dropped.collect::<serde_json::Map<_, _>>(),
        "announcements_sent": one.counts.announcements,
        "foreign_claims": one.counts.claims,
        "late_wakeups": one.counts.late,
    })
}

fn peer(peer: &PeerStatus) -> Value {
    json!({
        "address": peer.address.to_string(),
        "interface": peer.interface,
        "heard_seconds_ago": peer.ago.as_secs_f64(),
        "priority": peer.priority,
        "interval_seconds": peer.interval.map(|interval| interval.as_secs_f64()),
        "accepted": peer.accepted,
        "dropped": peer.dropped,
        "authenticated": peer.authenticated,
    })
}

/// The unix socket's path, removed when the process ends.
#[derive(Debug)]
pub struct LocalSocket(PathBuf);

impl LocalSocket {
    /// Listens at `path`, for the owner only.
    ///
    /// # Errors
    /// Text for the operator: another process listens there, or the file system's verdict.
    pub fn open(path: &Path) -> Result<(Self, OwnedFd), String> {
        let failed = |error: io::Error| {
            format!(
                "cannot listen on {}: {error}: write another path to admin.socket, or \"off\"",
                path.display()
            )
        };
        if UnixStream::connect(path).is_ok() {
            return Err(format!(
                "cannot listen on {}: another process does: write another path to admin.socket",
                path.display()
            ));
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        // Bound beside its place and moved there, so that nobody finds it with other permissions.
        let beside = path.with_extension(format!("{}.tmp", std::process::id()));
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(failed)?;
        let moved = fs::set_permissions(&beside, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&beside, path))
            .and_then(|()| listener.set_nonblocking(true));
        if let Err(error) = moved {
            let _ = fs::remove_file(&beside);
            return Err(failed(error));
        }
        Ok((Self(path.to_owned()), listener.into()))
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = fs::remove_file(&self.0);
    }
}
