//! Health checks and outlier detection as the control thread sees them: what is probed, where verdicts go, who is
//! ejected, and what the operator is shown.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::balance::outlier::{self, Decision, Reason, Record};
use crate::control::config::Config;
use crate::control::config::checks::UpstreamCheck;
use crate::control::logger::Logger;
use crate::control::probing::{Probing, check_health, resumed};
use crate::control::state::{State, UpstreamState};
use crate::control::upgrade::standing::{CheckHealth, MemberHealth, OutlierHealth};
use crate::health::{Counts, Layer, Row, Sink, Target};
use crate::l7::config::ServerAddress;
use crate::l7::pool::millis;
use crate::l7::upstream::Member;
use crate::ring::executor::spawn;
use crate::ring::{Ring, Timer};

/// How often panic thresholds and ejections that end are looked at.
const LOOK_EVERY_MS: u64 = 100;

/// Everything about the health of servers that requests do not find out by themselves.
#[derive(Debug)]
pub struct Checks {
    epoch: Instant,
    probing: Rc<Probing>,
    wanted: RefCell<Vec<Option<UpstreamCheck>>>,
    /// By upstream and server.
    records: RefCell<HashMap<(String, SocketAddr), Judged>>,
    /// What an earlier process knew, until the prober has been told.
    before: RefCell<HashMap<(String, SocketAddr), CheckHealth>>,
    watches: RefCell<Watches>,
    /// When outliers of an upstream were last judged, by its name.
    judged_ms: RefCell<HashMap<String, u64>>,
    watching: Cell<bool>,
}

/// Of every endpoint that is probed, by its place in memory, which the member keeps from being used again.
type Watches = HashMap<usize, (Arc<Member>, Arc<Watch>)>;

/// What is known of a server as an outlier.
#[derive(Debug, Clone, Default)]
struct Judged {
    record: Record,
    ejections: u64,
    spared: u64,
    reason: Option<Reason>,
}

/// The figures of a server as an outlier.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ejections {
    /// Times it was ejected.
    pub made: u64,
    /// Times it was not because as many as may be were out.
    pub spared: u64,
}

/// How probed servers stand, by upstream and server.
pub type Rows = HashMap<(String, String), Row>;

/// Whether an endpoint is checked, for all sinks that it ever had: older ones are with the prober until it takes in the
/// latest list.
#[derive(Debug, Default)]
struct Watch {
    over: Mutex<bool>,
}

impl Watch {
    /// True once nobody checks it any more. While this is held it stays as it is.
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where verdicts on a member go.
struct MemberSink {
    member: Arc<Member>,
    watch: Arc<Watch>,
    epoch: Instant,
    slow_start: bool,
}

impl Sink for MemberSink {
    fn set(&self, up: bool, change: bool) {
        let over = self.watch.lock();
        if *over {
            return; // nobody would ever say that it is up again
        }
        if up {
            if change {
                // What requests saw before says nothing about a server that has come back.
                self.member.passive.clear();
            }
            self.member.gate.up(since(self.epoch), change && self.slow_start);
        } else {
            self.member.gate.down();
        }
    }

    fn well(&self, rise: u32) {
        // It failed requests and no check: what made it fail was over before the checks had counted to `fall`.
        self.member.passive.vouch(rise);
    }
}

fn since(epoch: Instant) -> u64 {
    millis(epoch.elapsed())
}

impl Checks {
    /// Gives the prober what is to be probed.
    ///
    /// # Errors
    /// When its thread cannot be made.
    pub fn start(
        config: &Config,
        upstreams: &[Rc<UpstreamState>],
        before: &[MemberHealth],
        epoch: Instant,
        probing: Rc<Probing>,
    ) -> io::Result<Self> {
        let started = Self {
            epoch,
            probing,
            wanted: RefCell::new(config.checks.clone()),
            records: RefCell::default(),
            before: RefCell::default(),
            watches: RefCell::default(),
            judged_ms: RefCell::default(),
            watching: Cell::new(false),
        };
        started.restore(upstreams, before);
        started.probe()?;
        started.refresh(upstreams);
        started.before.take();
        Ok(started)
    }

