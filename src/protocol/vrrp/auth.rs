//! Authentication: version 2's password, and the HMAC trailer of keepalived 2.4
//! (draft-cassen-vrrp-auth-hmac).

use std::net::IpAddr;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Error, Family, Version};

/// Length of the trailer behind an advertisement.
pub const HMAC_TRAILER: usize = 28;
/// What of the trailer stands before the HMAC and is covered by it.
const TRAILER_HEAD: usize = 12;
/// Bytes that the truncated HMAC has.
const TAG: usize = 16;
/// Trailer type: HMAC-SHA256 truncated to 128 bits.
const HMAC_SHA256_128: u8 = 1;
/// Senders whose last sequence is remembered.
const SLOTS: usize = 8;
/// Where the checksum stands in an advertisement.
const CHECKSUM: std::ops::Range<usize> = 6..8;

/// Version 2's simple text password (RFC 2338 section 5.3.6), zero-padded. It crosses the wire in
/// clear and only keeps routers apart that were configured apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password([u8; 8]);

impl Password {
    /// At most 8 bytes; `None` if longer or empty (keepalived would cut it silently).
    #[must_use]
    pub fn new(text: &[u8]) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        let mut bytes = [0; 8];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self(bytes))
    }

    pub(super) const fn bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// Compares in constant time.
    pub(super) fn matches(&self, data: &[u8; 8]) -> bool {
        std::hint::black_box(self.0.iter().zip(data).fold(0, |all, (a, b)| all | (a ^ b))) == 0
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(..)")
    }
}

/// How far a roll-out of HMAC has come. A trailer that is there is verified in every mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HmacMode {
    /// Sends none, needs none: the first step, while peers still get their keys.
    ReceiveOnly,
    /// Sends one, needs none: the second step.
    Permissive,
    /// Sends one and drops what has none.
    Enforce,
}

/// A key shared by all routers of a virtual router.
#[derive(Clone)]
pub struct HmacKey {
    id: u8,
    state: Hmac<Sha256>,
}

impl HmacKey {
    /// `secret` is 32 to 64 bytes; `None` otherwise.
    #[must_use]
    pub fn new(id: u8, secret: &[u8]) -> Option<Self> {
        if !(32..=64).contains(&secret.len()) {
            return None;
        }
        Some(Self { id, state: Hmac::new_from_slice(secret).ok()? })
    }

    /// The number by which trailers name the key.
    #[must_use]
    pub const fn id(&self) -> u8 {
        self.id
    }

    /// The MAC over pseudo header, advertisement (its checksum as zero) and trailer head.
    fn mac(&self, vrid: u8, source: IpAddr, pdu: &[u8], head: &[u8; TRAILER_HEAD]) -> Hmac<Sha256> {
        let mut pseudo = [0; 20];
        pseudo[..4].copy_from_slice(&[family_number(source), 3, vrid, 0]);
        match source {
            IpAddr::V4(address) => pseudo[4..8].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => pseudo[4..].copy_from_slice(&address.octets()),
        }
        let mut mac = self.state.clone();
        mac.update(&pseudo);
        mac.update(pdu.get(..CHECKSUM.start).unwrap_or_default());
        mac.update(&[0; 2]);
        mac.update(pdu.get(CHECKSUM.end..).unwrap_or_default());
        mac.update(head);
        mac.update(&[0; TAG]);
        mac
    }

    /// Appends the trailer to the advertisement in `out`.
    pub(super) fn append(&self, out: &mut Vec<u8>, vrid: u8, source: IpAddr, stamp: Stamp) {
        let mut head = [0; TRAILER_HEAD];
        head[..2].copy_from_slice(&[HMAC_SHA256_128, self.id]);
        head[4..].copy_from_slice(&stamp.0.to_be_bytes());
        let tag = self.mac(vrid, source, out, &head).finalize().into_bytes();
        out.extend_from_slice(&head);
        out.extend(tag.iter().take(TAG));
    }
}

/// The same number and secret, which is told by what the keys make of nothing.
impl PartialEq for HmacKey {
    fn eq(&self, other: &Self) -> bool {
        let tag = |key: &Self| key.state.clone().finalize().into_bytes();
        self.id == other.id && tag(self) == tag(other)
    }
}

