//! Messages of Ringgate's own, by which a backup that its operator prefers asks the active router to finish what is under
//! way and hand over.
//!
//! They look like an advertisement but for the type, which RFC 9568 section 5.2.2 leaves to the future: other routers
//! discard them (section 7.1). They go to one router by unicast and carry [`super::LAST_RESORT`] as the priority, which
//! moves nothing even where the type is not looked at.

use super::Error;

/// What a VRRP message is, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Type 1, the only one of the RFCs.
    Advertisement,
    /// One of ours.
    Signal(Signal),
}

/// A message of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signal {
    /// Type 13: finish what is under way, then resign in favour of me.
    HandOver,
    /// Type 14, the answer: I am at it.
    Accepted,
    /// Type 15, the answer: I will not.
    Refused,
}

impl Kind {
    /// # Errors
    /// [`Error::Type`].
    pub(super) const fn from_wire(kind: u8) -> Result<Self, Error> {
        Ok(match kind {
            1 => Self::Advertisement,
            13 => Self::Signal(Signal::HandOver),
            14 => Self::Signal(Signal::Accepted),
            15 => Self::Signal(Signal::Refused),
            _ => return Err(Error::Type),
        })
    }

    pub(super) const fn to_wire(self) -> u8 {
        match self {
            Self::Advertisement => 1,
            Self::Signal(Signal::HandOver) => 13,
            Self::Signal(Signal::Accepted) => 14,
            Self::Signal(Signal::Refused) => 15,
        }
    }
}
