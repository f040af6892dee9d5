//! Session tickets (RFC 5077, RFC 8446 section 4.6.1) that every shard, and with a shared secret
//! every node, can read.
//!
//! A ticket is sealed with AES-256-GCM under a key derived (HKDF-SHA256) from a secret, the period
//! of time, and the scope: what is asked of clients. So a ticket given where no certificate is
//! asked for cannot be read where one is. Keys change with each period; a ticket is good until the
//! end of the period after its own.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;

/// Bytes of the part of a ticket that tells which key it is sealed with.
const NAME_LEN: usize = 16;
const KEY_LEN: usize = 32;
/// Least characters of a secret in a file.
pub const SECRET_MIN: usize = 32;
/// Most secrets in a file.
pub const SECRETS_MAX: usize = 8;

/// What ticket keys are made from. Not shown, not even for debugging.
#[derive(Clone)]
pub struct Secret {
    bytes: Vec<u8>,
    /// The period it is good for; `None`: any.
    period: Option<u64>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("period", &self.period).finish_non_exhaustive()
    }
}

impl Secret {
    /// Random, and good for one period: when it is gone, its tickets are unreadable for ever.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn random(period: u64) -> Result<Self, &'static str> {
        let mut bytes = vec![0; KEY_LEN];
        rand::fill(&mut bytes).map_err(|_| "no random bytes from the system")?;
        Ok(Self { bytes, period: Some(period) })
    }

    /// Of a file: each line that is not empty is one; the first seals.
    ///
    /// # Errors
    /// What is wrong with it; nothing of its content.
    pub fn from_file(text: &[u8]) -> Result<Vec<Self>, String> {
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let secrets: Vec<Self> = lines
            .filter(|line| !line.is_empty())
            .map(|line| Self { bytes: line.to_vec(), period: None })
            .collect();
        if secrets.is_empty() {
            return Err("is empty: write a line of `openssl rand -base64 48` into it".into());
        }
        if secrets.len() > SECRETS_MAX {
            return Err(format!("has more than {SECRETS_MAX} lines: remove the oldest secrets"));
        }
        if secrets.iter().any(|secret| secret.bytes.len() < SECRET_MIN) {
            return Err(format!(
                "has a line of fewer than {SECRET_MIN} characters, which can be guessed: write \
                 lines of `openssl rand -base64 48`"
            ));
        }
        Ok(secrets)
    }

    /// A random secret of an earlier process.
    #[must_use]
    pub fn import(period: u64, bytes: Vec<u8>) -> Self {
        Self { bytes, period: Some(period) }
    }

    /// Period and bytes of a random secret, for this process's successor; a file's secrets are read by it.
    #[must_use]
    pub fn export(&self) -> Option<(u64, Vec<u8>)> {
        Some((self.period?, self.bytes.clone()))
    }

    /// Good for this period.
    #[must_use]
    pub fn is_of(&self, period: u64) -> bool {
        self.period == Some(period)
    }

    fn key(&self, scope: &[u8], period: u64) -> Option<Key> {
        struct Length;
        impl KeyType for Length {
            fn len(&self) -> usize {
                NAME_LEN + KEY_LEN
            }
        }
        let mut derived = [0; NAME_LEN + KEY_LEN];
        let prk = Salt::new(HKDF_SHA256, b"ringgate session tickets 1").extract(&self.bytes);
        let info = [scope, &period.to_be_bytes()];
        prk.expand(&info, Length).ok()?.fill(&mut derived).ok()?;
        let (name, key) = derived.split_first_chunk::<NAME_LEN>()?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
        Some(Key { name: *name, key })
    }
}

struct Key {
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

/// The keys of one scope in one period.
pub struct Tickets {
    /// The first seals.
    keys: Vec<Key>,
    lifetime: u32,
}

impl Tickets {
    /// For a scope, in a period of `lifetime` seconds; the periods before and after are read too
    /// (the latter for a node whose clock is ahead).
    #[must_use]
    pub fn new(secrets: &[Secret], scope: &[u8], period: u64, lifetime: u32) -> Self {
        let periods = [period, period.wrapping_sub(1), period.wrapping_add(1)];
        let keys = periods.iter().flat_map(|period| {
            let good = |secret: &&Secret| secret.period.is_none_or(|only| only == *period);
            secrets.iter().filter(good).filter_map(|secret| secret.key(scope, *period))
        });
        Self { keys: keys.collect(), lifetime }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        self.lifetime
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME_LEN + NONCE_LEN + plain.len() + 16);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(&nonce);
        let start = ticket.len();
        ticket.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag =
            key.key.seal_in_place_separate_tag(nonce, Aad::from(key.name), &mut ticket[start..]);
        ticket.extend_from_slice(tag.ok()?.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let key = self.keys.iter().find(|key| key.name == *name)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key.key.open_in_place(nonce, Aad::from(*name), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef\n";

    fn tickets(file: &[u8], scope: &[u8], period: u64) -> Tickets {
        Tickets::new(&Secret::from_file(file).expect("long enough"), scope, period, 3600)
    }

    #[test]
    fn who_has_the_secret_reads_a_ticket_and_nobody_else() {
        let ticket = tickets(SECRET, b"open", 7).encrypt(b"state").expect("random bytes");
        for (period, reads) in [(5, false), (6, true), (7, true), (8, true), (9, false)] {
            let read = tickets(SECRET, b"open", period).decrypt(&ticket);
            assert_eq!(read.is_some(), reads, "{period}");
        }
        assert_eq!(tickets(SECRET, b"open", 7).decrypt(&ticket).as_deref(), Some(&b"state"[..]));
        assert!(tickets(SECRET, b"certificate required", 7).decrypt(&ticket).is_none());
        assert!(tickets(&[b"f", SECRET].concat(), b"open", 7).decrypt(&ticket).is_none());
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert!(tickets(SECRET, b"open", 7).decrypt(&damaged).is_none(), "{at}");
            assert!(tickets(SECRET, b"open", 7).decrypt(&ticket[..at]).is_none(), "{at}");
        }
    }

    #[test]
    fn an_older_secret_still_opens() {
        let both = [b"ffffffffffffffffffffffffffffffffffff\n", SECRET].concat();
        let old = tickets(SECRET, b"", 1).encrypt(b"x").expect("random bytes");
        assert!(tickets(&both, b"", 1).decrypt(&old).is_some());
        let new = tickets(&both, b"", 1).encrypt(b"x").expect("random bytes");
        assert!(tickets(SECRET, b"", 1).decrypt(&new).is_none());
    }

    #[test]
    fn random_secrets_end_with_their_period() {
        let secrets = [Secret::random(3).unwrap(), Secret::random(4).unwrap()];
        let ticket = Tickets::new(&secrets[..1], b"", 3, 60).encrypt(b"x").unwrap();
        assert!(Tickets::new(&secrets, b"", 4, 60).decrypt(&ticket).is_some());
        assert!(Tickets::new(&secrets[1..], b"", 4, 60).decrypt(&ticket).is_none());
        assert!(!Tickets::new(&secrets, b"", 9, 60).enabled());
    }

    #[test]
    fn files_that_are_refused() {
        for text in [&b""[..], b"\n \n", b"short\n", &SECRET.repeat(9)] {
            assert!(Secret::from_file(text).is_err());
        }
        let shown = format!("{:?}", Secret::from_file(SECRET).unwrap());
        assert!(!shown.contains("0123") && !shown.contains("48, 49"), "{shown}");
    }
}
