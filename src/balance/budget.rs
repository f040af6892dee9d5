//! The retry budget: how much load retries may add when servers fail (Google's SRE book, chapter
//! 21, "Handling Overload").

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whole seconds summed; the newest is still filling, so the window is 9 to 10 seconds.
const WINDOW_S: u32 = 10;

/// More slots than seconds in the window: a shard whose clock lags a little does not meet a slot
/// that was taken over.
const SLOTS: usize = 16;

/// Retries always allowed in a window, or an upstream with few requests could never retry.
const RETRIES_MIN: u64 = 10;

const COUNT_BITS: u32 = 32;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// Requests and retries of an upstream over the last ten seconds, shared by all shards.
///
/// Retries are allowed up to a percentage of the requests in the window, and at least 10 a window.
/// Requests and retries are counted exactly; a retry is checked and counted in two steps, so that
/// at most one retry too many may pass for every other shard that asks in the same instant.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct RetryBudget {
    requests: Window,
    retries: Window,
}

impl RetryBudget {
    /// A budget with nothing counted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts a request (its first attempt, not its retries).
    pub fn request(&self, now_ms: u64) {
        self.requests.add(second(now_ms), 1);
    }

    /// Counts many requests in one step, for a shard that gathers them to spare the shared line.
    pub fn requests(&self, now_ms: u64, count: u32) {
        self.requests.add(second(now_ms), count);
    }

    /// Asks to retry, and counts the retry if it is allowed. `percent` 0: never.
    #[must_use = "false means that the retry must not happen"]
    pub fn try_retry(&self, now_ms: u64, percent: u32) -> bool {
        if percent == 0 {
            return false;
        }
        let now = second(now_ms);
        let share = self.requests.sum(now).saturating_mul(percent.into()) / 100;
        if self.retries.sum(now) >= share.max(RETRIES_MIN) {
            return false;
        }
        self.retries.add(now, 1);
        true
    }

    /// Requests and retries in the window, for another process; see [`restore`](Self::restore).
    #[must_use]
    pub fn standing(&self, now_ms: u64) -> (u32, u32) {
        let sum = |window: &Window| u32::try_from(window.sum(second(now_ms))).unwrap_or(u32::MAX);
        (sum(&self.requests), sum(&self.retries))
    }

    /// Goes on from what another process counted, as if it had been this very second.
    pub fn restore(&self, now_ms: u64, (requests, retries): (u32, u32)) {
        self.requests.add(second(now_ms), requests);
        self.retries.add(second(now_ms), retries);
    }
}

