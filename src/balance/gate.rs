//! What keeps requests from a member besides its own failures: verdicts of health checks, ejection as an
//! outlier, and the slow start after either.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Health checks say that it is down.
const DOWN: u64 = 1;
/// Taken out as an outlier.
const EJECTED: u64 = 2;
const OUT: u64 = DOWN | EJECTED;
/// Above: the time in ms at which the slow start began; 0: there is none.
const TIME_SHIFT: u32 = 16;
const TIME_MAX: u64 = (1 << (64 - TIME_SHIFT)) - 1;

/// Smallest share in a slow start, in percent: with none at all nobody would notice that it does not work.
const SHARE_MIN: u64 = 5;

/// One word, changed seldom and asked with one load: 0 says that nothing is in the way.
///
/// Relaxed order is enough: the word publishes no other memory. Different threads may change it (health checks
/// one bit, outlier detection the other); each change is one compare and swap.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

impl Gate {
    /// An open one.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// True when nothing is in the way: the answer for nearly every request.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// Health checks say that it is down.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.0.load(Relaxed) & DOWN != 0
    }

    /// It was taken out as an outlier.
    #[must_use]
    pub fn is_ejected(&self) -> bool {
        self.0.load(Relaxed) & EJECTED != 0
    }

    /// Down or ejected.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.0.load(Relaxed) & OUT != 0
    }

    /// Takes it out after health checks.
    pub fn down(&self) {
        self.close(DOWN);
    }

    /// Takes it out as an outlier.
    pub fn eject(&self) {
        self.close(EJECTED);
    }

    /// Health checks say that it is up; a slow start begins if that brings it back and one is wanted.
    pub fn up(&self, now_ms: u64, slow_start: bool) {
        self.reopen(DOWN, now_ms, slow_start);
    }

    /// It has served its time as an outlier; a slow start begins if that brings it back and one is wanted.
    pub fn readmit(&self, now_ms: u64, slow_start: bool) {
        self.reopen(EJECTED, now_ms, slow_start);
    }

    /// How it stands, for another process with the same clock; see [`restore`](Self::restore).
    #[must_use]
    pub fn standing(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Stands as another gate did.
    pub fn restore(&self, standing: u64) {
        let known = OUT | TIME_MAX << TIME_SHIFT;
        self.0.store(standing & known, Relaxed);
    }

    fn close(&self, bit: u64) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| Some(word & OUT | bit));
    }

    fn reopen(&self, bit: u64, now_ms: u64, slow_start: bool) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let rest = word & OUT & !bit;
            let back = word & bit != 0 && rest == 0;
            match (word & bit, back && slow_start) {
                (0, _) => None,
                (_, true) => Some(now_ms.clamp(1, TIME_MAX) << TIME_SHIFT),
                (_, false) => Some(rest),
            }
        });
    }

    /// How much of its weight the member gets now, in percent: 0 while it is out, and rising through a slow
    /// start of `slow_start_ms`. Call it when [`is_open`](Self::is_open) says no.
    #[must_use]
    pub fn share(&self, now_ms: u64, slow_start_ms: u64) -> u64 {
        let word = self.0.load(Relaxed);
        if word & OUT != 0 {
            return 0;
        }
        let began = word >> TIME_SHIFT;
        let age = now_ms.saturating_sub(began);
        if began == 0 || age >= slow_start_ms {
            return 100;
        }
        (age * 100 / slow_start_ms).max(SHARE_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_reasons_have_to_go() {
        let gate = Gate::new();
        assert!(gate.is_open());
        gate.down();
        gate.eject();
        assert!(gate.is_down() && gate.is_ejected() && gate.share(5, 0) == 0);
        gate.up(10, true);
        assert!(!gate.is_down() && gate.is_out() && gate.share(10, 100) == 0);
        gate.readmit(20, true);
        assert!(!gate.is_open() && !gate.is_out());
        assert_eq!(
            [20, 21, 40, 70, 119, 120, 500].map(|now| gate.share(now, 100)),
            [5, 5, 20, 50, 99, 100, 100]
        );
        gate.down();
        gate.up(600, false);
        assert!(gate.is_open());
    }

    #[test]
    fn another_goes_on_where_one_stood() {
        let (gate, other) = (Gate::new(), Gate::new());
        gate.down();
        gate.up(20, true);
        gate.eject();
        other.restore(gate.standing() | 0xfff0);
        assert!(other.is_ejected() && !other.is_down());
        for gate in [&gate, &other] {
            gate.readmit(30, true);
            assert_eq!(gate.share(80, 100), 50);
        }
        other.restore(gate.standing());
        assert_eq!(other.share(90, 100), 60, "the slow start goes on");
    }

    #[test]
    fn news_that_are_none_change_nothing() {
        let gate = Gate::new();
        gate.up(10, true);
        gate.readmit(10, true);
        assert!(gate.is_open(), "no slow start without an absence");
        gate.down();
        gate.up(10, true);
        gate.up(90, true);
        assert_eq!(gate.share(60, 100), 50, "the slow start does not begin again");
    }
}
