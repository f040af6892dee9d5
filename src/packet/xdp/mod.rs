//! The director's fast path: an XDP program, assembled here.

pub mod assembler;
mod fast_path;
mod flow_table;
pub mod layout;
pub mod program;
mod siphash;

pub use fast_path::{Error, FastPath, Limits, Service, Tables, Totals, clock};
pub use flow_table::{FlowTable, Timeouts};

#[cfg(test)]
mod tests;
