//! The XDP program as the director's fast path: what it is given, and what it is told of flows.
//!
//! The program decides by [`crate::l4::tables::Tables`] like [`crate::l4::Director`]. Schedulers that only need a hash (`mh`, `sh`) it
//! serves whole. For the others the packet socket schedules, and the program forwards the rest of
//! each flow. A frame that it leaves alone reaches the packet socket as if there were no program.

mod learn;
mod tables;

pub use learn::Learner;
pub use tables::translate;

#[cfg(test)]
mod tests;
