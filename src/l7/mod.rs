//! The layer-7 reverse proxy: routing, header rules, upstreams and the life of a request.

pub mod access_log;
pub mod config;
pub mod forwarded;
pub mod request_id;
pub mod router;
pub mod template;
pub mod time;