    /// Goes on where an earlier process stood.
    fn restore(&self, upstreams: &[Rc<UpstreamState>], before: &[MemberHealth]) {
        let known: HashMap<_, _> =
            before.iter().map(|one| ((one.upstream.as_str(), one.server), one)).collect();
        let mut records = self.records.borrow_mut();
        let now = since(self.epoch);
        for upstream in upstreams {
            let passed = before.iter().filter(|one| one.upstream == upstream.shared.config.name);
            passed
                .filter_map(|one| one.budget)
                .for_each(|sums| upstream.shared.budget.restore(now, sums));
            let config = &upstream.shared.config;
            let set = upstream.set.borrow();
            for member in &set.members {
                let Some(before) = known.get(&(config.name.as_str(), member.address)) else {
                    continue;
                };
                member.gate.restore(before.gate);
                member.passive.restore(before.passive);
                let key = (config.name.clone(), member.address);
                if let Some(check) = &before.check {
                    self.before.borrow_mut().insert(key.clone(), check.clone());
                }
                match &before.outlier {
                    Some(outlier) if config.outlier.is_some() => {
                        let record = Record::standing(outlier.until_ms, outlier.times);
                        let reason = outlier.reason;
                        records.insert(key, Judged { record, reason, ..Judged::default() });
                    }
                    _ => member.gate.readmit(since(self.epoch), false),
                }
            }
            upstream.shared.judge_panic(&set);
        }
    }

    /// How servers stand, for a successor.
    #[must_use]
    pub fn standing(&self, upstreams: &[Rc<UpstreamState>]) -> Vec<MemberHealth> {
        let rows = self.rows();
        let records = self.records.borrow();
        let mut all = Vec::new();
        for upstream in upstreams {
            let name = &upstream.shared.config.name;
            let mut budget = Some(upstream.shared.budget.standing(since(self.epoch)));
            for member in &upstream.set.borrow().members {
                let row = rows.get(&(name.clone(), member.label.clone()));
                let outlier = records.get(&(name.clone(), member.address));
                all.push(MemberHealth {
                    upstream: name.clone(),
                    server: member.address,
                    gate: member.gate.standing(),
                    passive: member.passive.standing(),
                    check: row.and_then(check_health),
                    outlier: outlier.map(|judged| OutlierHealth {
                        until_ms: judged.record.until_ms(),
                        times: judged.record.times(),
                        reason: judged.reason,
                    }),
                    budget: budget.take(),
                });
            }
        }
        all
    }

    /// Starts the prober if there is something to probe.
    fn probe(&self) -> io::Result<()> {
        match self.wanted.borrow().iter().any(Option::is_some) {
            true => self.probing.start(),
            false => Ok(()),
        }
    }

    /// Probes what another configuration has; endpoints with the same check keep their state.
    ///
    /// # Errors
    /// When the prober was needed for the first time and cannot be started.
    pub fn replace(&self, config: &Config, upstreams: &[Rc<UpstreamState>]) -> io::Result<()> {
        self.wanted.replace(config.checks.clone());
        self.probe()?;
        self.refresh(upstreams);
        Ok(())
    }

    /// Probes the members that there are now; those that were there before keep their state.
    pub fn refresh(&self, upstreams: &[Rc<UpstreamState>]) {
        let targets = self.targets(upstreams);
        self.probing.watch(Layer::Proxy, targets);
        self.open_unchecked(upstreams);
    }

    /// What is to be probed now. Endpoints that are not any more hear of no verdict from here on.
    fn targets(&self, upstreams: &[Rc<UpstreamState>]) -> Vec<Target> {
        let mut before = self.watches.take();
        let wanted = self.wanted.borrow();
        let (mut targets, mut watches) = (Vec::new(), HashMap::new());
        for (upstream, check) in upstreams.iter().zip(wanted.iter()) {
            let Some(check) = check else { continue };
            let set = upstream.set.borrow();
            for member in set.members.iter().filter(|member| !member.config.down) {
                let place = Arc::as_ptr(&member.endpoint) as usize;
                let (_, watch) = watches.entry(place).or_insert_with(|| {
                    let known = before.remove(&place);
                    known.unwrap_or_else(|| (Arc::clone(member), Arc::default()))
                });
                targets.push(self.target(upstream, check, member, Arc::clone(watch)));
            }
        }
        before.values().for_each(|(_, watch)| *watch.lock() = true);
        self.watches.replace(watches);
        targets
    }

