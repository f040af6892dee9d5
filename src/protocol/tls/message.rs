//! Handshake messages that come after the handshake: split out of their records, one by one.

use super::alert;
use super::record::{FRAGMENT_MAX, Version};

/// Most bytes of one message: a session ticket of 64 KiB with its frame (RFC 8446 section 4.6.1).
pub const MESSAGE_MAX: usize = 4 + 68 * 1024;

/// Message types (RFC 8446 section 4, RFC 5246 section 7.4).
pub mod kind {
    /// TLS 1.2: the server asks for another handshake.
    pub const HELLO_REQUEST: u8 = 0;
    /// TLS 1.2, once the handshake is over: the client wants another one.
    pub const CLIENT_HELLO: u8 = 1;
    /// A ticket for a later connection.
    pub const NEW_SESSION_TICKET: u8 = 4;
    /// The peer's keys change.
    pub const KEY_UPDATE: u8 = 24;
}

/// A KeyUpdate that asks for none in return, as it goes out (RFC 8446 section 4.6.3).
pub const KEY_UPDATE: [u8; 5] = [kind::KEY_UPDATE, 0, 0, 1, 0];

/// Why a message is refused, once its first four bytes are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Longer than one of its type may be.
    TooLong,
    /// Of a type that this peer cannot send now.
    Unexpected,
}

impl Refused {
    /// The alert description.
    #[must_use]
    pub fn alert(self) -> u8 {
        match self {
            Self::TooLong => alert::DECODE_ERROR,
            Self::Unexpected => alert::UNEXPECTED_MESSAGE,
        }
    }
}

/// Whom messages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// We serve.
    Client,
    /// We ask.
    Server,
}

/// Most bytes of a message's body after the handshake; `None`: there is no such message.
fn body_max(version: Version, peer: Peer, kind: u8) -> Option<usize> {
    match (version, peer, kind) {
        (Version::Tls13, _, kind::KEY_UPDATE) => Some(1),
        (Version::Tls13, Peer::Server, kind::NEW_SESSION_TICKET) => Some(MESSAGE_MAX - 4),
        (Version::Tls12, Peer::Server, kind::HELLO_REQUEST) => Some(0),
        (Version::Tls12, Peer::Client, kind::CLIENT_HELLO) => Some(FRAGMENT_MAX),
        _ => None,
    }
}

/// Session tickets of one server that are kept on one connection; the rest is ignored.
const TICKETS_MAX: u8 = 8;

/// What a peer may still ask for on a connection.
#[derive(Debug, Default)]
pub struct Allowance {
    renegotiated: bool,
    tickets: u8,
}

impl Allowance {
    /// Whether another handshake that is asked for is refused with a warning; the second time the
    /// connection ends.
    pub fn renegotiation(&mut self) -> bool {
        !std::mem::replace(&mut self.renegotiated, true)
    }

    /// Whether a ticket is kept.
    pub fn ticket(&mut self) -> bool {
        let kept = self.tickets < TICKETS_MAX;
        self.tickets += u8::from(kept);
        kept
    }
}

/// Collects the bytes of messages.
#[derive(Debug)]
pub struct Messages {
    version: Version,
    peer: Peer,
    bytes: Vec<u8>,
    /// Bytes taken off the front.
    taken: usize,
}

impl Messages {
    /// From this peer.
    #[must_use]
    pub fn new(version: Version, peer: Peer) -> Self {
        Self { version, peer, bytes: Vec::new(), taken: 0 }
    }

    /// Takes in the content of one record.
    pub fn push(&mut self, fragment: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(fragment);
    }

    /// True between messages: a change of keys is only allowed there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.taken
    }

    /// Takes off the next whole message: its type and body.
    ///
    /// # Errors
    /// When the peer may not send it; known before all of it has come.
    pub fn pop(&mut self) -> Result<Option<(u8, Vec<u8>)>, Refused> {
        let left = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((&[kind, a, b, c], rest)) = left.split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let most = body_max(self.version, self.peer, kind).ok_or(Refused::Unexpected)?;
        if length > most {
            return Err(Refused::TooLong);
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message = message.to_vec();
        self.taken += 4 + length;
        if self.is_empty() {
            (self.bytes, self.taken) = (Vec::new(), 0); // an idle connection holds nothing
        }
        Ok(Some((kind, message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_however_they_were_cut() {
        let bytes = [4, 0, 0, 2, 7, 8, 24, 0, 0, 1, 0, 4, 0, 0, 0];
        for cut in 0..bytes.len() {
            let mut messages = Messages::new(Version::Tls13, Peer::Server);
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                messages.push(part);
                while let Some(message) = messages.pop().expect("short") {
                    seen.push(message);
                }
            }
            assert_eq!(seen, [(4, vec![7, 8]), (24, vec![0]), (4, vec![])]);
            assert!(messages.is_empty());
        }
    }

    #[test]
    fn a_message_that_cannot_be_is_refused_before_it_comes() {
        use Refused::{TooLong, Unexpected};
        use {Peer::Client, Peer::Server, Version::Tls12, Version::Tls13};
        for (version, peer, header, says) in [
            (Tls13, Server, [4, 1, 255, 255], Err(TooLong)),
            (Tls13, Server, [4, 1, 16, 0], Ok(None)),
            (Tls13, Client, [4, 0, 0, 1], Err(Unexpected)),
            (Tls13, Client, [24, 0, 0, 1], Ok(None)),
            (Tls13, Client, [24, 0, 0, 2], Err(TooLong)),
            (Tls13, Client, [1, 0, 0, 1], Err(Unexpected)),
            (Tls12, Client, [1, 0, 64, 0], Ok(None)),
            (Tls12, Client, [1, 0, 64, 1], Err(TooLong)),
            (Tls12, Server, [1, 0, 0, 1], Err(Unexpected)),
            (Tls12, Server, [0, 0, 0, 0], Ok(Some((0, vec![])))),
            (Tls12, Client, [0, 0, 0, 0], Err(Unexpected)),
            (Tls12, Client, [24, 0, 0, 1], Err(Unexpected)),
        ] {
            let mut messages = Messages::new(version, peer);
            messages.push(&header);
            assert_eq!(messages.pop(), says, "{version:?} {peer:?} {header:?}");
        }
    }

    #[test]
    fn many_messages_in_a_record_are_taken_where_they_stand() {
        let mut messages = Messages::new(Version::Tls12, Peer::Client);
        messages.push(&[[1, 0, 0, 0]; 4096].concat());
        for left in (0..4096).rev() {
            assert_eq!(messages.pop(), Ok(Some((1, vec![]))));
            assert_eq!(messages.bytes.len(), if left == 0 { 0 } else { 4 * 4096 });
            assert_eq!(messages.is_empty(), left == 0);
        }
        assert_eq!(messages.pop(), Ok(None));
    }

    #[test]
    fn what_a_peer_may_ask_for_ends() {
        let mut allowance = Allowance::default();
        assert!(allowance.renegotiation());
        assert!(!allowance.renegotiation() && !allowance.renegotiation());
        let kept = (0..1000).filter(|_| allowance.ticket()).count();
        assert_eq!(kept, 8);
    }
}