impl std::fmt::Debug for HmacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HmacKey").field("id", &self.id).finish_non_exhaustive()
    }
}

const fn family_number(source: IpAddr) -> u8 {
    match Family::of(source) {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// The sequence of a trailer: Unix seconds, 1/65536 seconds, and a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp(u64);

impl Stamp {
    /// From its value on the wire.
    #[must_use]
    pub const fn from_wire(value: u64) -> Self {
        Self(value)
    }

    /// The stamp of the time `unix` since 1970, with a counter of zero.
    #[must_use]
    pub fn at(unix: Duration) -> Self {
        let fraction = (u64::from(unix.subsec_nanos()) << 16) / 1_000_000_000;
        // Seconds are 32 bits on the wire and wrap in 2106, which the ordering allows for.
        Self((unix.as_secs() << 32) | (fraction << 16))
    }

    /// The next to send after `self` at the time `unix`: always later than `self`, even if the
    /// clock went back.
    #[must_use]
    pub fn next(self, unix: Duration) -> Self {
        let now = Self::at(unix);
        if now.is_after(self) || self == Self::default() {
            now
        } else {
            Self(self.0.wrapping_add(1))
        }
    }

    /// Serial number ordering (RFC 1982).
    fn is_after(self, other: Self) -> bool {
        let ahead = self.0.wrapping_sub(other.0);
        ahead != 0 && ahead < 1 << 63
    }

    /// The time between two stamps, in whole seconds rounded up.
    fn distance(self, other: Self) -> u64 {
        let ahead = self.0.wrapping_sub(other.0);
        ahead.min(ahead.wrapping_neg()).div_ceil(1 << 32)
    }
}

/// The last sequence of each sender, so that a recorded advertisement is not believed twice.
#[derive(Debug)]
pub(super) struct Replay {
    /// Most recently heard last.
    slots: Vec<(IpAddr, Stamp)>,
}

impl Replay {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new() }
    }

    /// Whether `stamp` of `source` is newer than its last.
    fn is_fresh(&self, source: IpAddr, stamp: Stamp) -> bool {
        self.slots.iter().all(|(who, last)| *who != source || stamp.is_after(*last))
    }

    /// Remembers it; a ninth sender replaces the one not heard for longest.
    fn record(&mut self, source: IpAddr, stamp: Stamp) {
        self.slots.retain(|(who, _)| *who != source);
        if self.slots.len() >= SLOTS {
            self.slots.remove(0);
        }
        self.slots.push((source, stamp));
    }
}

/// What a trailer has to be judged against.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrailerOf<'a> {
    pub(super) version: Version,
    pub(super) vrid: u8,
    pub(super) source: IpAddr,
    pub(super) pdu: &'a [u8],
    pub(super) trailer: &'a [u8; HMAC_TRAILER],
    /// Now, since 1970.
    pub(super) unix: Duration,
    /// How far the sender's clock may be off.
    pub(super) window: Duration,
}

/// Verifies a trailer: cheap checks first, the MAC, and only then is the sequence taken over.
pub(super) fn verify(
    keys: &[HmacKey],
    replay: &mut Replay,
    of: &TrailerOf<'_>,
) -> Result<(), Error> {
    let (head, tag) = of.trailer.split_first_chunk::<TRAILER_HEAD>().ok_or(Error::Length)?;
    let [kind, id, reserved @ .., s0, s1, s2, s3, s4, s5, s6, s7] = *head;
    if kind != HMAC_SHA256_128 || reserved != [0, 0] || of.version != Version::V3 {
        return Err(Error::HmacKey);
    }
    let key = keys.iter().find(|key| key.id == id).ok_or(Error::HmacKey)?;
    let stamp = Stamp(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]));
    let off = stamp.distance(Stamp::at(of.unix));
    if off > of.window.as_secs() || !replay.is_fresh(of.source, stamp) {
        return Err(Error::Replay);
    }
    let mac = key.mac(of.vrid, of.source, of.pdu, head);
    mac.verify_truncated_left(tag).map_err(|_| Error::Hmac)?;
    replay.record(of.source, stamp);
    Ok(())
}