    /// Whoever has no check is up. To be called when verdicts do not reach them any more.
    fn open_unchecked(&self, upstreams: &[Rc<UpstreamState>]) {
        for (upstream, check) in upstreams.iter().zip(self.wanted.borrow().iter()) {
            if check.is_none() {
                let set = upstream.set.borrow();
                set.members.iter().for_each(|member| member.gate.up(since(self.epoch), false));
            }
        }
    }

    fn target(
        &self,
        upstream: &UpstreamState,
        checked: &UpstreamCheck,
        member: &Arc<Member>,
        watch: Arc<Watch>,
    ) -> Target {
        // A server that was added at run time has the upstream's check, whatever number it got.
        let configured = upstream.shared.config.servers.get(member.server);
        let same = configured.is_some_and(|server| server.address == member.config.address);
        let own = checked.servers.get(member.server).filter(|_| same);
        let check = own.cloned().unwrap_or_else(|| Arc::new(checked.base.check.clone()));
        let name = match &member.config.address {
            ServerAddress::Name(name, _) => Some(name.clone()),
            ServerAddress::Socket(_) => None,
        };
        let slow_start = !upstream.shared.config.slow_start.is_zero();
        let key = (upstream.shared.config.name.clone(), member.address);
        let before = self.before.borrow().get(&key).cloned();
        let mut target = Target {
            group: upstream.shared.config.name.clone(),
            server: member.label.clone(),
            address: member.address,
            name,
            check,
            tls: checked.base.client.clone(),
            sink: Arc::new(MemberSink {
                member: Arc::clone(member),
                watch,
                epoch: self.epoch,
                slow_start,
            }),
            before: None,
        };
        target.before = before.and_then(|before| resumed(&target, before));
        target
    }

    /// How every probed server stands, by upstream and server.
    #[must_use]
    pub fn rows(&self) -> Rows {
        let rows = self.probing.rows(Layer::Proxy);
        rows.into_iter().map(|row| ((row.group.clone(), row.server.clone()), row)).collect()
    }

    /// The prober's own figures; `None` when nothing is probed.
    #[must_use]
    pub fn counts(&self) -> Option<Counts> {
        self.probing.counts()
    }

    /// No endpoint of either layer is probed any more.
    pub fn end(&self) {
        self.probing.end();
    }

    /// As [`Checks::end`], and waits for commands under way to be killed, a second at most.
    pub fn finish(&self) {
        self.probing.finish();
    }

    /// What is known of a server as an outlier.
    #[must_use]
    pub fn ejections(&self, upstream: &str, server: SocketAddr) -> Ejections {
        let records = self.records.borrow();
        let judged = records.get(&(upstream.to_owned(), server));
        judged.map_or_else(Ejections::default, |judged| Ejections {
            made: judged.ejections,
            spared: judged.spared,
        })
    }

    /// Why a server is ejected.
    #[must_use]
    fn ejected_why(&self, upstream: &str, server: SocketAddr) -> Option<String> {
        let records = self.records.borrow();
        let judged = records.get(&(upstream.to_owned(), server))?;
        judged.reason.map(|reason| reason.to_string())
    }

