//! The control thread: configuration, start and stop, logs, name resolution, the admin endpoint.

pub mod admin;
pub mod api;
pub mod certificates;
pub mod config;
pub mod director;
pub mod events;
#[cfg(test)]
mod frames;
mod handshakes;
pub mod hardening;
pub mod health;
pub mod history;
pub mod l4_checks;
pub mod logger;
pub mod metrics;
pub mod page;
pub mod persist;
pub mod probing;
pub mod pulse;
pub mod reload;
pub mod resolve;
pub mod servers;
pub mod state;
pub mod status;
pub mod supervise;
pub mod systemd;
pub mod tracing;
pub mod tuning;
pub mod upgrade;
pub mod virtual_servers;
pub mod vrrp;
