//! Records: taking them off the stream of bytes, opening and sealing them.
//!
//! Both directions work in place, in a vector that holds one record, so that a byte is copied once
//! between the buffer it was received in and the one it is sent from.

use std::fmt;
use std::ops::Range;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use rustls::ConnectionTrafficSecrets;

use super::{alert, content};

/// Bytes of a record's header.
pub const HEADER_LEN: usize = 5;
/// Most bytes of plaintext in a record (RFC 8446 section 5.1).
pub const FRAGMENT_MAX: usize = 1 << 14;
/// Most bytes a record adds to its plaintext: header, explicit nonce or content type, tag.
pub const OVERHEAD_MAX: usize = HEADER_LEN + 8 + TAG_LEN;

const TAG_LEN: usize = 16;
/// What TLS 1.2 allows beyond the plaintext, which is more than TLS 1.3 does.
const EXPANSION_MAX: usize = 2048;
const NONCE_LEN: usize = 12;
const EXPLICIT_LEN: usize = 8;
/// Records that one AES-GCM key may seal (RFC 8446 section 5.5 allows 2^24.5).
const GCM_RECORDS_MAX: u64 = 1 << 24;
/// Of these, how many are kept for what is under way.
const LAST_RECORDS: u64 = 1 << 20;

/// Why a record cannot be taken; [`RecordError::alert`] is what the peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordError {
    /// The first bytes are no record's header.
    NotTls,
    /// Longer than a record may be.
    TooLong,
    /// It does not decrypt: damaged, forged or repeated.
    BadMac,
    /// A content type that cannot come now.
    Unexpected,
}

impl RecordError {
    /// The alert description.
    #[must_use]
    pub fn alert(self) -> u8 {
        match self {
            Self::NotTls | Self::Unexpected => alert::UNEXPECTED_MESSAGE,
            Self::TooLong => alert::RECORD_OVERFLOW,
            Self::BadMac => alert::BAD_RECORD_MAC,
        }
    }
}

/// The length of the record that begins with these bytes, header included; `None` while the header
/// is incomplete.
///
/// # Errors
/// When it cannot be a record.
pub fn record_len(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let valid =
        |kind: u8| (content::CHANGE_CIPHER_SPEC..=content::APPLICATION_DATA).contains(&kind);
    if bytes.first().is_some_and(|kind| !valid(*kind)) || bytes.get(1).is_some_and(|v| *v != 3) {
        return Err(RecordError::NotTls);
    }
    let Some(&[_, _, _, high, low]) = bytes.first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > FRAGMENT_MAX + EXPANSION_MAX {
        return Err(RecordError::TooLong);
    }
    Ok(Some(HEADER_LEN + length))
}

/// How a version and cipher lay out nonce and content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// TLS 1.3: the nonce is implied, the content type encrypted.
    Tls13,
    /// TLS 1.2 with AES-GCM: eight bytes of the nonce are sent (RFC 5288).
    Tls12Gcm,
    /// TLS 1.2 with ChaCha20-Poly1305: the nonce is implied (RFC 7905).
    Tls12Chacha,
}

/// The protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2
    Tls12,
    /// TLS 1.3
    Tls13,
}

/// The keys of one direction.
struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    layout: Layout,
    /// Records these keys may be used for.
    records_max: u64,
}

impl Keys {
    /// `None` for secrets of a cipher that is not known here.
    fn new(version: Version, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Self> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return None,
        };
        let chacha = matches!(secrets, ConnectionTrafficSecrets::Chacha20Poly1305 { .. });
        let layout = match version {
            Version::Tls13 => Layout::Tls13,
            Version::Tls12 if chacha => Layout::Tls12Chacha,
            Version::Tls12 => Layout::Tls12Gcm,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).ok()?);
        let iv = iv.as_ref().try_into().ok()?;
        let records_max = if chacha { u64::MAX } else { GCM_RECORDS_MAX };
        Some(Self { key, iv, sequence, layout, records_max })
    }

    /// The initialisation vector with the sequence number mixed in (RFC 8446 section 5.3).
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, mixed) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= mixed;
        }
        nonce
    }

    /// What TLS 1.2 authenticates besides the fragment (RFC 5246 section 6.2.3.3).
    fn data12(&self, kind: u8, length: usize) -> [u8; 13] {
        let mut data = [0; 13];
        data[..8].copy_from_slice(&self.sequence.to_be_bytes());
        data[8] = kind;
        data[9..11].copy_from_slice(&VERSION);
        data[11..].copy_from_slice(&short(length));
        data
    }
}