    /// Judges an upstream's members when its interval is over.
    fn judge(&self, upstream: &UpstreamState, logger: Logger) {
        let config = &upstream.shared.config;
        let now = since(self.epoch);
        let Some(settings) = &config.outlier else {
            // A reload may have ended it while some were out.
            let set = upstream.set.borrow();
            set.members.iter().for_each(|member| member.gate.readmit(now, false));
            return;
        };
        let mut judged_ms = self.judged_ms.borrow_mut();
        let last = judged_ms.entry(config.name.clone()).or_insert(now);
        let due = now.saturating_sub(*last) >= millis(settings.interval);
        if due {
            *last = now;
        }
        let set = upstream.set.borrow();
        let mut all = self.records.borrow_mut();
        let key = |member: &Arc<Member>| (config.name.clone(), member.address);
        let totals: Vec<outlier::Totals> =
            set.members.iter().map(|member| member.totals()).collect();
        let mut records: Vec<Record> = set
            .members
            .iter()
            .zip(&totals)
            .map(|(member, totals)| {
                let new = || Judged { record: Record::new(*totals), ..Judged::default() };
                all.entry(key(member)).or_insert_with(new).record.clone()
            })
            .collect();
        let decisions = if due {
            outlier::judge(settings, &mut records, &totals, now)
        } else {
            outlier::readmit(&mut records, now)
        };
        for (member, record) in set.members.iter().zip(records) {
            if let Some(judged) = all.get_mut(&key(member)) {
                judged.record = record;
            }
        }
        for decision in decisions {
            let (Decision::Eject(index, _) | Decision::Readmit(index) | Decision::Spare(index, _)) =
                decision;
            let member = &set.members[index];
            if let Some(judged) = all.get_mut(&key(member)) {
                self.carry_out(decision, upstream, member, judged, logger);
            }
        }
    }

    fn carry_out(
        &self,
        decision: Decision,
        upstream: &UpstreamState,
        member: &Member,
        judged: &mut Judged,
        logger: Logger,
    ) {
        let config = &upstream.shared.config;
        let server = [("upstream", config.name.as_str()), ("server", &member.label)];
        match decision {
            Decision::Eject(_, reason) => {
                member.gate.eject();
                judged.ejections += 1;
                judged.reason = Some(reason);
                let why = reason.to_string();
                logger.warn(
                    "server is ejected as an outlier",
                    &[server[0], server[1], ("reason", &why)],
                );
            }
            Decision::Readmit(_) => {
                member.gate.readmit(since(self.epoch), !config.slow_start.is_zero());
                judged.reason = None;
                logger.info("server is no longer ejected", &server);
            }
            Decision::Spare(_, reason) => {
                judged.spared += 1;
                let why = reason.to_string();
                let fields = [server[0], server[1], ("reason", &why)];
                logger.warn("an outlier stays: as many servers are ejected as may be", &fields);
            }
        }
    }

