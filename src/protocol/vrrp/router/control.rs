//! What moves a virtual router besides advertisements and time: start and stop, health, tracking,
//! the operator, the sync group.

use std::net::IpAddr;

use super::{
    Action, Config, LAST_RESORT, Moment, NotPreferred, OFFER_MIN, OWNER, PREFERRED, Path, RESIGN,
    Reason, State, VirtualRouter, skew,
};

impl VirtualRouter {
    /// Own source address on a path, for ties between equal priorities. A path without one never
    /// decides a tie; paths beyond [`Path::MAX`] are ignored.
    pub fn set_source(&mut self, path: Path, source: Option<IpAddr>) {
        if let Some(slot) = self.sources.get_mut(path.index()) {
            *slot = source;
        }
    }

    /// Startup event (RFC 9568 section 6.4.1). A router that is already started is left alone.
    pub fn startup(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.started = true;
        self.join_or_leave(now, Reason::Startup, out);
    }

    /// Goes on where an earlier process on this host left off: as the active router, which advertises
    /// at once and keeps its addresses, or as a backup, which listens for a whole
    /// Active_Down_Interval; with the operator's will (released, preferred). To peers nothing happened,
    /// so there is no transition. One that may not take part now leaves in the ordinary way.
    pub fn go_on(
        &mut self,
        now: Moment,
        active: bool,
        (released, preferred): (bool, bool),
        out: &mut Vec<Action>,
    ) {
        self.started = true;
        (self.released, self.preferred) = (released, preferred);
        self.reset_backup(now);
        if active {
            self.claim_silently(now, out);
        } else if self.is_fit() {
            self.state = State::Backup;
        }
        self.join_or_leave(now, Reason::Unhealthy, out);
    }

    /// Shutdown event: an active router resigns and gives up its addresses at once. For a hand-over
    /// without a gap, [`VirtualRouter::release`] comes first.
    pub fn shutdown(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.started = false;
        self.join_or_leave(now, Reason::Shutdown, out);
    }

    /// What health checks say. An unhealthy router leaves, whatever `preempt` says; under the
    /// last-man rule it offers to step down and serves on at [`LAST_RESORT`] if nobody takes over.
    pub fn set_healthy(&mut self, now: Moment, healthy: bool, out: &mut Vec<Action>) {
        if self.healthy == healthy {
            return;
        }
        self.healthy = healthy;
        let reason = if healthy { Reason::Recovered } else { Reason::Unhealthy };
        if !self.join_or_leave(now, reason, out) {
            self.standing_changed(now, !healthy, out);
        }
    }

    /// Whether health checks were last said to succeed.
    #[must_use]
    pub const fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// The priority that tracking makes of the configured one; kept between 1 and 254, and of no
    /// effect on an owner.
    pub fn set_priority(&mut self, now: Moment, priority: u8, out: &mut Vec<Action>) {
        let before = self.priority();
        self.tracked = priority.clamp(1, PREFERRED);
        if self.priority() != before {
            self.standing_changed(now, false, out);
        }
    }

    /// Hands over: offers to step down and holds the addresses until another router is active, or
    /// goes on at [`LAST_RESORT`] if none takes over. Lasts until [`VirtualRouter::resume`] or
    /// [`VirtualRouter::prefer`].
    pub fn release(&mut self, now: Moment, out: &mut Vec<Action>) {
        let before = self.released;
        self.preferred = false;
        self.backup.asking = None;
        self.released = true;
        if !before {
            self.standing_changed(now, true, out);
        }
    }

    /// Whether the operator has released this router.
    #[must_use]
    pub const fn is_released(&self) -> bool {
        self.released
    }

    /// Takes over with priority 254, whatever `preempt` says, and keeps that priority until [`VirtualRouter::resume`] or
    /// [`VirtualRouter::release`]. A router that is active is asked to finish what is under way and to hand over; if it
    /// does not answer or refuses, it is preempted, or left alone if it has priority 254 too and the higher address.
    ///
    /// # Errors
    ///
    /// [`NotPreferred`]; nothing has changed then.
    pub fn prefer(&mut self, now: Moment, out: &mut Vec<Action>) -> Result<(), NotPreferred> {
        if self.state == State::Initialize || !self.healthy {
            return Err(NotPreferred::Unfit);
        }
        if self.state == State::Backup && self.backup.peer_priority == OWNER {
            return Err(NotPreferred::Outranked);
        }
        self.released = false;
        self.preferred = true;
        match self.state {
            State::Backup => {
                if !self.ask(now, out) {
                    self.take(now, out);
                }
            }
            State::Initialize | State::Active => self.standing_changed(now, false, out),
        }
        Ok(())
    }

    /// Whether the operator prefers this router.
    #[must_use]
    pub const fn is_preferred(&self) -> bool {
        self.preferred
    }

    /// Ends [`VirtualRouter::release`] and [`VirtualRouter::prefer`].
    pub fn resume(&mut self, now: Moment, out: &mut Vec<Action>) {
        let before = self.priority();
        self.released = false;
        self.preferred = false;
        self.backup.asking = None;
        if self.priority() != before {
            self.standing_changed(now, false, out);
        }
    }

