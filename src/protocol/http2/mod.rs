//! HTTP/2 (RFC 9113), pure: bytes in, events out; no socket, no clock.
//!
//! [`Connection`] is one end of a connection, of either role. Received bytes go into
//! [`Connection::receive`], which tells of one event at a time; payload of DATA frames is named by its
//! place in the input and never copied. What the connection itself has to answer collects in
//! [`Connection::output`]; heads and DATA are framed into buffers of the caller's.
//!
//! A decoded field list leaves here as the text of an HTTP/1.1 head ([`message`]), so that the checks
//! of [`http1`](crate::protocol::http1) are the only ones that decide what a request or response means.
//! What that text could not say without ambiguity (CR, LF, NUL, fields of the connection, pseudo-fields
//! out of place, a body that does not match its length) is refused before it is written.

mod connection;
mod error;
mod frame;
pub mod hpack;
mod limits;
pub mod message;
mod receive;
mod settings;
mod stream;

pub use connection::{Connection, Role};
pub use error::{Code, ConnectionError, Reason};
pub use frame::{FRAME_HEADER_LEN, PREFACE};
pub use limits::Limits;
pub use receive::{Event, Step};