/// Seconds, modulo 2^32: only differences count.
fn second(now_ms: u64) -> u32 {
    let [a, b, c, d, ..] = (now_ms / 1000).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// A count for each second: the second in the high half of a word, the count in the low.
#[derive(Debug, Default)]
struct Window {
    slots: [AtomicU64; SLOTS],
}

impl Window {
    fn add(&self, now: u32, count: u32) {
        let slot = &self.slots[now as usize % SLOTS];
        let next = |word: u64| {
            let (at, before) = (word >> COUNT_BITS, word & COUNT_MAX);
            // A slot of a later second belongs to a shard whose clock is ahead: join it.
            let stale = is_before(at, now);
            let at = if stale { now.into() } else { at };
            let sum = if stale { count.into() } else { (before + u64::from(count)).min(COUNT_MAX) };
            Some(at << COUNT_BITS | sum)
        };
        // Never an error: `next` always has a value.
        let _ = slot.fetch_update(Relaxed, Relaxed, next);
    }

    fn sum(&self, now: u32) -> u64 {
        let counts = self.slots.iter().map(|slot| slot.load(Relaxed));
        let recent = counts.filter(|word| age(word >> COUNT_BITS, now) < WINDOW_S);
        recent.map(|word| word & COUNT_MAX).sum()
    }
}

/// Seconds from `at` to `now`, modulo 2^32: huge for a second still to come.
fn age(at: u64, now: u32) -> u32 {
    u32::try_from(at).map_or(u32::MAX, |at| now.wrapping_sub(at))
}

fn is_before(at: u64, now: u32) -> bool {
    (1..1 << 31).contains(&age(at, now))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn allowed(budget: &RetryBudget, now_ms: u64, percent: u32) -> usize {
        (0..100_000).take_while(|_| budget.try_retry(now_ms, percent)).count()
    }

    #[test]
    fn a_successor_goes_on_with_it() {
        let (old, new) = (RetryBudget::new(), RetryBudget::new());
        old.requests(2_000, 600);
        old.requests(9_000, 400);
        assert_eq!(allowed(&old, 9_500, 10), 100);
        assert_eq!(old.standing(9_900), (1_000, 100));
        new.restore(9_900, old.standing(9_900));
        assert_eq!(allowed(&new, 9_900, 10), 0);
        new.requests(9_900, 500);
        assert_eq!(allowed(&new, 9_900, 10), 50);
        assert_eq!(allowed(&new, 20_000, 10), 10, "the window is over");
    }

    #[test]
    fn percentage_and_minimum() {
        for (requests, percent, expected) in
            [(0, 20, 10), (49, 20, 10), (100, 20, 20), (1000, 5, 50), (7, 1000, 70), (1000, 0, 0)]
        {
            let budget = RetryBudget::new();
            (0..requests).for_each(|_| budget.request(5_000_000));
            assert_eq!(allowed(&budget, 5_000_500, percent), expected, "{requests} at {percent} %");
        }
    }

    #[test]
    fn the_window_slides() {
        let budget = RetryBudget::new();
        budget.requests(100_000, 1000);
        assert_eq!(allowed(&budget, 100_000, 10), 100);
        assert_eq!(allowed(&budget, 109_999, 10), 0, "still in the window");
        assert_eq!(allowed(&budget, 110_000, 10), 10, "all is forgotten, the minimum remains");
        budget.requests(112_000, 1000);
        assert_eq!(allowed(&budget, 112_000, 10), 90, "ten were spent in this window");
    }

    #[test]
    fn clocks_that_differ() {
        let budget = RetryBudget::new();
        budget.requests(20_000, 500);
        budget.requests(19_999, 500);
        assert_eq!(allowed(&budget, 20_000, 10), 100);
        // Far behind: joins the slot of the later second and destroys nothing.
        budget.requests(20_000 - 16_000, 100);
        assert_eq!(allowed(&budget, 20_000, 10), 10);
    }

    #[test]
    fn time_wraps_and_counts_saturate() {
        let budget = RetryBudget::new();
        let wrap_ms = (1_u64 << 32) * 1000;
        budget.requests(wrap_ms - 1, 300);
        budget.requests(wrap_ms, 300);
        assert_eq!(allowed(&budget, wrap_ms + 500, 10), 60);
        budget.requests(50_000, u32::MAX);
        budget.requests(50_000, u32::MAX);
        assert_eq!(budget.requests.sum(50), COUNT_MAX);
        assert!(budget.try_retry(u64::MAX, u32::MAX));
    }

    #[test]
    fn threads_overshoot_by_at_most_one_each() {
        const THREADS: u32 = 4;
        for _ in 0..50 {
            let (budget, retries) = (RetryBudget::new(), AtomicU32::new(0));
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        (0..500).for_each(|_| budget.request(9_000));
                    });
                }
            });
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            retries.fetch_add(budget.try_retry(9_000, 10).into(), Relaxed);
                        }
                    });
                }
            });
            let retries = retries.load(Relaxed);
            assert!((200..200 + THREADS).contains(&retries), "{retries}");
        }
    }

    proptest! {
        /// Over any history, no ten seconds hold more retries than the requests of the twenty
        /// seconds around them allow.
        #[test]
        fn bounded_share(
            steps in prop::collection::vec((0_u64..700, any::<bool>()), 1..400), percent in 1_u32..100,
        ) {
            let (budget, mut now) = (RetryBudget::new(), 1_000_000);
            let (mut requests, mut retries) = (vec![], vec![]);
            for (step, retry) in steps {
                now += step;
                if !retry {
                    budget.request(now);
                    requests.push(now);
                } else if budget.try_retry(now, percent) {
                    retries.push(now);
                    let recent = |times: &[u64]| {
                        times.iter().filter(|at| *at / 1000 + 10 > now / 1000).count() as u64
                    };
                    let limit = (recent(&requests) * u64::from(percent) / 100).max(RETRIES_MIN);
                    prop_assert!(recent(&retries) <= limit);
                }
            }
        }
    }
}
