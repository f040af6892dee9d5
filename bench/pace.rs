//! When requests are due, and which comes next: arithmetic without a clock.
//!
//! Times are nanoseconds since the start of the run.

const SECOND_NS: u128 = 1_000_000_000;

/// A constant rate. Request number `i` of all threads together is due at `i / rate` seconds; each
/// thread takes every `stride`th, so that together they send each number once.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    rate: u64,
    stride: u64,
    next: u64,
}

impl Pace {
    /// The share of thread `index` of `threads`.
    pub(crate) fn new(rate: u64, index: u64, threads: u64) -> Self {
        Self { rate: rate.max(1), stride: threads.max(1), next: index }
    }

    /// When the next request is due; the one after it is next.
    pub(crate) fn take(&mut self) -> u64 {
        let at = u128::from(self.next) * SECOND_NS / u128::from(self.rate);
        self.next = self.next.saturating_add(self.stride);
        u64::try_from(at).unwrap_or(u64::MAX)
    }

    /// How many that were not taken are due before `end`.
    pub(crate) fn left_before(&self, end: u64) -> u64 {
        let due = (u128::from(end) * u128::from(self.rate)).div_ceil(SECOND_NS);
        let left = u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(self.next);
        left.div_ceil(self.stride)
    }
}

/// When a slow reader, due to read on at `due`, takes the next piece after one of `taken` bytes, at `rate` bytes a second.
///
/// Time in which there was nothing to read is lost to it. That of a wake-up which came late is not, or many small pieces
/// would take longer than few large ones.
pub(crate) fn read_on(due: u64, now: u64, was_dry: bool, taken: usize, rate: u64) -> u64 {
    let from = if was_dry { due.max(now) } else { due };
    let rest = u128::try_from(taken).unwrap_or(u128::MAX).saturating_mul(SECOND_NS)
        / u128::from(rate.max(1));
    from.saturating_add(u64::try_from(rest).unwrap_or(u64::MAX))
}

/// Chooses requests by weight: evenly interleaved rather than at random, so that short runs have
/// the mix too, and the same in every run.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    /// Sums of the weights up to and including each.
    sums: Vec<u64>,
    turn: u64,
}

impl Turns {
    /// `offset` sets threads apart.
    pub(crate) fn new(weights: impl Iterator<Item = u32>, offset: u64) -> Self {
        let mut sum = 0;
        let sums = weights.map(|weight| {
            sum += u64::from(weight);
            sum
        });
        Self { sums: sums.collect(), turn: offset }
    }

    /// The index of the next request.
    pub(crate) fn next(&mut self) -> usize {
        if self.sums.len() < 2 {
            return 0;
        }
        // Multiples of the golden ratio modulo 1 fill the unit interval evenly from the first on.
        let point = self.turn.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.turn = self.turn.wrapping_add(1);
        let total = self.sums.last().copied().unwrap_or(1);
        let place = u64::try_from((u128::from(point) * u128::from(total)) >> 64).unwrap_or(0);
        self.sums.partition_point(|&sum| sum <= place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slow_reader_reads_at_its_rate_whatever_the_pieces() {
        // 1,000,000 bytes a second: 1 µs for each. Every wake-up is 50 µs late.
        let take = |pieces: usize, size| {
            (0..pieces).fold(0, |due, _| read_on(due, due + 50_000, false, size, 1_000_000))
        };
        assert_eq!((take(1, 64_000), take(64, 1_000)), (64_000_000, 64_000_000));
        // For 2 ms there was nothing.
        assert_eq!(read_on(5_000_000, 7_000_000, true, 1_000, 1_000_000), 8_000_000);
        // It came before it was due.
        assert_eq!(read_on(5_000_000, 3_000_000, true, 1_000, 1_000_000), 6_000_000);
        assert_eq!(read_on(u64::MAX - 1, 0, false, usize::MAX, 0), u64::MAX);
    }

    #[test]
    fn requests_are_due_at_even_distances_without_drift() {
        let mut pace = Pace::new(3, 0, 1);
        let times: Vec<u64> = (0..7).map(|_| pace.take()).collect();
        let thirds = [0, 333_333_333, 666_666_666, 1_000_000_000, 1_333_333_333, 1_666_666_666];
        assert_eq!(times[..6], thirds);
        assert_eq!(times[6], 2_000_000_000);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut pace = Pace::new(u64::MAX, u64::MAX - 1, 8);
        assert_eq!(pace.take(), 999_999_999);
        pace.take();
        assert_eq!(pace.left_before(u64::MAX), 0);
    }

    proptest! {
        #[test]
        fn threads_share_the_rate(rate in 1u64..2_000_000, threads in 1u64..9, end in 0u64..3_000_000) {
            let mut due = 0;
            for index in 0..threads {
                let mut pace = Pace::new(rate, index, threads);
                let left = pace.left_before(end);
                let mut taken = 0;
                while pace.take() < end {
                    taken += 1;
                    prop_assert_eq!(pace.left_before(end), left - taken);
                }
                prop_assert_eq!(taken, left);
                due += taken;
            }
            let expected = (u128::from(end) * u128::from(rate)).div_ceil(SECOND_NS);
            prop_assert_eq!(u128::from(due), expected);
        }

        #[test]
        fn turns_follow_the_weights(
            weights in prop::collection::vec(1u32..100, 1..12),
            offset in any::<u64>(),
        ) {
            let mut turns = Turns::new(weights.iter().copied(), offset);
            let mut counts = vec![0f64; weights.len()];
            let rounds = 4000;
            for _ in 0..rounds {
                counts[turns.next()] += 1.0;
            }
            let total: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let expected = f64::from(rounds) * f64::from(*weight) / f64::from(total);
                prop_assert!((count - expected).abs() < 20.0, "{} for {}", count, expected);
            }
        }
    }
}
