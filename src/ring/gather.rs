//! One wake-up for several connections, under load.
//!
//! The kernel wakes the loop for the first completion, and does the work of about twenty operations before it lets it
//! go. Where many connections have something in each round, it is asked for more (`min_wait_usec` of
//! io_uring_enter(2), Linux 6.12): for the small sends of the round, which end as they are submitted, and for some receives
//! beside them. It does the work of as many at once, and waits 50 µs at most for those that are missing. A round
//! serves more then, and the way into the kernel and out of it is shared by more.
//!
//! Few connections are never waited for: who needs an answer before it asks again would lose that time each time.
//! Nor are rounds in which a receive filled a buffer made longer: a large body is such a flow, and is best sent on while
//! it is in the CPU's cache. Older kernels wake at the first.

use std::cell::Cell;

/// Microseconds the kernel may wait for more than one completion.
pub(super) const WAIT_US: u32 = 50;
/// Streams that have received something in each of the last two rounds, at least.
const BUSY: u32 = 16;
/// One receive for so many of them is waited for.
const SHARE: u32 = 4;

/// How many streams the last rounds were about, and how many completions the next sleep waits for; pure.
#[derive(Debug)]
pub(super) struct Gather {
    supported: bool,
    /// Somebody asked for it.
    on: Cell<bool>,
    /// Streams that have received in this round: a bit for each key modulo 64.
    receiving: Cell<u64>,
    /// One of them has filled a buffer.
    bulk: Cell<bool>,
    /// How many they were in the last round, and in the one before.
    last: Cell<(u32, u32)>,
    /// Sends since the last sleep.
    sends: Cell<u32>,
}

impl Gather {
    /// Not asked for yet; on a kernel that can wait so, or that cannot.
    pub(super) fn new(supported: bool) -> Self {
        Self {
            supported,
            on: Cell::new(false),
            receiving: Cell::new(0),
            bulk: Cell::new(false),
            last: Cell::new((0, 0)),
            sends: Cell::new(0),
        }
    }

    /// From now on.
    pub(super) fn start(&self) {
        self.on.set(self.supported);
    }

    /// The stream with this key has received so many bytes, of `buffer` at most.
    pub(super) fn note_receive(&self, key: usize, len: usize, buffer: usize) {
        self.receiving.set(self.receiving.get() | 1 << (key % 64));
        if len >= buffer {
            self.bulk.set(true);
        }
    }

    /// A send of one piece is about to be submitted: as a rule the socket has room for it.
    pub(super) fn note_send(&self) {
        self.sends.set(self.sends.get().saturating_add(1));
    }

    /// All completions of a round have been noted.
    pub(super) fn end_round(&self) {
        let streams = self.receiving.take().count_ones();
        let streams = if self.bulk.take() { 0 } else { streams };
        self.last.set((streams, self.last.get().0));
    }

    /// How many completions the next sleep waits for, one at least; forgets the sends.
    pub(super) fn wanted(&self) -> usize {
        let sends = self.sends.take();
        let streams = self.last.get().0.min(self.last.get().1);
        if !self.on.get() || streams < BUSY {
            return 1;
        }
        usize::try_from(sends.saturating_add(streams / SHARE)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(supported: bool) -> Gather {
        let gather = Gather::new(supported);
        gather.start();
        gather
    }

    /// Rounds in which each of these streams receives twice and sends once.
    fn after(gather: &Gather, rounds: usize, streams: usize) -> usize {
        for _ in 0..rounds {
            gather.wanted();
            (0..streams).chain(0..streams).for_each(|key| gather.note_receive(key, 100, 200));
            gather.end_round();
            (0..streams).for_each(|_| gather.note_send());
        }
        gather.wanted()
    }

    #[test]
    fn only_where_many_streams_receive_is_more_than_one_waited_for() {
        let table = [
            // rounds, streams, wanted
            (9, 0, 1),
            (9, 1, 1),
            (9, 15, 1),
            (1, 64, 1),
            (2, 16, 16 + 4),
            (9, 40, 40 + 10),
            (9, 64, 64 + 16),
            (9, 1_000, 1_000 + 16),
        ];
        for (rounds, streams, wanted) in table {
            assert_eq!(after(&started(true), rounds, streams), wanted, "{streams} streams");
            // On an older kernel, and where nobody asked.
            assert_eq!(after(&started(false), rounds, streams), 1);
            assert_eq!(after(&Gather::new(true), rounds, streams), 1);
        }
    }

    #[test]
    fn after_a_burst_the_first_is_waited_for_again() {
        let gather = started(true);
        assert!(after(&gather, 9, 200) > 1);
        gather.note_receive(7, 100, 200);
        gather.end_round();
        assert_eq!(gather.wanted(), 1);
        // One busy round is a burst, not a load.
        assert_eq!(after(&gather, 1, 200), 1);
    }

    #[test]
    fn a_round_with_a_full_buffer_is_left_alone_and_so_is_the_next() {
        let gather = started(true);
        assert!(after(&gather, 9, 200) > 1);
        gather.note_receive(7, 200, 200);
        for _ in 0..2 {
            assert_eq!(after(&gather, 1, 200), 1);
        }
        assert!(after(&gather, 1, 200) > 1);
    }

    #[test]
    fn sends_are_waited_for_once() {
        let gather = started(true);
        assert_eq!(after(&gather, 2, 64), 64 + 16);
        assert_eq!(gather.wanted(), 16);
        gather.sends.set(u32::MAX);
        gather.note_send();
        assert!(gather.wanted() > 64);
    }
}
