//! Handshake messages that come after the handshake: split out of their records, one by one.

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

/// Longer than a message may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// Collects the bytes of messages.
#[derive(Debug, Default)]
pub struct Messages(Vec<u8>);

impl Messages {
    /// Takes in the content of one record.
    pub fn push(&mut self, fragment: &[u8]) {
        self.0.extend_from_slice(fragment);
    }

    /// True between messages: a change of keys is only allowed there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes off the next whole message: its type and body.
    ///
    /// # Errors
    /// When it is longer than [`MESSAGE_MAX`].
    pub fn pop(&mut self) -> Result<Option<(u8, Vec<u8>)>, TooLong> {
        let Some(&[kind, a, b, c]) = self.0.first_chunk() else { return Ok(None) };
        let end = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
        if end > MESSAGE_MAX {
            return Err(TooLong);
        }
        let Some(message) = self.0.get(4..end) else { return Ok(None) };
        let message = message.to_vec();
        self.0.drain(..end);
        if self.0.is_empty() {
            self.0 = Vec::new(); // an idle connection holds nothing
        }
        Ok(Some((kind, message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_however_they_were_cut() {
        let bytes = [4, 0, 0, 2, 7, 8, 24, 0, 0, 1, 0, 0, 0, 0, 0];
        for cut in 0..bytes.len() {
            let mut messages = Messages::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                messages.push(part);
                while let Some(message) = messages.pop().expect("short") {
                    seen.push(message);
                }
            }
            assert_eq!(seen, [(4, vec![7, 8]), (24, vec![0]), (0, vec![])]);
            assert!(messages.is_empty());
        }
    }

    #[test]
    fn a_message_that_claims_too_much_is_refused_before_it_comes() {
        let mut messages = Messages::default();
        messages.push(&[4, 1, 255, 255]);
        assert_eq!(messages.pop(), Err(TooLong));
    }
}
