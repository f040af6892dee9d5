//! What other parts of the process tell the HA thread about their health: atomics, read by it in each round.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::protocol::vrrp::Moment;
use crate::sys::notify::EventFd;

/// A question that a shard answers from its loop: the proof that it runs.
#[derive(Debug, Default)]
pub struct Heartbeat {
    asked: AtomicU64,
    answered: AtomicU64,
    beats: AtomicU64,
}

impl Heartbeat {
    /// Answers what was asked; called by the shard each time it is woken.
    pub fn answer(&self) {
        self.answered.store(self.asked.load(Ordering::Acquire), Ordering::Release);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }
}

impl Heartbeat {
    /// How often the shard has been awake: it grows after each time it is woken, if the shard runs.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

/// One shard, seen from the HA thread.
#[derive(Debug)]
pub(super) struct Pulse {
    beat: Arc<Heartbeat>,
    wake: Arc<EventFd>,
    asked_at: Moment,
    /// It has answered once.
    pub(super) known: bool,
}

impl Pulse {
    pub(super) fn new(beat: Arc<Heartbeat>, wake: Arc<EventFd>, now: Moment) -> Self {
        Self { beat, wake, asked_at: now, known: false }
    }

    /// Asks again if the last question was answered; false when one has been open for `timeout`, and
    /// before the first answer.
    pub(super) fn check(&mut self, now: Moment, timeout: Duration) -> bool {
        let asked = self.beat.asked.load(Ordering::Relaxed);
        if self.beat.answered.load(Ordering::Acquire) == asked {
            self.known |= asked > 0;
            self.asked_at = now;
            self.beat.asked.store(asked.wrapping_add(1), Ordering::Release);
            self.wake.notify();
            return self.known;
        }
        self.known && now.since(self.asked_at) < timeout
    }

    /// Begins anew: we did not run ourselves, so a late answer proves nothing.
    pub(super) fn forgive(&mut self, now: Moment) {
        self.asked_at = now;
    }
}

/// Something that is not known at first and good or bad later.
#[derive(Debug, Default)]
pub struct Verdict(AtomicU8);

impl Verdict {
    /// Good or bad.
    pub fn set(&self, good: bool) {
        self.0.store(if good { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// `None` while unknown.
    #[must_use]
    pub fn is_good(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            value => Some(value == 1),
        }
    }
}

/// The inputs from the rest of the process.
#[derive(Debug, Default)]
pub struct Health {
    /// Usable servers of each upstream, by name; replaced as a whole when a reload changes upstreams.
    usable: Mutex<Arc<Usable>>,
    /// Whether tuning was applied and verified; good while nobody says otherwise.
    pub tuning: Verdict,
    /// Whether every listener is open and accepting.
    pub listeners: Verdict,
}

/// Usable servers of each upstream, by name.
pub type Usable = HashMap<String, AtomicU32>;

impl Health {
    /// For these upstreams.
    #[must_use]
    pub fn new(usable: Usable) -> Self {
        Self { usable: Mutex::new(Arc::new(usable)), ..Self::default() }
    }

    /// The counts, for their writer or their reader.
    #[must_use]
    pub fn usable(&self) -> Arc<Usable> {
        Arc::clone(&self.usable.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Other upstreams; only swaps a pointer while it holds the lock.
    pub fn set_usable(&self, usable: Usable) {
        let usable = Arc::new(usable);
        let mut held = self.usable.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *held, usable);
        drop(held);
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_does_not_answer_is_dead_after_the_timeout() {
        let beat = Arc::new(Heartbeat::default());
        let wake = Arc::new(EventFd::new().expect("an eventfd"));
        let timeout = Duration::from_secs(1);
        let at = |ms: u64| Moment::from_nanos(ms * 1_000_000);
        let mut pulse = Pulse::new(Arc::clone(&beat), wake, at(0));
        assert!(!pulse.check(at(0), timeout), "asks and knows nothing yet");
        beat.answer();
        assert!(pulse.check(at(0), timeout), "asks");
        assert!(pulse.check(at(900), timeout), "waits");
        assert!(!pulse.check(at(1000), timeout), "gives up");
        pulse.forgive(at(1000));
        assert!(pulse.check(at(1900), timeout), "waits anew");
        beat.answer();
        assert!(pulse.check(at(5000), timeout), "asks again");
        assert!(pulse.check(at(5900), timeout));
        assert!(!pulse.check(at(6000), timeout));
    }
}
