//! The control thread: configuration, start and stop, logs, name resolution, the admin endpoint.

pub mod admin;
pub mod certificates;
pub mod config;
pub mod health;
pub mod logger;
pub mod metrics;
pub mod resolve;
pub mod state;
pub mod status;
pub mod supervise;
pub mod tuning;
pub mod vrrp;
