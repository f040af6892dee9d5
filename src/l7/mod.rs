//! The layer-7 reverse proxy: routing, header rules, upstreams and the life of a request.

pub mod access_log;
pub mod channel;
pub mod clients;
pub mod config;
pub mod connection;
pub mod exchange;
pub mod flow;
pub mod forwarded;
pub mod generation;
pub mod headers;
pub mod http2;
pub mod input;
pub mod log;
pub mod metrics;
pub mod output;
pub mod pool;
pub mod proxy;
pub mod reply;
pub mod request_id;
pub mod router;
pub mod template;
pub mod time;
pub mod tls;
pub mod transport;
pub mod upstream;
pub mod worker;
