//! Looking for completions before sleeping, for those who would rather spend CPU time than wait to be woken.
//!
//! Waking a thread takes some microseconds, tens of them where a hypervisor has taken the CPU away meanwhile. A loop that looks
//! for a moment before it sleeps saves that where the next completion is that near. Whether it is, the last wait tells:
//! after one that was longer the loop sleeps at once, so an idle shard takes no CPU time.

use std::cell::Cell;
use std::time::Duration;

/// Whether the next wait begins with looking; pure.
#[derive(Debug, Default)]
pub(super) struct Busy {
    /// Looks for so long at most; not at all if that is zero.
    limit: Cell<Duration>,
    /// The last wait was shorter than the limit.
    is_near: Cell<bool>,
}

impl Busy {
    /// From now on.
    pub(super) fn start(&self, limit: Duration) {
        self.limit.set(limit);
    }

    /// How long the next wait may look for completions before it sleeps.
    pub(super) fn limit(&self) -> Option<Duration> {
        self.is_near.get().then_some(self.limit.get())
    }

    /// Whether [`Busy::note`] is to be told of waits.
    pub(super) fn is_on(&self) -> bool {
        !self.limit.get().is_zero()
    }

    /// What was waited for came after this time: of the sleep alone, if looking was in vain.
    pub(super) fn note(&self, waited: Duration) {
        self.is_near.set(waited < self.limit.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_while_completions_come_soon() {
        let limit = Duration::from_micros(50);
        let busy = Busy::default();
        busy.start(limit);
        assert!(busy.is_on());
        assert_eq!(busy.limit(), None, "nothing is known yet");
        for (waited, looks) in [(10, true), (49, true), (50, false), (2_000_000, false), (0, true)]
        {
            busy.note(Duration::from_micros(waited));
            assert_eq!(busy.limit(), looks.then_some(limit), "{waited} us");
        }
    }

    #[test]
    fn unasked_it_never_looks() {
        let busy = Busy::default();
        assert!(!busy.is_on());
        busy.note(Duration::ZERO);
        assert_eq!(busy.limit(), None);
    }
}
