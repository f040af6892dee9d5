//! HTTP/1.0 and HTTP/1.1 messages (RFC 9110, RFC 9112), pure: bytes in, values out.
//!
//! A message is read in three steps. [`HeadScanner`] finds the end of the head while bytes arrive;
//! [`RequestHead`] or [`ResponseHead`] parses the collected head and settles the [`Framing`], and finds the
//! end itself of one that came whole; [`BodyDecoder`] then tells body bytes from framing bytes. [`Target`] and [`normalise_host`] bring
//! a request's target and host into the one form that is both routed and forwarded. [`encode`]
//! writes messages from the parsed form; received bytes are never passed on as framing.
//!
//! Everything is refused that two implementations might read differently. An error closes the
//! connection: after it nothing is known about where the next message starts.

pub mod encode;

mod block;
mod body;
mod connection;
mod error;
mod fields;
mod framing;
mod host;
mod lines;
mod message;
mod request;
mod response;
mod scan;
mod target;
mod trailers;

pub use body::{BodyDecoder, BodyError, Step};
pub use connection::ConnectionOptions;
pub use error::{Fault, HeadError};
pub use fields::{Copied, FIELDS_MAX, Field, FieldId, Span};
pub use framing::{Framing, FramingError};
pub use host::{HostError, normalise_host, validate_host};
pub use message::{Method, Version};
pub use request::{RequestError, RequestHead};
pub use response::{ResponseError, ResponseHead};
pub use scan::{HEAD_BYTES_MAX, HeadScanner, Limits, Scan};
pub use target::{Target, TargetError};
pub use trailers::may_trail;