    /// Forgets servers that are no members any more.
    fn tidy(&self, upstreams: &[Rc<UpstreamState>]) {
        let mut records = self.records.borrow_mut();
        let members = |state: &Rc<UpstreamState>| state.set.borrow().members.len();
        if records.len() > upstreams.iter().map(members).sum::<usize>() {
            records.retain(|(name, address), _| {
                upstreams.iter().any(|upstream| {
                    let known = |member: &Arc<Member>| member.address == *address;
                    upstream.shared.config.name == *name
                        && upstream.set.borrow().members.iter().any(known)
                })
            });
        }
    }
}

/// Looks after panic thresholds and outliers from now on, if an upstream has either. Call it again when upstreams
/// may have got them.
pub fn watch(ring: &Rc<Ring>, state: &Rc<State>, logger: Logger) {
    let needed = |upstream: &Rc<UpstreamState>| {
        let config = &upstream.shared.config;
        config.panic_threshold > 0 || config.outlier.is_some()
    };
    if !state.upstreams().iter().any(needed) || state.checks.watching.replace(true) {
        return;
    }
    let (ring, state) = (Rc::clone(ring), Rc::clone(state));
    spawn(&ring.clone(), async move {
        let timer = Timer::new(&ring);
        loop {
            let upstreams = state.upstreams();
            for upstream in upstreams.iter() {
                state.checks.judge(upstream, logger);
                if upstream.shared.config.panic_threshold > 0 {
                    judge_panic(upstream, logger);
                }
            }
            state.checks.tidy(&upstreams);
            timer.set(LOOK_EVERY_MS);
            timer.fired().await;
        }
    });
}

fn judge_panic(upstream: &UpstreamState, logger: Logger) {
    if !upstream.shared.judge_panic(&upstream.set.borrow()) {
        return;
    }
    let fields = [("upstream", upstream.shared.config.name.as_str())];
    if upstream.shared.is_panicking() {
        logger
            .error("too few servers are usable: health checks and ejections are ignored", &fields);
    } else {
        logger.info("enough servers are usable again", &fields);
    }
}

/// How a server stands with its check, for `/status`.
#[must_use]
pub fn check_status(row: &Row) -> Value {
    json!({
        "kind": row.kind,
        "address": row.probed,
        "state": match row.up {
            None => "unknown",
            Some(true) => "up",
            Some(false) => "down",
        },
        "why": row.why,
        "since_seconds": row.since.as_secs_f64(),
        "last": row.last,
        "last_seconds_ago": row.last_ago.map(|ago| ago.as_secs_f64()),
        "last_took_ms": row.last_took.as_secs_f64() * 1000.0,
        "pending": row.pending,
        "successes": row.successes,
        "failures": row.failures,
        "changes": row.changes,
    })
}

/// What a server's `/status` says besides its own figures.
#[must_use]
pub fn server_status(
    checks: &Checks,
    rows: &Rows,
    upstream: &UpstreamState,
    member: &Member,
) -> Vec<(&'static str, Value)> {
    let config = &upstream.shared.config;
    let row = rows.get(&(config.name.clone(), member.label.clone()));
    let mut more = vec![("check", row.map_or(Value::Null, check_status))];
    if config.outlier.is_some() {
        let counts = checks.ejections(&config.name, member.address);
        more.push((
            "outlier",
            json!({
                "ejected": member.gate.is_ejected(),
                "why": checks.ejected_why(&config.name, member.address),
                "ejections": counts.made,
                "spared": counts.spared,
            }),
        ));
    }
    if !member.gate.is_out() && !member.gate.is_open() {
        let share = member.gate.share(since(checks.epoch), millis(config.slow_start));
        more.push(("slow_start_percent", share.into()));
    }
    more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l7::upstream::SharedUpstream;

    const SERVER: &str = "127.0.0.1:9";

    fn config(check: &str) -> Config {
        let text = format!(
            "[[listener]]\nbind = \"127.0.0.1:80\"\n[[route]]\nupstream = \"a\"\n\
             [upstream.a]\nservers = [{{ address = \"{SERVER}\" }}]\n{check}"
        );
        crate::control::config::parse("t", &text).expect("a configuration")
    }

    /// A prober that has not taken in a new list yet has an old sink's verdict in its hands.
    #[test]
    fn a_verdict_that_comes_after_its_check_has_gone_takes_nobody_out() {
        let (checked, unchecked) = (config("check = { tcp = true }"), config(""));
        let server = vec![SERVER.parse().expect("an address")];
        let shared = SharedUpstream::new(checked.service.upstreams[0].clone(), 1);
        let state = UpstreamState::new(Arc::new(shared), vec![server], None);
        let member = Arc::clone(&state.set.borrow().members[0]);
        let upstreams = [Rc::new(state)];
        let probing = Probing::new(1024, Arc::new(|_| true));
        probing.end(); // nobody else calls the sinks
        let checks = Checks::start(&checked, &upstreams, &[], Instant::now(), probing);
        let checks = checks.expect("nothing is started");
        let sink = || checks.targets(&upstreams).remove(0).sink;
        let (older, old) = (sink(), sink());
        old.set(false, true);
        older.set(true, true);
        older.set(false, true);
        assert!(member.gate.is_down(), "of the same check, also the list before the last");
        checks.replace(&unchecked, &upstreams).expect("nothing is started");
        assert!(member.gate.is_open());
        for late in [&older, &old] {
            late.set(false, true);
            assert!(member.gate.is_open(), "nobody would open it again");
        }
        checks.replace(&checked, &upstreams).expect("nothing is started");
        old.set(false, true);
        assert!(member.gate.is_open(), "the verdict of an earlier check");
        sink().set(false, true);
        assert!(member.gate.is_down());
    }
}
