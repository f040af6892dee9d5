//! Advertisement intervals and the timers computed from them (RFC 9568 section 6.1).

use std::time::Duration;

use super::Version;

/// An advertisement interval: a whole number of centiseconds, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(u16);

impl Interval {
    /// A tenth of a second, our default with version 3.
    pub const TENTH: Self = Self(10);
    /// One second, the default of the RFCs.
    pub const SECOND: Self = Self(100);
    /// The longest that version 3 can say (12 bits).
    const MAX_V3: u16 = 4095;

    /// From centiseconds, as version 3 carries them: 1 to 4095.
    #[must_use]
    pub const fn from_centiseconds(centiseconds: u16) -> Option<Self> {
        match centiseconds {
            1..=Self::MAX_V3 => Some(Self(centiseconds)),
            _ => None,
        }
    }

    /// From seconds, as version 2 carries them: 1 to 255.
    #[must_use]
    pub const fn from_seconds(seconds: u8) -> Option<Self> {
        match seconds {
            0 => None,
            _ => Some(Self(seconds as u16 * 100)),
        }
    }

    /// From a duration, if `version` can carry it exactly.
    #[must_use]
    pub fn from_duration(duration: Duration, version: Version) -> Option<Self> {
        if !duration.as_nanos().is_multiple_of(10_000_000) {
            return None;
        }
        let centiseconds = duration.as_millis() / 10;
        match version {
            Version::V2 if centiseconds.is_multiple_of(100) => {
                Self::from_seconds(u8::try_from(centiseconds / 100).ok()?)
            }
            Version::V2 => None,
            Version::V3 => Self::from_centiseconds(u16::try_from(centiseconds).ok()?),
        }
    }

    /// In centiseconds.
    #[must_use]
    pub const fn centiseconds(self) -> u16 {
        self.0
    }

    /// In whole seconds, rounded down; at most 255.
    #[must_use]
    pub fn seconds(self) -> u8 {
        u8::try_from(self.0 / 100).unwrap_or(u8::MAX)
    }

    /// As a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0 as u64 * 10)
    }
}

/// `Skew_Time`: the higher the priority, the sooner a backup claims. Version 2 takes a share of a
/// second (RFC 3768 section 6.1), version 3 of the active router's interval.
#[must_use]
pub fn skew(version: Version, priority: u8, active: Interval) -> Duration {
    let base = match version {
        Version::V2 => Duration::from_secs(1),
        Version::V3 => active.duration(),
    };
    base * (256 - u32::from(priority)) / 256
}

/// `Active_Down_Interval` (`Master_Down_Interval` in version 2): `adverts` intervals, three in the
/// RFCs, and the skew.
#[must_use]
pub fn active_down(version: Version, priority: u8, active: Interval, adverts: u8) -> Duration {
    active.duration() * u32::from(adverts) + skew(version, priority, active)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_of_the_rfcs() {
        let cs = |n| Interval::from_centiseconds(n).unwrap();
        // (version, priority, interval, skew in us, active down in us)
        let table = [
            (Version::V2, 100, cs(100), 609_375, 3_609_375),
            (Version::V2, 100, cs(200), 609_375, 6_609_375),
            (Version::V2, 254, cs(100), 7_812, 3_007_812),
            (Version::V3, 100, cs(100), 609_375, 3_609_375),
            (Version::V3, 100, cs(10), 60_937, 360_937),
            (Version::V3, 100, cs(1), 6_093, 36_093),
            (Version::V3, 1, cs(1), 9_960, 39_960),
            (Version::V3, 255, cs(4095), 159_960, 123_009_960),
        ];
        for (version, priority, interval, skew_us, down_us) in table {
            assert_eq!(skew(version, priority, interval).as_micros(), skew_us);
            assert_eq!(active_down(version, priority, interval, 3).as_micros(), down_us);
        }
    }

    #[test]
    fn what_each_version_can_carry() {
        let ms = Duration::from_millis;
        let table = [
            (10, None, Some(1)),
            (5, None, None),
            (15, None, None),
            (0, None, None),
            (400, None, Some(40)),
            (1_000, Some(100), Some(100)),
            (40_950, None, Some(4095)),
            (41_000, Some(4100), None),
            (255_000, Some(25_500), None),
            (256_000, None, None),
        ];
        for (millis, v2, v3) in table {
            let of = |v| Interval::from_duration(ms(millis), v).map(Interval::centiseconds);
            assert_eq!((of(Version::V2), of(Version::V3)), (v2, v3), "{millis} ms");
        }
        assert_eq!(Interval::from_centiseconds(4096), None);
    }
}
