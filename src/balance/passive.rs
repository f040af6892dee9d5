//! Passive health: failures seen by requests take a server out (nginx's `max_fails` and
//! `fail_timeout`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const TIME_BITS: u32 = 48;
const TIME_MAX: u64 = (1 << TIME_BITS) - 1;

/// Largest count of failures; the two numbers above it say that the member is out.
const FAILS_MAX: u64 = 0xfffd;
const OUT: u64 = 0xfffe;
const PROBING: u64 = 0xffff;

/// The passive health of one member, shared by all shards; alone on its cache line.
///
/// - `max_fails` failures within `fail_timeout` of the first of them take the member out for
///   `fail_timeout`. A success meanwhile does not clear the count (nor does it in nginx), so that a
///   server which fails every other request is noticed; the end of the window does.
/// - After that, [`admit`](Self::admit) lets one probe through for each `fail_timeout`. Its success
///   brings the member back with a clean slate, its failure keeps it out for `fail_timeout` more.
///   A probe that never reports is replaced by another after `fail_timeout`.
/// - Only a probe brings a member back, not a late success of a request sent before; or a health check that has found it
///   well for long enough since ([`vouch`](Self::vouch)).
///
/// The whole state is one atomic word changed by compare and swap, so that no failure is lost and
/// no two shards get the same probe. What remains inexact: shards pass times that differ by as much
/// as their clocks are stale; requests already sent when the member goes out run to their end; and
/// one of those that ends during a probe is taken for the probe.
///
/// All members out, or only one in the upstream: what then is the caller's decision (nginx ignores
/// `max_fails` for an only server).
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Passive {
    /// Count or state in the high 16 bits. Below: a time in ms, the end of the window while
    /// failures are counted, else when the next probe may go. 0: no failures.
    state: AtomicU64,
    /// How often a check has found the member well since it went out: the count above the time of `state`.
    vouched: AtomicU64,
}

#[derive(Clone, Copy)]
struct State {
    kind: u64,
    until_ms: u64,
}

impl State {
    const CLEAN: Self = Self { kind: 0, until_ms: 0 };

    fn new(kind: u64, now_ms: u64, fail_timeout_ms: u64) -> Self {
        Self { kind, until_ms: now_ms.saturating_add(fail_timeout_ms).min(TIME_MAX) }
    }

    fn from_word(word: u64) -> Self {
        Self { kind: word >> TIME_BITS, until_ms: word & TIME_MAX }
    }

    fn word(self) -> u64 {
        self.kind << TIME_BITS | self.until_ms
    }

    fn is_out(self) -> bool {
        self.kind > FAILS_MAX
    }

    fn available(self, now_ms: u64) -> bool {
        !self.is_out() || now_ms >= self.until_ms
    }

    fn after_failure(self, now_ms: u64, max_fails: u64, fail_timeout_ms: u64) -> Self {
        if self.is_out() {
            // A failure before the probe comes from a request sent long ago: nothing new.
            let known = self.kind == OUT && now_ms < self.until_ms;
            return if known { self } else { Self::new(OUT, now_ms, fail_timeout_ms) };
        }
        let current = if now_ms < self.until_ms { self } else { Self::CLEAN };
        let fails = current.kind + 1;
        if fails >= max_fails {
            Self::new(OUT, now_ms, fail_timeout_ms)
        } else if fails == 1 {
            Self::new(1, now_ms, fail_timeout_ms)
        } else {
            Self { kind: fails, ..current }
        }
    }

    fn after_success(self, now_ms: u64) -> Self {
        let window_over = !self.is_out() && now_ms >= self.until_ms;
        if self.kind == PROBING || window_over { Self::CLEAN } else { self }
    }
}

