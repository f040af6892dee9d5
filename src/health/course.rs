//! When an endpoint is probed next, and what its results come to. Pure: times and random numbers are passed in.

use std::time::Duration;

use super::check::Check;
use crate::balance::RiseFall;

/// A probe that could not be made is tried again after this, in ms.
const POSTPONED_MS: u64 = 200;

/// The course of one endpoint's probes.
#[derive(Debug, Clone)]
pub struct Course {
    counting: RiseFall,
    began_ms: u64,
    next_ms: u64,
    finished_one: bool,
}

impl Course {
    /// Begins after a random part of the warm-up: at once without one.
    #[must_use]
    pub fn new(check: &Check, now_ms: u64, random: u64) -> Self {
        let next_ms = now_ms.saturating_add(part(millis(check.warm_up), random));
        Self { counting: RiseFall::default(), began_ms: now_ms, next_ms, finished_one: false }
    }

    /// Goes on with a verdict that is known, and so many results in a row against it: the next probe comes within an
    /// interval.
    #[must_use]
    pub fn resumed(check: &Check, (good, row): (bool, u32), now_ms: u64, random: u64) -> Self {
        let pending = check.retry_interval.filter(|_| row > 0);
        let wait = part(millis(pending.unwrap_or(check.interval)), random);
        Self {
            counting: RiseFall::standing(good, row),
            began_ms: now_ms,
            next_ms: now_ms.saturating_add(wait),
            finished_one: true,
        }
    }

    /// When the next probe is due.
    #[must_use]
    pub fn next_ms(&self) -> u64 {
        self.next_ms
    }

    /// The verdict; `None` before the first result.
    #[must_use]
    pub fn good(&self) -> Option<bool> {
        self.counting.good()
    }

    /// Results in a row that speak against the verdict.
    #[must_use]
    pub fn row(&self) -> u32 {
        self.counting.row()
    }

    /// A probe begins.
    pub fn begin(&mut self, now_ms: u64) {
        self.began_ms = now_ms;
    }

    /// A probe has ended; the new verdict when that changed it. The probe after the very first comes after a
    /// random part of the interval, so that endpoints which began together do not stay together.
    pub fn finish(&mut self, check: &Check, good: bool, now_ms: u64, random: u64) -> Option<bool> {
        let changed = self.counting.note(good, check.rise, check.fall);
        let pending = self.counting.row() > 0;
        let period = check.retry_interval.filter(|_| pending).unwrap_or(check.interval);
        let period = millis(period).max(1);
        let wait = if std::mem::replace(&mut self.finished_one, true) {
            jittered(period, check.jitter, random)
        } else {
            part(period, random).max(1)
        };
        self.next_ms = self.began_ms.saturating_add(wait).max(now_ms);
        changed
    }

    /// A probe could not be made for want of something here, which says nothing about the endpoint.
    pub fn postpone(&mut self, check: &Check, now_ms: u64, random: u64) {
        let wait = POSTPONED_MS.min(millis(check.interval)).max(2);
        self.next_ms = now_ms.saturating_add(wait / 2 + part(wait, random));
    }
}

/// Whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A random part of `whole`, below it.
fn part(whole: u64, random: u64) -> u64 {
    let product = u128::from(whole) * u128::from(random);
    u64::try_from(product >> 64).unwrap_or_default()
}

/// `period`, longer or shorter by up to `percent`.
fn jittered(period: u64, percent: u32, random: u64) -> u64 {
    let most = period.saturating_mul(u64::from(percent.min(100))) / 100;
    (period - most).saturating_add(part(most.saturating_mul(2).saturating_add(1), random)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::health::check::Kind;

    pub(crate) fn check() -> Check {
        Check {
            kind: Kind::Tcp,
            interval: Duration::from_secs(1),
            retry_interval: None,
            jitter: 10,
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            warm_up: Duration::ZERO,
            start_down: false,
            port: None,
            address: None,
        }
    }

    #[test]
    fn the_first_comes_at_once_or_within_the_warm_up() {
        assert_eq!(Course::new(&check(), 50, u64::MAX).next_ms(), 50);
        let warm = Check { warm_up: Duration::from_secs(6), ..check() };
        assert_eq!(Course::new(&warm, 50, 0).next_ms(), 50);
        assert_eq!(Course::new(&warm, 50, u64::MAX / 2).next_ms(), 3049);
        assert_eq!(Course::new(&warm, 50, u64::MAX).next_ms(), 6049);
    }

    #[test]
    fn one_that_is_resumed_has_its_verdict_and_its_row() {
        let mut course = Course::resumed(&check(), (true, 2), 50, u64::MAX / 2);
        assert_eq!((course.good(), course.row(), course.next_ms()), (Some(true), 2, 549));
        course.begin(549);
        assert_eq!(course.finish(&check(), false, 550, 0), Some(false), "the third in a row");
        let soon = Check { retry_interval: Some(Duration::from_millis(100)), ..check() };
        assert_eq!(Course::resumed(&soon, (false, 1), 50, u64::MAX / 2).next_ms(), 99);
        assert_eq!(Course::resumed(&soon, (false, 0), 50, u64::MAX / 2).next_ms(), 549);
    }

    #[test]
    fn a_pending_change_is_looked_into_sooner() {
        let check =
            Check { jitter: 0, retry_interval: Some(Duration::from_millis(100)), ..check() };
        let mut course = Course::new(&check, 0, 0);
        course.begin(0);
        assert_eq!(course.finish(&check, true, 3, u64::MAX / 2), Some(true));
        assert_eq!(course.next_ms(), 499, "spread after the first");
        course.begin(499);
        assert_eq!(course.finish(&check, false, 510, 0), None);
        assert_eq!(course.next_ms(), 599);
        course.begin(599);
        assert_eq!(course.finish(&check, false, 610, 0), None);
        course.begin(699);
        assert_eq!(course.finish(&check, false, 1300, 0), Some(false));
        assert_eq!((course.next_ms(), course.good()), (1699, Some(false)));
        course.postpone(&check, 1699, 0);
        assert_eq!((course.next_ms(), course.good()), (1799, Some(false)));
    }

    proptest! {
        /// Probes are never in the past, never further apart than interval and jitter allow, and a dead
        /// endpoint is out after `fall` of them.
        #[test]
        fn dead_endpoints_go_in_time(
            randoms in prop::collection::vec(any::<u64>(), 3..40), jitter in 0_u32..=100,
            durations in prop::collection::vec(0_u64..500, 40),
        ) {
            let check = Check { jitter, ..check() };
            let mut course = Course::new(&check, 0, 7);
            course.begin(0);
            prop_assert_eq!(course.finish(&check, true, 1, randoms[0]), Some(true));
            let longest = 1000 + 10 * u64::from(jitter) + 1;
            let mut last = 0;
            for (round, (random, took)) in randoms.iter().zip(durations).enumerate() {
                let now = course.next_ms();
                prop_assert!(now >= last && now - last <= longest);
                course.begin(now);
                last = now;
                let changed = course.finish(&check, false, now + took, *random);
                prop_assert_eq!(changed, (round == 2).then_some(false));
                prop_assert!(round < 2 || now <= 3 * longest || round > 2);
            }
        }
    }
}
