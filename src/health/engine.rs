//! The prober's thread: what is due is begun, what is ready goes on, what takes too long ends.

use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use slab::Slab;

use super::attempt::{Aim, Attempt, Finding, Refused};
use super::check::Check;
use super::course::{Course, millis};
use super::table::{Line, Record, Table};
use super::{Event, Layer, Sink, Target, Tell, Verdict};
use crate::balance::hash::mix;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::notify::EventFd;
use crate::sys::process;

/// Events taken from the kernel at a time.
const EVENTS: usize = 256;
/// Probes begun before what is ready is looked at again.
const STARTS: usize = 64;
/// Commands that run at a time, those that were killed and have not gone included.
const COMMANDS_MAX: usize = 32;
/// How often killed commands are looked for.
const REAP_EVERY: Duration = Duration::from_millis(20);
/// At the end they are looked for so often; then they are init's.
const REAP_ROUNDS: u32 = 100;
/// A probe that begins this much after its time is late.
const LATE_MS: u64 = 100;
/// Nothing was missing for so long: it is over.
const FED_AFTER_MS: u64 = 2_000;
/// The token of the eventfd; probes' are slot numbers with a count above them.
const WAKE: u64 = u64::MAX;
/// Characters of a reason that are kept.
const REASON_MAX: usize = 200;

/// What makes two targets one probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    name: Option<String>,
    check: Arc<Check>,
}

/// One who wants to know.
struct Listener {
    layer: Layer,
    group: String,
    server: String,
    sink: Arc<dyn Sink>,
}

/// One endpoint and check.
struct Probe {
    key: Key,
    tls: Option<Arc<ClientConfig>>,
    listeners: Vec<Listener>,
    record: Arc<Record>,
    course: Course,
    running: Option<Running>,
    /// Changes with each entry in the agenda: older ones are void.
    version: u32,
}

struct Running {
    attempt: Attempt,
    interest: Interest,
    began: Instant,
}

pub(super) struct Engine {
    inbox: Receiver<(Layer, Vec<Target>)>,
    wake: Arc<EventFd>,
    table: Arc<Table>,
    concurrent: usize,
    tell: Tell,
    epoll: Epoll,
    epoch: Instant,
    probes: Slab<Probe>,
    known: HashMap<Key, usize>,
    /// What happens when: a probe begins, or is over time.
    agenda: BinaryHeap<Reverse<(u64, usize, u32)>>,
    /// Probes that are due and wait for their turn, with their version.
    waiting: VecDeque<(usize, u32)>,
    running: usize,
    commands: usize,
    killed: Vec<Child>,
    /// When something was last missing, and whether the operator knows.
    starved: Option<u64>,
    random: u64,
    versions: u32,
}

