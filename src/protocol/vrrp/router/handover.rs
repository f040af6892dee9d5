//! Planned hand-over on the word of the backup: it asks the active router, which finishes what is under way and then
//! offers to step down. One that does not answer (keepalived does not know the question) or refuses is preempted.

use std::net::IpAddr;
use std::time::Duration;

use super::{Action, HandOver, LAST_RESORT, Moment, OWNER, Path, Reason, State, VirtualRouter};

/// Between two requests: also how often the active router is looked after while it finishes.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Requests without any answer, after which the active router is preempted.
const ASKS_UNANSWERED: u32 = 3;
/// An active router that accepted and says nothing more for this long has forgotten it.
const ACCEPTED_LASTS: Duration = Duration::from_secs(1);
/// After this the active router is preempted, whatever it says.
const ASKING_MAX: Duration = Duration::from_secs(15);
/// The least time between two answers: a flood of requests is not multiplied.
const ANSWER_GAP: Duration = Duration::from_millis(10);
/// An active router that has not finished after this takes a request for a new one.
const FINISHING_MAX: Duration = Duration::from_secs(12);
/// After hand-overs that nobody took up, requests are refused for this long: each turns clients away for a while.
const REST: Duration = Duration::from_secs(10);
/// So many are tried before: a router that asks again is alive, it was late.
const TRIES: u8 = 2;

/// A backup's request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking {
    next: Moment,
    /// When to preempt instead.
    until: Moment,
    end: Moment,
    accepted: bool,
}

/// What an active router was asked.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    /// Since when it finishes what is under way.
    finishing: Option<Moment>,
    by: Option<IpAddr>,
    /// When it last began to, and how often it has without a rest.
    began: Option<Moment>,
    tries: u8,
    answered: Option<Moment>,
}

impl Asking {
    /// When something is to be done.
    pub(super) fn due(&self) -> Moment {
        self.next.min(self.until)
    }
}

impl VirtualRouter {
    /// Whether the active router is being asked to hand over, and has accepted.
    #[must_use]
    pub fn asking(&self) -> Option<bool> {
        let asking = self.backup.asking.filter(|_| self.state == State::Backup);
        asking.map(|asking| asking.accepted)
    }

    /// For whom this active router finishes what is under way.
    #[must_use]
    pub fn finishing_for(&self) -> Option<IpAddr> {
        self.asked.by.filter(|_| self.state == State::Active && self.asked.finishing.is_some())
    }

    /// The active router's address on each path on which it is heard. Empty unless in Backup.
    pub fn active_ways(&self) -> impl Iterator<Item = (Path, IpAddr)> {
        let known = (0_u8..).map(Path).zip(self.backup.peer);
        known
            .filter(|_| self.state == State::Backup)
            .filter_map(|(path, peer)| peer.map(|peer| (path, peer)))
    }

    /// Another router asks this one to hand over. It answers if it is active.
    pub fn on_asked(&mut self, now: Moment, path: Path, by: IpAddr, out: &mut Vec<Action>) {
        let asked = &mut self.asked;
        let is_flood = asked.answered.is_some_and(|at| now.since(at) < ANSWER_GAP);
        if self.state != State::Active || is_flood {
            return;
        }
        asked.answered = Some(now);
        let under_way = asked.finishing.is_some_and(|since| now.since(since) < FINISHING_MAX)
            || self.active.listening.is_some_and(|listening| listening.offered);
        let rested = asked.began.is_none_or(|at| now.since(at) >= REST);
        let tries = if rested { 0 } else { asked.tries };
        let accepted = self.config.priority != OWNER && (under_way || tries < TRIES);
        if accepted && !under_way {
            let (finishing, began, tries) = (Some(now), Some(now), tries + 1);
            *asked = Asked { finishing, by: Some(by), began, tries, ..*asked };
            out.push(Action::Finish { peer: by });
        }
        let news = if accepted { HandOver::Heeded } else { HandOver::Declined };
        if !under_way {
            out.push(Action::Tell { news, peer: by });
        }
        out.push(Action::Answer { path, peer: by, accepted });
    }

    /// What was under way is finished: offers the addresses as [`VirtualRouter::release`] does, but for this once. If
    /// nobody takes over, it goes on at its own priority; the operator's preference has gone to the other. False, and nothing is done, unless it is active and does not
    /// own the addresses.
    pub fn hand_over(&mut self, now: Moment, out: &mut Vec<Action>) -> bool {
        self.asked.finishing = None;
        if self.state != State::Active || self.config.priority == OWNER {
            return false;
        }
        self.preferred = false;
        if self.active.listening.is_none_or(|listening| !listening.offered) {
            self.offer(now, out);
        }
        true
    }

    /// What was under way cannot be finished: the next request is refused.
    pub fn cannot_finish(&mut self) {
        self.asked.finishing = None;
        self.asked.tries = TRIES;
    }

    /// Begins to ask the router that is active, if there is one to ask.
    pub(super) fn ask(&mut self, now: Moment, out: &mut Vec<Action>) -> bool {
        let resigned = !self.backup.full || self.backup.peer_priority <= LAST_RESORT;
        let Some((peer, _)) = self.active_peer().filter(|_| !resigned) else { return false };
        if self.backup.asking.is_none() {
            self.backup.asking = Some(Asking {
                next: now.after(ASK_EVERY),
                until: now.after(ASK_EVERY * ASKS_UNANSWERED),
                end: now.after(ASKING_MAX),
                accepted: false,
            });
            // The timer that an inferior router let run out is not to fire meanwhile.
            self.backup.from = self.backup.from.max(self.backup.awake);
            self.restart_down_timer();
            out.push(Action::Tell { news: HandOver::Asked, peer });
            out.push(Action::Ask);
        }
        true
    }

    /// The answer of a router that was asked.
    pub fn on_answer(&mut self, now: Moment, from: IpAddr, accepted: bool, out: &mut Vec<Action>) {
        let known = self.active_ways().any(|(_, peer)| peer == from);
        let Some(asking) = self.backup.asking.as_mut().filter(|_| known) else { return };
        if !accepted {
            self.preempt_instead(now, HandOver::Refused, out);
            return;
        }
        asking.until = now.after(ACCEPTED_LASTS).min(asking.end);
        if !std::mem::replace(&mut asking.accepted, true) {
            out.push(Action::Tell { news: HandOver::Accepted, peer: from });
        }
    }

    /// Asks again, or does without.
    pub(super) fn asking_timers(&mut self, now: Moment, out: &mut Vec<Action>) {
        let Some(asking) = &mut self.backup.asking else { return };
        if now >= asking.until {
            let news = if asking.accepted { HandOver::Overdue } else { HandOver::Unanswered };
            self.preempt_instead(now, news, out);
        } else if now >= asking.next {
            asking.next = now.after(ASK_EVERY);
            out.push(Action::Ask);
        }
    }

    fn preempt_instead(&mut self, now: Moment, news: HandOver, out: &mut Vec<Action>) {
        self.backup.asking = None;
        let outranked = self.is_outranked();
        if let Some((peer, _)) = self.active_peer() {
            let news = if outranked { HandOver::Unbeaten } else { news };
            out.push(Action::Tell { news, peer });
        }
        if outranked {
            self.preferred = false;
        } else {
            self.take(now, out);
        }
    }

    /// Takes over by the operator's word.
    pub(super) fn take(&mut self, now: Moment, out: &mut Vec<Action>) {
        if self.config.sync_group {
            self.backup.expired = true;
        } else {
            self.become_active(now, Reason::Preferred, out);
        }
    }
}
