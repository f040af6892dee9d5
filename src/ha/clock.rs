//! The HA thread's clocks: a monotonic one for timers, the wall clock for stamps, and the way from the
//! kernel's receive stamps, which are wall-clock time, to the monotonic one.

use std::time::{Duration, Instant, SystemTime};

use crate::protocol::vrrp::Moment;

/// A monotonic clock that begins with the thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Earlier than any moment that is used, so that "before the start" can be said.
    zero: Instant,
}

impl Clock {
    /// Starts at one, since zero is "never" to many.
    pub(super) fn new() -> Self {
        Self { zero: Instant::now() }
    }

    /// Now.
    pub(super) fn now(&self) -> Moment {
        let nanos = u64::try_from(self.zero.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Moment::from_nanos(nanos.saturating_add(1))
    }

    /// Now, since 1970.
    pub(super) fn unix() -> Duration {
        SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
    }
}

/// When the kernel received a packet, on the monotonic clock. `stamp` is its stamp and `unix` the wall
/// clock, which may have been set in between: the result is kept between `drained`, when nothing waited
/// any more, and `now`.
pub(super) fn received_at(
    stamp: Option<Duration>,
    unix: Duration,
    now: Moment,
    drained: Moment,
) -> Moment {
    let age = stamp.map_or(Duration::ZERO, |stamp| unix.saturating_sub(stamp));
    let nanos = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    Moment::from_nanos(now.nanos().saturating_sub(nanos)).max(drained).min(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_become_moments_between_the_last_look_and_now() {
        let s = Duration::from_secs;
        let at = |seconds: u64| Moment::from_nanos(seconds * 1_000_000_000);
        let (unix, now, drained) = (s(1_000), at(50), at(40));
        for (stamp, expected) in [
            (Some(s(1_000)), at(50)),
            (Some(s(997)), at(47)),
            (None, at(50)),
            // The wall clock was set back, or forward by a day.
            (Some(s(5_000)), at(50)),
            (Some(s(3)), at(40)),
        ] {
            assert_eq!(received_at(stamp, unix, now, drained), expected, "{stamp:?}");
        }
        assert_eq!(received_at(None, unix, at(30), drained), at(30), "never after now");
    }
}
