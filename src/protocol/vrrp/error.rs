//! Why an advertisement is dropped.

/// Why a received datagram is no advertisement for this virtual router. All are drops; none changes
/// the state of the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Error {
    /// The IP header is cut short, not of the stated family, not protocol 112, or a fragment.
    IpHeader,
    /// Shorter or longer than its own fields say.
    Length,
    /// Neither version 2 nor 3, or version 2 over IPv6.
    Version,
    /// A version that is not the configured one.
    OtherVersion,
    /// Not an ADVERTISEMENT (type 1).
    Type,
    /// The TTL or hop limit is not 255, or outside the range configured for unicast.
    HopLimit,
    /// The checksum is wrong in every form allowed.
    Checksum,
    /// A VRID that is not configured on the interface.
    Vrid,
    /// No address, or an IPv6 list that does not begin with a link-local one.
    AddressList,
    /// Version 3: an interval of zero (RFC 9568 erratum 8301).
    Interval,
    /// Version 2: another interval than ours; all routers must share one.
    IntervalMismatch,
    /// Multicast where unicast is configured, or the other way round.
    Destination,
    /// A source that is not one of the configured peers, or no possible source at all.
    Source,
    /// Sent by this router itself.
    Own,
    /// Version 2: an authentication type that is not the configured one.
    AuthType,
    /// Version 2: a wrong password.
    Password,
    /// No HMAC trailer where one is required.
    HmacMissing,
    /// The HMAC names a key or an algorithm that is not known.
    HmacKey,
    /// The HMAC is wrong.
    Hmac,
    /// The HMAC trailer is too old, too far ahead, or seen before.
    Replay,
}

impl Error {
    /// Every error, in the order of [`Error::index`].
    pub const ALL: [Self; 20] = [
        Self::IpHeader,
        Self::Length,
        Self::Version,
        Self::OtherVersion,
        Self::Type,
        Self::HopLimit,
        Self::Checksum,
        Self::Vrid,
        Self::AddressList,
        Self::Interval,
        Self::IntervalMismatch,
        Self::Destination,
        Self::Source,
        Self::Own,
        Self::AuthType,
        Self::Password,
        Self::HmacMissing,
        Self::HmacKey,
        Self::Hmac,
        Self::Replay,
    ];

    /// A dense number, to index an array of counters of `ALL.len()`.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The value of the metric's `reason` label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IpHeader => "ip_header",
            Self::Length => "length",
            Self::Version => "version",
            Self::OtherVersion => "other_version",
            Self::Type => "type",
            Self::HopLimit => "hop_limit",
            Self::Checksum => "checksum",
            Self::Vrid => "vrid",
            Self::AddressList => "address_list",
            Self::Interval => "interval",
            Self::IntervalMismatch => "interval_mismatch",
            Self::Destination => "destination",
            Self::Source => "source",
            Self::Own => "own",
            Self::AuthType => "auth_type",
            Self::Password => "password",
            Self::HmacMissing => "hmac_missing",
            Self::HmacKey => "hmac_key",
            Self::Hmac => "hmac",
            Self::Replay => "replay",
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IpHeader => "malformed IP header",
            Self::Length => "length does not match the contents",
            Self::Version => "unknown VRRP version",
            Self::OtherVersion => "other VRRP version than configured",
            Self::Type => "not an advertisement",
            Self::HopLimit => "TTL or hop limit not allowed",
            Self::Checksum => "wrong checksum",
            Self::Vrid => "virtual router ID not configured here",
            Self::AddressList => "bad address list",
            Self::Interval => "advertisement interval of zero",
            Self::IntervalMismatch => "other advertisement interval than configured",
            Self::Destination => "destination not allowed",
            Self::Source => "source not allowed",
            Self::Own => "own advertisement",
            Self::AuthType => "other authentication type than configured",
            Self::Password => "wrong password",
            Self::HmacMissing => "HMAC trailer missing",
            Self::HmacKey => "HMAC key or algorithm unknown",
            Self::Hmac => "wrong HMAC",
            Self::Replay => "stale or replayed",
        })
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_its_own_counter() {
        let mut names: Vec<_> = Error::ALL.iter().map(|e| e.name()).collect();
        for (position, error) in Error::ALL.iter().enumerate() {
            assert_eq!(error.index(), position);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Error::ALL.len());
    }
}
