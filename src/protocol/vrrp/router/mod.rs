//! The virtual router: RFC 9568 section 6.4 as a state machine, with what keepalived and operators
//! add to it.
//!
//! It has no clock and does nothing itself. The caller drains its sockets, hands every accepted
//! advertisement to [`VirtualRouter::on_advert`], then calls [`VirtualRouter::on_timer`], carries
//! out the actions in order and sleeps until [`VirtualRouter::deadline`]. In that order, because a
//! router that was not scheduled in time must first hear what it missed.

mod announcer;
mod control;
mod handover;
mod types;

use std::net::IpAddr;
use std::time::Duration;

use super::{Interval, LAST_RESORT, Moment, OWNER, RESIGN, Version, active_down, skew};
use announcer::Announcer;
use handover::{Asked, Asking};
pub use types::{
    Action, Announce, Config, HandOver, Heard, NotPreferred, Path, Reason, State, Transition,
};

/// Late wake-ups in a row that put off a claim. Beyond, an overloaded router is better than none.
const RELISTENS_MAX: u8 = 4;
/// Waking up this late is never held against us, however short the interval.
const LATE_MIN: Duration = Duration::from_millis(2);
/// An offer to step down stands this long at least, however short the interval: a peer that the host's scheduler held
/// up for some intervals is alive, and taking the offer back would cost what was under way.
const OFFER_MIN: Duration = Duration::from_millis(500);
/// Highest priority that is not the owner's; what [`VirtualRouter::prefer`] uses.
const PREFERRED: u8 = 254;

/// One virtual router on this node.
#[derive(Debug, Clone)]
pub struct VirtualRouter {
    config: Config,
    /// Own source address on each path.
    sources: [Option<IpAddr>; Path::MAX],
    state: State,
    last: Transition,

    started: bool,
    healthy: bool,
    group_up: bool,
    /// Priority after tracking.
    tracked: u8,
    released: bool,
    preferred: bool,

    backup: Backup,
    active: Active,
    asked: Asked,
    announcer: Announcer,
    late: u64,
}

/// What is known while in Backup.
#[derive(Debug, Clone)]
struct Backup {
    /// Active_Adver_Interval: that of the active router.
    interval: Interval,
    /// What the timer counts from: the last advertisement accepted, or the start.
    from: Moment,
    /// Active_Down_Timer.
    down_at: Moment,
    /// Whether `down_at` is a whole Active_Down_Interval after `from`.
    full: bool,
    /// Why the claim will be made.
    why: Reason,
    /// Not to claim before: this router had not been running and has to listen first.
    listen_until: Moment,
    relistens: u8,
    /// When this router was last seen to run.
    awake: Moment,
    /// The active router's address on each path.
    peer: [Option<IpAddr>; Path::MAX],
    /// Its priority.
    peer_priority: u8,
    /// When an inferior active router may be preempted.
    preempt_at: Option<Moment>,
    /// The timer has fired; a member of a sync group waits for the others.
    expired: bool,
    /// The active router is asked to hand over.
    asking: Option<Asking>,
}

/// What is known while in Active.
#[derive(Debug, Clone)]
struct Active {
    /// Adver_Timer.
    advert_at: Moment,
    sent: Moment,
    /// Holds the addresses without advertising until then, and steps down for anyone.
    listening: Option<Listening>,
    /// When another router was last heard on the primary path.
    primary_heard: Option<Moment>,
}

#[derive(Debug, Clone, Copy)]
struct Listening {
    until: Moment,
    /// Offered to step down, rather than merely stalled.
    offered: bool,
    /// When this router was last seen to run, and how often it was late meanwhile.
    awake: Moment,
    late: u8,
}

