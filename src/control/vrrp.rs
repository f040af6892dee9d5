//! VRRP as the control thread sees it: its log lines, its page, the orders of the operator, and the unix socket
//! through which those come.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::control::config::AdminSocket;
use crate::control::events::TRANSITION;
use crate::control::logger::Logger;
use crate::control::metrics::connections;
use crate::control::state::{State, UpstreamState};
use crate::ha::health::Usable;
use crate::ha::status::{InstanceStatus, PeerStatus, Snapshot};
use crate::ha::{Event, Ha, Order};
use crate::l7::time::rfc3339_ms;
use crate::l7::upstream::Member;
use crate::l7::worker::{Receipt, Yielding};
use crate::protocol::vrrp::{Error, State as Role};
use crate::ring::{Ring, Timer};
use crate::shard::Message;

/// How often usable servers are counted.
const COUNT_EVERY_MS: u64 = 100;
/// How often an order's outcome is looked for.
const LOOK_EVERY_MS: u64 = 5;
/// How often shards are looked at that finish what is under way: clients wait for that.
const LOOK_CLOSELY_MS: u64 = 2;
/// The HA thread answers an order within this.
const ORDER_PATIENCE: Duration = Duration::from_secs(2);
/// A hand-over that nobody has taken up after this will not be.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);
/// A peer has handed over after this, or was preempted.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(20);
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
            TRANSITION,
            &[
                ("instance", instance),
                ("from", from.name()),
                ("to", to.name()),
                ("reason", reason),
                ("priority", &priority.to_string()),
            ],
        ),
        Event::Asked { .. } => {}
        Event::HandOver { instance, news, peer } => logger.warn(
            "vrrp hand-over",
            &[("instance", instance), ("peer", &peer.to_string()), ("what", &news.to_string())],
        ),
        Event::Trouble(text) => logger.warn("vrrp trouble", &[("what", text)]),
    }
}

/// Counts usable servers for the HA thread, as long as the process runs.
pub async fn watch_upstreams(ring: Rc<Ring>, state: Rc<State>) {
    let timer = Timer::new(&ring);
    loop {
        let usable = state.health.usable();
        for upstream in &*state.upstreams() {
            let Some(usable) = usable.get(&upstream.shared.config.name) else { continue };
            usable.store(usable_servers(upstream), Ordering::Relaxed);
        }
        timer.set(COUNT_EVERY_MS);
        timer.fired().await;
    }
}

/// The counts for these upstreams, as of now.
#[must_use]
pub fn count_usable(upstreams: &[Rc<UpstreamState>]) -> Usable {
    let counted = |upstream: &Rc<UpstreamState>| {
        (upstream.shared.config.name.clone(), AtomicU32::new(usable_servers(upstream)))
    };
    upstreams.iter().map(counted).collect()
}

fn usable_servers(upstream: &UpstreamState) -> u32 {
    let set = upstream.set.borrow();
    let takes =
        |(index, member): &(usize, &Arc<Member>)| set.weight(*index) > 0 && member.is_usable();
    let up = set.members.iter().enumerate().filter(takes).count();
    u32::try_from(up).unwrap_or(u32::MAX)
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
    let Some(ha) = state.ha.get() else {
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
        let turn = state.hand_overs.turn(&timer).await;
        finish_requests(&timer, state).await;
        let given = obeyed(&timer, ha, order, instance.clone()).await;
        let result = match given {
            Ok(()) => {
                handed_over(&timer, ha, |name| instance.as_deref().is_none_or(|i| i == name)).await
            }
            Err(why) => Err(why),
        };
        drop(tell_shards(state, None));
        drop(turn);
        result?;
    } else {
        obeyed(&timer, ha, order, instance.clone()).await?;
    }
    if order == Order::Prefer {
        taken_over(&timer, ha, concerned).await?;
    }
    Ok(format!("{} active here", active(Role::Active)))
}

