//! The director's fast path: an XDP program, assembled here.

pub mod assembler;
mod fast_path;
pub mod layout;
pub mod program;
mod siphash;

pub use fast_path::{Error, FastPath, FlowTable, Limits, Service, Tables, Totals, clock};

#[cfg(test)]
mod tests;
