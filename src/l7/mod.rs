//! The layer-7 reverse proxy: routing, header rules, upstreams and the life of a request.

pub mod config;
pub mod router;
pub mod template;