impl Passive {
    /// A member without failures.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: AtomicU64::new(0), vouched: AtomicU64::new(0) }
    }

    /// Reports a failed attempt; true if it took the member out (a failed probe leaves it out, and
    /// is false). `max_fails` 0: never out; above 65533 it counts as that.
    pub fn failure(&self, now_ms: u64, max_fails: u32, fail_timeout_ms: u64) -> bool {
        if max_fails == 0 {
            return false;
        }
        let max_fails = u64::from(max_fails).min(FAILS_MAX);
        let (before, after) =
            self.change(|state| state.after_failure(now_ms, max_fails, fail_timeout_ms));
        !before.is_out() && after.is_out()
    }

    /// Reports an attempt that went well. One load when the member has no failures.
    pub fn success(&self, now_ms: u64) {
        if self.state.load(Relaxed) != State::CLEAN.word() {
            self.change(|state| state.after_success(now_ms));
        }
    }

    /// True if the member may be picked: it is in, or due for a probe. Changes nothing, so that a
    /// scheduler can ask for every member; whoever then picks this one must ask
    /// [`admit`](Self::admit).
    #[must_use]
    pub fn available(&self, now_ms: u64) -> bool {
        State::from_word(self.state.load(Relaxed)).available(now_ms)
    }

    /// Asks to send a request to the member just picked. True if it is in, or if this request is
    /// to be its probe; false if it is out or another shard has taken the probe: pick again.
    pub fn admit(&self, now_ms: u64, fail_timeout_ms: u64) -> bool {
        let mut word = self.state.load(Relaxed);
        loop {
            let state = State::from_word(word);
            if !state.is_out() || !state.available(now_ms) {
                return !state.is_out();
            }
            let probing = State::new(PROBING, now_ms, fail_timeout_ms).word();
            match self.state.compare_exchange_weak(word, probing, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
    }

    /// How it stands, for another process with the same clock; see [`restore`](Self::restore).
    #[must_use]
    pub fn standing(&self) -> u64 {
        self.state.load(Relaxed)
    }

    /// Stands as another member did.
    pub fn restore(&self, standing: u64) {
        self.state.store(standing, Relaxed);
    }

    /// Forgets all failures: something that knows better says that the member is back.
    pub fn clear(&self) {
        self.state.store(State::CLEAN.word(), Relaxed);
    }

    /// A health check has found the member well, and not for the first time in a row. When it has done so `enough`
    /// times since the member went out, the failures are forgotten, and this is true. The first time does not count:
    /// that check may have begun before the failure. For one caller at a time.
    pub fn vouch(&self, enough: u32) -> bool {
        let word = self.state.load(Relaxed);
        let state = State::from_word(word);
        if !state.is_out() {
            return false;
        }
        let seen = State::from_word(self.vouched.load(Relaxed));
        let times = if seen.until_ms == state.until_ms { seen.kind + 1 } else { 0 };
        if times < u64::from(enough).min(FAILS_MAX) {
            self.vouched.store(State { kind: times, ..state }.word(), Relaxed);
            return false;
        }
        // A failure meanwhile is newer.
        self.state.compare_exchange(word, State::CLEAN.word(), Relaxed, Relaxed).is_ok()
    }

    /// True if the member is out, a probe under way or due included (for status pages).
    #[must_use]
    pub fn is_out(&self) -> bool {
        State::from_word(self.state.load(Relaxed)).is_out()
    }

    /// Applies a change; returns the states before and after. Relaxed order is enough: no other
    /// memory is published by this word.
    fn change(&self, next: impl Fn(State) -> State) -> (State, State) {
        let mut word = self.state.load(Relaxed);
        loop {
            let before = State::from_word(word);
            let after = next(before);
            if after.word() == word {
                return (before, after);
            }
            match self.state.compare_exchange_weak(word, after.word(), Relaxed, Relaxed) {
                Ok(_) => return (before, after),
                Err(seen) => word = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cache_line_each() {
        assert_eq!((size_of::<Passive>(), align_of::<Passive>()), (64, 64));
    }

    #[test]
    fn a_check_brings_it_back_before_its_time() {
        let member = Passive::new();
        assert!(!member.vouch(1), "it is in");
        assert!(member.failure(1000, 1, 10_000));
        assert!(!member.vouch(2) && !member.vouch(2), "the first may be older than the failure");
        assert!(!member.available(1500));
        assert!(member.vouch(2));
        assert!(member.available(1500) && !member.is_out());
        // Another failure: from the beginning.
        assert!(member.failure(2000, 1, 10_000));
        assert!(!member.vouch(1));
        assert!(member.admit(13_000, 10_000));
        assert!(!member.vouch(1), "a probe is under way, and its failure would be newer");
        assert!(!member.failure(13_001, 1, 10_000));
        assert!(!member.vouch(1) && member.vouch(1));
    }

    #[test]
    fn out_after_max_fails_in_the_window() {
        let member = Passive::new();
        assert!(!member.failure(1000, 3, 100));
        assert!(!member.failure(1050, 3, 100));
        member.success(1060);
        assert!(member.available(1060));
        assert!(member.failure(1099, 3, 100), "third failure within 100 ms of the first");
        assert!(!member.failure(1100, 3, 100), "was out already");
        assert!(!member.available(1198) && !member.admit(1198, 100));
        assert!(member.available(1199));
    }

    #[test]
    fn cleared_it_is_as_new() {
        let member = Passive::new();
        assert!(member.failure(1000, 1, 100) && member.is_out());
        member.clear();
        assert!(!member.is_out() && member.admit(1000, 100));
    }

    #[test]
    fn another_goes_on_where_one_stood() {
        let (member, other) = (Passive::new(), Passive::new());
        assert!(!member.failure(1000, 2, 100));
        other.restore(member.standing());
        assert!(other.failure(1050, 2, 100), "the second failure in the window");
        member.restore(other.standing());
        assert!(member.is_out() && !member.available(1149) && member.available(1150));
    }

    #[test]
    fn the_window_ends() {
        let member = Passive::new();
        for now in [0, 50, 100, 150, 200, 250, 300] {
            assert!(!member.failure(now, 3, 100), "at {now}");
        }
        member.success(400);
        assert_eq!(member.state.load(Relaxed), 0);
    }

    #[test]
    fn one_probe_for_each_timeout() {
        let member = Passive::new();
        assert!(member.failure(0, 1, 100));
        assert!(member.admit(100, 100));
        assert!(!member.available(100) && !member.admit(199, 100));
        // The probe never reports: another may go.
        assert!(member.admit(200, 100));
        assert!(!member.failure(250, 1, 100), "still out");
        assert!(!member.available(349));
        assert!(member.admit(350, 100));
        member.success(360);
        assert!(member.available(360) && !member.is_out());
        assert!(member.admit(360, 100) && member.admit(360, 100), "no probes for healthy members");
    }

    #[test]
    fn late_reports_change_nothing() {
        let member = Passive::new();
        assert!(member.failure(0, 1, 100));
        member.success(10);
        assert!(member.is_out(), "a request sent before it went out");
        member.failure(90, 1, 100);
        assert!(member.available(100), "a late failure does not prolong it");
        member.success(110);
        assert!(member.is_out(), "due for a probe, but nobody has sent one");
    }

    #[test]
    fn limits() {
        let member = Passive::new();
        for _ in 0..100_000 {
            assert!(!member.failure(5, 0, 100));
        }
        assert!(member.available(5));
        let taken_out = (0..70_000).filter(|_| member.failure(5, u32::MAX, 100)).count();
        assert_eq!(taken_out, 1);
        assert!(!member.failure(u64::MAX, 1, u64::MAX));
        assert!(member.available(u64::MAX), "the end of time is not out for ever");
    }

    #[test]
    fn threads_lose_no_failure_and_share_one_probe() {
        for round in 0..200 {
            let (member, out, probes) = (Passive::new(), AtomicU32::new(0), AtomicU32::new(0));
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..25 {
                            out.fetch_add(member.failure(10, 100, 50).into(), Relaxed);
                        }
                    });
                }
            });
            assert_eq!(out.load(Relaxed), 1, "round {round}: exactly the hundredth failure");
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| probes.fetch_add(member.admit(60, 50).into(), Relaxed));
                }
            });
            assert_eq!(probes.load(Relaxed), 1, "round {round}");
        }
    }

    proptest! {
        /// A dead server that is out gets one request for each timeout, whatever the times of the
        /// attempts; and `max_fails` in a row take it out.
        #[test]
        fn dead_servers_get_few_requests(
            steps in prop::collection::vec(0_u64..40, 1..300), max_fails in 1_u32..5,
        ) {
            let member = Passive::new();
            let (mut now, mut last, mut first_fails) = (1_u64, 0, vec![]);
            for step in steps {
                now += step;
                let was_out = member.is_out();
                if !member.available(now) || !member.admit(now, 100) {
                    prop_assert!(was_out && now - last < 100);
                    continue;
                }
                prop_assert!(!was_out || now - last >= 100);
                member.failure(now, max_fails, 100);
                last = now;
                first_fails.push(now);
                let quick = first_fails.len() >= max_fails as usize
                    && first_fails[max_fails as usize - 1] - first_fails[0] < 100;
                prop_assert!(!quick || member.is_out());
            }
        }

        /// Whatever is reported, a member is available again after the timeout.
        #[test]
        fn never_out_for_good(
            reports in prop::collection::vec((0_u64..1000, 0_u8..3), 0..50), max_fails in 0_u32..4,
        ) {
            let member = Passive::new();
            for (now, what) in reports {
                match what {
                    0 => member.success(now),
                    1 => { member.failure(now, max_fails, 70); }
                    _ => { member.admit(now, 70); }
                }
                prop_assert!(max_fails > 0 || !member.is_out());
            }
            prop_assert!(member.available(1070));
        }
    }
}