    /// Somebody else was seen to claim one of the addresses (gratuitous ARP, a neighbour
    /// advertisement): an active router announces them again.
    pub fn on_foreign_claim(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.state == State::Active {
            self.provoked(now, out);
        }
    }

    /// New configuration after a reload, without leaving the state. The configured priority becomes
    /// the effective one until tracking is applied again. The version must be the same: a change
    /// of version is another router.
    pub fn reconfigure(&mut self, now: Moment, config: Config, out: &mut Vec<Action>) {
        if config == self.config {
            return;
        }
        self.tracked = config.priority.max(1);
        self.config = config;
        if !self.join_or_leave(now, Reason::Startup, out) {
            self.standing_changed(now, false, out);
        }
    }

    /// Whether another member keeps the whole sync group down.
    pub(in super::super) fn set_group_up(&mut self, now: Moment, up: bool, out: &mut Vec<Action>) {
        if self.group_up != up {
            self.group_up = up;
            self.join_or_leave(now, Reason::Group, out);
        }
    }

    /// Started and fit to take part, the rest of its group aside.
    pub(in super::super) const fn is_fit(&self) -> bool {
        self.started && (self.healthy || self.config.last_man)
    }

    /// A member of a sync group whose timer has fired.
    pub(in super::super) fn wants_to_claim(&self) -> bool {
        self.state == State::Backup && self.backup.expired
    }

    /// All members of the sync group want to claim.
    pub(in super::super) fn claim_for_group(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.wants_to_claim() {
            let preferred = self.preferred && !self.is_outranked();
            let reason = if preferred { Reason::Preferred } else { self.backup.why };
            self.become_active(now, reason, out);
        }
    }

    /// Another member of the sync group is not active any more.
    pub(in super::super) fn yield_for_group(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.state == State::Active {
            out.push(Action::Advertise { priority: RESIGN });
            out.push(Action::Release);
            self.reset_backup(now);
            self.enter(now, State::Backup, Reason::Group, out);
        }
    }

    /// Whether the active router would not step down for priority 254.
    pub(super) fn is_outranked(&self) -> bool {
        let backup = &self.backup;
        match backup.peer_priority {
            OWNER => true,
            PREFERRED => backup
                .peer
                .iter()
                .zip(&self.sources)
                .find_map(|(peer, own)| Some((*peer)? > (*own)?))
                .unwrap_or(true),
            _ => false,
        }
    }

    /// Enters or leaves Initialize as being started, health and the group require; true if it did.
    fn join_or_leave(&mut self, now: Moment, reason: Reason, out: &mut Vec<Action>) -> bool {
        let takes_part = self.is_fit() && self.group_up;
        let before = self.state;
        match (self.state, takes_part) {
            (State::Initialize, true) => self.join(now, reason, out),
            (State::Backup, false) => self.enter(now, State::Initialize, reason, out),
            (State::Active, false) => self.resign(now, reason, out),
            _ => {}
        }
        self.state != before
    }

    /// RFC 9568 (105) to (170).
    fn join(&mut self, now: Moment, reason: Reason, out: &mut Vec<Action>) {
        self.reset_backup(now);
        if self.priority() == OWNER && !self.config.sync_group {
            self.become_active(now, Reason::Owner, out);
            return;
        }
        if self.priority() == OWNER {
            self.backup.expired = true;
            self.backup.why = Reason::Owner;
        } else if self.config.start_active {
            let interval = self.config.interval;
            let skew = skew(self.config.version, self.priority(), interval);
            self.backup.down_at = now.after(interval.duration() + skew);
            self.backup.full = false;
        }
        self.enter(now, State::Backup, reason, out);
    }

    /// RFC 9568 (640) to (650). The resignation goes first: it takes the peers a skew to act on it.
    fn resign(&mut self, now: Moment, reason: Reason, out: &mut Vec<Action>) {
        out.push(Action::Advertise { priority: RESIGN });
        out.push(Action::Release);
        self.announcer.stop();
        self.active.listening = None;
        self.enter(now, State::Initialize, reason, out);
    }

    /// The effective priority is another one. `offer`: an active router shall let others take over.
    fn standing_changed(&mut self, now: Moment, offer: bool, out: &mut Vec<Action>) {
        match self.state {
            State::Initialize => {}
            State::Backup if self.backup.full => {
                self.restart_down_timer();
                self.backup.down_at = self.backup.down_at.max(now);
            }
            State::Backup => {}
            State::Active if offer => self.offer(now, out),
            State::Active if self.active.listening.is_some() && self.priority() == LAST_RESORT => {}
            State::Active => {
                self.active.listening = None;
                self.active.advert_at = now;
                self.advertise(now, out);
            }
        }
    }

    /// Resigns on the wire but keeps the addresses, for as long as the slowest backup needs, or one that is held up.
    pub(super) fn offer(&mut self, now: Moment, out: &mut Vec<Action>) {
        out.push(Action::Advertise { priority: RESIGN });
        let wait = self.own_down() + self.config.interval.duration();
        self.listen(now, now.after(wait.max(OFFER_MIN)), true);
    }
}
