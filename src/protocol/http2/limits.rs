//! What a peer may do, and how often.

use super::Reason;

/// What a connection is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of a decoded head, as HTTP/1.1 would write it.
    pub head_bytes: usize,
    /// Most fields of a head; every cookie crumb counts.
    pub fields: usize,
    /// Streams the peer may have open at a time.
    pub streams: u32,
    /// Bytes a stream may receive before its reader has taken some.
    pub stream_window: u32,
    /// The same for the whole connection, at least 65,535.
    pub connection_window: u32,
    /// RST_STREAM the peer may send a second.
    pub resets: u32,
    /// Stream errors it may cause a second.
    pub errors: u32,
    /// PING a second.
    pub pings: u32,
    /// SETTINGS a second.
    pub settings: u32,
    /// Frames a second that carry nothing: DATA and field blocks without bytes.
    pub empty: u32,
    /// Window updates a second of less than 256 bytes, beyond two for each frame of DATA we sent.
    pub small_updates: u32,
    /// CONTINUATION frames in one field block.
    pub continuations: u32,
    /// Other oddities, a number that halves every second.
    pub glitches: u32,
}

impl Default for Limits {
    /// For 128 streams.
    fn default() -> Self {
        Self::for_streams(128)
    }
}

impl Limits {
    /// Figures that attacks run into and clients in use do not: one that leaves a page may reset all
    /// its streams, and those it opened since.
    #[must_use]
    pub fn for_streams(streams: u32) -> Self {
        let resets = streams.saturating_mul(2).max(100);
        Self {
            head_bytes: 32 * 1024,
            fields: 100,
            streams,
            stream_window: 128 * 1024,
            connection_window: 1024 * 1024,
            resets,
            errors: resets,
            pings: 100,
            settings: 50,
            empty: 100,
            small_updates: 500,
            continuations: 20,
            glitches: 100,
        }
    }
}

/// What is counted by the second.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Reset,
    Error,
    Ping,
    Settings,
    Empty,
    SmallUpdate,
    Glitch,
}

const KINDS: usize = 7;

/// Counts of the current second; of [`Kind::Glitch`] half of the earlier ones count too.
#[derive(Debug, Default)]
pub(super) struct Rates {
    second: u64,
    counts: [u32; KINDS],
}

impl Rates {
    /// Counts one; an error once there are more than `limits` allows.
    pub(super) fn count(&mut self, kind: Kind, limits: &Limits, now_ms: u64) -> Result<(), Reason> {
        let second = now_ms / 1000;
        let glitches = self.counts[Kind::Glitch as usize];
        if second != self.second {
            let halvings = u32::try_from(second.saturating_sub(self.second)).unwrap_or(32).min(31);
            self.second = second;
            self.counts = [0; KINDS];
            self.counts[Kind::Glitch as usize] = glitches >> halvings;
        }
        let count = &mut self.counts[kind as usize];
        *count += 1;
        let (max, reason) = match kind {
            Kind::Reset => (limits.resets, Reason::ResetFlood),
            Kind::Error => (limits.errors, Reason::ErrorFlood),
            Kind::Ping => (limits.pings, Reason::PingFlood),
            Kind::Settings => (limits.settings, Reason::SettingsFlood),
            Kind::Empty => (limits.empty, Reason::EmptyFlood),
            Kind::SmallUpdate => (limits.small_updates, Reason::WindowFlood),
            Kind::Glitch => (limits.glitches, Reason::GlitchFlood),
        };
        if *count > max { Err(reason) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_streams_may_be_reset_twice_a_second() {
        for (streams, resets) in [(1, 100), (50, 100), (128, 256), (u32::MAX, u32::MAX)] {
            let limits = Limits::for_streams(streams);
            assert_eq!((limits.resets, limits.errors, limits.streams), (resets, resets, streams));
        }
    }

    #[test]
    fn counts_start_anew_each_second_and_glitches_fade() {
        let (mut rates, limits) = (Rates::default(), Limits::default());
        for now in [0, 1000, 1999, 5000] {
            for _ in 0..50 {
                assert_eq!(rates.count(Kind::Ping, &limits, now), Ok(()));
            }
        }
        for _ in 0..50 {
            assert_eq!(rates.count(Kind::Ping, &limits, 5001), Ok(()));
        }
        assert_eq!(rates.count(Kind::Ping, &limits, 5002), Err(Reason::PingFlood));
        for _ in 0..100 {
            assert_eq!(rates.count(Kind::Glitch, &limits, 6000), Ok(()));
        }
        for _ in 0..50 {
            assert_eq!(rates.count(Kind::Glitch, &limits, 7000), Ok(()));
        }
        assert_eq!(rates.count(Kind::Glitch, &limits, 7000), Err(Reason::GlitchFlood));
        assert_eq!(rates.count(Kind::Glitch, &limits, u64::MAX), Ok(()));
    }
}
