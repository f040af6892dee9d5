//! Ringgate's library half; see `ARCHITECTURE.md`.

pub mod balance;
pub mod cli;
pub mod control;
pub mod l7;
pub mod protocol;
