//! When to announce the addresses.

use super::super::Moment;
use super::types::Announce;

/// Schedule of announcements while active.
#[derive(Debug, Clone, Default)]
pub(super) struct Announcer {
    /// Rounds left in the burst.
    left: u8,
    /// When the next one is due.
    next: Option<Moment>,
    /// When the second burst begins.
    repeat: Option<Moment>,
    last: Moment,
}

impl Announcer {
    /// The claim: the first round is sent by the caller now.
    pub(super) fn start(&mut self, now: Moment, config: &Announce) {
        self.left = config.rounds.max(1);
        self.repeat = config.repeat_after.map(|after| now.after(after));
        self.sent(now, config);
    }

    /// No longer active.
    pub(super) fn stop(&mut self) {
        *self = Self::default();
    }

    /// When a round is due.
    pub(super) const fn due(&self) -> Option<Moment> {
        self.next
    }

    /// Whether a round has to be sent now.
    pub(super) fn fire(&mut self, now: Moment, config: &Announce) -> bool {
        if self.next.is_none_or(|next| now < next) {
            return false;
        }
        if self.repeat.is_some_and(|repeat| now >= repeat) {
            self.repeat = None;
            self.left = config.rounds.max(1);
        }
        self.sent(now, config);
        true
    }

    /// Somebody else claims the addresses: whether to answer now. If the last round was just sent,
    /// the answer is put off rather than left out, since the last word is what hosts believe.
    pub(super) fn provoked(&mut self, now: Moment, config: &Announce) -> bool {
        let allowed_at = self.last.after(config.provoked_gap);
        if now >= allowed_at {
            self.last = now;
            return true;
        }
        self.next = Some(self.next.map_or(allowed_at, |next| next.min(allowed_at)));
        false
    }

    fn sent(&mut self, now: Moment, config: &Announce) {
        self.last = now;
        self.left = self.left.saturating_sub(1);
        let regular = if self.left > 0 {
            Some(now.after(config.spacing))
        } else {
            config.refresh.map(|refresh| now.after(refresh))
        };
        self.next = match (regular, self.repeat) {
            (Some(regular), Some(repeat)) => Some(regular.min(repeat)),
            (one, other) => one.or(other),
        };
    }
}
