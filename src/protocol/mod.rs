//! Pure codecs and state machines: bytes and a passed-in time in, values out; no socket, no clock.

pub mod http1;
pub mod http2;
pub mod proxy_protocol;
pub mod tls;