impl VirtualRouter {
    /// A router in Initialize, healthy and not started.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let zero = Moment::default();
        let (from, to) = (State::Initialize, State::Initialize);
        Self {
            tracked: config.priority.max(1),
            backup: Backup {
                interval: config.interval,
                from: zero,
                down_at: zero,
                full: true,
                why: Reason::Silence,
                listen_until: zero,
                relistens: 0,
                awake: zero,
                peer: [None; Path::MAX],
                peer_priority: 0,
                preempt_at: None,
                expired: false,
                asking: None,
            },
            config,
            sources: [None; Path::MAX],
            state: State::Initialize,
            last: Transition { from, to, reason: Reason::Shutdown, at: zero },
            started: false,
            healthy: true,
            group_up: true,
            released: false,
            preferred: false,
            active: Active { advert_at: zero, sent: zero, listening: None, primary_heard: None },
            asked: Asked::default(),
            announcer: Announcer::default(),
            late: 0,
        }
    }

    /// The state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The last change of state; before the first one, to Initialize at the clock's zero.
    #[must_use]
    pub const fn last_transition(&self) -> Transition {
        self.last
    }

    /// How often a late wake-up made this router listen again before it would claim.
    #[must_use]
    pub const fn late_wakeups(&self) -> u64 {
        self.late
    }

    /// The router it believes to be active, as last heard on the lowest-numbered path, and its
    /// priority. `None` unless in Backup.
    #[must_use]
    pub fn active_peer(&self) -> Option<(IpAddr, u8)> {
        if self.state != State::Backup {
            return None;
        }
        let peer = self.backup.peer.iter().flatten().next()?;
        Some((*peer, self.backup.peer_priority))
    }

    /// Effective priority: of the owner 255; of a router that is unhealthy or released
    /// [`LAST_RESORT`]; of a preferred one 254; else what tracking made of the configured one.
    #[must_use]
    pub const fn priority(&self) -> u8 {
        if !self.healthy || self.released {
            LAST_RESORT
        } else if self.config.priority == OWNER {
            OWNER
        } else if self.preferred {
            PREFERRED
        } else {
            self.tracked
        }
    }

    /// Active, but silent: offered to step down (or was stalled) and waits whether another takes
    /// over.
    #[must_use]
    pub const fn is_listening(&self) -> bool {
        matches!(self.state, State::Active) && self.active.listening.is_some()
    }

    /// Active, but silent because it offered to step down.
    #[must_use]
    pub fn is_offering(&self) -> bool {
        let offered = self.active.listening.is_some_and(|listening| listening.offered);
        self.state == State::Active && offered
    }

    /// When to call [`VirtualRouter::on_timer`] at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Initialize => None,
            State::Backup => {
                let awake = self.backup.awake.after(self.backup.interval.duration());
                let claim = self.backup.down_at.max(self.backup.listen_until);
                let due = if self.backup.expired { awake } else { awake.min(claim) };
                Some(self.backup.asking.map_or(due, |asking| due.min(asking.due())))
            }
            State::Active => {
                let interval = self.config.interval.duration();
                let due = match self.active.listening {
                    None => self.active.advert_at,
                    Some(Listening { offered: true, until, awake, .. }) => {
                        until.min(awake.after(interval))
                    }
                    Some(Listening { until, .. }) => until,
                };
                Some(self.announcer.due().map_or(due, |announce| announce.min(due)))
            }
        }
    }

    /// An advertisement of another router was accepted.
    pub fn on_advert(&mut self, now: Moment, heard: &Heard, out: &mut Vec<Action>) {
        match self.state {
            State::Initialize => {}
            State::Backup => self.backup_hears(now, heard),
            State::Active => self.active_hears(now, heard, out),
        }
    }

    /// Time has passed. To be called after draining the sockets, at [`VirtualRouter::deadline`] or
    /// any time before.
    pub fn on_timer(&mut self, now: Moment, out: &mut Vec<Action>) {
        match self.state {
            State::Initialize => {}
            State::Backup => {
                self.note_awake(now);
                self.asking_timers(now, out);
                let claim = self.backup.down_at.max(self.backup.listen_until);
                if self.state == State::Backup && now >= claim {
                    self.down_timer_fired(now, out);
                }
            }
            State::Active => self.active_timers(now, out),
        }
    }

    // Backup -------------------------------------------------------------------------------------

    fn backup_hears(&mut self, now: Moment, heard: &Heard) {
        self.note_awake(now);
        let own = self.priority();
        match heard.priority {
            RESIGN => self.peer_resigned(heard),
            LAST_RESORT if own > LAST_RESORT => self.peer_is_last_resort(heard),
            priority if priority < own && self.may_preempt(heard.at) => {
                // RFC 9568 (480): discarded, so that the timer runs out.
                if self.backup.full {
                    self.backup.why = Reason::Inferior { peer: heard.source, priority };
                }
            }
            _ => self.accept(heard),
        }
    }

    /// RFC 9568 (450) to (465).
    fn accept(&mut self, heard: &Heard) {
        if heard.priority >= self.priority() {
            self.backup.preempt_at = None;
        }
        self.follow(heard);
    }

    /// Takes `heard`'s sender for the active router and starts the timer anew.
    fn follow(&mut self, heard: &Heard) {
        let backup = &mut self.backup;
        if self.config.version == Version::V3 {
            backup.interval = heard.interval;
        }
        // The receive time of a copy over another path may be older.
        backup.from = backup.from.max(heard.at);
        backup.full = true;
        backup.why = Reason::Silence;
        backup.relistens = 0;
        backup.expired = false;
        backup.peer_priority = heard.priority;
        if let Some(peer) = backup.peer.get_mut(heard.path.index()) {
            *peer = Some(heard.source);
        }
        self.restart_down_timer();
    }

    fn restart_down_timer(&mut self) {
        let down = active_down(
            self.config.version,
            self.priority(),
            self.backup.interval,
            self.config.down_adverts,
        );
        self.backup.down_at = self.backup.from.after(down);
    }

    /// RFC 9568 (425), but only of the router that is active: a late copy of a former active
    /// router's resignation must not shake the present one.
    fn peer_resigned(&mut self, heard: &Heard) {
        let known = self.backup.peer.get(heard.path.index()).copied().flatten();
        if known.is_some_and(|active| active != heard.source) {
            return;
        }
        self.hasten(heard, Reason::Resigned { peer: heard.source });
    }

    /// Somebody is active only for want of a better router.
    fn peer_is_last_resort(&mut self, heard: &Heard) {
        let reason = Reason::Inferior { peer: heard.source, priority: heard.priority };
        self.hasten(heard, reason);
    }

    /// Sets the timer to Skew_Time, unless it fires sooner already.
    fn hasten(&mut self, heard: &Heard, why: Reason) {
        let skew = self.skew();
        let backup = &mut self.backup;
        let at = heard.at.after(skew);
        if at < backup.down_at {
            backup.down_at = at;
            backup.full = false;
            backup.why = why;
        }
    }

    fn skew(&self) -> Duration {
        skew(self.config.version, self.priority(), self.backup.interval)
    }

    /// Whether an inferior active router, heard at `at`, is to be preempted by now.
    fn may_preempt(&mut self, at: Moment) -> bool {
        if self.backup.asking.is_some() {
            return false;
        }
        if self.priority() == OWNER || self.preferred {
            return true;
        }
        if !self.config.preempt {
            return false;
        }
        let delay = self.config.preempt_delay;
        at >= *self.backup.preempt_at.get_or_insert_with(|| at.after(delay))
    }

    /// Notices that this router has not been running: it may have missed advertisements, so it
    /// listens for two intervals (one advertisement may be lost) and the skew before it may claim.
    fn note_awake(&mut self, now: Moment) {
        let interval = self.backup.interval.duration();
        let gap = now.since(self.backup.awake);
        self.backup.awake = self.backup.awake.max(now);
        if is_late(gap, interval) && self.backup.relistens < RELISTENS_MAX {
            self.late += 1;
            self.backup.relistens += 1;
            let listen = interval * 2 + self.skew();
            self.backup.listen_until = now.after(listen);
        }
    }

    /// RFC 9568 (365) to (410).
    fn down_timer_fired(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.config.sync_group {
            self.backup.expired = true;
        } else {
            self.become_active(now, self.backup.why, out);
        }
    }

    // Active -------------------------------------------------------------------------------------

    fn active_hears(&mut self, now: Moment, heard: &Heard, out: &mut Vec<Action>) {
        if heard.path == Path::PRIMARY {
            self.active.primary_heard = Some(heard.at);
        }
        if heard.priority == RESIGN {
            // RFC 9568 (680). While listening, silence is the point.
            if self.active.listening.is_none() {
                self.assert_active(now, out);
            }
            return;
        }
        if let Some(reason) = self.yields_to(now, heard) {
            self.become_backup(now, heard, reason, out);
            return;
        }
        self.provoked(now, out);
        // RFC 3768 discards here, and an owner discards everything (RFC 9568 section 7.1).
        if self.config.version == Version::V3 && self.priority() != OWNER {
            self.assert_active(now, out);
        }
    }

    /// Whether to step down for the sender of `heard`, and why.
    fn yields_to(&self, now: Moment, heard: &Heard) -> Option<Reason> {
        let Heard { source: peer, priority, .. } = *heard;
        let own = self.priority();
        if own == OWNER {
            return None;
        }
        match self.active.listening {
            Some(Listening { offered: true, .. }) => return Some(Reason::HandedOver { peer }),
            Some(Listening { offered: false, .. }) => return Some(Reason::WasAway { peer }),
            None => {}
        }
        if priority > own {
            return Some(Reason::Superior { peer, priority });
        }
        if priority == own && self.has_higher_address(heard) {
            return Some(Reason::HigherAddress { peer });
        }
        (self.is_stalled(now) && !self.preempts_at_once() && priority > LAST_RESORT)
            .then_some(Reason::WasAway { peer })
    }

    /// RFC 9568 (695). Addresses of another path may compare the other way round, and both routers
    /// must come to the same result, so the primary path decides unless it is dead.
    fn has_higher_address(&self, heard: &Heard) -> bool {
        if heard.path != Path::PRIMARY
            && self.active.primary_heard.is_some_and(|at| heard.at.since(at) < self.own_down())
        {
            return false;
        }
        let own = self.sources.get(heard.path.index()).copied().flatten();
        own.is_some_and(|own| heard.source > own)
    }

    /// Active_Down_Interval as a backup of the lowest priority computes it from our interval.
    fn own_down(&self) -> Duration {
        let Config { version, interval, down_adverts, .. } = self.config;
        active_down(version, LAST_RESORT, interval, down_adverts)
    }

    /// Whether advertisements are overdue for so long that another may have taken over.
    fn is_stalled(&self, now: Moment) -> bool {
        let silence = self.config.interval.duration() * u32::from(self.config.down_adverts);
        now.since(self.active.sent) >= silence
    }

    /// Whether this router would take over from any inferior one anyway.
    fn preempts_at_once(&self) -> bool {
        self.preferred || (self.config.preempt && self.config.preempt_delay.is_zero())
    }

    fn active_timers(&mut self, now: Moment, out: &mut Vec<Action>) {
        if let Some(listening) = &mut self.active.listening {
            listening.note_awake(now, self.config.interval.duration());
            if now >= listening.until {
                self.active.listening = None;
                self.advertise(now, out);
            }
        } else if now >= self.active.advert_at {
            if self.is_stalled(now) && !self.preempts_at_once() && self.priority() != OWNER {
                let wait = self.config.interval.duration() * 2;
                self.listen(now, now.after(wait), false);
            } else {
                self.advertise(now, out);
            }
        }
        if self.announcer.fire(now, &self.config.announce) {
            out.push(Action::Announce);
        }
    }

    fn listen(&mut self, now: Moment, until: Moment, offered: bool) {
        self.active.listening = Some(Listening { until, offered, awake: now, late: 0 });
    }

    /// Sends an advertisement; the next follows at its old pace if that was kept.
    fn advertise(&mut self, now: Moment, out: &mut Vec<Action>) {
        out.push(Action::Advertise { priority: self.priority() });
        self.active.sent = now;
        let interval = self.config.interval.duration();
        let paced = self.active.advert_at.after(interval);
        let in_step = paced > now && paced.since(now) <= interval;
        self.active.advert_at = if in_step { paced } else { now.after(interval) };
    }

    /// Answers another router at once, but not every packet of a flood.
    fn assert_active(&mut self, now: Moment, out: &mut Vec<Action>) {
        let interval = self.config.interval.duration();
        if now.since(self.active.sent) >= interval / 8 {
            self.active.advert_at = now;
            self.advertise(now, out);
        }
    }

    fn provoked(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.announcer.provoked(now, &self.config.announce) {
            out.push(Action::Announce);
        }
    }

    // Transitions --------------------------------------------------------------------------------

    /// The advertisement goes first: whoever is active drops the addresses on it.
    fn become_active(&mut self, now: Moment, reason: Reason, out: &mut Vec<Action>) {
        self.active = Active { advert_at: now, sent: now, listening: None, primary_heard: None };
        self.advertise(now, out);
        out.push(Action::Claim);
        out.push(Action::Announce);
        self.announcer.start(now, &self.config.announce);
        self.enter(now, State::Active, reason, out);
    }

    /// Active, as before; hosts know where the addresses are.
    pub(super) fn claim_silently(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.state = State::Active;
        self.active = Active { advert_at: now, sent: now, listening: None, primary_heard: None };
        self.advertise(now, out);
        out.push(Action::Claim);
        self.announcer.start(now, &self.config.announce);
    }

    /// RFC 9568 (700) to (725).
    fn become_backup(&mut self, now: Moment, heard: &Heard, reason: Reason, out: &mut Vec<Action>) {
        out.push(Action::Release);
        self.reset_backup(now);
        self.follow(heard);
        self.enter(now, State::Backup, reason, out);
    }

    /// Forgets what an earlier time in Backup knew; the timer runs a whole Active_Down_Interval.
    fn reset_backup(&mut self, now: Moment) {
        self.announcer.stop();
        self.active.listening = None;
        self.backup = Backup {
            interval: self.config.interval,
            from: now,
            down_at: now,
            full: true,
            why: Reason::Silence,
            listen_until: Moment::default(),
            relistens: 0,
            awake: now,
            peer: [None; Path::MAX],
            peer_priority: 0,
            preempt_at: None,
            expired: false,
            asking: None,
        };
        self.restart_down_timer();
    }

    fn enter(&mut self, now: Moment, to: State, reason: Reason, out: &mut Vec<Action>) {
        self.asked = Asked::default();
        self.last = Transition { from: self.state, to, reason, at: now };
        self.state = to;
        out.push(Action::Transition(self.last));
    }
}

impl Listening {
    /// The time in which this router did not run is not held against those to whom it offers the addresses: the machine
    /// that they share may have stood still.
    fn note_awake(&mut self, now: Moment, interval: Duration) {
        let gap = now.since(self.awake);
        self.awake = self.awake.max(now);
        if self.offered && is_late(gap, interval) && self.late < RELISTENS_MAX {
            self.late += 1;
            self.until = self.until.after(gap);
        }
    }
}

/// Whether a router that runs every interval has been held up.
fn is_late(gap: Duration, interval: Duration) -> bool {
    gap > interval + (interval / 2).max(LATE_MIN)
}
