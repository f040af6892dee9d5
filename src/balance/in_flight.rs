//! Requests in flight to one server, and its `max_conns`.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A count shared by all shards; alone on its cache line.
///
/// There is no guard object: a request's place outlives any one scope, so whoever ends it calls
/// [`release`](Self::release) exactly once.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct InFlight {
    // Relaxed order is enough: the count publishes no other memory.
    count: AtomicU32,
}

impl InFlight {
    /// Nothing in flight.
    #[must_use]
    pub const fn new() -> Self {
        Self { count: AtomicU32::new(0) }
    }

    /// Takes a place without limit.
    pub fn acquire(&self) {
        let taken = self.try_acquire(0);
        debug_assert!(taken, "2^32 requests in flight");
    }

    /// Takes a place if fewer than `max` are taken (0: no limit); exact under races, `max` is never
    /// exceeded. On false nothing is held.
    #[must_use = "a place refused must not be released"]
    pub fn try_acquire(&self, max: u32) -> bool {
        let limit = if max == 0 { u32::MAX } else { max };
        let next = |count| if count < limit { Some(count + 1) } else { None };
        self.count.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// Gives a place back. One too many is a bug of the caller: it stops debug builds, and is
    /// ignored in others, where a count below zero would shut the server out for good.
    pub fn release(&self) {
        let held = self.count.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        debug_assert!(held.is_ok(), "released more than acquired");
    }

    /// Places taken at this moment.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count.load(Relaxed)
    }

    /// True if [`try_acquire`](Self::try_acquire) would be refused at this moment.
    #[must_use]
    pub fn is_full(&self, max: u32) -> bool {
        max != 0 && self.count() >= max
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn a_cache_line_each() {
        assert_eq!((size_of::<InFlight>(), align_of::<InFlight>()), (64, 64));
    }

    #[test]
    fn limit() {
        let server = InFlight::new();
        assert!(server.try_acquire(2) && server.try_acquire(2));
        assert!(server.is_full(2) && !server.try_acquire(2) && !server.try_acquire(1));
        assert!(server.try_acquire(0) && server.try_acquire(4));
        server.acquire();
        assert_eq!(server.count(), 5);
        assert!(!server.is_full(0));
        for _ in 0..5 {
            server.release();
        }
        assert_eq!(server.count(), 0);
    }

    #[test]
    fn exact_under_races() {
        const MAX: u32 = 3;
        const THREADS: usize = 8;
        let (server, taken, start) = (InFlight::new(), AtomicU32::new(0), Barrier::new(THREADS));
        let round = || {
            start.wait();
            let mine = server.try_acquire(MAX);
            taken.fetch_add(mine.into(), Relaxed);
            start.wait();
            assert_eq!((taken.load(Relaxed), server.count()), (MAX, MAX));
            start.wait();
            if mine {
                taken.fetch_sub(1, Relaxed);
                server.release();
            }
            // And without the lock step.
            for _ in 0..100 {
                if server.try_acquire(MAX) {
                    assert!(server.count() <= MAX);
                    server.release();
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..200).for_each(|_| round()));
            }
        });
        assert_eq!(server.count(), 0);
    }

    #[test]
    #[cfg(not(debug_assertions))]
    fn never_below_zero() {
        let server = InFlight::new();
        server.release();
        assert_eq!(server.count(), 0);
    }
}
