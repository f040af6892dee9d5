//! What one stream may hold of the receive buffers, and the kernel of its output: pure.
//!
//! Whoever reads slowly leaves what was received for it in two places: in receive buffers, which all connections of the
//! ring share, and unsent in the kernel, where a small window makes hundreds of segments of it. Both are small until a
//! reader has shown that it takes what it is given, and smaller the fewer buffers are left. One buffer at a time is
//! allowed always, so that everybody moves.

use super::timer::Millis;

/// A reader that makes room in the kernel within this time keeps up: 16 KiB in 100 ms are 160 kB/s, and a ring or a client
/// that was not scheduled for a while does not look slow.
const QUICK_MS: Millis = 100;
/// One that was quick is slow again after this time: longer than a round trip, in which a window is silent once.
const STALLED_MS: Millis = 250;

/// Unsent bytes the kernel takes for a reader that has not shown to be quick.
pub const UNSENT: u32 = 32 * 1024;
/// The same for one that has.
const UNSENT_QUICK: u32 = 128 * 1024;
/// As many times more with each relief.
const RELIEF: u32 = 4;
/// After so many the kernel takes what its send buffer holds.
const RELIEFS_MAX: u8 = 3;

/// What a stream's reader has shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reader {
    /// The kernel has always had room.
    #[default]
    Untried,
    /// It has made room at once when there was none.
    Quick,
    /// It has not.
    Slow,
}

/// How much of the receive buffers is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// A quarter of what there may be at most.
    Low,
    /// Three quarters at most.
    High,
    /// More: who holds something gets nothing.
    Scarce,
}

impl Pressure {
    /// That of a pool of which so many buffers are in use.
    #[must_use]
    pub fn of(used: u16, limit: u16) -> Self {
        let quarters = u32::from(used) * 4;
        match u32::from(limit) {
            limit if quarters <= limit => Self::Low,
            limit if quarters <= 3 * limit => Self::High,
            _ => Self::Scarce,
        }
    }
}

impl Reader {
    /// What it is taken for while the kernel has had no room for so long, if it has none.
    pub(super) fn seen(self, full_for: Option<Millis>) -> Self {
        match (self, full_for) {
            (seen, None) => seen,
            (Self::Quick, Some(time)) if time < STALLED_MS => Self::Quick,
            _ => Self::Slow,
        }
    }

    /// What it is once it has made room after so long.
    pub(super) fn after(self, full_for: Millis) -> Self {
        if full_for < QUICK_MS { Self::Quick } else { self.seen(Some(full_for)) }
    }

    /// What it is once an operation that nothing had to wait before took so long.
    pub(super) fn after_send(self, time: Millis) -> Self {
        if time < STALLED_MS { self } else { Self::Slow }
    }

    /// Bytes that may wait in our memory before its source is read on.
    pub(super) fn hold(self, pressure: Pressure) -> usize {
        let kib = match (pressure, self) {
            (Pressure::Low, Self::Quick) => 128,
            (Pressure::Low, Self::Untried) | (Pressure::High, Self::Quick) => 64,
            (Pressure::Low, Self::Slow) | (Pressure::High, Self::Untried) => 32,
            (Pressure::High, Self::Slow) => 16,
            (Pressure::Scarce, _) => 0,
        };
        kib * 1024
    }

    /// Unsent bytes that the kernel is to take, after so many reliefs.
    pub(super) fn unsent(self, reliefs: u8) -> u32 {
        let bytes = if self == Self::Quick { UNSENT_QUICK } else { UNSENT };
        if reliefs < RELIEFS_MAX { bytes * RELIEF.pow(reliefs.into()) } else { u32::MAX }
    }
}

/// One relief more, if there is one.
pub(super) fn relieved(reliefs: u8) -> Option<u8> {
    (reliefs < RELIEFS_MAX).then(|| reliefs + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn the_fewer_are_left_the_less_may_one_hold() {
        let table = [
            // used of 1,024, then bytes of an untried, a quick and a slow reader
            (0, [64, 128, 32]),
            (256, [64, 128, 32]),
            (257, [32, 64, 16]),
            (768, [32, 64, 16]),
            (769, [0, 0, 0]),
            (1024, [0, 0, 0]),
        ];
        for (used, kib) in table {
            let pressure = Pressure::of(used, 1024);
            let held =
                [Reader::Untried, Reader::Quick, Reader::Slow].map(|reader| reader.hold(pressure));
            assert_eq!(held, kib.map(|kib| kib * KIB), "{used} used");
        }
        assert_eq!(Pressure::of(u16::MAX, u16::MAX), Pressure::Scarce);
        assert_eq!(Pressure::of(0, 0), Pressure::Low);
    }

    #[test]
    fn a_reader_is_what_it_has_shown() {
        use Reader::{Quick, Slow, Untried};
        let table = [
            // was, full for, seen meanwhile, afterwards
            (Untried, 0, Slow, Quick),
            (Untried, 99, Slow, Quick),
            (Untried, 100, Slow, Slow),
            (Slow, 99, Slow, Quick),
            (Slow, 100, Slow, Slow),
            (Quick, 99, Quick, Quick),
            (Quick, 249, Quick, Quick),
            (Quick, 250, Slow, Slow),
        ];
        for (reader, full_for, meanwhile, after) in table {
            let got = (reader.seen(Some(full_for)), reader.after(full_for));
            assert_eq!(got, (meanwhile, after), "{reader:?}, full for {full_for} ms");
            let rest = (reader.seen(None), reader.after_send(249), reader.after_send(250));
            assert_eq!(rest, (reader, reader, Slow));
        }
    }

    #[test]
    fn each_relief_gives_the_kernel_more_until_it_takes_all() {
        let mut reliefs = Some(0);
        let mut unsent = Vec::new();
        while let Some(now) = reliefs {
            unsent.push(Reader::Slow.unsent(now));
            reliefs = relieved(now);
        }
        assert_eq!(unsent, [32 << 10, 128 << 10, 512 << 10, u32::MAX]);
        assert_eq!(Reader::Untried.unsent(0), Reader::Slow.unsent(0));
        assert_eq!(Reader::Quick.unsent(0), 128 << 10);
    }
}
