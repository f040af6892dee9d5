//! The HA thread's loop. It depends on nothing else in the process: its own sleep, its own sockets. In each
//! round it first hears what was missed, then lets timers fire, and only then renews leases.

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use super::claims::Claims;
use super::clock::{Clock, received_at};
use super::config;
use super::handoff::{Step, Takeover};
use super::health::Pulse;
use super::instance::{Arrival, Instance, World};
use super::network::Network;
use super::notify::{Job, Notifier};
use super::sockets::Sockets;
use super::status::{Board, REASONS, ScriptStatus, Snapshot};
use super::tracking::Sources;
use super::{Command, Event, Order, Reporter, What};
use crate::packet::frames::FrameSender;
use crate::packet::vrrp_socket::Buffers;
use crate::protocol::vrrp::{Action, Error, Moment, Packet, State, Transition, group, is_own};
use crate::sys::notify::EventFd;
use crate::sys::poll;

/// The snapshot is at most this old.
const PUBLISH_EVERY: Duration = Duration::from_millis(250);
/// Shards are asked so many times within their timeout.
const ASKED_PER_TIMEOUT: u32 = 4;
/// The first answer of a shard is looked for so often.
const FIRST_ANSWER: Duration = Duration::from_millis(5);
/// Longest sleep: a bound for what no event announces.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Orders carried out in a round.
const COMMANDS_MAX: usize = 16;

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) clock: Clock,
    pub(super) instances: Vec<Instance>,
    pub(super) groups: Vec<config::SyncGroup>,
    pub(super) network: Network,
    pub(super) frames: FrameSender,
    pub(super) sources: Sources,
    pub(super) pulses: Vec<Pulse>,
    pub(super) shard_timeout: Duration,
    pub(super) commands: Receiver<Command>,
    pub(super) steps: Receiver<Step>,
    pub(super) takeover: Option<Takeover>,
    pub(super) wake: Arc<EventFd>,
    pub(super) board: Arc<Board>,
    pub(super) notifier: Notifier,
    pub(super) reporter: Reporter,
    pub(super) realtime: bool,
    pub(super) locked: bool,
    pub(super) state: Rounds,
}

/// What changes from round to round.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    sockets: Sockets,
    claims: Claims,
    buffers: Buffers,
    /// Addresses of this host, with their interfaces.
    own: Vec<(u32, IpAddr)>,
    /// When the sockets were last found empty.
    drained: Moment,
    round_at: Moment,
    asked_at: Moment,
    published_at: Moment,
    dirty: bool,
    stopping: bool,
    foreign: u64,
    dropped: [u64; REASONS],
    /// Trouble and findings that were told already.
    told: HashSet<String>,
    socket_problems: Vec<String>,
}