/// The version in a record's header: that of TLS 1.2, for TLS 1.3 too.
const VERSION: [u8; 2] = [3, 3];

/// Two bytes of a length that is known to be at most that of a record.
fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Seals what goes out.
pub struct Sealer(Keys);

impl Sealer {
    /// With these secrets, after `sequence` records; `None` for a cipher that is not known here.
    #[must_use]
    pub fn new(
        version: Version,
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Option<Self> {
        Keys::new(version, sequence, secrets).map(Self)
    }

    /// True when new keys are due.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.0.sequence >= self.0.records_max
    }

    /// True when a connection that cannot change its keys (TLS 1.2) should end in order, since what
    /// is left is kept for the messages under way: 16 GiB in full records.
    #[must_use]
    pub fn is_nearly_worn(&self) -> bool {
        self.0.layout != Layout::Tls13
            && self.0.records_max.saturating_sub(self.0.sequence) <= LAST_RECORDS
    }

    /// Appends one record with `parts` in it, of [`FRAGMENT_MAX`] bytes together at most; false,
    /// and nothing appended, when that cannot be.
    #[must_use]
    pub fn seal(&mut self, kind: u8, parts: &[&[u8]], out: &mut Vec<u8>) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > FRAGMENT_MAX || self.0.sequence == u64::MAX {
            return false;
        }
        let start = out.len();
        out.reserve(length + OVERHEAD_MAX);
        let sealed = match self.0.layout {
            Layout::Tls13 => self.seal13(kind, parts, length, out),
            Layout::Tls12Gcm | Layout::Tls12Chacha => self.seal12(kind, parts, length, out),
        };
        match sealed {
            Some(()) => self.0.sequence += 1,
            None => out.truncate(start),
        }
        sealed.is_some()
    }

    fn seal13(&self, kind: u8, parts: &[&[u8]], length: usize, out: &mut Vec<u8>) -> Option<()> {
        let [high, low] = short(length + 1 + TAG_LEN);
        let header = [content::APPLICATION_DATA, VERSION[0], VERSION[1], high, low];
        out.extend_from_slice(&header);
        let start = out.len();
        parts.iter().for_each(|part| out.extend_from_slice(part));
        out.push(kind);
        self.encrypt(self.0.nonce(), header, start, out)
    }

    fn seal12(&self, kind: u8, parts: &[&[u8]], length: usize, out: &mut Vec<u8>) -> Option<()> {
        let nonce = self.0.nonce();
        let explicit = if self.0.layout == Layout::Tls12Gcm {
            &nonce[NONCE_LEN - EXPLICIT_LEN..]
        } else {
            &[]
        };
        let [high, low] = short(explicit.len() + length + TAG_LEN);
        out.extend_from_slice(&[kind, VERSION[0], VERSION[1], high, low]);
        out.extend_from_slice(explicit);
        let start = out.len();
        parts.iter().for_each(|part| out.extend_from_slice(part));
        self.encrypt(nonce, self.0.data12(kind, length), start, out)
    }

    fn encrypt(
        &self,
        nonce: [u8; NONCE_LEN],
        data: impl AsRef<[u8]>,
        start: usize,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = out.get_mut(start..)?;
        let tag = self.0.key.seal_in_place_separate_tag(nonce, Aad::from(data), plain).ok()?;
        out.extend_from_slice(tag.as_ref());
        Some(())
    }
}

/// Opens what comes in.
pub struct Opener(Keys);

/// An opened record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its content type.
    pub kind: u8,
    /// Where its plaintext stands in what was given.
    pub range: Range<usize>,
}