/// Has the shards finish their connections, and then take no new ones, for as long as that may take.
///
/// What the shards have done they say themselves: the kernel completes handshakes for one that does not run just now, and its
/// count of connections does not have those.
async fn finish_requests(timer: &Timer, state: &State) {
    let open = || state.shards.iter().map(|shard| connections(&shard.metrics)).sum::<u64>();
    tell_shards(state, Some(Yielding::Closing));
    wait(timer, CLOSING_PATIENCE, || open() == 0).await;
    let deaf = tell_shards(state, Some(Yielding::Refusing));
    wait(timer, REFUSING_PATIENCE, || Arc::strong_count(&deaf) == 1).await;
    wait(timer, HANDSHAKES, || false).await;
    let empty = tell_shards(state, Some(Yielding::Emptying));
    wait(timer, REFUSING_PATIENCE, || Arc::strong_count(&empty) == 1).await;
}

/// Waits until something is so, this long at most.
async fn wait(timer: &Timer, most: Duration, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() && began.elapsed() < most {
        timer.set(LOOK_CLOSELY_MS);
        timer.fired().await;
    }
}

/// Each shard drops its copy of the receipt when it has done this.
fn tell_shards(state: &State, how: Option<Yielding>) -> Receipt {
    let receipt = Receipt::default();
    for shard in &state.shards {
        // A shard that is too busy to be told loses what is under way, no more.
        let _ = shard.send(Message::Yield(how, Arc::clone(&receipt)));
    }
    receipt
}

async fn obeyed(
    timer: &Timer,
    ha: &Ha,
    order: Order,
    instance: Option<String>,
) -> Result<(), String> {
    let answer = ha.order(order, instance);
    let began = Instant::now();
    loop {
        match answer.try_recv() {
            Ok(result) => return result,
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
}

/// Waits until another router has taken the named instances over.
async fn handed_over(timer: &Timer, ha: &Ha, named: impl Fn(&str) -> bool) -> Result<(), String> {
    let began = Instant::now();
    while began.elapsed() < HAND_OVER_PATIENCE {
        timer.set(LOOK_EVERY_MS);
        timer.fired().await;
        let board = ha.board.read();
        let mut ours = board.instances.iter().filter(|one| named(&one.name));
        if !ours.clone().any(|one| one.state == Role::Active) {
            return Ok(());
        }
        if ours.all(|one| !one.handing_over && one.state != Role::Initialize) {
            break;
        }
    }
    Err("nobody took over: this node serves on with the lowest priority until `resume`".into())
}

/// Waits until the instances are active, which a peer that finishes what is under way may put off for seconds.
async fn taken_over(
    timer: &Timer,
    ha: &Ha,
    concerned: impl Fn(&&InstanceStatus) -> bool,
) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let board = ha.board.read();
        let mut left = board.instances.iter().filter(&concerned);
        let mut left = left.by_ref().filter(|one| one.state != Role::Active).peekable();
        if left.peek().is_none() {
            return Ok(());
        }
        if began.elapsed() > TAKE_OVER_PATIENCE || left.all(|one| !one.preferred) {
            return Err("not active after all: `ringgate ctl vrrp status` says why".into());
        }
        timer.set(LOOK_EVERY_MS);
        timer.fired().await;
    }
}

/// A peer asks for an instance's addresses: finishes what is under way, then offers them. Requests that come while
/// another hand-over is under way wait for it, and are carried out together.
pub async fn heed(ring: Rc<Ring>, state: Rc<State>, instance: String) {
    let Some(ha) = state.ha.get() else { return };
    let timer = Timer::new(&ring);
    state.hand_overs.asked.borrow_mut().push(instance);
    let turn = state.hand_overs.turn(&timer).await;
    let is_active = |name: &String| {
        let board = ha.board.read();
        board.instances.iter().any(|one| one.name == *name && one.state == Role::Active)
    };
    state.hand_overs.asked.borrow_mut().retain(is_active);
    if !state.hand_overs.asked.borrow().is_empty() {
        finish_requests(&timer, &state).await;
        let asked = state.hand_overs.asked.take();
        for name in &asked {
            // It may have become a backup meanwhile.
            let _ = obeyed(&timer, ha, Order::HandOver, Some(name.clone())).await;
        }
        // If nobody takes over after all, the router goes on, which its log says.
        let _ = handed_over(&timer, ha, |name| asked.iter().any(|one| one == name)).await;
        drop(tell_shards(&state, None));
    }
    drop(turn);
}

