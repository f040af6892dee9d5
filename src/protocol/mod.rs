//! Pure codecs and state machines: bytes and a passed-in time in, values out; no socket, no clock.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod http1;
pub mod http2;
pub mod icmp;
pub mod ip;
pub mod ndp;
pub mod proxy_protocol;
pub mod segments;
pub mod tls;
pub mod trace_context;
pub mod transport;
pub mod vrrp;