impl Opener {
    /// With these secrets, after `sequence` records; `None` for a cipher that is not known here.
    #[must_use]
    pub fn new(
        version: Version,
        sequence: u64,
        secrets: &ConnectionTrafficSecrets,
    ) -> Option<Self> {
        Keys::new(version, sequence, secrets).map(Self)
    }

    /// Decrypts one whole record, header included, where it stands.
    ///
    /// # Errors
    /// See [`RecordError`]; the connection is over then.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let Some((&header, body)) =
            record.split_first_chunk_mut::<HEADER_LEN>().map(|(h, b)| (&*h, b))
        else {
            return Err(RecordError::NotTls);
        };
        let opened = match self.0.layout {
            Layout::Tls13 => self.open13(header, body),
            Layout::Tls12Gcm | Layout::Tls12Chacha => self.open12(header, body),
        }?;
        if opened.range.len() > FRAGMENT_MAX {
            return Err(RecordError::TooLong);
        }
        self.0.sequence = self.0.sequence.checked_add(1).ok_or(RecordError::BadMac)?;
        let range = opened.range.start + HEADER_LEN..opened.range.end + HEADER_LEN;
        Ok(Opened { kind: opened.kind, range })
    }

    fn open13(&self, header: [u8; HEADER_LEN], body: &mut [u8]) -> Result<Opened, RecordError> {
        if header[0] != content::APPLICATION_DATA {
            return Err(RecordError::Unexpected);
        }
        let nonce = Nonce::assume_unique_for_key(self.0.nonce());
        let plain = self.0.key.open_in_place(nonce, Aad::from(header), body);
        let plain = plain.map_err(|_| RecordError::BadMac)?;
        if plain.len() > FRAGMENT_MAX + 1 {
            return Err(RecordError::TooLong); // padding counts (RFC 8446 section 5.4)
        }
        let end = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected)?;
        Ok(Opened { kind: plain[end], range: 0..end })
    }

    fn open12(&self, header: [u8; HEADER_LEN], body: &mut [u8]) -> Result<Opened, RecordError> {
        let (nonce, skip) = if self.0.layout == Layout::Tls12Gcm {
            let explicit = body.get(..EXPLICIT_LEN).ok_or(RecordError::BadMac)?;
            let mut nonce = self.0.iv;
            nonce[NONCE_LEN - EXPLICIT_LEN..].copy_from_slice(explicit);
            (nonce, EXPLICIT_LEN)
        } else {
            (self.0.nonce(), 0)
        };
        let length = body.len().checked_sub(skip + TAG_LEN).ok_or(RecordError::BadMac)?;
        let data = self.0.data12(header[0], length);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = body.get_mut(skip..).ok_or(RecordError::BadMac)?;
        let plain = self.0.key.open_in_place(nonce, Aad::from(data), sealed);
        let length = plain.map_err(|_| RecordError::BadMac)?.len();
        Ok(Opened { kind: header[0], range: skip..skip + length })
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("sequence", &self.0.sequence).finish_non_exhaustive()
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener").field("sequence", &self.0.sequence).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    use super::*;

    fn secrets(cipher: usize) -> ConnectionTrafficSecrets {
        let (key, iv) = (AeadKey::from([7; 32]), Iv::copy(&[9; 12]));
        match cipher {
            0 => ConnectionTrafficSecrets::Aes256Gcm { key, iv },
            _ => ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv },
        }
    }

    fn pair(version: Version, cipher: usize) -> (Sealer, Opener) {
        let sealer = Sealer::new(version, 5, &secrets(cipher)).expect("a known cipher");
        (sealer, Opener::new(version, 5, &secrets(cipher)).expect("a known cipher"))
    }

    #[test]
    fn what_was_sealed_opens_once_and_in_order() {
        for version in [Version::Tls12, Version::Tls13] {
            for cipher in 0..2 {
                let (mut sealer, mut opener) = pair(version, cipher);
                let mut records = [Vec::new(), Vec::new()];
                assert!(sealer.seal(23, &[b"ab", b"c"], &mut records[0]));
                assert!(sealer.seal(21, &[&[1, 0]], &mut records[1]));
                assert_eq!(record_len(&records[0]), Ok(Some(records[0].len())));
                let copy = records[0].clone();
                let opened = opener.open(&mut records[0]).expect("sealed with the same keys");
                assert_eq!((opened.kind, &records[0][opened.range]), (23, &b"abc"[..]));
                assert_eq!(opener.open(&mut copy.clone()), Err(RecordError::BadMac), "replayed");
                let opened = opener.open(&mut records[1]).expect("the next");
                assert_eq!((opened.kind, &records[1][opened.range]), (21, &[1, 0][..]));
            }
        }
    }

    #[test]
    fn a_full_fragment_fits_and_one_byte_more_does_not() {
        let (mut sealer, mut opener) = pair(Version::Tls13, 0);
        let (whole, mut out) = (vec![1; FRAGMENT_MAX], Vec::new());
        assert!(!sealer.seal(23, &[&whole, b"x"], &mut out) && out.is_empty());
        assert!(sealer.seal(23, &[&whole], &mut out));
        assert_eq!(opener.open(&mut out).map(|opened| opened.range.len()), Ok(FRAGMENT_MAX));
    }

    #[test]
    fn padding_is_taken_off_and_nothing_but_padding_refused() {
        let (mut sealer, mut opener) = pair(Version::Tls13, 1);
        let mut padded = Vec::new();
        assert!(sealer.seal(0, &[b"x", &[23, 0, 0]], &mut padded));
        let opened = opener.open(&mut padded).expect("padded");
        assert_eq!((opened.kind, opened.range.len()), (23, 1));
        let mut empty = Vec::new();
        assert!(sealer.seal(0, &[&[0, 0]], &mut empty));
        assert_eq!(opener.open(&mut empty), Err(RecordError::Unexpected));
    }

    #[test]
    fn headers() {
        for (bytes, says) in [
            (&b""[..], Ok(None)),
            (b"\x16\x03", Ok(None)),
            (b"\x16\x03\x01\x00\x05", Ok(Some(10))),
            (b"GET / HTTP/1.1\r\n", Err(RecordError::NotTls)),
            (b"\x16\x02\x00\x00\x05", Err(RecordError::NotTls)),
            (b"\x80\x2e", Err(RecordError::NotTls)),
            (b"\x17\x03\x03\x48\x01", Err(RecordError::TooLong)),
        ] {
            assert_eq!(record_len(bytes), says, "{bytes:?}");
        }
    }

    #[test]
    fn keys_wear_out() {
        let worn =
            |cipher| Sealer::new(Version::Tls13, 1 << 24, &secrets(cipher)).unwrap().is_worn();
        assert!(worn(0) && !worn(1));
        let nearly = |version, sequence, cipher| {
            Sealer::new(version, sequence, &secrets(cipher)).unwrap().is_nearly_worn()
        };
        let begin = (1 << 24) - (1 << 20);
        assert!(nearly(Version::Tls12, begin, 0) && !nearly(Version::Tls12, begin - 1, 0));
        assert!(nearly(Version::Tls12, 1 << 25, 0) && !nearly(Version::Tls12, 1 << 25, 1));
        assert!(!nearly(Version::Tls13, 1 << 24, 0));
    }

    proptest! {
        #[test]
        fn damage_is_noticed(text in proptest::collection::vec(any::<u8>(), 0..200),
                             at in 5usize..220, flip in 1u8.., twelve: bool, cipher in 0usize..2) {
            let version = if twelve { Version::Tls12 } else { Version::Tls13 };
            let (mut sealer, mut opener) = pair(version, cipher);
            let mut record = Vec::new();
            prop_assert!(sealer.seal(23, &[&text], &mut record));
            prop_assume!(at < record.len());
            record[at] ^= flip;
            prop_assert_eq!(opener.open(&mut record), Err(RecordError::BadMac));
        }

        #[test]
        fn any_bytes_are_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), twelve: bool) {
            let version = if twelve { Version::Tls12 } else { Version::Tls13 };
            prop_assert!(pair(version, 0).1.open(&mut bytes).is_err());
        }
    }
}