impl Engine {
    /// Runs until told to stop.
    pub(super) fn run(mut self, over: &AtomicBool) {
        let now = self.clock.now();
        self.state.drained = now;
        if let Some(takeover) = self.takeover.take()
            && !self.take_over(&takeover)
        {
            return over.store(true, Ordering::Release);
        }
        let now = self.clock.now();
        // What is known of this host's health comes before the first state.
        self.check_shards(now);
        self.stand(now);
        self.look(now);
        for instance in &mut self.instances {
            instance.adopt(&mut self.network, now);
        }
        let (mut ready, mut scratch, mut fds) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let more = self.round();
            if !self.heed_successor() {
                return over.store(true, Ordering::Release);
            }
            if self.state.stopping && self.is_idle() {
                break;
            }
            fds.clear();
            fds.extend([self.network.as_raw_fd(), self.wake.as_raw_fd()]);
            fds.extend(self.state.sockets.fds());
            fds.extend(self.state.claims.fds());
            let more = more || self.network.has_news();
            let sleep = if more { Duration::ZERO } else { self.sleep() };
            // What it cannot wait for it sleeps through; the next round finds out what is wrong.
            let _ = poll::readable(&fds, Some(sleep), &mut ready, &mut scratch);
            if ready.contains(&self.wake.as_raw_fd()) {
                self.wake.clear();
            }
        }
        for instance in &mut self.instances {
            instance.clean_up(&mut self.network, self.clock.now());
        }
        self.publish(self.clock.now());
        over.store(true, Ordering::Release);
    }

    /// Everything once; true when there is more to read already.
    fn round(&mut self) -> bool {
        // Trouble with netlink shows in the next change that is made.
        if let Ok(changes) = self.network.update()
            && (changes.links || changes.addresses)
        {
            self.look(self.clock.now());
        }
        let more = self.hear();
        self.answer_claims();
        self.obey();
        let now = self.clock.now();
        self.check_shards(now);
        self.stand(now);
        self.fire(now);
        let mut renewed = self.network.renewed();
        for instance in &mut self.instances {
            instance.renewed(&mut renewed, now);
            instance.renew(&mut self.network, now);
            instance.assert_claim(&mut World {
                network: &mut self.network,
                sockets: &self.state.sockets,
                frames: &self.frames,
                now,
            });
        }
        self.tell_trouble();
        if self.state.dirty || now.since(self.state.published_at) >= PUBLISH_EVERY {
            self.publish(now);
        }
        self.state.round_at = now;
        more
    }

    /// Has the sockets open for what is to start.
    pub(super) fn prepare_ways(&mut self) {
        let virtual_addresses: Vec<IpAddr> =
            self.instances.iter().flat_map(Instance::virtual_addresses).collect();
        for instance in &mut self.instances {
            instance.look(&mut self.network, &virtual_addresses);
        }
        let needed: Vec<_> = self.instances.iter().flat_map(Instance::needs).collect();
        self.state.socket_problems = self.state.sockets.reconcile(&needed);
        self.state.own.clear();
        self.state.own.extend(self.network.own());
    }

    /// Links or addresses have changed.
    pub(super) fn look(&mut self, now: Moment) {
        let mut out = Vec::new();
        let virtual_addresses: Vec<IpAddr> =
            self.instances.iter().flat_map(Instance::virtual_addresses).collect();
        for place in 0..self.instances.len() {
            let instance = &mut self.instances[place];
            instance.look(&mut self.network, &virtual_addresses);
            instance.start_or_stop(now, self.state.stopping, &mut out);
            self.carry_out(place, &mut out, now);
        }
        let needed: Vec<_> = self.instances.iter().flat_map(Instance::needs).collect();
        self.state.socket_problems = self.state.sockets.reconcile(&needed);
        let network = &self.network;
        let watched: Vec<_> = self.instances.iter().flat_map(|one| one.watched(network)).collect();
        self.state.socket_problems.extend(self.state.claims.reconcile(&watched));
        self.state.own.clear();
        self.state.own.extend(self.network.own());
        self.state.dirty = true;
    }

    /// Takes in what waits on the sockets; true when not everything could be.
    pub(super) fn hear(&mut self) -> bool {
        let (now, unix) = (self.clock.now(), Clock::unix());
        let (mut out, mut todo) = (Vec::new(), Vec::new());
        let Rounds { sockets, buffers, own, drained, foreign, dropped, .. } = &mut self.state;
        let instances = &mut self.instances;
        let more = sockets.drain(buffers, |interface, family, received| {
            let parsed = received.datagram.and_then(|datagram| {
                let packet = Packet::parse(&datagram)?;
                Ok((datagram, packet))
            });
            let (datagram, packet) = match parsed {
                Ok(parsed) => parsed,
                Err(error) => return count(dropped, error),
            };
            let at = received_at(received.stamp, unix, now, *drained);
            let arrival =
                Arrival { interface, family, datagram: &datagram, packet: &packet, at, unix };
            let own = is_own(own, interface, datagram.source);
            let mut known = false;
            for (place, instance) in instances.iter_mut().enumerate() {
                if instance.is_for(interface, family, packet.vrid) {
                    known = true;
                    instance.hear(&arrival, now, own, &mut out);
                    todo.extend(out.drain(..).map(|action| (place, action)));
                }
            }
            *foreign += u64::from(!known);
        });
        if !more {
            *drained = now;
        }
        for (place, action) in todo {
            self.carry_out(place, &mut vec![action], now);
        }
        self.settle(now);
        more
    }

    /// Others claim virtual addresses.
    fn answer_claims(&mut self) {
        let (now, mut out, mut claims) = (self.clock.now(), Vec::new(), Vec::new());
        self.state.claims.drain(&mut claims);
        for place in 0..self.instances.len() {
            let instance = &mut self.instances[place];
            claims.iter().for_each(|claim| instance.claimed(claim, &self.network, now));
            instance.answer_claim(now, &mut out);
            self.carry_out(place, &mut out, now);
        }
    }

    /// Timers.
    fn fire(&mut self, now: Moment) {
        let mut out = Vec::new();
        for place in 0..self.instances.len() {
            self.instances[place].router.on_timer(now, &mut out);
            self.carry_out(place, &mut out, now);
        }
        self.settle(now);
    }

    /// Sync groups.
    fn settle(&mut self, now: Moment) {
        for index in 0..self.groups.len() {
            let members = self.groups[index].members.clone();
            let mut todo = Vec::new();
            {
                let routers = self.instances.iter_mut().enumerate();
                let routers = routers.filter(|(place, _)| members.contains(place));
                let (places, mut routers): (Vec<usize>, Vec<_>) =
                    routers.map(|(place, instance)| (place, &mut instance.router)).unzip();
                group::settle(now, &mut routers, |member, action| {
                    todo.extend(places.get(member).map(|place| (*place, action)));
                });
            }
            for (place, action) in todo {
                self.carry_out(place, &mut vec![action], now);
            }
        }
    }

    pub(super) fn carry_out(&mut self, place: usize, actions: &mut Vec<Action>, now: Moment) {
        for action in actions.drain(..) {
            match action {
                Action::Finish { .. } => self.finish(place),
                Action::Tell { news, peer } => self.tell_hand_over(place, news, peer),
                _ => {}
            }
            let Some(instance) = self.instances.get_mut(place) else { continue };
            let mut world = World {
                network: &mut self.network,
                sockets: &self.state.sockets,
                frames: &self.frames,
                now,
            };
            if let Some(transition) = instance.carry_out(action, &mut world) {
                self.tell_transition(place, transition);
            }
        }
    }

    /// Asks shards whether they live.
    pub(super) fn check_shards(&mut self, now: Moment) {
        let every = self.ask_every();
        if now.since(self.state.round_at) > self.shard_timeout / 2 {
            // It was us who did not run.
            self.pulses.iter_mut().for_each(|pulse| pulse.forgive(now));
        }
        if now.since(self.state.asked_at) < every {
            return;
        }
        self.state.asked_at = now;
        let timeout = self.shard_timeout;
        let dead = self
            .pulses
            .iter_mut()
            .enumerate()
            .filter_map(|(shard, pulse)| (!pulse.check(now, timeout)).then_some(shard));
        self.sources.dead_shards = dead.collect();
    }

    fn ask_every(&self) -> Duration {
        let unknown = self.pulses.iter().any(|pulse| !pulse.known);
        if unknown { FIRST_ANSWER } else { self.shard_timeout / ASKED_PER_TIMEOUT }
    }

    /// Applies tracking.
    pub(super) fn stand(&mut self, now: Moment) {
        let mut out = Vec::new();
        for place in 0..self.instances.len() {
            let standing =
                self.sources.standing(&self.instances[place].config.tracks, &self.network);
            self.instances[place].stand(standing, now, &mut out);
            self.state.dirty |= !out.is_empty();
            self.carry_out(place, &mut out, now);
        }
        self.settle(now);
    }

    fn obey(&mut self) {
        for _ in 0..COMMANDS_MAX {
            let Ok(Command { what, reply }) = self.commands.try_recv() else { return };
            let result = match what {
                What::Order(order, instance) => self.carry_order(order, instance.as_deref()),
                What::Reload(config) => self.reload(*config),
            };
            // Who asked may look at once: what came of it is shown by then.
            self.publish(self.clock.now());
            self.state.dirty = true;
            // Whoever asked may have given up.
            let _ = reply.try_send(result);
        }
    }

    fn carry_order(&mut self, order: Order, name: Option<&str>) -> Result<(), String> {
        let now = self.clock.now();
        if name.is_some_and(|name| self.instances.iter().all(|one| one.config.name != name)) {
            let names: Vec<_> = self.instances.iter().map(|one| one.config.name.as_str()).collect();
            return Err(format!("there is no such instance; there are: {}", names.join(", ")));
        }
        let (mut out, mut refused) = (Vec::new(), Vec::new());
        let named = self.instances.iter().position(|one| Some(one.config.name.as_str()) == name);
        let concerned = named.map(|place| self.group_of(place));
        for place in 0..self.instances.len() {
            if concerned.as_ref().is_some_and(|places| !places.contains(&place)) {
                continue;
            }
            let instance = &mut self.instances[place];
            if let Err(why) = instance.obey(order, now, &mut out) {
                refused.push(format!("{}: {why}", instance.config.name));
            }
            self.carry_out(place, &mut out, now);
        }
        self.state.stopping |= matches!(order, Order::Stop | Order::StopNow);
        self.settle(now);
        if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) }
    }

    /// After an order to stop: nothing is held for a peer to take over any more; the rest is shut down.
    fn is_idle(&mut self) -> bool {
        if self.instances.iter().any(Instance::is_handing_over) {
            return false;
        }
        let (now, mut out) = (self.clock.now(), Vec::new());
        for place in 0..self.instances.len() {
            self.instances[place].start_or_stop(now, true, &mut out);
            self.carry_out(place, &mut out, now);
        }
        true
    }

    /// How long nothing has to be done.
    fn sleep(&self) -> Duration {
        let now = self.clock.now();
        let asked = (!self.pulses.is_empty()).then(|| self.state.asked_at.after(self.ask_every()));
        let deadlines = self.instances.iter().filter_map(Instance::deadline).chain(asked);
        let next = deadlines.min().map_or(SLEEP_MAX, |deadline| deadline.since(now));
        next.min(SLEEP_MAX)
    }

    fn tell_transition(&mut self, place: usize, transition: Transition) {
        self.state.dirty = true;
        let Some(instance) = self.instances.get(place) else { return };
        let (config, priority) = (&instance.config, instance.router.priority());
        let state = keepalived_name(transition.to);
        if let Some(command) = &config.notify {
            let mut command = command.clone();
            command.extend(
                ["INSTANCE", &config.name, state, &priority.to_string()].map(str::to_owned),
            );
            self.notifier.send(Job::Command(command));
        }
        if let Some(webhook) = &config.webhook {
            let document = serde_json::json!({
                "instance": config.name,
                "from": transition.from.name(),
                "to": transition.to.name(),
                "reason": transition.reason.to_string(),
                "priority": priority,
            });
            self.notifier.send(Job::Post(webhook.clone(), document.to_string()));
        }
        (self.reporter.0)(Event::Transition {
            instance: config.name.clone(),
            from: transition.from,
            to: transition.to,
            reason: transition.reason.to_string(),
            priority,
        });
    }

    /// Tells trouble and findings that are new; what has gone may be told again when it comes back.
    fn tell_trouble(&mut self) {
        let now = self.clock.now();
        if !self.state.dirty && now.since(self.state.published_at) < PUBLISH_EVERY {
            return;
        }
        let mut current = HashSet::new();
        for instance in &self.instances {
            let name = &instance.config.name;
            let texts = instance.problems().cloned().chain(instance.findings(now));
            current.extend(texts.map(|text| format!("{name}: {text}")));
        }
        current.extend(self.state.socket_problems.iter().cloned());
        for text in current.difference(&self.state.told) {
            (self.reporter.0)(Event::Trouble(text.clone()));
        }
        self.state.told = current;
    }

    fn publish(&mut self, now: Moment) {
        self.state.published_at = now;
        self.state.dirty = false;
        let scripts = self.sources.scripts.iter().map(|(script, state)| ScriptStatus {
            name: script.name.clone(),
            good: state.verdict.is_good(),
            successes: state.successes.load(Ordering::Relaxed),
            failures: state.failures.load(Ordering::Relaxed),
            timeouts: state.timeouts.load(Ordering::Relaxed),
        });
        let stats = &self.notifier.stats;
        let counters = [&stats.done, &stats.failed, &stats.dropped];
        self.board.publish(Snapshot {
            instances: self.instances.iter().map(|instance| instance.status(now)).collect(),
            scripts: scripts.collect(),
            foreign: self.state.foreign,
            dropped: self.state.dropped,
            realtime: self.realtime,
            locked: self.locked,
            notifications: counters.map(|counter| counter.load(Ordering::Relaxed)),
        });
    }
}

fn count(dropped: &mut [u64; REASONS], error: Error) {
    if let Some(count) = dropped.get_mut(error.index()) {
        *count += 1;
    }
}

/// The words that keepalived's notify scripts are called with.
fn keepalived_name(state: State) -> &'static str {
    match state {
        State::Initialize => "FAULT",
        State::Backup => "BACKUP",
        State::Active => "MASTER",
    }
}