#[allow(clippy::mutable_key_type)] // patterns are compared and hashed by their text
impl Engine {
    pub(super) fn new(
        inbox: Receiver<(Layer, Vec<Target>)>,
        wake: Arc<EventFd>,
        table: Arc<Table>,
        concurrent: usize,
        tell: Tell,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EVENTS)?;
        epoll.add(wake.as_fd(), Interest::Read, WAKE)?;
        Ok(Self {
            inbox,
            wake,
            table,
            concurrent,
            tell,
            epoll,
            epoch: Instant::now(),
            probes: Slab::new(),
            known: HashMap::new(),
            agenda: BinaryHeap::new(),
            waiting: VecDeque::new(),
            running: 0,
            commands: 0,
            killed: Vec::new(),
            starved: None,
            random: RandomState::new().build_hasher().finish(),
            versions: 0,
        })
    }

    pub(super) fn run(mut self) {
        let mut ready = Vec::with_capacity(EVENTS);
        loop {
            match self.inbox.try_recv() {
                Ok((layer, targets)) => self.set_targets(layer, targets),
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {}
            }
            self.begin_due();
            let pause = self.pause();
            if self.epoll.wait(pause, &mut ready).is_err() {
                std::thread::sleep(REAP_EVERY); // cannot happen; must not spin
            }
            let now = self.now_ms();
            for &token in &ready {
                self.go_on(token);
            }
            // An answer that has come by now counts, however late this thread is: times are over only
            // when all that was ready has been looked at.
            if ready.len() < EVENTS {
                self.look_at_agenda(now);
            }
            self.reap();
        }
        for slot in self.probes.iter().map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.stop(slot);
        }
        for _ in 0..REAP_ROUNDS {
            self.reap();
            if self.killed.is_empty() {
                break;
            }
            std::thread::sleep(REAP_EVERY);
        }
    }

    fn now_ms(&self) -> u64 {
        millis(self.epoch.elapsed())
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random)
    }

    /// Unlike that of any other entry in the agenda, since slots are used again.
    fn next_version(&mut self) -> u32 {
        self.versions = self.versions.wrapping_add(1);
        self.versions
    }

    /// How long nothing has to be done.
    fn pause(&self) -> Option<Duration> {
        if !self.waiting.is_empty() && self.running < self.concurrent {
            return Some(Duration::ZERO);
        }
        let next = self
            .agenda
            .peek()
            .map(|Reverse((at, ..))| Duration::from_millis(at.saturating_sub(self.now_ms())));
        if self.killed.is_empty() {
            return next;
        }
        Some(next.map_or(REAP_EVERY, |next| next.min(REAP_EVERY)))
    }

    fn set_targets(&mut self, layer: Layer, targets: Vec<Target>) {
        for (_, probe) in &mut self.probes {
            probe.listeners.retain(|listener| listener.layer != layer);
        }
        let lines = targets.into_iter().map(|target| self.watch(layer, target)).collect();
        let unwanted = self.probes.iter().filter(|(_, probe)| probe.listeners.is_empty());
        for slot in unwanted.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.stop(slot);
            let probe = self.probes.remove(slot);
            self.known.remove(&probe.key);
        }
        self.table.replace(layer, lines);
        self.table.totals.probes.store(self.probes.len(), Relaxed);
        self.table.totals.orders.fetch_sub(1, AcqRel);
    }

    fn watch(&mut self, layer: Layer, target: Target) -> Line {
        let key = Key {
            address: target.probed(),
            name: target.name.clone(),
            check: Arc::clone(&target.check),
        };
        let slot = match self.known.get(&key) {
            Some(slot) => *slot,
            None => self.add(key.clone(), target.before.as_ref()),
        };
        let probe = &mut self.probes[slot];
        match probe.course.good() {
            Some(up) => target.sink.set(up, false),
            None if key.check.start_down => target.sink.set(false, false),
            None => {}
        }
        let line = Line {
            group: target.group.clone(),
            server: target.server.clone(),
            kind: key.check.kind.name(),
            probed: key.address.to_string(),
            awaited: key.check.warm_up.is_zero(),
            record: Arc::clone(&probe.record),
        };
        probe.tls = target.tls;
        let (group, server, sink) = (target.group, target.server, target.sink);
        probe.listeners.push(Listener { layer, group, server, sink });
        line
    }

    fn add(&mut self, key: Key, before: Option<&Verdict>) -> usize {
        let (now, random) = (self.now_ms(), self.random());
        let course = match before {
            Some(verdict) => Course::resumed(&key.check, (verdict.up, verdict.row), now, random),
            None => Course::new(&key.check, now, random),
        };
        let (at, version) = (course.next_ms(), self.next_version());
        let slot = self.probes.insert(Probe {
            key: key.clone(),
            tls: None,
            listeners: Vec::new(),
            record: before.map_or_else(Arc::default, |verdict| Arc::new(Record::of(verdict))),
            course,
            running: None,
            version,
        });
        self.known.insert(key, slot);
        self.agenda.push(Reverse((at, slot, version)));
        slot
    }

    /// Ends what is under way without a result.
    fn stop(&mut self, slot: usize) {
        let Some(running) = self.probes.get_mut(slot).and_then(|probe| probe.running.take()) else {
            return;
        };
        self.discard(running);
    }

    fn discard(&mut self, running: Running) {
        self.epoll.remove(running.attempt.fd());
        self.running -= 1;
        self.table.totals.running.store(self.running, Relaxed);
        if let Attempt::Command { mut child, .. } = running.attempt {
            match child.try_wait() {
                Ok(None) => {
                    process::kill_group(&child);
                    self.killed.push(child);
                }
                _ => self.commands -= 1,
            }
        }
    }

    /// Takes back killed commands once they have gone.
    fn reap(&mut self) {
        let before = self.killed.len();
        self.killed.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.commands -= before - self.killed.len();
    }

    /// What is on the agenda by now: probes whose time has come, and those that are over theirs.
    fn look_at_agenda(&mut self, now: u64) {
        while let Some(&Reverse((at, slot, version))) = self.agenda.peek()
            && at <= now
        {
            self.agenda.pop();
            let Some(probe) = self.probes.get(slot).filter(|probe| probe.version == version) else {
                continue;
            };
            match &probe.running {
                None => self.waiting.push_back((slot, version)),
                Some(running) => {
                    let finding = running.attempt.timed_out(&probe.key.check);
                    self.finish(slot, finding);
                }
            }
        }
    }

    fn begin_due(&mut self) {
        for _ in 0..STARTS {
            if self.running >= self.concurrent {
                return;
            }
            let Some((slot, version)) = self.waiting.pop_front() else { return };
            if self.probes.get(slot).is_some_and(|probe| probe.version == version) {
                self.begin(slot);
            }
        }
    }

    fn begin(&mut self, slot: usize) {
        let (now, commands) = (self.now_ms(), self.commands);
        let Some(probe) = self.probes.get_mut(slot) else { return };
        if now.saturating_sub(probe.course.next_ms()) > LATE_MS {
            self.table.totals.late.fetch_add(1, Relaxed);
        }
        probe.course.begin(now);
        let is_command = matches!(probe.key.check.kind, super::check::Kind::Exec(_));
        if is_command && commands >= COMMANDS_MAX {
            return self.postpone(slot, "as many commands run as may");
        }
        let aim = Aim {
            check: &probe.key.check,
            address: probe.key.address,
            name: probe.key.name.as_deref(),
            tls: probe.tls.as_ref(),
        };
        match Attempt::start(aim) {
            Ok(attempt) => self.started(slot, attempt),
            Err(Refused::Failed(why)) => self.conclude(slot, Err(why), Duration::ZERO),
            Err(Refused::Local(why)) => self.postpone(slot, &why),
        }
    }

    fn started(&mut self, slot: usize, attempt: Attempt) {
        let now = self.now_ms();
        if self.starved.is_some_and(|last| now.saturating_sub(last) >= FED_AFTER_MS) {
            self.starved = None;
            (self.tell)(Event::Fed);
        }
        let version = self.next_version();
        let Some(probe) = self.probes.get_mut(slot) else { return };
        probe.version = version;
        let deadline = now.saturating_add(millis(probe.key.check.timeout).max(1));
        self.agenda.push(Reverse((deadline, slot, probe.version)));
        let interest = attempt.interest();
        self.commands += usize::from(matches!(attempt, Attempt::Command { .. }));
        self.running += 1;
        self.table.totals.running.store(self.running, Relaxed);
        let added = self.epoll.add(attempt.fd(), interest, token(slot, probe.version));
        probe.running = Some(Running { attempt, interest, began: Instant::now() });
        if let Err(error) = added {
            self.stop(slot);
            self.postpone(slot, &error.to_string());
        }
    }

    fn go_on(&mut self, token: u64) {
        if token == WAKE {
            return self.wake.clear();
        }
        let Ok(slot) = usize::try_from(token & u64::from(u32::MAX)) else { return };
        let Some(probe) = self.probes.get_mut(slot) else { return };
        if u64::from(probe.version) != token >> 32 {
            return;
        }
        let Some(running) = &mut probe.running else { return };
        if let Some(finding) = running.attempt.advance(&probe.key.check) {
            return self.finish(slot, finding);
        }
        let interest = running.attempt.interest();
        if interest != running.interest {
            running.interest = interest;
            // Failing that, the deadline ends it.
            let _ = self.epoll.modify(running.attempt.fd(), interest, token);
        }
    }

    fn finish(&mut self, slot: usize, finding: Finding) {
        let Some(running) = self.probes.get_mut(slot).and_then(|probe| probe.running.take()) else {
            return;
        };
        let took = running.began.elapsed();
        self.discard(running);
        self.conclude(slot, finding, took);
    }

    /// Something is missing here: the verdict stays, and the probe is made a little later.
    fn postpone(&mut self, slot: usize, why: &str) {
        self.table.totals.postponed.fetch_add(1, Relaxed);
        if self.starved.replace(self.now_ms()).is_none() {
            (self.tell)(Event::Starved(why.to_owned()));
        }
        let (now, random) = (self.now_ms(), self.random());
        let Some(probe) = self.probes.get_mut(slot) else { return };
        let check = Arc::clone(&probe.key.check);
        probe.course.postpone(&check, now, random);
        self.schedule(slot);
    }

    fn schedule(&mut self, slot: usize) {
        let version = self.next_version();
        let Some(probe) = self.probes.get_mut(slot) else { return };
        probe.version = version;
        self.agenda.push(Reverse((probe.course.next_ms(), slot, probe.version)));
    }

    /// Takes in a result, and tells whoever wants to know when it changes the verdict.
    fn conclude(&mut self, slot: usize, finding: Finding, took: Duration) {
        let (now, random) = (self.now_ms(), self.random());
        let Some(probe) = self.probes.get_mut(slot) else { return };
        let check = Arc::clone(&probe.key.check);
        let known = probe.course.good().is_some();
        let good = finding.is_ok();
        let changed = probe.course.finish(&check, good, now, random);
        let said = finding.map_or_else(|why| shortened(&why), |()| "ok".to_owned());
        note(probe, good, changed, &said, took);
        if let Some(up) = changed {
            for listener in &probe.listeners {
                listener.sink.set(up, known);
                if known || !up {
                    let (group, server) = (listener.group.clone(), listener.server.clone());
                    let (layer, why) = (listener.layer, said.clone());
                    (self.tell)(Event::Verdict { layer, group, server, up, why });
                }
            }
        }
        if good && changed.is_none() && probe.course.good() == Some(true) {
            probe.listeners.iter().for_each(|listener| listener.sink.well(check.rise));
        }
        if !known {
            probe.record.lock().told = true;
        }
        self.schedule(slot);
    }
}

fn note(probe: &Probe, good: bool, changed: Option<bool>, said: &str, took: Duration) {
    let now = Instant::now();
    let mut standing = probe.record.lock();
    standing.successes += u64::from(good);
    standing.failures += u64::from(!good);
    standing.pending = probe.course.row();
    if let Some(up) = changed {
        standing.changes += u64::from(standing.up.is_some());
        standing.up = Some(up);
        standing.why = said.to_owned();
        standing.since = Some(now);
    }
    if standing.last != said {
        standing.last = said.to_owned();
    }
    (standing.last_at, standing.last_took) = (Some(now), took);
}

fn token(slot: usize, version: u32) -> u64 {
    u64::from(version) << 32 | (slot as u64 & u64::from(u32::MAX))
}

fn shortened(why: &str) -> String {
    why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_MAX).collect()
}