/// Hand-overs that finish what is under way: one at a time.
#[derive(Debug, Default)]
pub struct HandOvers {
    busy: Rc<Cell<bool>>,
    /// Instances that a peer asks for.
    asked: RefCell<Vec<String>>,
}

impl HandOvers {
    /// Waits for those before.
    async fn turn(&self, timer: &Timer) -> Turn {
        while self.busy.replace(true) {
            timer.set(LOOK_EVERY_MS);
            timer.fired().await;
        }
        Turn(Rc::clone(&self.busy))
    }
}

/// The right to tell the shards; dropping it ends that.
struct Turn(Rc<Cell<bool>>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Hands over and ends the HA thread.
pub async fn stop(ring: &Rc<Ring>, state: &State) {
    let Some(ha) = state.ha.get() else { return };
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
        "hand_over": one.hand_over,
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

/// The unix socket's path, removed when the process ends unless another has taken it over.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    /// Device and inode.
    made: (u64, u64),
}

impl LocalSocket {
    /// Listens as configured.
    ///
    /// # Errors
    /// Text for the operator: another process listens there, or the file system's verdict.
    pub fn open(wanted: &AdminSocket) -> Result<(Self, OwnedFd), String> {
        let path = wanted.path.as_path();
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
        let (user, group) = owner_ids(&wanted.owner)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        // Bound beside its place and moved there, so that nobody finds it with other permissions.
        let beside = path.with_extension(format!("{}.tmp", std::process::id()));
        let _ = fs::remove_file(&beside);
        let listener = UnixListener::bind(&beside).map_err(failed)?;
        let ready = || {
            chown(&beside, user, group)?;
            fs::set_permissions(&beside, fs::Permissions::from_mode(wanted.mode))?;
            let meta = fs::symlink_metadata(&beside)?;
            fs::rename(&beside, path)?;
            listener.set_nonblocking(true)?;
            Ok((meta.dev(), meta.ino()))
        };
        match ready() {
            Ok(made) => Ok((Self { path: path.to_owned(), made }, listener.into())),
            Err(error) => {
                let _ = fs::remove_file(&beside);
                Err(failed(error))
            }
        }
    }
}

impl LocalSocket {
    /// One that an earlier process opened.
    #[must_use]
    pub fn inherited(path: &Path) -> Self {
        let made = fs::symlink_metadata(path).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
        Self { path: path.to_owned(), made }
    }

    /// Another process serves; when it listens at this path, that is its now.
    pub fn leave_to_successor(self) {
        if UnixStream::connect(&self.path).is_ok() {
            std::mem::forget(self);
        }
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.made);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Numbers of a user and a group.
fn owner_ids(
    owner: &(Option<String>, Option<String>),
) -> Result<(Option<u32>, Option<u32>), String> {
    let number = |name: &Option<String>, database: &str| {
        let Some(name) = name else { return Ok(None) };
        if let Ok(number) = name.parse() {
            return Ok(Some(number));
        }
        let known = fs::read_to_string(database).unwrap_or_default();
        let line = known.lines().find_map(|line| line.strip_prefix(&format!("{name}:")[..]));
        let id = line.and_then(|rest| rest.split(':').nth(1)?.parse().ok());
        id.map(Some).ok_or_else(|| {
            format!(
                "admin.socket_owner: {name} is not in {database}: write a name that is, or a number"
            )
        })
    };
    Ok((number(&owner.0, "/etc/passwd")?, number(&owner.1, "/etc/group")?))
}
