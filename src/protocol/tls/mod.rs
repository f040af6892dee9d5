//! The parts of TLS that a connection needs once its handshake is over, and before it begins: records
//! (RFC 8446 section 5, RFC 5246 section 6), messages after the handshake, the name in a
//! ClientHello, and a few fields of certificates. The handshake itself is rustls' work.

pub mod client_hello;
pub mod message;
pub mod record;
pub mod x509;

/// Record content types (RFC 8446 section 5.1).
pub mod content {
    /// Only inside handshakes.
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    /// Errors and the end of a direction.
    pub const ALERT: u8 = 21;
    /// Handshake messages, some of which come later.
    pub const HANDSHAKE: u8 = 22;
    /// What the connection is for.
    pub const APPLICATION_DATA: u8 = 23;
}

/// Alert descriptions (RFC 8446 section 6).
pub mod alert {
    /// The sender will send no more.
    pub const CLOSE_NOTIFY: u8 = 0;
    /// A message that does not belong here.
    pub const UNEXPECTED_MESSAGE: u8 = 10;
    /// A record that does not decrypt.
    pub const BAD_RECORD_MAC: u8 = 20;
    /// A record that is too long.
    pub const RECORD_OVERFLOW: u8 = 22;
    /// A message that cannot be parsed.
    pub const DECODE_ERROR: u8 = 50;
    /// The sender gives up for a reason that is not the protocol's.
    pub const INTERNAL_ERROR: u8 = 80;
    /// The user gave up; a close_notify follows.
    pub const USER_CANCELED: u8 = 90;
    /// TLS 1.2: no second handshake on this connection.
    pub const NO_RENEGOTIATION: u8 = 100;
}
